"""Compare what a plan says with what a run takes: tokens of an estimate, and time.

    python -m eval.perf.plan tokens --data-dir DIR --tokenizer FILE|NAME [--tokenizer ...]
    python -m eval.perf.plan time

*tokens* counts the texts of each data set, and the instruction that a chat gets above them, by
tokenizers of LMs behind APIs (a `tokenizer.json`, or a name such as o200k_base of the package
`bpe-openai`), and divides the estimate by that; four bytes a token stand beside it. *time* plans
and trains on the bundled sample with the embedded LM, each in a process of its own and with an
empty store.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from backends.api.request_format import NEXT_WORD
from blackbox.backend import estimate_tokens
from blackbox.tables import read_examples

DATA_SETS = (
    *("sst2", "agnews", "trec", "banking77", "sib200_deu", "sib200_fra", "sib200_spa"),
    *("sib200_swh", "sib200_zho", "sib200_arb"),
)
_ROWS = 300
_BYTES = 4  # a token


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
def measure_time() -> None:
    """Compare the planned and the taken seconds of a training with the embedded LM."""
    sample = str(resources.files("blackbox").joinpath("samples", "train.csv"))
    with TemporaryDirectory() as folder:
        store = ["--store", str(Path(folder) / "store.sqlite")]
        planned = json.loads(_run("plan", sample, "--json", *store)[0])
        out, seconds = _run("train", sample, "--json", "--out", str(Path(folder) / "m"), *store)
    usage = json.loads(out)["usage"]
    print(f"planned {planned['seconds'][1]:.1f} s, {planned['tokens'][1]} tokens")
    print(
        f"taken   {usage['seconds_total']:.1f} s, {usage['tokens']} tokens "
        f"({seconds:.1f} s with the start of Python)"
    )


def _run(*arguments: str) -> tuple[str, float]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "blackbox", *arguments], capture_output=True, check=True
    )
    return done.stdout.decode(), time.perf_counter() - started


if __name__ == "__main__":
    main()
