"""Several labels per text: one model of all labels, against one classifier per label and TF-IDF.

    python -m eval.studies.several_labels --data-dir DIR [--data banking] [--labels 160]

The texts are put together as `eval.studies.label_sets` says. Four prompts are asked about each
text once, and what is in the store isn't asked again. *This package* is fitted with the labels of
all texts; *with thresholds of 0.5* takes its probabilities; *one classifier per label* is
scikit-learn's `OneVsRestClassifier` over the same estimator; *TF-IDF* is a logistic regression per
label over TF-IDF of words and word pairs, with thresholds by the rule of this package. Training
rows are drawn with each seed, and the first of them are those of fewer rows; the test rows are the
same for all.
"""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.boosting.thresholds import best_f1_threshold
from blackbox.metrics import evaluate_label_sets
from blackbox.store.file import open_store
from eval.studies.common import SEEDS, load_stored_lm
from eval.studies.label_sets import DATA_SETS, draw_label_sets

PROMPTS = (
    "{text} It is about {mask}",
    r"{text}\nTopic: {mask}",
    r"{text}\nCategory: {mask}",
    r"{text}\nThis asks for the {mask}",
)
N_MOST, N_TEST = 160, 200

Figures = tuple[float, float, float, float]


def _figures(truth: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> Figures:
    found = evaluate_label_sets(truth, chosen, chosen.astype(float), list(range(truth.shape[1])))
    return found.micro_f1, found.macro_f1, found.subset_accuracy, found.hamming_loss


def _one_draw(
    classifier: PromptBoostingClassifier,
    train: tuple[list[str], NDArray[np.bool_]],
    test: tuple[list[str], NDArray[np.bool_]],
) -> dict[str, tuple[Figures, float]]:
    """Return the figures of each method, and the seconds of its training."""
    (texts, targets), (tested, truth) = train, test
    found: dict[str, tuple[Figures, float]] = {}
    started = time.perf_counter()
    classifier.fit(texts, targets)
    seconds = time.perf_counter() - started
    found["this package"] = _figures(truth, classifier.predict(tested) == 1), seconds
    found["with thresholds of 0.5"] = (
        _figures(truth, classifier.predict_proba(tested) > 0.5),
        seconds,
    )
    alone = PromptBoostingClassifier(**classifier.get_params() | {"classes": None})
    started = time.perf_counter()
    single = OneVsRestClassifier(alone).fit(texts, targets.astype(int))
    seconds = time.perf_counter() - started
    found["one classifier per label"] = _figures(truth, single.predict(tested) == 1), seconds
    started = time.perf_counter()
    chosen = np.stack([_by_words(texts, y, tested) for y in targets.T.astype(int)], axis=1)
    found["TF-IDF"] = _figures(truth, chosen), time.perf_counter() - started
    return found


def _by_words(texts: list[str], y: NDArray[np.int_], tested: list[str]) -> NDArray[np.bool_]:
    """Return which test texts get a label by TF-IDF, with a threshold by this package's rule."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    regression = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
    held_out = cross_val_predict(regression, texts, y, cv=5, method="predict_proba")[:, 1]
    threshold = best_f1_threshold(held_out, np.ones(len(y)))
    return np.asarray(regression.fit(texts, y).predict_proba(tested)[:, 1] > threshold)


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA_SETS, type=click.Choice(DATA_SETS))
@click.option("--labels", multiple=True, type=int, default=(64, N_MOST), help="Training rows.")
@click.option("--draws", type=click.IntRange(1, 5), default=3)
@click.option("--split", type=click.Choice(["development", "test"]), default="test")
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("several_labels.sqlite"),
    show_default=True,
)
@click.option("--backend", default="onnx")
def main(
    data_dir: Path,
    data: tuple[str, ...],
    labels: tuple[int, ...],
    draws: int,
    split: str,
    store: Path,
    backend: str,
) -> None:
    """Print a table for each data set: means over the draws, and standard deviations."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    file = open_store(store)
    lm, prompts = load_stored_lm(file, backend), PromptPool(PROMPTS)
    for name in data:
        tested = draw_label_sets(data_dir, name, split, 0, N_TEST)
        for n in labels:
            figures: dict[str, list[Figures]] = {}
            seconds: dict[str, list[float]] = {}
            for seed in SEEDS["test"][:draws]:
                rows = draw_label_sets(data_dir, name, "train", seed, max(n, N_MOST)).first(n)
                known = sorted({label for some in rows.labels for label in some})
                classifier = PromptBoostingClassifier(
                    lm, prompts=prompts, store=file, random_state=seed, classes=known
                )
                targets, truth = (
                    np.array([[label in some for label in known] for some in one.labels])
                    for one in (rows, tested)
                )
                found = _one_draw(classifier, (rows.texts, targets), (tested.texts, truth))
                for method, (measured, took) in found.items():
                    figures.setdefault(method, []).append(measured)
                    seconds.setdefault(method, []).append(took)
            click.echo(f"\n**{name}, {n} texts**\n")
            click.echo("| method | micro F1 | macro F1 | subset accuracy | Hamming loss | s |")
            click.echo("|---|---|---|---|---|---|")
            for method, rows_measured in figures.items():
                means = 100 * np.mean(rows_measured, axis=0)
                spread = 100 * np.std(rows_measured, axis=0)
                cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(means, spread, strict=True)]
                click.echo(f"| {method} | {' | '.join(cells)} | {np.mean(seconds[method]):.0f} |")


if __name__ == "__main__":
    main()
