"""Measure how cost grows with rows, classes, prompts and text length.

    python -m eval.perf.growth [--repeats 3]

Passes and tokens are counted; seconds to learn are those of training less those inside of the LM,
on the deterministic stand-in with the answers in memory, one thing changed at a time.
"""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import click
import numpy as np

import backends
from blackbox import PromptBoostingClassifier
from blackbox.generation import builtin_pool

BASE = {"rows": 192, "classes": 6, "prompts": 10, "words": 20}
STEPS = {
    "rows": (64, 192, 768, 3072),
    "classes": (2, 6, 20, 77),
    "prompts": (1, 3, 10, 30),
    "words": (5, 20, 80, 320),
}
TOP_K = 200


def make_texts(rows: int, classes: int, words: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return texts of random words, a fifth of them typical of the class, and the labels."""
    rng = np.random.default_rng(seed)
    labels = [f"class{number % classes:02}" for number in range(rows)]
    texts = []
    for label in labels:
        own = rng.integers(0, 3, max(1, words // 5))
        every = rng.integers(0, 2000, words - len(own))
        words_of_text = [f"{label}word{n}" for n in own] + [f"word{n}" for n in every]
        texts.append(" ".join(rng.permutation(words_of_text)))
    return texts, labels


def measure(lm: Any, rows: int, classes: int, prompts: int, words: int) -> tuple[int, int, float]:
    """Return passes, tokens, and the seconds of training without the LM."""
    texts, labels = make_texts(rows, classes, words)
    pool = builtin_pool(limits=lm.limits, class_names=sorted(set(labels)))
    classifier = PromptBoostingClassifier(
        lm, prompts=pool[:prompts], random_state=0, store=False, top_k=TOP_K, embeddings=None
    )
    started = time.perf_counter()
    classifier.fit(texts, labels)
    seconds = time.perf_counter() - started
    usage = classifier.usage_
    return usage.passes_made, usage.tokens, seconds - usage.seconds_lm


@click.command()
@click.option("--repeats", default=3, show_default=True)
def main(repeats: int) -> None:
    """Print the table; seconds are medians, with their range."""
    lm = backends.load("deterministic")
    click.echo("| changed | value | passes | tokens of the prompts | seconds to learn |")
    click.echo("|---|---|---|---|---|")
    for name, values in STEPS.items():
        for value in values:
            found = [measure(lm, **(BASE | {name: value})) for _ in range(repeats)]
            seconds = [one[2] for one in found]
            click.echo(
                f"| {name} | {value} | {found[0][0]:,} | {found[0][1]:,} | "
                f"{np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) |"
            )
    fixed = ", ".join(f"{value} {name}" for name, value in BASE.items())
    click.echo(f"\nOtherwise {fixed}; top {TOP_K}; {platform.machine()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
