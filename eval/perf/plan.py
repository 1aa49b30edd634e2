"""Compare what a plan says with what a run takes: tokens of an estimate, and time.

    python -m eval.perf.plan tokens --data-dir DIR --tokenizer FILE|NAME [--tokenizer ...]
    python -m eval.perf.plan time [--lm chat] [--rows N]

*tokens* counts the texts of each data set, and the instruction that a chat gets above them, by
tokenizers of LMs behind APIs (a `tokenizer.json`, or a name such as o200k_base of the package
`bpe-openai`), and divides the estimate by that; four bytes a token stand beside it. *time* plans
and trains on the bundled sample, each in a process of its own, with an empty store and with one
that has the answers about every other row: with the embedded LM, and over chats and completions of
`eval.perf.endpoint`, whose requests are said to cost money.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from backends.api.request_format import NEXT_WORD
from blackbox.backend import estimate_tokens
from blackbox.tables import read_examples
from eval.perf.endpoint import running_endpoint

DATA_SETS = (
    *("sst2", "agnews", "trec", "banking77", "sib200_deu", "sib200_fra", "sib200_spa"),
    *("sib200_swh", "sib200_zho", "sib200_arb"),
)
_ROWS = 300
_BYTES = 4  # a token
LMS = ("embedded", "chat", "completions")
_PRICE = {"provider": "openai-compatible", "model": "made-up", "input": 1.0, "output": 4.0}


@click.group()
def main() -> None:
    """Compare plans with runs."""


@main.command()
@click.option("--data-dir", type=click.Path(path_type=Path), required=True)
@click.option("--tokenizer", "tokenizers", metavar="FILE|NAME", multiple=True)
def tokens(data_dir: Path, tokenizers: Sequence[str]) -> None:
    """Divide estimates by the counts of tokenizers."""
    print("| data | tokenizer | text alone | with the instruction | four bytes a token |")
    print("|---|---|---|---|---|")
    for one in tokenizers:
        count = _counter(one)
        for name in DATA_SETS:
            texts = read_examples(data_dir / name / "train.csv").texts[:_ROWS]
            shown = [f"{NEXT_WORD}\n\n{text}" for text in texts]
            ratios = [
                sum(estimate_tokens(str(text)) for text in some) / sum(map(count, some))
                for some in (texts, shown)
            ]
            plain = sum(len(str(text).encode()) / _BYTES for text in texts)
            ratios.append(plain / sum(map(count, texts)))
            shares = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {name} | {Path(one).parent.name or one} | {shares} |")


def _counter(tokenizer: str) -> Callable[[object], int]:
    """Return what counts the tokens of a text."""
    if not tokenizer.endswith(".json"):
        import bpe_openai

        encoding = bpe_openai.get_encoding(tokenizer)
        return lambda text: len(encoding.encode(str(text)))
    from tokenizers import Tokenizer

    read = Tokenizer.from_file(tokenizer)
    return lambda text: len(read.encode(str(text), add_special_tokens=False).ids)


@main.command("time")
@click.option("--lm", "lms", multiple=True, type=click.Choice(LMS), default=LMS)
@click.option("--rows", default=0, help="Rows of the sample to train on.  [default: all]")
@click.option("--seconds", default=0.3, show_default=True, help="Median time of an API's answer.")
def measure_time(lms: Sequence[str], rows: int, seconds: float) -> None:
    """Compare the planned and the taken seconds of trainings."""
    sample = resources.files("blackbox").joinpath("samples", "train.csv").read_text("utf-8")
    table = list(csv.reader(io.StringIO(sample)))
    table = table[: rows + 1] if rows else table
    print("| LM | store | seconds planned | taken | ratio |")
    print("|---|---|---|---|---|")
    with running_endpoint(seconds) as url, TemporaryDirectory() as folder:
        prices = Path(folder) / "prices.json"
        prices.write_text(json.dumps({"prices": [_PRICE]}))
        os.environ |= {"OPENAI_API_KEY": "none", "PROMPTBOOSTING_PRICES": str(prices)}
        for name in lms:
            options = []
            if name != "embedded":
                options = ["--backend", "openai", "--model", "made-up"]
                options += ["--backend-option", f"base_url={url}"]
                options += ["--backend-option", f"endpoint={name}"]
            for half in (False, True):
                planned, usage = _plan_and_train(table, options, half=half)
                expected, taken = planned["seconds"][1], usage["seconds_total"]
                print(
                    f"| {name} | {'half full' if half else 'empty'} | {expected:.1f} "
                    f"| {taken:.1f} | {expected / taken:.2f} |",
                    flush=True,
                )


def _plan_and_train(
    table: Sequence[Sequence[str]], options: Sequence[str], *, half: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plan and the usage of a training, with an empty or a half full store."""
    with TemporaryDirectory() as folder:
        whole, part = str(Path(folder) / "whole.csv"), str(Path(folder) / "part.csv")
        for name, some in ((whole, table), (part, [table[0], *table[1::2]])):
            with Path(name).open("w", newline="") as file:
                csv.writer(file).writerows(some)
        asked = [*options, "--json", "--store", str(Path(folder) / "store.sqlite")]
        model = ["--out", str(Path(folder) / "m")]
        if half:
            _run("train", part, *asked, *model)
        planned = json.loads(_run("plan", whole, *asked))
        return planned, json.loads(_run("train", whole, *asked, *model))["usage"]


def _run(*arguments: str) -> str:
    """Return what a command prints on standard output."""
    command = [sys.executable, "-m", "blackbox", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()


if __name__ == "__main__":
    main()
