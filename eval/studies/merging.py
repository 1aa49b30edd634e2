"""Merging: two models, each trained on half of the rows, made one, against one model of all rows.

    python -m eval.studies.merging --data-dir DIR [--out results] [--store FILE]
        [--backend onnx] [--data sst2]

Rows and prompts are those of `eval.studies.library`, whose answers in the store are not asked for
again: 32 labels per class, cut in two by the seed, and test rows.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.library.merging import merge_models
from blackbox.model.model import Model
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.studies.common import load_stored_lm
from eval.studies.library import N_TEST
from eval.studies.library_rows import DATA, TOP_K, draw_rows, joined
from eval.studies.library_tables import interval, print_row

SEEDS = (13, 21, 42)
FORMS = ("a half", "merged", "all rows")


def halves(labels: list[str], seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return two halves of rows, with half of each class."""
    rng = np.random.default_rng(seed)
    array = np.array(labels)
    first: list[int] = []
    for label in sorted(set(labels)):
        rows = rng.permutation(np.flatnonzero(array == label))
        first += rows[: len(rows) // 2].tolist()
    return np.sort(first), np.setdiff1d(np.arange(len(labels)), first)


def accuracies(
    name: str, data_dir: Path, lm: StoredBackend, prompts: PromptPool, n_test: int, seed: int
) -> list[float]:
    """Return the accuracies of the mean half, the merged model and one of all rows, in percent."""
    data = data_sets.read_data_set(name, data_dir)
    rows, test = data.train.take(draw_rows(name, data)[0]), data.test_rows(n_test)
    texts, labels = joined(rows.texts), np.array(rows.labels)

    def train(some: NDArray[np.intp]) -> Model:
        classifier = PromptBoostingClassifier(
            lm, prompts=prompts, embeddings=None, store=False, random_state=seed, top_k=TOP_K
        )
        classifier.fit([texts[row] for row in some], labels[some])
        return classifier.model_

    def judge(model: Model) -> float:
        predicted = model.predict(lm, joined(test.texts)).labels()
        return float(100 * np.mean(np.array(predicted) == np.array(test.labels)))

    parts = [train(some) for some in halves(rows.labels, seed)]
    whole = train(np.arange(len(texts)))
    of_halves = float(np.mean([judge(one) for one in parts]))
    return [of_halves, judge(merge_models(*parts)), judge(whole)]


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--data", multiple=True, type=click.Choice(DATA), default=DATA[:-1])
@click.option("--seed", "seeds", multiple=True, type=int, default=SEEDS, show_default=True)
@click.option("--n-test", default=N_TEST, show_default=True)
def main(
    data_dir: Path,
    out: Path,
    store: Path | None,
    backend: str,
    data: tuple[str, ...],
    seeds: tuple[int, ...],
    n_test: int,
) -> None:
    """Print the accuracy of merged halves, beside that of one model of all rows."""
    out.mkdir(parents=True, exist_ok=True)
    lm = load_stored_lm(open_store(store or out / "passes.sqlite"), backend)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    print_row("data", [*FORMS, "merged over all rows"], head=True)
    differences = []
    for name in data:
        found = np.array([accuracies(name, data_dir, lm, prompts, n_test, seed) for seed in seeds])
        differences.append(float((found[:, 1] - found[:, 2]).mean()))
        means = [f"{one:.1f}" for one in found.mean(axis=0)]
        print_row(name, [*means, f"{differences[-1]:+.1f}"])
    mean, half = interval(differences)
    click.echo(f"\nmean over data sets {mean:+.2f} ± {half:.2f} (95%)")


if __name__ == "__main__":
    main()
