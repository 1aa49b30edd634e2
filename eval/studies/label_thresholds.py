"""Rules for the decision threshold of a label, on training rows: frequent labels and rare ones.

    python -m eval.studies.label_thresholds --data-dir DIR

Each label of the data sets of `eval.studies.label_sets` is learned alone, from all 160 training
texts or from so few of those that have it, and judged on 150 development texts, which are made of
other training messages. Texts with the label are weighted there so that it is as rare as in the
training. The rules choose by the held-out rows of cross-validation: *0.5*; *expected F1*, by the
calibrated probabilities alone (`blackbox.boosting.thresholds`); *F1*, by the labels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptPool
from blackbox.answers import features
from blackbox.answers.passes import Answers, next_tokens
from blackbox.answers.texts import check_texts
from blackbox.backend import BaseBackend
from blackbox.boosting import training
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.label_words import words_of
from blackbox.boosting.thresholds import best_f1_threshold
from blackbox.experts.base import ExpertInput
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.vectors import read_vectors
from blackbox.lm.connect import connect_embeddings
from blackbox.metrics import f1_scores
from blackbox.store.file import open_store
from eval.studies.common import load_stored_lm
from eval.studies.label_sets import DATA_SETS, draw_label_sets
from eval.studies.several_labels import N_MOST, PROMPTS

POSITIVES = (4, 8, 16, None)
N_JUDGED, TOP_K = 150, 200


def _by_labels(probabilities: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the threshold with the largest F1 on held-out rows."""
    order = np.argsort(-probabilities)
    right = np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + right[-1])
    best, ranked = int(f1.argmax()), np.append(probabilities[order], 0.0)
    return float(ranked[best : best + 2].mean())


RULES: dict[str, Callable[[NDArray[np.float64], NDArray[np.bool_]], float]] = {
    "0.5": lambda probabilities, truth: 0.5,
    "expected F1": lambda probabilities, truth: best_f1_threshold(
        probabilities, np.ones(len(truth))
    ),
    "F1": _by_labels,
}


@dataclass(frozen=True)
class _Rows:
    """Texts with their answers, vectors and labels."""

    answers: Answers
    vectors: NDArray[np.float32]
    labels: list[list[str]]

    @classmethod
    def read(
        cls, lm: BaseBackend, embedder: BaseBackend, data_dir: Path, name: str, split: str, n: int
    ) -> _Rows:
        drawn = draw_label_sets(data_dir, name, split, int(split == "train"), n)
        texts = check_texts(drawn.texts)
        answers = next_tokens(lm, PromptPool(PROMPTS), texts, TOP_K)
        return cls(answers, read_vectors(embedder, texts).values, drawn.labels)

    def has(self, label: str) -> NDArray[np.bool_]:
        return np.array([label in some for some in self.labels])


def _probabilities(result: training.TrainingResult, judged: _Rows) -> NDArray[np.float64]:
    ensemble = result.ensemble
    matrices = [
        features.gather(
            judged.answers.token_ids[prompt],
            judged.answers.log_probs[prompt],
            reading.token_ids,
            reading.floor,
        )
        for prompt, reading in zip(result.prompts, ensemble.readings, strict=True)
    ]
    scores = np.array([expert.scores(judged.vectors) for expert in ensemble.experts])
    start = ensemble.initial_scores(scores.reshape(-1, len(judged.labels), 2))
    return ensemble.probabilities(ensemble.decision(matrices, start))[:, 1]


def _one_label(
    train: _Rows, judged: _Rows, label: str, n_positives: int | None
) -> dict[str, tuple[float, float, float]]:
    """Return F1, share of wrong decisions and threshold of each rule."""
    has, truth = train.has(label), judged.has(label)
    kept = np.flatnonzero(has)
    if n_positives is not None:
        kept = np.random.default_rng(0).permutation(kept)[:n_positives]
    rows = np.sort(np.append(kept, np.flatnonzero(~has)))
    options = training.TrainingOptions(
        ALGORITHMS["logit"], 2, None, 1.0, 32, 5, 0.5, 0.1, [[], words_of(label)]
    )
    result = training.boost(
        train.answers.take_rows(rows),
        has[rows].astype(np.intp),
        np.ones(len(rows)),
        options,
        np.random.default_rng(0),
        experts=[ExpertInput(EmbeddingReadout, train.vectors[rows])],
    )
    assert result.held_out is not None
    held_out = result.held_out.probabilities[:, 1], has[rows][result.held_out.rows]
    probabilities, share = _probabilities(result, judged), has[rows].mean()
    weight = np.where(truth, share / truth.mean(), (1 - share) / (1 - truth.mean()))
    found = {}
    for name, rule in RULES.items():
        threshold = rule(*held_out)
        chosen = probabilities > threshold
        f1 = f1_scores(weight @ (chosen & truth), weight @ chosen, weight @ truth)
        wrong = weight @ (chosen != truth) / weight.sum()
        found[name] = (float(f1), float(wrong), threshold)
    return found


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA_SETS, type=click.Choice(DATA_SETS))
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("several_labels.sqlite"),
    show_default=True,
)
@click.option("--backend", default="onnx")
def main(data_dir: Path, data: tuple[str, ...], store: Path, backend: str) -> None:
    """Print a table: means over the labels of each data set."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    lm = load_stored_lm(open_store(store), backend)
    embedder = connect_embeddings("onnx")
    click.echo("| data | texts with the label | rule | F1 | wrong decisions | threshold |")
    click.echo("|---|---|---|---|---|---|")
    for name in data:
        train = _Rows.read(lm, embedder, data_dir, name, "train", N_MOST)
        judged = _Rows.read(lm, embedder, data_dir, name, "development", N_JUDGED)
        labels = sorted({label for some in train.labels for label in some})
        for n_positives in POSITIVES:
            found = [_one_label(train, judged, label, n_positives) for label in labels]
            for rule in RULES:
                f1, wrong, threshold = np.transpose([one[rule] for one in found])
                click.echo(
                    f"| {name} | {n_positives or 'all'} | {rule} | {100 * f1.mean():.1f} | "
                    f"{100 * wrong.mean():.1f}% | {threshold.mean():.2f} ± {threshold.std():.2f} |"
                )


if __name__ == "__main__":
    main()
