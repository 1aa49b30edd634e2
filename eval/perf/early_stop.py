"""Measure the passes that early stopping saves, and the labels that it changes.

    python -m eval.perf.early_stop --data-dir DIR [--store FILE] [--fresh-rows 60]

For each data set and seed a model over the ten hand-written prompts labels the test rows with all
prompts, until a label is settled for certain, and until it is settled at a small risk; beside it
stands a model that keeps three prompts. Passes come from the store when they are there. With
`--fresh-rows` so many rows are labelled once more without the store, to see what an engine on this
machine evaluates, which reads what prompts begin with once for all that are asked together.
"""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np

import backends
from blackbox import PromptBoostingClassifier
from blackbox.backend import WrappedBackend
from blackbox.boosting.splits import draw_shots
from blackbox.protocol import Limits
from eval.data import data_sets

DATA_SETS = ("trec", "agnews", "sst2")
SEEDS = (13, 21, 42, 87, 100)
WAYS = ("all prompts", "exact", "risk", "three prompts")


class Billed(WrappedBackend):
    """An LM that bills every pass by itself, whatever the LM is."""

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """The LM's, without prefixes that are read once for several prompts."""
        return replace(self.backend.limits, shares_prefixes=False)


def measure(
    lm: Any, data: Any, seed: int, shots: int, n_test: int, store: Any
) -> dict[str, tuple[float, ...]]:
    """Return for each rule the accuracy, share of changed labels, and prompts per text.

    Prompts where passes are billed one by one, as accuracy and labels are, and where an engine
    reads what prompts begin with once for all that are asked together.
    """
    rows = draw_shots(data.train.labels, data.train.texts, shots, seed)
    few = data.train.take(rows)
    test = data.test.take(np.random.default_rng(0).permutation(len(data.test.texts))[:n_test])
    truth = np.array(test.labels)
    found: dict[str, tuple[float, ...]] = {}
    for way in WAYS:
        asked = []
        for backend in (lm, Billed(lm)):
            classifier = PromptBoostingClassifier(
                backend,
                embeddings=None,
                prompts=data.card.pool(),
                random_state=seed,
                store=store,
                max_prompts=3 if way == "three prompts" else None,
                early_stop=way if way in ("exact", "risk") else None,
            ).fit(few.texts, few.labels)
            labels = classifier.predict(test.texts)
            each = (
                classifier.prompts_asked_ if classifier.early_stop else [len(classifier.prompts_)]
            )
            asked.append(float(np.mean(each)))
        if way == "all prompts":
            plain = labels
        found[way] = (
            float((labels == truth).mean()),
            float((labels != plain).mean()),
            asked[1],
            asked[0],
        )
    return found


def engine_work(
    lm: Any, data: Any, seed: int, shots: int, n: int, store: Any
) -> dict[str, tuple[float, float, float]]:
    """Return for each rule, without the store, passes and tokens per text, and seconds."""
    few = data.train.take(draw_shots(data.train.labels, data.train.texts, shots, seed))
    test = data.test.take(np.random.default_rng(0).permutation(len(data.test.texts))[:n])
    classifier = PromptBoostingClassifier(
        lm, embeddings=None, prompts=data.card.pool(), random_state=seed, store=store
    ).fit(few.texts, few.labels)
    found = {}
    for way in WAYS[:3]:
        classifier.set_params(store=False, early_stop=None if way == "all prompts" else way)
        classifier.predict(test.texts)
        usage = classifier.prediction_usage_
        found[way] = usage.passes_made / n, usage.tokens_evaluated / n, usage.seconds_total
    return found


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--shots", default=32, show_default=True)
@click.option("--n-test", default=200, show_default=True)
@click.option("--fresh-rows", default=0, show_default=True, help="Rows to label without the store.")
@click.option("--backend", default="onnx", show_default=True)
@click.option("--model")
@click.option("--dtype", help="Of transformers and vLLM, as for the backend.")
def main(
    data_dir: Path,
    store: Path | None,
    shots: int,
    n_test: int,
    fresh_rows: int,
    backend: str,
    model: str | None,
    dtype: str | None,
) -> None:
    """Print the table: means over seeds; and what an engine evaluates, for the first seed."""
    given = {"model": model, "dtype": dtype}
    lm = backends.load(backend, **{key: one for key, one in given.items() if one is not None})
    click.echo("| data set | way | accuracy | labels changed | prompts, billed | prompts, engine |")
    click.echo("|---|---|---|---|---|---|")
    for name in DATA_SETS:
        data = data_sets.read_data_set(name, data_dir)
        found = [measure(lm, data, seed, shots, n_test, store) for seed in SEEDS]
        for way in WAYS:
            accuracy, changed, *asked = np.mean([one[way] for one in found], axis=0)
            click.echo(
                f"| {name} | {way} | {100 * accuracy:.1f} | {100 * changed:.2f}% | {asked[0]:.1f} "
                f"| {asked[1]:.1f} |"
            )
    if fresh_rows:
        click.echo("\n| data set | way | passes per text | tokens evaluated per text | seconds |")
        click.echo("|---|---|---|---|---|")
        for name in DATA_SETS:
            data = data_sets.read_data_set(name, data_dir)
            for way, work in engine_work(lm, data, SEEDS[0], shots, fresh_rows, store).items():
                click.echo(f"| {name} | {way} | {work[0]:.1f} | {work[1]:.1f} | {work[2]:.1f} |")
    click.echo(
        f"\n{len(SEEDS)} seeds, {shots} labels per class, {n_test} test rows; {lm!r}; "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
