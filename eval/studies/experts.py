"""Experts beside boosting: the prior of their weights, the gate, and what they bring.

    python -m eval.studies.experts --data-dir DIR [--out results] [--store FILE]
        [--backend transformers --model smollm2-135m --dtype auto] [--data trec]
        [--split test] [--time-rows 20]

Of each data set some training rows, the pool, are answered under its hand-written prompts and
embedded, once: what is in the store is not made again, so an interrupted run resumes. Each seed
draws its labels from the pool. Choices are judged on the rows of the pool that a seed did not draw
(``--split development``); test rows decide nothing. ``--time-rows`` measures what a text takes: so
many test rows are answered and embedded anew, without the store.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers, next_tokens
from blackbox.answers.texts import check_texts
from blackbox.backend import BaseBackend
from blackbox.boosting.calibration import SCORE_PRIOR, calibrate
from blackbox.boosting.weak_learner import one_blas_thread, softmax
from blackbox.experts.base import Expert, ExpertInput, ExpertScores, cross_fit
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.metrics import expected_calibration_error
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.methods.expert_variants import Boosted
from eval.methods.vector_neighbours import NeighbourReadout
from eval.methods.words import WordReadout
from eval.studies.common import load_stored_embeddings, load_stored_lm
from eval.studies.expert_tables import Cell, Measures, Seconds, print_columns, print_rules

SHOTS = {
    "sst2": (8, 32),
    "agnews": (8, 32),
    "trec": (8, 32),
    "tweet_sentiment": (8, 32),
    "tweet_emotion": (8, 32),
    "tweet_irony": (8, 32),
    "tweet_hate": (8, 32),
    "sib200_eng": (8, 32),
    "banking77": (4, 8, 16),
}
"""The data sets, and how many labels per class."""

POOL = {"sst2": 128, "tweet_irony": 96, "tweet_hate": 48, "banking77": 20}
POOL_ELSEWHERE = 40
"""Training rows per class of the pool."""

N_TEST = {"banking77": 200}
N_TEST_ELSEWHERE = 500
"""Test rows, or all that there are."""

SEEDS = (13, 21, 42, 87, 100)
PRIORS = ((0.0, 10.0), (0.0, 3.0), (0.0, 1.0), (1.0, 3.0))
SCORE_PRIORS = ((0.0, 0.0), (0.3, 3.0), (0.5, 5.0), (0.5, 10.0), (1.0, 5.0))
GATES = (0.0, 0.5, 1.0, 1.5, 2.0)
CHOSEN, CHOSEN_GATE = (0.0, 3.0), 0.5
MAX_CLASSES_OF_WORDS = 20  # with more, a readout of all words takes minutes


Pair = tuple[float, float]


@dataclass(frozen=True)
class Rows:
    """Answered and embedded rows of a data set, and the embedded names of its classes."""

    answers: Answers
    evidence: Mapping[str, NDArray[Any]]
    names: Mapping[str, NDArray[Any]]
    y: NDArray[np.intp]

    def take(self, rows: NDArray[np.intp]) -> Rows:
        """Return some of the rows."""
        evidence = {name: array[rows] for name, array in self.evidence.items()}
        return Rows(self.answers.take_rows(rows), evidence, self.names, self.y[rows])


@dataclass
class Clock:
    """Seconds of the processor, by what took them."""

    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.process_time)

    def start(self) -> None:
        """Begin anew."""
        self.since = time.process_time()

    def note(self, what: str) -> None:
        """Note the seconds since the beginning."""
        self.seconds[what] = time.process_time() - self.since


def draw_pool(labels: Sequence[str], texts: Sequence[Any], size: int) -> list[int]:
    """Draw so many rows of each class, or all that it has, without copies of a text."""
    array = np.asarray(labels, object)
    counts = {label: int((array == label).sum()) for label in sorted(set(labels))}
    drawn: list[int] = []
    for n in dict.fromkeys(min(count, size) for count in counts.values()):
        rng = np.random.default_rng(0)
        for label, count in counts.items():
            if min(count, size) == n:
                rows = np.flatnonzero(array == label)
                drawn += rng.choice(rows, n, replace=False).tolist()
    first: dict[Any, int] = {}
    for row in sorted(drawn):
        first.setdefault(texts[row], row)
    return sorted(first.values())


def read_rows(
    name: str, data_dir: Path, lm: StoredBackend, embedder: StoredBackend, split: str
) -> tuple[Rows, Rows | None, list[str]]:
    """Return the pool, the test rows if they are wanted, and the classes of a data set."""
    data = data_sets.read_data_set(name, data_dir)
    pool = draw_pool(data.train.labels, data.train.texts, POOL.get(name, POOL_ELSEWHERE))
    words = [name.replace("_", " ") for name in data.classes]
    of_names = embedder.embed(words).vectors
    names = {
        "embeddings": of_names,
        "neighbours": of_names,
        "words": np.array(words, object),
    }

    def read(rows: data_sets.Rows) -> Rows:
        vectors = embedder.embed(rows.texts).vectors
        evidence = {
            "embeddings": vectors,
            "neighbours": vectors,
            "words": np.array(rows.texts, object),
        }
        answers = next_tokens(lm, data.card.pool(), check_texts(rows.texts), 200)
        return Rows(answers, evidence, names, np.searchsorted(data.classes, rows.labels))

    n_test = N_TEST.get(name, N_TEST_ELSEWHERE)
    test = read(data.test_rows(n_test)) if split == "test" else None
    return read(data.train.take(pool)), test, data.classes


def time_texts(
    name: str, data_dir: Path, lm: BaseBackend, embedder: BaseBackend, n: int
) -> Seconds:
    """Return the seconds of the processor that a text takes, measured on n test rows."""
    data = data_sets.read_data_set(name, data_dir)
    texts = data.test_rows(n).texts
    embedder.embed(texts[:2])  # what an engine prepares at its first call isn't counted
    start = time.process_time()
    next_tokens(lm, data.card.pool(), check_texts(texts), 200)
    answered = time.process_time()
    embedder.embed(texts)
    embedded = time.process_time()
    return {"LM": (answered - start) / len(texts), "embeddings": (embedded - answered) / len(texts)}


def measure(scores: NDArray[np.float64], y: NDArray[np.intp]) -> Measures:
    """Return how good the softmax of scores is."""
    probabilities = softmax(scores)
    right = float((probabilities.argmax(axis=1) == y).mean())
    true = np.maximum(probabilities[np.arange(len(y)), y], 1e-15)
    return 100 * right, float(-np.log(true).mean()), expected_calibration_error(y, probabilities)


def run_cell(train: Rows, judged: Rows, classes: Sequence[str], seed: int, *, every: bool) -> Cell:
    """Return the measures of each rule, trained on some rows and judged on others.

    With `every` all priors and gates are judged, otherwise the chosen ones.
    """
    n_classes = len(classes)
    labelled = (train.y, np.ones(len(train.y)), n_classes)
    clock = Clock()
    boosted = Boosted(train.answers, train.y, classes, seed)
    boosted.calibrate([])
    clock.note("LM")
    alone: dict[str, NDArray[np.float64]] = {}
    heard: dict[str, ExpertScores] = {}
    kinds: list[type[Expert]] = [EmbeddingReadout, WordReadout]
    kinds += [NeighbourReadout] if every else []
    for kind in kinds:
        given = ExpertInput(kind, train.evidence[kind.name], names=train.names[kind.name])
        clock.start()
        fitted = given.fit(*labelled)
        clock.note(kind.name)
        alone[kind.name] = fitted.scores(judged.evidence[kind.name])
        if kind is WordReadout and n_classes > MAX_CLASSES_OF_WORDS:
            continue
        clock.start()
        scores = cross_fit(given, *labelled, boosted.folds)
        if scores is not None:
            heard[kind.name] = scores
            boosted.calibrate([scores])
        clock.note(f"{kind.name} beside the LM")
    found = {f"{name} alone": measure(scores, judged.y) for name, scores in alone.items()}

    def judge(*experts: ExpertScores, score_prior: Pair = SCORE_PRIOR) -> Measures:
        calibrated = boosted.calibrate(experts, score_prior)
        scores = boosted.scores(calibrated, judged.answers)
        for expert in experts:
            weight = calibrated.expert_weights.get(expert.name, 0.0) / expert.spread
            scores = scores + weight * alone[expert.name]
        return measure(scores, judged.y)

    found["LM alone"] = judge()
    for mean, strength in PRIORS if every else (CHOSEN,):
        expert = replace(heard["embeddings"], mean=mean, strength=strength)
        both, gain = judge(expert), boosted.gain([], expert)
        prior = f"prior {mean:g}, {strength:g}" if every else "LM and embeddings"
        found[f"{prior}, no gate"] = both
        for gate in GATES:
            found[f"{prior}, gate {gate:g}"] = both if gain > gate else found["LM alone"]
    if every:
        expert = heard["embeddings"]
        for pair in SCORE_PRIORS:
            told = f"score prior {pair[0]:g}, {pair[1]:g}"
            found[f"LM alone, {told}"] = judge(score_prior=pair)
            found[f"LM and embeddings, no gate, {told}"] = judge(expert, score_prior=pair)
        lm_scores = boosted.scores(boosted.calibrate([]), judged.answers)
        spoken = [replace(expert, scores=alone[expert.name] / expert.spread)]
        fitted_there = calibrate(lm_scores, judged.y, np.ones(len(judged.y)), experts=spoken)
        near = heard["neighbours"]
        found["LM and neighbours, no gate"] = judge(near)
        found["LM, embeddings and neighbours, no gate"] = judge(expert, near)
        summed = alone[expert.name] / expert.spread + alone[near.name] / near.spread
        found["sum of embeddings and neighbours alone"] = measure(summed, judged.y)
        cheating = fitted_there.apply(lm_scores, spoken)
        found["weight fitted on the judged rows"] = measure(cheating, judged.y)
        mixed = boosted.mix_by_evidence(expert)
        votes = alone[expert.name] / expert.spread
        found["prior by evidence, no gate"] = measure(mixed(judged.answers, votes), judged.y)
    vectors, words = heard["embeddings"], heard.get("words")
    kept = boosted.gain([], vectors) > CHOSEN_GATE
    cell = Cell(found, kept, len(train.y), len(judged.y), clock.seconds)
    if words is None:
        return cell
    found["LM and words, no gate"] = judge(words)
    found["LM, embeddings and words, no gate"] = judge(vectors, words)
    for gate in GATES:
        some = [vectors] if boosted.gain([], vectors) > gate else []
        some += [words] if boosted.gain(some, words) > gate else []
        found[f"LM, embeddings and words, gate {gate:g}"] = judge(*some)
        of_words = boosted.gain([], words) > gate
        found[f"LM and words, gate {gate:g}"] = judge(*[words] if of_words else [])
    return cell


def draw_labels(y: NDArray[np.intp], shots: int, seed: int) -> NDArray[np.intp]:
    """Return so many rows of each class, ascending."""
    rng = np.random.default_rng(seed)
    of_classes = [rng.permutation(np.flatnonzero(y == label))[:shots] for label in np.unique(y)]
    return np.sort(np.concatenate(of_classes))


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--model", help="As for the backend.")
@click.option("--dtype", help="Of transformers and vLLM, as for the backend.")
@click.option("--embeddings", default="all-minilm-l6-v2", show_default=True)
@click.option("--data", multiple=True, type=click.Choice(list(SHOTS)), default=list(SHOTS))
@click.option("--seed", "seeds", multiple=True, type=int, default=SEEDS, show_default=True)
@click.option("--time-rows", default=0, help="Test rows on which seconds are measured.")
@click.option(
    "--split",
    type=click.Choice(["development", "test"]),
    default="development",
    show_default=True,
    help="Rows to judge on: those of the pool that a seed did not draw, or test rows.",
)
def main(
    data_dir: Path,
    out: Path,
    store: Path | None,
    backend: str,
    model: str | None,
    dtype: str | None,
    embeddings: str,
    data: tuple[str, ...],
    seeds: tuple[int, ...],
    time_rows: int,
    split: str,
) -> None:
    """Print accuracy in percent, log-loss and calibration error of each rule."""
    out.mkdir(parents=True, exist_ok=True)
    file = open_store(store or out / "passes.sqlite")
    lm = load_stored_lm(file, backend, model=model, dtype=dtype)
    embedder = load_stored_embeddings(file, embeddings)
    found: dict[tuple[str, int], list[Cell]] = {}
    for name in data:
        pool, test, classes = read_rows(name, data_dir, lm, embedder, split)
        for shots in SHOTS[name]:
            for seed in seeds:
                drawn = draw_labels(pool.y, shots, seed)
                rest = np.setdiff1d(np.arange(len(pool.y)), drawn)
                judged = test or pool.take(rest)
                with one_blas_thread():
                    cell = run_cell(
                        pool.take(drawn), judged, classes, seed, every=split == "development"
                    )
                found.setdefault((name, shots), []).append(cell)
            click.echo(f"{name} {shots}: done", err=True)
    print_rules(found)
    if split == "test":
        unstored = lm.backend, embedder.backend
        print_columns(
            found,
            {name: time_texts(name, data_dir, *unstored, time_rows) for name in data if time_rows},
        )
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{lm.usage.passes_made} passes made, {lm.usage.passes_from_store} from the store"
    )


if __name__ == "__main__":
    main()
