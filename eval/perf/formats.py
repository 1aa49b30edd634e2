"""Compare engines and number formats over the same weights: speed, and agreement.

    python -m eval.perf.formats [--rounds 4] [--way "llama.cpp Q8_0" …]

The bundled sample's texts under ten built-in prompts, the 200 most likely tokens. Ways take turns,
so that whatever else the machine does slows all of them; each round has texts of its own. Answers
are compared with those of transformers in float32. bfloat16 is left out where the processor doesn't
compute in it. Needs the extras `local` and `transformers`.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from backends.catalogue import Q8_0, pull, requantise
from blackbox.generation import builtin_pool
from blackbox.protocol import TokenLogProbs
from blackbox.tables import read_examples

MODEL = "smollm2-135m"
REFERENCE = "transformers float32"
WAYS = (REFERENCE, "transformers bfloat16", "llama.cpp Q8_0", "llama.cpp F32")
_PROMPTS, _TOP_K, _COMPARED = 10, 200, 50


def start(way: str, folder: Path) -> Any:
    """Return the backend of a format; None if the processor doesn't compute in it."""
    engine, kind = way.split()
    if engine == "transformers":
        lm = backends.load("transformers", model=MODEL, dtype="auto" if kind != "float32" else kind)
        return lm if lm.identity.extra["dtype"] == kind else None
    if kind == "Q8_0":
        return backends.load("llamacpp", model=MODEL)
    target = folder / f"lm-{kind}.gguf"
    requantise(pull(MODEL, Q8_0), target, to=kind)
    return backends.load("llamacpp", model=str(target))


def agreement(answers: TokenLogProbs, reference: TokenLogProbs) -> tuple[float, float]:
    """Return the mean difference over the reference's top 50, and how often the top 1 agrees."""
    differences = []
    for row in range(len(reference.token_ids)):
        here = dict(
            zip(answers.token_ids[row].tolist(), answers.log_probs[row].tolist(), strict=True)
        )
        differences += [
            abs(here[token] - value)
            for token, value in zip(
                reference.token_ids[row, :_COMPARED].tolist(),
                reference.log_probs[row, :_COMPARED].tolist(),
                strict=True,
            )
            if token in here
        ]
    same = float((answers.token_ids[:, 0] == reference.token_ids[:, 0]).mean())
    return float(np.mean(differences)), same


@click.command()
@click.option("--way", multiple=True, type=click.Choice(WAYS), default=WAYS)
@click.option("--texts", default=12, show_default=True, help="Texts of each round.")
@click.option("--rounds", default=4, show_default=True)
def main(way: tuple[str, ...], texts: int, rounds: int) -> None:
    """Print the table."""
    folder = Path(tempfile.mkdtemp())
    names = list(dict.fromkeys((REFERENCE, *way)))
    lms = {name: lm for name in names if (lm := start(name, folder)) is not None}
    reference = lms[REFERENCE]
    pool = [p for p in builtin_pool(pair=False, limits=reference.limits) if not p.is_chat]
    sample = Path(str(resources.files("blackbox").joinpath("samples/train.csv")))
    examples = read_examples(sample).texts
    speed: dict[str, list[float]] = {name: [] for name in lms}
    close: dict[str, list[tuple[float, float]]] = {name: [] for name in lms}
    for number in range(rounds):
        some = [examples[(number * texts + row) % len(examples)] for row in range(texts)]
        prompts = [prompt.render(str(text)) for text in some for prompt in pool[:_PROMPTS]]
        answers = {}
        for name, lm in lms.items():
            started = time.perf_counter()
            answers[name] = lm.next_token(prompts, _TOP_K)
            speed[name].append(len(prompts) / (time.perf_counter() - started))
            close[name].append(agreement(answers[name], answers[REFERENCE]))
    click.echo(f"| engine | passes/s | times {REFERENCE} | mean difference | same likeliest |")
    click.echo("|---" * 5 + "|")
    for name in lms:
        ratios = np.array(speed[name]) / np.array(speed[REFERENCE])
        difference, same = np.mean(close[name], axis=0)
        click.echo(
            f"| {name} | {np.median(speed[name]):.0f} | {np.median(ratios):.2f} "
            f"({ratios.min():.2f} to {ratios.max():.2f}) | {difference:.3f} | {same:.0%} |"
        )
    click.echo(
        f"\n{texts} texts × {_PROMPTS} prompts per round, {rounds} rounds, top {_TOP_K}; "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
