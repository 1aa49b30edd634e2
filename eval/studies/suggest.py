"""Learning curves of suggested against random labels, on training rows.

    python -m eval.studies.suggest --data-dir DIR [--data trec] [--seeds 10] [--start 2]
        [--no-embeddings]

Each data set is asked ten prompts (``eval/data/prompts/shared.txt``) about some hundred training
rows. A seed takes some of these to judge on; the others are the texts without labels. Training
begins with the names of the classes, or with some labels per class, and each step adds the labels
of twenty texts that a criterion chooses by the model so far. Test rows are not read.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.backend import BaseBackend
from blackbox.model.suggestion import choose_spread, evidence_vectors, uncertainty
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.studies.common import load_stored_embeddings, load_stored_lm
from eval.studies.library_rows import draw_rows

DATA = ("sst2", "trec", "agnews")
STEP, N_STEPS = 20, 5
N_JUDGED = 150
N_MORE = 165
"""Training rows beside those that the study of libraries has answered."""

Rows = NDArray[np.intp]
Choose = Callable[[NDArray[np.float64], NDArray[np.float64], np.random.Generator], Rows]


def entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of class probabilities: (n,)."""
    return np.asarray(-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1))


def by_random(
    probabilities: NDArray[np.float64], _: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose at random."""
    return rng.permutation(len(probabilities))[:STEP]


def by_margin(
    probabilities: NDArray[np.float64], _: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose the smallest margins between two classes."""
    return np.argsort(-uncertainty(probabilities), kind="stable")[:STEP]


def by_entropy(
    probabilities: NDArray[np.float64], _: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose the largest entropies."""
    return np.argsort(-entropy(probabilities), kind="stable")[:STEP]


def by_distance(
    probabilities: NDArray[np.float64], vectors: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose texts far from each other."""
    return _farthest_first(np.ones(len(probabilities)), vectors)


def by_margin_and_distance(
    probabilities: NDArray[np.float64], vectors: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose small margins that are far from each other."""
    return _farthest_first(uncertainty(probabilities), vectors)


def _farthest_first(weights: NDArray[np.float64], vectors: NDArray[np.float64]) -> Rows:
    """Return the greedy choice of k-centre (Sener and Savarese 2018), with weighted distances."""
    chosen: list[int] = []
    nearest = np.full(len(weights), 2.0)  # the diameter of the sphere
    for _ in range(STEP):
        wanted = weights * nearest
        wanted[chosen] = -1
        chosen.append(int(wanted.argmax()))
        distances = np.sqrt(np.maximum(0, 2 - 2 * (vectors @ vectors[chosen[-1]])))
        nearest = np.minimum(nearest, distances)
    return np.array(chosen, np.intp)


def by_clusters(
    probabilities: NDArray[np.float64], vectors: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose the smallest margin of each cluster, weighted k-means."""
    from sklearn.cluster import KMeans

    weights = uncertainty(probabilities)
    groups = KMeans(STEP, n_init=1, random_state=0).fit_predict(vectors, sample_weight=weights)
    found = [np.flatnonzero(groups == group) for group in range(STEP)]
    return np.array([own[weights[own].argmax()] for own in found if len(own)], np.intp)


def by_centres(
    probabilities: NDArray[np.float64], vectors: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose as the package does: the text nearest to the centre of each cluster."""
    return choose_spread(uncertainty(probabilities), vectors, STEP)


def by_weighted_centres(
    probabilities: NDArray[np.float64], vectors: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose the text nearest to each centre of k-means weighted by margins (Zhdanov 2019)."""
    from sklearn.cluster import KMeans

    means = KMeans(STEP, n_init=1, random_state=0)
    distances = means.fit_transform(vectors, sample_weight=uncertainty(probabilities))
    found = [np.flatnonzero(means.labels_ == group) for group in range(STEP)]
    nearest = [own[distances[own, place].argmin()] for place, own in enumerate(found) if len(own)]
    return np.array(nearest, np.intp)


def by_classes(
    probabilities: NDArray[np.float64], _: NDArray[np.float64], rng: np.random.Generator
) -> Rows:
    """Choose the smallest margin of each predicted class in turn."""
    weights, codes = uncertainty(probabilities), probabilities.argmax(axis=1)
    ranks = np.empty(len(codes), np.intp)
    for code in np.unique(codes):
        own = np.flatnonzero(codes == code)
        ranks[own[np.argsort(-weights[own], kind="stable")]] = np.arange(len(own))
    return np.lexsort([-weights, ranks])[:STEP]


CRITERIA: dict[str, Choose] = {
    "random": by_random,
    "margin": by_margin,
    "entropy": by_entropy,
    "margin, classes in turn": by_classes,
    "distance": by_distance,
    "margin, clusters": by_clusters,
    "centres of clusters": by_centres,
    "centres of clusters, weighted": by_weighted_centres,
    "margin and distance": by_margin_and_distance,
}


@dataclass(frozen=True)
class Task:
    """Training rows of a data set: some to judge on, the others to be labelled."""

    texts: list[str]
    labels: NDArray[np.object_]
    judged: list[str]
    truth: NDArray[np.object_]
    classes: list[str]


def draw_task(name: str, data_dir: Path, seed: int) -> Task:
    """Return the rows of a seed."""
    data = data_sets.read_data_set(name, data_dir)
    source, further = draw_rows(name, data)
    known = {data.train.texts[row] for row in (*source, *further)}
    free = [row for row in range(len(data.train)) if data.train.texts[row] not in known]
    more = np.random.default_rng(1).choice(free, N_MORE, replace=False).tolist()
    rows = data.train.take([*source, *further, *more])
    order = np.random.default_rng(seed).permutation(len(rows))
    texts, labels = np.array([str(text) for text in rows.texts]), np.array(rows.labels, object)
    judged, others = order[:N_JUDGED], order[N_JUDGED:]
    return Task(
        texts[others].tolist(),
        labels[others],
        texts[judged].tolist(),
        labels[judged],
        list(data.classes),
    )


def curve(
    lm: BaseBackend,
    embedder: BaseBackend | None,
    prompts: PromptPool,
    task: Task,
    choose: Choose,
    start: int,
    seed: int,
) -> list[float]:
    """Return the accuracy in percent after each step."""
    rng = np.random.default_rng(seed)
    known = np.full(len(task.texts), None, object)
    for code in task.classes if start else ():
        own = rng.permutation(np.flatnonzero(task.labels == code))[:start]
        known[own] = task.labels[own]
    accuracies = []
    for _ in range(N_STEPS + 1):
        found = sorted({label for label in known if label is not None})
        classifier = PromptBoostingClassifier(
            lm,
            prompts=prompts,
            store=False,
            random_state=seed,
            # each class needs a label once there are any
            classes=found or task.classes,
            embeddings=embedder,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with a single row
            classifier.fit(task.texts, known)
        right = classifier.predict(task.judged) == task.truth
        accuracies.append(100 * float(right.mean()))
        free = np.flatnonzero(known == None)  # noqa: E711 - elementwise
        model = classifier.model_
        # all texts each time, as the store keeps the last answers in memory
        predictions, evidence = model.read(lm, task.texts, embedder=embedder)
        assert predictions.probabilities is not None
        probabilities, evidence = predictions.probabilities[free], evidence.take_rows(free)
        vectors = evidence_vectors(model, evidence)
        chosen = free[choose(probabilities, vectors, rng)]
        known[chosen] = task.labels[chosen]
    return accuracies


def _describe(values: Sequence[float]) -> str:
    found = np.asarray(values)
    return f"{found.mean():+.1f} ± {found.std(ddof=1) / len(found) ** 0.5:.1f}"


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA, type=click.Choice(DATA))
@click.option("--criterion", multiple=True, default=list(CRITERIA), type=click.Choice(CRITERIA))
@click.option("--seeds", default=5, show_default=True, help="Number of seeds.")
@click.option("--start", default=0, show_default=True, help="Labels per class at the beginning.")
@click.option("--embeddings/--no-embeddings", default=True, show_default=True)
@click.option("--backend", default="onnx", show_default=True)
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("suggest.sqlite"),
    show_default=True,
)
def main(
    data_dir: Path,
    data: tuple[str, ...],
    criterion: tuple[str, ...],
    seeds: int,
    start: int,
    embeddings: bool,
    backend: str,
    store: Path,
) -> None:
    """Print accuracies by number of labels, and the mean difference from random labels."""
    file = open_store(store)
    lm = load_stored_lm(file, backend)
    embedder = load_stored_embeddings(file, "onnx") if embeddings else None
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    columns = " | ".join(f"{STEP * step}" for step in range(N_STEPS + 1))
    click.echo(f"start: {start} labels per class; embeddings: {embeddings}; {seeds} seeds")
    click.echo(f"| data | chosen by | {columns} | less random, mean of steps |")
    click.echo("|---" * (N_STEPS + 4) + "|")
    differences: dict[str, list[float]] = {}
    for name in data:
        found: dict[str, NDArray[np.float64]] = {}
        for title in criterion:
            found[title] = np.array(
                [
                    curve(
                        lm,
                        embedder,
                        prompts,
                        draw_task(name, data_dir, seed),
                        CRITERIA[title],
                        start,
                        seed,
                    )
                    for seed in range(seeds)
                ]
            )
            cells = " | ".join(f"{value:.1f}" for value in found[title].mean(axis=0))
            more = (found[title] - found["random"])[:, 1:].mean(axis=1).tolist()
            differences.setdefault(title, []).extend(more)
            click.echo(f"| {name} | {title} | {cells} | {_describe(more)} |")
    for title, more in differences.items():
        click.echo(f"| all | {title} |{' |' * (N_STEPS + 1)} {_describe(more)} |")
    click.echo(f"\n{platform.machine()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
