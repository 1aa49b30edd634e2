"""Ordered labels: what knowing the order brings, by several ways to use it.

    python -m eval.studies.ordered --data-dir DIR [--graded FILE] [--split test] [--store FILE]

Data sets are the sentiment of tweets (negative, neutral, positive) and, with ``--graded``, film
reviews that twenty people rated from −4 to 4: `movieReviewSnippets_GroundTruth.txt` of Hutto and
Gilbert (2014), which the source distribution of vaderSentiment 0.5 has inside. Their mean rating,
in five intervals of equal width as SST-5 has them, is the class; so the data is like SST-5, whose
sentences come from the same reviews, but its ratings are other people's. All are asked the ten
shared prompts. A seed draws the labels from a pool of 32 rows per class; further training rows
judge, or test rows with ``--split test``. Choices were made on the former.

The ways: the most probable class, which ignores the order; the median of the predicted
distribution, as ``ordered=True`` has it; the rounded mean; and one model per threshold between two
neighbouring classes (Frank and Hall, "A simple approach to ordinal classification", ECML 2001),
by the most probable class and by the median.
"""

from __future__ import annotations

import csv
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.backend import BaseBackend
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.studies.common import load_stored_lm
from eval.studies.experts import draw_pool

TWEETS = ("negative", "neutral", "positive")
FILMS = ("very negative", "negative", "neutral", "positive", "very positive")
SHOTS = (8, 16, 32)
SEEDS = (13, 21, 42, 87, 100)
N_POOL, N_JUDGED = 32, 200
RATINGS = (-4.0, 4.0)

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Rows of a data set whose classes have an order."""

    classes: Sequence[str]
    pool: data_sets.Rows
    judged: data_sets.Rows


def read_graded(path: Path) -> tuple[data_sets.Rows, data_sets.Rows]:
    """Return training and test rows of rated texts, in five classes."""
    texts, labels = [], []
    low, high = RATINGS
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for _, rating, text in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            step = int((float(rating) - low) / (high - low) * len(FILMS))
            texts.append(text)
            labels.append(FILMS[min(step, len(FILMS) - 1)])
    rows = data_sets.Rows(texts, labels)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    return rows.take(order[: len(rows) // 2]), rows.take(order[len(rows) // 2 :])


def task_of(
    classes: Sequence[str], train: data_sets.Rows, test: data_sets.Rows, split: str
) -> Task:
    """Return the rows of a data set to draw labels from, and those to judge on."""
    pool = draw_pool(train.labels, train.texts, N_POOL)
    if split == "test":
        order = np.random.default_rng(0).permutation(len(test)).tolist()
        return Task(classes, train.take(pool), test.take(order[:N_JUDGED]))
    taken = {train.texts[row] for row in pool}
    free = [row for row in range(len(train)) if train.texts[row] not in taken]
    drawn = np.random.default_rng(0).choice(free, N_JUDGED, replace=False).tolist()
    return Task(classes, train.take(pool), train.take(sorted(drawn)))


def shares_of(
    lm: BaseBackend,
    prompts: PromptPool,
    texts: Sequence[str],
    labels: NDArray[Any],
    judged: Sequence[str],
    seed: int,
) -> Shares:
    """Return the probabilities of judged texts by a model of some labels."""
    classifier = PromptBoostingClassifier(
        lm, prompts=prompts, embeddings=None, store=False, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.fit(list(texts), labels)
    return classifier.predict_proba(list(judged))


def by_thresholds(
    lm: BaseBackend,
    prompts: PromptPool,
    texts: Sequence[str],
    codes: NDArray[np.intp],
    judged: Sequence[str],
    n_classes: int,
    seed: int,
) -> Shares:
    """Return the probabilities by one model per threshold: P(y > k) for each k."""
    above = [
        shares_of(lm, prompts, texts, (codes > k).astype(int), judged, seed)[:, 1]
        for k in range(n_classes - 1)
    ]
    # no threshold is passed more often than the one before it
    passed = np.minimum.accumulate(np.stack([np.ones(len(judged)), *above], axis=1), axis=1)
    return np.asarray(-np.diff(passed, axis=1, append=0.0))


def median(shares: Shares) -> NDArray[np.intp]:
    """Return the median class of each row."""
    return np.asarray((np.cumsum(shares, axis=1) < 0.5 - 1e-9).sum(axis=1))


def rounded_mean(shares: Shares) -> NDArray[np.intp]:
    """Return the class nearest to the mean of each row."""
    return np.rint(shares @ np.arange(shares.shape[1])).astype(np.intp)


def measure(given: NDArray[np.intp], truth: NDArray[np.intp]) -> tuple[float, float, float]:
    """Return the mean absolute error in steps, the accuracy, and Cohen's quadratic kappa."""
    return (
        float(np.abs(given - truth).mean()),
        100 * float((given == truth).mean()),
        float(cohen_kappa_score(truth, given, weights="quadratic")),
    )


def run_task(
    lm: BaseBackend, prompts: PromptPool, task: Task, shots: int
) -> dict[str, NDArray[np.float64]]:
    """Return the measures of each way: (n_seeds, 3)."""
    codes = np.array([task.classes.index(label) for label in task.pool.labels])
    truth = np.array([task.classes.index(label) for label in task.judged.labels])
    judged = [str(text) for text in task.judged.texts]
    n_classes = len(task.classes)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(codes == code))[:shots] for code in range(n_classes)]
        )
        texts = [str(task.pool.texts[row]) for row in rows]
        names = np.array(task.classes)[codes[rows]]
        shares = shares_of(lm, prompts, texts, names, judged, seed)
        shares = shares[:, np.argsort(np.argsort(task.classes))]
        heads = by_thresholds(lm, prompts, texts, codes[rows], judged, n_classes, seed)
        ways: Mapping[str, NDArray[np.intp]] = {
            "most probable class": shares.argmax(axis=1),
            "median": median(shares),
            "rounded mean": rounded_mean(shares),
            "thresholds, most probable class": heads.argmax(axis=1),
            "thresholds, median": median(heads),
        }
        for way, given in ways.items():
            found.setdefault(way, []).append(measure(given, truth))
    return {way: np.array(some) for way, some in found.items()}


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--graded", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--split", type=click.Choice(["development", "test"]), default="development")
@click.option("--shots", multiple=True, type=int, default=SHOTS, help="Labels per class.")
@click.option("--backend", default="onnx", show_default=True)
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("ordered.sqlite"),
    show_default=True,
)
def main(
    data_dir: Path,
    graded: Path | None,
    split: str,
    shots: tuple[int, ...],
    backend: str,
    store: Path,
) -> None:
    """Print a table of means over seeds, with the standard deviation of the error."""
    lm = load_stored_lm(open_store(store), backend)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    tweets = data_sets.read_data_set("tweet_sentiment", data_dir)
    tasks = {"tweets": task_of(TWEETS, tweets.train, tweets.test, split)}
    if graded is not None:
        tasks["films"] = task_of(FILMS, *read_graded(graded), split)
    click.echo("| data | labels per class | way | mean absolute error | accuracy | kappa |")
    click.echo("|---|---|---|---|---|---|")
    for name, task in tasks.items():
        for n in shots:
            for way, some in run_task(lm, prompts, task, n).items():
                error, accuracy, kappa = some.mean(axis=0)
                spread = some[:, 0].std(ddof=1)
                cells = f"{error:.3f} ± {spread:.3f} | {accuracy:.1f} | {kappa:.3f}"
                click.echo(f"| {name} | {n} | {way} | {cells} |")
    click.echo(f"\n{len(SEEDS)} seeds; {platform.machine()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
