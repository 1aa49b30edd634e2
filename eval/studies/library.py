"""A library of tasks: what the models of earlier tasks bring to a new one with few labels, or none.

    python -m eval.studies.library --data-dir DIR [--out results] [--store FILE]
        [--backend onnx] [--split test] [--data sst2]

One task is left out at a time: the others are the library. All are asked the same ten prompts
(``eval/data/prompts/shared.txt``), so that a source costs no pass but those of the class names. Of
each data set some training rows are answered once: what is in the store is not made again, so an
interrupted run resumes. A source is trained on some of them; a seed draws the labels of the new
task from them. Without labels, all of them are texts of which nothing is known. Choices are judged
on the rows that neither the source nor a seed drew (``--split development``); test rows decide
nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptPool
from blackbox.answers.passes import Answers
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.experts.base import ExpertInput, ExpertScores, cross_fit
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.source_models import MAX_SOURCES, stack_probabilities
from blackbox.experts.source_readout import SourceReadout
from blackbox.library.sources import (
    Ranked,
    Sources,
    best_of,
    expert_input,
    floors_of,
    probabilities_of,
)
from blackbox.library.unlabelled import read_without_labels
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.methods.expert_variants import Boosted, NameVotes
from eval.studies.common import load_stored_embeddings, load_stored_lm
from eval.studies.experts import draw_labels
from eval.studies.experts import measure as measure_probabilities
from eval.studies.library_rows import DATA, TaskRows, read_task
from eval.studies.library_tables import SHOTS, Cell, Single, print_correlations, print_tables

SEEDS = (13, 21, 42, 87, 100)
N_TEST = 500
EARNED_PRIOR, EARNED_GATE = (0.0, 3.0), 0.5

Measures = tuple[float, float, float, float]
Fitted = tuple[ExpertScores, NDArray[np.float64]]
"""The held-out scores of an expert, and its scores of judged rows."""


@dataclass(frozen=True)
class Judged:
    """The rows that readouts are judged on."""

    answers: Answers
    y: NDArray[np.intp]
    vectors: NDArray[np.float32] | None


def measure(scores: NDArray[np.float64], y: NDArray[np.intp]) -> Measures:
    """Return how good the softmax of scores is: see `Cell`."""
    right = scores.argmax(axis=1) == y
    recall = 100 * float(np.mean([right[y == label].mean() for label in np.unique(y)]))
    return *measure_probabilities(scores, y), recall


class Readouts:
    """Experts over sources, fitted on some rows, with their scores of others."""

    def __init__(
        self,
        train: Answers,
        y: NDArray[np.intp],
        judged: Answers,
        names: Answers,
        boosted: Boosted,
        prompts: PromptPool,
        sources: Sources,
    ) -> None:
        n_classes = names.token_ids.shape[1]
        self._labelled = (y, np.ones(len(y)), n_classes)
        self._folds = boosted.folds
        self.ranked = sources.rank(prompts, train, y, np.ones(len(y)), n_classes, names)
        floors = floors_of(train, np.ones(len(y)))
        self._judged = {
            one.source.name: probabilities_of(one.source, judged, floors) for one in self.ranked
        }

    def fit(self, some: Sequence[Ranked], name: str = "sources") -> Fitted | None:
        """Return the expert of a mixture of sources."""
        given = expert_input(some)
        heard = None if given is None else cross_fit(given, *self._labelled, self._folds)
        if given is None or heard is None:
            return None
        judged = stack_probabilities([self._judged[one.source.name] for one in some])
        scores = given.fit(*self._labelled).scores(judged)
        return replace(heard, name=name), scores / heard.spread

    def mapped_by(self, y: NDArray[np.intp]) -> Measures:
        """Return the measures of the best source alone, its classes mapped by judged rows."""
        labelled = (y, np.ones(len(y)), self._labelled[2])
        each = [one[:, None] for one in self._judged.values()]
        measured = [measure(SourceReadout.fit(one, *labelled).scores(one), y) for one in each]
        return min(measured, key=lambda one: one[1])


def run_cell(
    task: TaskRows,
    drawn: NDArray[np.intp],
    judged: Judged,
    prompts: PromptPool,
    sources: Sources,
    seed: int,
) -> tuple[Cell, list[Single]]:
    """Return the measures of each variant, and those of each source alone."""
    train, y = task.train.take_rows(drawn), task.y[drawn]
    boosted = Boosted(train, y, task.classes, seed)
    readouts = Readouts(train, y, judged.answers, task.names, boosted, prompts, sources)

    def judge(*fitted: Fitted | None) -> Measures:
        heard = [one for one in fitted if one is not None]
        calibrated = boosted.calibrate([scores for scores, _ in heard])
        scores = boosted.scores(calibrated, judged.answers)
        for expert, said in heard:
            scores = scores + calibrated.expert_weights.get(expert.name, 0.0) * said
        return measure(scores, judged.y)

    ranked, best = readouts.ranked, best_of(readouts.ranked)
    found: Cell = {"alone": judge()}
    library = readouts.fit(best)
    found["library"] = judge(library)
    found["best source"] = judge(readouts.fit(best[:1]))
    found["all sources"] = judge(readouts.fit(ranked))
    order = np.random.default_rng(seed).permutation(len(ranked))[:MAX_SOURCES].tolist()
    found["five at random"] = judge(readouts.fit([ranked[number] for number in order]))
    nameless = [replace(one, names=None) for one in best]
    found["without names"] = judge(readouts.fit(nameless))
    found["must earn its weight"] = found["alone"]
    if library is not None:
        mean, strength = EARNED_PRIOR
        earned = replace(library[0], mean=mean, strength=strength), library[1]
        if boosted.gain([], earned[0]) > EARNED_GATE:
            found["must earn its weight"] = judge(earned)
    each = [readouts.fit([one], one.source.name) for one in best]
    found["one weight each"] = judge(
        *((replace(one[0], mean=one[0].mean / len(best)), one[1]) for one in each if one)
    )
    if task.vectors is not None and judged.vectors is not None:
        embedded = embeddings_of(task, drawn, judged.vectors, boosted)
        for name, given in (("embeddings", []), ("library and embeddings", [library])):
            heard = [one[0] for one in given if one is not None]
            kept = embedded is not None and boosted.gain(heard, embedded[0]) > EARNED_GATE
            found[name] = judge(*given, embedded if kept else None)
    found["a source alone, mapped by judged rows"] = readouts.mapped_by(judged.y)
    singles: list[Single] = []
    for one in ranked:
        alone, with_it = found["alone"], judge(readouts.fit([one]))
        singles.append((one.source.name, one.score, alone[1] - with_it[1], with_it[0] - alone[0]))
    return found, singles


def embeddings_of(
    task: TaskRows, drawn: NDArray[np.intp], judged: NDArray[np.float32], boosted: Boosted
) -> Fitted | None:
    """Return the expert of sentence embeddings."""
    assert task.vectors is not None
    labelled = (task.y[drawn], np.ones(len(drawn)), len(task.classes))
    given = ExpertInput(EmbeddingReadout, task.vectors.train[drawn], names=task.vectors.names)
    heard = cross_fit(given, *labelled, boosted.folds)
    if heard is None:
        return None
    return heard, given.fit(*labelled).scores(judged) / heard.spread


def run_without_labels(
    task: TaskRows,
    judged: Judged,
    prompts: PromptPool,
    sources: Sources,
) -> Cell:
    """Return the measures of class names alone, of sources alone, and of both."""
    votes = NameVotes(task.train, task.classes)
    said = votes.of(judged.answers)
    found: Cell = {"alone": measure(said, judged.y)}
    readout, best = read_without_labels(sources, prompts, task.train, task.names, votes.trained)
    scores = np.zeros_like(said)
    if readout is not None:
        floors = floors_of(task.train, np.ones(len(task.y)))
        each = [probabilities_of(one.source, judged.answers, floors) for one in best]
        scores = readout.scores(stack_probabilities(each))
    found["sources alone"] = measure(scores, judged.y)
    found["library"] = measure(said + scores, judged.y)
    return found


def compute(
    tasks: dict[str, TaskRows],
    name: str,
    shots: int,
    seed: int,
    split: str,
    prompts: PromptPool,
) -> tuple[Cell, list[Single]]:
    """Return the cell of a task, with all other tasks as its library."""
    task = tasks[name]
    others = Sources({key: one.model for key, one in tasks.items() if key != name})
    drawn = draw_labels(task.y, shots, seed)
    vectors = task.vectors
    judged = Judged(task.test, task.test_y, vectors.test if vectors else None)
    if split == "development":
        # not those of the source, of which each class has as many
        rest = np.setdiff1d(np.arange(task.n_source, len(task.y)), drawn)
        of_rest = vectors.train[rest] if vectors else None
        judged = Judged(task.train.take_rows(rest), task.y[rest], of_rest)
    with one_blas_thread():
        if not shots:
            return run_without_labels(task, judged, prompts, others), []
        return run_cell(task, drawn, judged, prompts, others, seed)


class Kept:
    """Cells that were computed before, in a file: an interrupted run resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(self, key: str, cell: tuple[Cell, list[Single]]) -> None:
        """Add a cell, and write the file."""
        self.cells[key] = cell
        self._path.write_text(json.dumps(self.cells))


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--embeddings", help="An embedding model, to see what a library adds beside it.")
@click.option("--data", multiple=True, type=click.Choice(DATA), default=DATA)
@click.option("--shots", "chosen", multiple=True, type=int, default=SHOTS, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=SEEDS, show_default=True)
@click.option("--n-test", default=N_TEST, show_default=True)
@click.option(
    "--split",
    type=click.Choice(["development", "test"]),
    default="development",
    show_default=True,
    help="Rows to judge on: training rows that a seed did not draw, or test rows.",
)
def main(
    data_dir: Path,
    out: Path,
    store: Path | None,
    backend: str,
    embeddings: str | None,
    data: tuple[str, ...],
    chosen: tuple[int, ...],
    seeds: tuple[int, ...],
    n_test: int,
    split: str,
) -> None:
    """Print what the models of the other tasks bring to each task."""
    out.mkdir(parents=True, exist_ok=True)
    file = open_store(store or out / "passes.sqlite")
    lm = load_stored_lm(file, backend)
    embedder = None
    if embeddings is not None:
        embedder = load_stored_embeddings(file, embeddings)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    tasks = {}
    for name in data:
        tasks[name] = read_task(name, data_dir, lm, prompts, n_test, embedder)
        click.echo(f"{name}: {len(tasks[name].y)} and {len(tasks[name].test_y)} rows", err=True)
    kept = Kept(out / f"library-{split}-{embeddings or 'plain'}.json")
    cells: dict[tuple[str, int], list[Cell]] = {}
    singles: dict[int, list[tuple[str, Single]]] = {}
    for shots, name in itertools.product(chosen, tasks):
        if shots > np.median(np.bincount(tasks[name].y)) / 2:
            continue  # Banking77 has few rows of each class
        for seed in seeds if shots else seeds[:1]:
            key = f"{name} of {' '.join(tasks)}, {shots} labels, seed {seed}, {n_test} test rows"
            if key not in kept.cells:
                kept.keep(key, compute(tasks, name, shots, seed, split, prompts))
            found, pairs = kept.cells[key]
            cells.setdefault((name, shots), []).append(found)
            singles.setdefault(shots, []).extend((name, tuple(single)) for single in pairs)
        click.echo(f"{name} {shots}: done", err=True)
    print_tables(cells)
    print_correlations(singles)
    click.echo(f"\n{lm.usage.passes_made} passes made, {lm.usage.passes_from_store} from the store")


if __name__ == "__main__":
    main()
