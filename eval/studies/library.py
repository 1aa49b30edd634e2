"""A library of tasks: what the models of earlier tasks bring to a new one with few labels.

    python -m eval.studies.library --data-dir DIR [--out results] [--store FILE]
        [--backend onnx] [--split test] [--data sst2]

One task is left out at a time: the others are the library. All are asked the same ten prompts
(``eval/data/prompts/shared.txt``), so that a source costs no pass. Of each data set some training
rows, the pool, are answered once: what is in the store is not made again, so an interrupted run
resumes. A source is trained on all rows of its pool; a seed draws the labels of the new task from
its pool. Choices are judged on the rows of the pool that a seed did not draw (``--split
development``); test rows decide nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.answers.passes import Answers, next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.experts.base import ExpertScores, cross_fit
from blackbox.experts.source_models import MAX_SOURCES, stack_probabilities
from blackbox.library.sources import Ranked, Sources, expert_input, floors_of, probabilities_of
from blackbox.model.model import Model
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.data import data_sets
from eval.methods.expert_variants import Boosted
from eval.studies.common import load_stored_lm
from eval.studies.experts import draw_labels, draw_pool, measure

POOL = {
    "sst2": 32,
    "tweet_sentiment": 32,
    "agnews": 32,
    "sib200_eng": 16,
    "tweet_emotion": 24,
    "trec": 16,
    "tweet_irony": 32,
}
"""The data sets, and how many training rows per class are answered."""

RELATIVES = ("sst2", "tweet_sentiment", "tweet_emotion", "agnews", "sib200_eng")
"""The tasks that another of these is about: sentiment or topic."""

SHOTS = (2, 4, 8, 16, 32)
SEEDS = (13, 21, 42, 87, 100)
N_TEST = 100
PRIOR = (0.0, 3.0)
GATE = 0.5
TOP_K = 200

Cell = dict[str, tuple[float, float, float]]
"""Accuracy in percent, log-loss and calibration error of each variant."""


@dataclass(frozen=True)
class TaskRows:
    """A data set: its answered pool and test rows, and its model as a source."""

    pool: Answers
    y: NDArray[np.intp]
    test: Answers
    test_y: NDArray[np.intp]
    classes: list[str]
    model: Model


def read_task(name: str, data_dir: Path, lm: StoredBackend, prompts: PromptPool) -> TaskRows:
    """Return a data set, whose missing answers are asked for."""
    data = data_sets.read_data_set(name, data_dir)
    rows = data.train.take(draw_pool(data.train.labels, data.train.texts, POOL[name]))
    test = data.test_rows(N_TEST)
    answers = [next_tokens(lm, prompts, check_texts(one.texts), TOP_K) for one in (rows, test)]
    source = PromptBoostingClassifier(
        lm, prompts=prompts, embeddings=None, store=False, random_state=0, top_k=TOP_K
    )
    source.fit(rows.texts, rows.labels)
    codes = [np.searchsorted(data.classes, one.labels) for one in (rows, test)]
    return TaskRows(answers[0], codes[0], answers[1], codes[1], data.classes, source.model_)


class Readouts:
    """Experts over sources, fitted on some rows, with their scores of others."""

    def __init__(
        self,
        train: Answers,
        y: NDArray[np.intp],
        judged: Answers,
        names: Sequence[str],
        boosted: Boosted,
        prompts: PromptPool,
        sources: Sources,
    ) -> None:
        self._labelled = (y, np.ones(len(y)), len(names))
        self._folds = boosted.folds
        self.ranked = sources.rank(prompts, train, y, np.ones(len(y)), names)
        floors = floors_of(train, np.ones(len(y)))
        self._judged = {
            one.source.name: probabilities_of(one.source, judged, floors) for one in self.ranked
        }

    def fit(
        self, some: Sequence[Ranked], name: str = "sources"
    ) -> tuple[ExpertScores, NDArray[np.float64]] | None:
        """Return the held-out scores of a mixture of sources, and its scores of judged rows."""
        if not some:
            return None
        given = expert_input(some)
        assert given is not None
        heard = cross_fit(given, *self._labelled, self._folds, PRIOR)
        if heard is None:
            return None
        judged = stack_probabilities([self._judged[one.source.name] for one in some])
        scores = given.fit(*self._labelled).scores(judged)
        return replace(heard, name=name), scores / heard.spread


def run_cell(
    task: TaskRows,
    drawn: NDArray[np.intp],
    judged: tuple[Answers, NDArray[np.intp]],
    prompts: PromptPool,
    sources: Sources,
    seed: int,
) -> tuple[Cell, list[tuple[str, float, float]]]:
    """Return the measures of each variant, and (source, score, gain) of each source alone."""
    train, y = task.pool.take_rows(drawn), task.y[drawn]
    boosted = Boosted(train, y, task.classes, seed)
    readouts = Readouts(train, y, judged[0], task.classes, boosted, prompts, sources)

    def judge(*fitted: tuple[ExpertScores, NDArray[np.float64]]) -> tuple[float, float, float]:
        calibrated = boosted.calibrate([heard for heard, _ in fitted])
        scores = boosted.scores(calibrated, judged[0])
        for heard, said in fitted:
            scores = scores + calibrated.expert_weights.get(heard.name, 0.0) * said
        return measure(scores, judged[1])

    def gated(
        fitted: tuple[ExpertScores, NDArray[np.float64]] | None,
    ) -> tuple[float, float, float]:
        """Judge with an expert where the gate lets it in."""
        if fitted is None or boosted.gain([], fitted[0]) <= GATE:
            return found["alone"]
        return judge(fitted)

    found: Cell = {"alone": judge()}
    best = readouts.ranked[:MAX_SOURCES]
    mixture = readouts.fit(best)
    found["library"] = gated(mixture)
    found["library, no gate"] = judge(mixture) if mixture else found["alone"]
    found["best source"] = gated(readouts.fit(best[:1]))
    found["all sources"] = gated(readouts.fit(readouts.ranked))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(readouts.ranked))[:MAX_SOURCES].tolist()
    found["five at random"] = gated(readouts.fit([readouts.ranked[n] for n in order]))
    each = [readouts.fit([one], one.source.name) for one in best]
    kept: list[tuple[ExpertScores, NDArray[np.float64]]] = []
    for one in each:
        if one is not None and boosted.gain([heard for heard, _ in kept], one[0]) > GATE:
            kept.append(one)
    found["one weight each"] = judge(*kept)
    singles = []
    for source in readouts.ranked:
        fitted = readouts.fit([source])
        gain = found["alone"][1] - judge(fitted)[1] if fitted else 0.0
        singles.append((source.source.name, source.score, gain))
    return found, singles


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Spearman's correlation of pairs; nan with fewer than three."""
    from scipy.stats import spearmanr

    if len(pairs) < 3:
        return float("nan")
    first, second = zip(*pairs, strict=True)
    return float(spearmanr(first, second).statistic)


