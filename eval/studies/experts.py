"""Experts beside boosting: the prior of their weights, the gate, and what they bring.

    python -m eval.studies.experts --data-dir DIR [--out results] [--store FILE]
        [--backend transformers --model smollm2-135m --dtype auto] [--split test] [--data trec]

Of each data set some training rows, the pool, are answered under its hand-written prompts and
embedded, once: what is in the store is not made again, so an interrupted run resumes. Each seed
draws its labels from the pool. Choices are judged on the rows of the pool that a seed did not draw
(``--split development``); test rows decide nothing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import backends
from blackbox.answers.passes import Answers, next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting.weak_learner import one_blas_thread, softmax
from blackbox.experts.base import Expert, ExpertInput, ExpertScores, cross_fit
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.metrics import expected_calibration_error
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.methods.expert_variants import Boosted
from eval.methods.words import WordReadout
from eval.studies.common import load_stored_lm

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
SEEDS = (13, 21, 42, 87, 100)
N_TEST = 100
PRIORS = ((0.0, 10.0), (0.0, 3.0), (0.0, 1.0), (1.0, 3.0))
GATES = (0.0, 0.5, 1.0, 1.5, 2.0)
CHOSEN = (0.0, 3.0)
MAX_CLASSES_OF_WORDS = 20  # with more, a readout of all words takes minutes

_BOTH = "LM and embeddings, no gate", "LM and embeddings, gate 0.5"

Measures = tuple[float, float, float]
"""Accuracy in percent, log-loss, and expected calibration error."""


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
    name: str, data_dir: Path, lm: StoredBackend, embedder: StoredBackend
) -> tuple[Rows, Rows, list[str]]:
    """Return the pool, the test rows, and the classes of a data set."""
    data = data_sets.read_data_set(name, data_dir)
    pool = draw_pool(data.train.labels, data.train.texts, POOL.get(name, POOL_ELSEWHERE))
    parts = []
    words = [name.replace("_", " ") for name in data.classes]
    names = {"embeddings": embedder.embed(words).vectors, "words": np.array(words, object)}
    for rows in (data.train.take(pool), data.test_rows(N_TEST)):
        evidence = {
            "embeddings": embedder.embed(rows.texts).vectors,
            "words": np.array(rows.texts, object),
        }
        answers = next_tokens(lm, data.card.pool(), check_texts(rows.texts), 200)
        parts.append(Rows(answers, evidence, names, np.searchsorted(data.classes, rows.labels)))
    return parts[0], parts[1], data.classes


def measure(scores: NDArray[np.float64], y: NDArray[np.intp]) -> Measures:
    """Return how good the softmax of scores is."""
    probabilities = softmax(scores)
    right = float((probabilities.argmax(axis=1) == y).mean())
    true = np.maximum(probabilities[np.arange(len(y)), y], 1e-15)
    return 100 * right, float(-np.log(true).mean()), expected_calibration_error(y, probabilities)


def run_cell(
    train: Rows, judged: Rows, classes: Sequence[str], seed: int, *, every: bool
) -> dict[str, Measures]:
    """Return the measures of each rule, trained on some rows and judged on others.

    With `every` all priors and gates are judged, otherwise the chosen ones.
    """
    n_classes = len(classes)
    labelled = (train.y, np.ones(len(train.y)), n_classes)
    boosted = Boosted(train.answers, train.y, classes, seed)
    alone: dict[str, NDArray[np.float64]] = {}
    heard: dict[str, ExpertScores] = {}
    kinds: list[type[Expert]] = [EmbeddingReadout, WordReadout]
    kinds = kinds[: 1 + (n_classes <= MAX_CLASSES_OF_WORDS)]
    for kind in kinds:
        given = ExpertInput(kind, train.evidence[kind.name], names=train.names[kind.name])
        scores = cross_fit(given, *labelled, boosted.folds, CHOSEN)
        if scores is not None:
            alone[kind.name] = given.fit(*labelled).scores(judged.evidence[kind.name])
            heard[kind.name] = scores
    found = {f"{name} alone": measure(scores, judged.y) for name, scores in alone.items()}

    def judge(*experts: ExpertScores) -> Measures:
        calibrated = boosted.calibrate(experts)
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
        mixed = boosted.mix_by_evidence(expert)
        votes = alone[expert.name] / expert.spread
        found["prior by evidence, no gate"] = measure(mixed(judged.answers, votes), judged.y)
    vectors, words = heard["embeddings"], heard.get("words")
    if words is None:
        return found
    found["LM and words, no gate"] = judge(words)
    found["LM, embeddings and words, no gate"] = judge(vectors, words)
    for gate in GATES:
        kept = [vectors] if boosted.gain([], vectors) > gate else []
        kept += [words] if boosted.gain(kept, words) > gate else []
        found[f"LM, embeddings and words, gate {gate:g}"] = judge(*kept)
        of_words = boosted.gain([], words) > gate
        found[f"LM and words, gate {gate:g}"] = judge(*[words] if of_words else [])
    return found


def draw_labels(y: NDArray[np.intp], shots: int, seed: int) -> NDArray[np.intp]:
    """Return so many rows of each class, ascending."""
    rng = np.random.default_rng(seed)
    of_classes = [rng.permutation(np.flatnonzero(y == label))[:shots] for label in np.unique(y)]
    return np.sort(np.concatenate(of_classes))


def print_columns(found: Mapping[tuple[str, int], list[dict[str, Measures]]]) -> None:
    """Print accuracy ± standard deviation over seeds, log-loss and calibration error by data set.

    The last columns are the differences in accuracy of both to each of them alone, with an interval
    of 95% by Student's t over seeds, which share their judged rows.
    """
    from scipy.stats import t

    rules = ("LM alone", "embeddings alone", "words alone", _BOTH[0], _BOTH[1])
    heads = [f"{what}: {rule}" for what in ("accuracy", "log-loss", "ECE") for rule in rules]
    heads += [f"{_BOTH[1]}, over {rule}" for rule in rules[:2]]
    click.echo(f"\n| data | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    unknown = (np.nan, np.nan, np.nan)
    for (name, shots), cells in found.items():
        each = np.array([[one.get(rule, unknown) for rule in rules] for one in cells])
        means, spreads = each.mean(axis=0), each.std(axis=0, ddof=1)
        row = [f"{m:.1f} ± {s:.1f}" for m, s in zip(means[:, 0], spreads[:, 0], strict=True)]
        row += [f"{value:.3f}" for value in (*means[:, 1], *means[:, 2])]
        for other in range(2):
            over = each[:, -1, 0] - each[:, other, 0]
            half = t.ppf(0.975, len(over) - 1) * over.std(ddof=1) / np.sqrt(len(over))
            row.append(f"{over.mean():+.1f} [{over.mean() - half:+.1f}, {over.mean() + half:+.1f}]")
        click.echo(f"| {name} {shots} | {' | '.join(row)} |")


def print_table(found: Mapping[tuple[str, int], list[dict[str, Measures]]]) -> None:
    """Print one row per rule: accuracy by data set, and the means of three measures.

    Words are no expert where there are many classes, and their means nan with such a data set.
    *Gap* is the mean distance of the accuracy to the better of LM and embeddings alone, *worst* the
    least of them; ± is the standard error of the difference to the LM alone over columns.
    """
    heads = [f"{name} {shots}" for name, shots in found]
    means = ["mean", "over LM", "gap", "worst", "log-loss", "ECE"]
    click.echo(f"\n| rule | {' | '.join(heads + means)} |\n|---{'|---' * (len(heads) + 6)}|")

    def means_of(rule: str) -> NDArray[np.float64]:
        unknown = (np.nan, np.nan, np.nan)
        return np.array(
            [np.mean([one.get(rule, unknown) for one in cells], axis=0) for cells in found.values()]
        )

    lm = means_of("LM alone")[:, 0]
    better = np.maximum(lm, means_of("embeddings alone")[:, 0])
    for rule in next(iter(found.values()))[0]:
        each = means_of(rule)
        over, gap = each[:, 0] - lm, each[:, 0] - better
        error = over.std(ddof=1) / np.sqrt(len(over)) if len(over) > 1 else np.nan
        row = [
            rule,
            *(f"{value:.1f}" for value in each[:, 0]),
            f"{each[:, 0].mean():.2f}",
            f"{over.mean():+.2f} ± {error:.2f}",
            f"{gap.mean():+.2f}",
            f"{gap.min():+.1f}",
            f"{each[:, 1].mean():.4f}",
            f"{each[:, 2].mean():.3f}",
        ]
        click.echo(f"| {' | '.join(row)} |")


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
    split: str,
) -> None:
    """Print accuracy in percent, log-loss and calibration error of each rule."""
    out.mkdir(parents=True, exist_ok=True)
    file = open_store(store or out / "passes.sqlite")
    lm = load_stored_lm(file, backend, model=model, dtype=dtype)
    embedder = StoredBackend(backends.load_embeddings(embeddings), file)
    found: dict[tuple[str, int], list[dict[str, Measures]]] = {}
    for name in data:
        pool, test, classes = read_rows(name, data_dir, lm, embedder)
        for shots in SHOTS[name]:
            for seed in seeds:
                drawn = draw_labels(pool.y, shots, seed)
                rest = np.setdiff1d(np.arange(len(pool.y)), drawn)
                judged = test if split == "test" else pool.take(rest)
                with one_blas_thread():
                    cell = run_cell(
                        pool.take(drawn), judged, classes, seed, every=split == "development"
                    )
                found.setdefault((name, shots), []).append(cell)
            click.echo(f"{name} {shots}: done", err=True)
    print_table(found)
    if split == "test":
        print_columns(found)
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{lm.usage.passes_made} passes made, {lm.usage.passes_from_store} from the store"
    )


if __name__ == "__main__":
    main()
