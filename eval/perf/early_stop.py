"""What prediction that stops early saves, and what it changes.

    python -m eval.perf.early_stop --data-dir DIR [--store FILE]

For each data set and seed a model over the ten hand-written prompts labels the test rows with all
prompts, until a label is settled for certain, and until it is settled at a small risk; beside it
stands a model that keeps three prompts. Passes come from the store when they are there.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from blackbox import PromptBoostingClassifier
from blackbox.sampling import draw_shots
from eval import data_sets

DATA_SETS = ("trec", "agnews", "sst2")
SEEDS = (13, 21, 42, 87, 100)
WAYS = ("all prompts", "exact", "risk", "three prompts")


def measure(
    lm: Any, data: Any, seed: int, shots: int, n_test: int, store: Any
) -> dict[str, tuple[float, float, float]]:
    """For each way: accuracy, share of labels that changed, and prompts a text."""
    rows = draw_shots(data.train.labels, shots, seed)
    few = data.train.take(rows)
    test = data.test.take(np.random.default_rng(0).permutation(len(data.test.texts))[:n_test])
    truth = np.array(test.labels)
    found: dict[str, tuple[float, float, float]] = {}
    for way in WAYS:
        classifier = PromptBoostingClassifier(
            lm, prompts=data.card.pool(), random_state=seed, store=store,
            max_prompts=3 if way == "three prompts" else None,
            early_stop=way if way in ("exact", "risk") else None,
        ).fit(few.texts, few.labels)  # fmt: skip
        labels = classifier.predict(test.texts)
        if way == "all prompts":
            plain = labels
        asked = float(len(classifier.prompts_))
        if way in ("exact", "risk"):
            asked = float(classifier.prompts_asked_.mean())
        found[way] = float((labels == truth).mean()), float((labels != plain).mean()), asked
    return found


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--shots", default=32, show_default=True)
@click.option("--n-test", default=200, show_default=True)
@click.option("--backend", default="llamacpp", show_default=True)
@click.option("--model")
def main(
    data_dir: Path, store: Path | None, shots: int, n_test: int, backend: str, model: str | None
) -> None:
    """Print the table: means over seeds."""
    lm = backends.load(backend, **({} if model is None else {"model": model}))
    click.echo("| data set | way | accuracy | labels changed | prompts a text |")
    click.echo("|---|---|---|---|---|")
    for name in DATA_SETS:
        data = data_sets.load(name, data_dir)
        found = [measure(lm, data, seed, shots, n_test, store) for seed in SEEDS]
        for way in WAYS:
            accuracy, changed, asked = np.mean([one[way] for one in found], axis=0)
            click.echo(
                f"| {name} | {way} | {100 * accuracy:.1f} | {100 * changed:.2f}% | {asked:.1f} |"
            )
    click.echo(
        f"\n{len(SEEDS)} seeds, {shots} labels a class, {n_test} test rows; {lm!r}; "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