def differences(
    cells: Mapping[tuple[str, int], list[Cell]], one: str, other: str, column: int = 0
) -> tuple[float, float]:
    """Return the mean difference of two variants, and its standard error over data sets."""
    by_task: dict[str, list[float]] = {}
    for (name, _), found in cells.items():
        means = np.mean([cell[one][column] - cell[other][column] for cell in found])
        by_task.setdefault(name, []).append(float(means))
    each = np.array([np.mean(values) for values in by_task.values()])
    error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.nan
    return float(each.mean()), float(error)


def print_tables(cells: Mapping[tuple[str, int], list[Cell]]) -> None:
    """Print accuracy by data set and labels, and the variants beside each other."""
    names = list(dict.fromkeys(name for name, _ in cells))
    heads = [f"{shots}" for shots in SHOTS]
    click.echo(f"\n| data | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for name in names:
        row = []
        for shots in SHOTS:
            found = cells.get((name, shots))
            if found is None:
                row.append("–")
                continue
            alone, library = (
                np.mean([cell[variant][0] for cell in found]) for variant in ("alone", "library")
            )
            row.append(f"{alone:.1f} → {library:.1f}")
        click.echo(f"| {name} | {' | '.join(row)} |")
    variants = list(next(iter(cells.values()))[0])
    few = {key: found for key, found in cells.items() if key[0] in RELATIVES and 2 <= key[1] <= 8}
    groups = {"all": cells, "relatives, 2 to 8 labels": few}
    heads = [f"{group}: {what}" for group in groups for what in ("accuracy", "gain", "log-loss")]
    click.echo(f"\n| variant | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|")
    for variant in variants:
        row = []
        for some in groups.values():
            if not some:
                row += ["–"] * 3
                continue
            means = np.mean(
                [np.mean([cell[variant] for cell in found], axis=0) for found in some.values()],
                axis=0,
            )
            gain, error = differences(some, variant, "alone")
            row += [f"{means[0]:.1f}", f"{gain:+.2f} ± {error:.2f}", f"{means[1]:.3f}"]
        click.echo(f"| {variant} | {' | '.join(row)} |")
    worst = min(
        (float(np.mean([c["library"][0] - c["alone"][0] for c in found])), key)
        for key, found in cells.items()
    )
    click.echo(f"\nlowest difference of a column: {worst[0]:+.1f} ({worst[1][0]}, {worst[1][1]})")


def _compute(
    tasks: Mapping[str, TaskRows],
    name: str,
    shots: int,
    seed: int,
    split: str,
    prompts: PromptPool,
) -> tuple[Cell, list[tuple[str, float, float]]]:
    """Return the cell of a task, with all other tasks as its library."""
    task = tasks[name]
    others = Sources({key: one.model for key, one in tasks.items() if key != name})
    drawn = draw_labels(task.y, shots, seed)
    judged = task.test, task.test_y
    if split == "development":
        rest = np.setdiff1d(np.arange(len(task.y)), drawn)
        judged = task.pool.take_rows(rest), task.y[rest]
    with one_blas_thread():
        return run_cell(task, drawn, judged, prompts, others, seed)


class Kept:
    """Cells that were computed before, in a file: an interrupted run resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(self, key: str, cell: tuple[Cell, list[tuple[str, float, float]]]) -> None:
        """Add a cell, and write the file."""
        self.cells[key] = cell
        self._path.write_text(json.dumps(self.cells))


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", default=Path("results"), type=click.Path(file_okay=False, path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--data", multiple=True, type=click.Choice(list(POOL)), default=list(POOL))
@click.option("--shots", "chosen", multiple=True, type=int, default=SHOTS, show_default=True)
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
    data: tuple[str, ...],
    chosen: tuple[int, ...],
    seeds: tuple[int, ...],
    split: str,
) -> None:
    """Print what the models of the other tasks bring to each task."""
    out.mkdir(parents=True, exist_ok=True)
    lm = load_stored_lm(open_store(store or out / "passes.sqlite"), backend)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    tasks = {name: read_task(name, data_dir, lm, prompts) for name in data}
    kept = Kept(out / f"library-{split}.json")
    cells: dict[tuple[str, int], list[Cell]] = {}
    pairs: dict[int, list[tuple[str, str, float, float]]] = {}
    for name, shots in itertools.product(tasks, chosen):
        task = tasks[name]
        n_least = int(np.bincount(task.y).min())
        if shots > n_least or (split == "development" and shots == n_least):
            continue
        for seed in seeds if shots < n_least else seeds[:1]:
            key = f"{name} of {' '.join(tasks)}, {shots} labels, seed {seed}"
            if key not in kept.cells:
                kept.keep(key, _compute(tasks, name, shots, seed, split, prompts))
            found, singles = kept.cells[key]
            cells.setdefault((name, shots), []).append(found)
            pairs.setdefault(shots, []).extend((name, *single) for single in singles)
        click.echo(f"{name} {shots}: done", err=True)
    print_tables(cells)
    click.echo("\nSpearman's correlation of the LEEP score with the gain in log-loss of a source")
    for shots, some in pairs.items():
        means: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for target, source, score, gain in some:
            means.setdefault((target, source), []).append((score, gain))
        of_pairs = [tuple(np.mean(each, axis=0).tolist()) for each in means.values()]
        click.echo(f"{shots} labels: {spearman(of_pairs):.2f} over {len(of_pairs)} pairs")
    click.echo(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{lm.usage.passes_made} passes made, {lm.usage.passes_from_store} from the store"
    )


if __name__ == "__main__":
    main()
