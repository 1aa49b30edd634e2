"""The readout of sentence embeddings: class names as labelled rows, by their weight.

    python -m eval.studies.readout --data-dir DIR [--out results] [--store FILE] [--data trec]

No LM is asked. Rows and draws are those of `eval.studies.experts` on its development rows: training
rows that a seed did not draw.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.studies.common import load_stored_embeddings
from eval.studies.experts import POOL, POOL_ELSEWHERE, SEEDS, SHOTS, draw_labels, draw_pool, measure

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


def judge(
    vectors: NDArray[np.float32],
    y: NDArray[np.intp],
    names: NDArray[np.float32],
    drawn: NDArray[np.intp],
    weight: float,
) -> tuple[float, float]:
    """Return accuracy in percent and log-loss on the rows that were not drawn."""
    rest = np.setdiff1d(np.arange(len(y)), drawn)
    inputs, labels, weights = vectors[drawn], y[drawn], np.ones(len(drawn))
    if weight:
        inputs, labels = np.concatenate([inputs, names]), np.append(labels, np.arange(len(names)))
        weights = np.append(weights, np.full(len(names), weight))
    readout = EmbeddingReadout.fit(inputs, labels, weights, len(names))
    return measure(readout.scores(vectors[rest]), y[rest])[:2]


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--data", multiple=True, type=click.Choice(list(SHOTS)), default=list(SHOTS))
def main(data_dir: Path, out: Path, store: Path | None, data: tuple[str, ...]) -> None:
    """Print accuracy in percent and log-loss by the weight of class names."""
    out.mkdir(parents=True, exist_ok=True)
    file = open_store(store or out / "passes.sqlite")
    embedder = load_stored_embeddings(file, "all-minilm-l6-v2")
    heads = [f"{what}: {weight:g}" for what in ("accuracy", "log-loss") for weight in WEIGHTS]
    click.echo(f"| data | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    columns = []
    for name in data:
        read = data_sets.read_data_set(name, data_dir)
        pool = draw_pool(read.train.labels, read.train.texts, POOL.get(name, POOL_ELSEWHERE))
        rows = read.train.take(pool)
        vectors = embedder.embed(rows.texts).vectors
        names = embedder.embed([label.replace("_", " ") for label in read.classes]).vectors
        y = np.searchsorted(read.classes, rows.labels)
        for shots in SHOTS[name]:
            with one_blas_thread():
                drawn = [draw_labels(y, shots, seed) for seed in SEEDS]
                cells = [[judge(vectors, y, names, d, w) for w in WEIGHTS] for d in drawn]
            columns.append(np.mean(cells, axis=0))
            click.echo(row_of(f"{name} {shots}", columns[-1]))
    click.echo(row_of("mean", np.mean(columns, axis=0)))


def row_of(head: str, means: NDArray[np.float64]) -> str:
    """Return a row of the table, from accuracies and losses of shape (weights, 2)."""
    losses = [f"{value:.3f}" for value in means[:, 1]]
    return f"| {head} | {' | '.join([*(f'{v:.1f}' for v in means[:, 0]), *losses])} |"


if __name__ == "__main__":
    main()
