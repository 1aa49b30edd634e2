"""Compare steps and numbers of rounds of `logit` with many training rows.

    python -m eval.studies.many_rows --data-dir DIR [--rows 1200] [--data trec] [--store FILE]
        [--backend transformers --model smollm2-135m --dtype auto]

Training rows are answered once under four hand-written prompts. A model is trained on some of them
and judged on 400 others, so that no test row is looked at. Seeds draw other rows.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from blackbox.answers.passes import Answers, next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.methods.base import Codes
from eval.methods.logit_variants import Variant
from eval.studies.common import load_stored_lm

VARIANTS = {
    f"{name}, {rounds} rounds": Variant(rounds=rounds, exact=exact)
    for name, exact in (("exact", True), ("without the mean", False))
    for rounds in (50, 100, 200, 400)
}
_PROMPTS, _JUDGED = 4, 400


def read_answers(name: str, data_dir: Path, lm: Any, n: int) -> tuple[Answers, Codes, list[str]]:
    """Return answers to n training rows of a data set, their classes, and the class names."""
    data = data_sets.read_data_set(name, data_dir)
    rows = np.random.default_rng(0).permutation(len(data.train.labels))[:n]
    some = data.train.take(np.sort(rows).tolist())
    pool = list(data.card.pool())[:_PROMPTS]
    classes, y = np.unique(some.labels, return_inverse=True)
    return next_tokens(lm, pool, check_texts(some.texts), 200), y, classes.tolist()


def judge(
    variant: Variant, answers: Answers, y: Codes, names: list[str], seed: int
) -> tuple[float, float]:
    """Return accuracy in percent and log-loss on held-out training rows."""
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = np.sort(order[:_JUDGED]), np.sort(order[_JUDGED:])
    with one_blas_thread():
        predict = variant.fit(answers.take_rows(train), y[train], seed, names)
        scores = predict(answers.take_rows(test))
    losses = -scores[np.arange(len(test)), y[test]]
    return 100 * float((scores.argmax(axis=1) == y[test]).mean()), float(losses.mean())


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=("trec", "sst2"), show_default=True)
@click.option("--rows", type=click.IntRange(8), default=1200, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", default="llamacpp", show_default=True)
@click.option("--model", help="As for the backend.")
@click.option("--dtype", help="Of transformers and vLLM, as for the backend.")
def main(
    data_dir: Path,
    data: tuple[str, ...],
    rows: int,
    seeds: int,
    store: Path | None,
    backend: str,
    model: str | None,
    dtype: str | None,
) -> None:
    """Print a table: accuracy in percent, log-loss and CPU seconds of each variant."""
    lm = load_stored_lm(open_store(store), backend, model=model, dtype=dtype)
    click.echo("| data | variant | accuracy | log-loss | CPU seconds |\n|---|---|---|---|---|")
    for name in data:
        read = read_answers(name, data_dir, lm, rows + _JUDGED)
        for label, variant in VARIANTS.items():
            started = time.process_time()
            found = np.mean([judge(variant, *read, seed) for seed in range(seeds)], axis=0)
            seconds = time.process_time() - started
            click.echo(f"| {name} | {label} | {found[0]:.1f} | {found[1]:.4f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
