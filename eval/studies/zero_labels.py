"""From no label to sixteen per class: what class names, embeddings and labels are worth.

    python -m eval.studies.zero_labels --data-dir DIR [--split test] [--data sst2]
        [--random] [--rules]

All data sets are asked the same ten prompts (``eval/data/prompts/shared.txt``). Of each, some
training rows per class are answered once: without labels they are the texts, and a seed draws its
labels from them; the other texts stay without labels. ``--random`` draws so many labels in all,
where classes have the shares of all training rows, so that some classes have no label; the others
draw so many of each class. ``--split test`` judges on test rows; by default further training rows
do, on which the choices were made. Descriptions of classes are those of ``eval/data/cards.yaml``,
written once and not changed for a figure. ``--rules`` compares ways to combine prompts and to take
off what the LM says anyway, without labels, on those rows.
"""

from __future__ import annotations

import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.backend import BaseBackend
from blackbox.boosting.label_words import agreement, name_learner, words_of
from blackbox.boosting.logit import coefficients_of
from blackbox.library.folder import Library
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.methods.base import TokenReader
from eval.studies.common import load_stored_embeddings, load_stored_lm
from eval.studies.experts import draw_pool

DATA = (
    "sst2",
    "agnews",
    "trec",
    "tweet_sentiment",
    "tweet_emotion",
    "tweet_irony",
    "tweet_hate",
    "sib200_eng",
    "banking77",
)
SHOTS = (1, 2, 4, 8, 16)
RANDOM = (8, 16, 32, 64)
SEEDS = (13, 21, 42, 87, 100)
N_POOL = {"banking77": 16}
N_POOL_ELSEWHERE = 32
"""Training rows per class that are answered."""

TOP_K = 200
WITH_LIBRARY = ("names and a library", "all three")
DESCRIBED = "names, descriptions and embeddings"

Scores = NDArray[np.float64]


def measured(scores: Scores, y: NDArray[np.intp]) -> float:
    """Return the accuracy in percent."""
    return 100 * float((scores.argmax(axis=1) == y).mean())


def centred(scores: Scores, rule: str) -> Scores:
    """Return scores less what each class gets anyway, by one of several rules."""
    if rule == "mean":
        return np.asarray(scores - scores.mean(axis=0))
    if rule == "median":
        return np.asarray(scores - np.median(scores, axis=0))
    if rule == "middle of the 10% and 90% quantiles":
        return np.asarray(scores - np.quantile(scores, [0.1, 0.9], axis=0).mean(axis=0))
    moved = scores.copy()  # the mean of the means of the predicted classes
    for _ in range(10):
        labels = moved.argmax(axis=1)
        means = [moved[labels == code].mean(axis=0) for code in np.unique(labels)]
        moved = moved - np.mean(means, axis=0)
    return moved


RULES = ("mean", "median", "middle of the 10% and 90% quantiles", "means of predicted classes")


def compare_rules(
    lm: BaseBackend, prompts: PromptPool, texts: Sequence[str], names: Sequence[str]
) -> Mapping[str, Scores]:
    """Return the scores of texts by the class names under each rule."""
    answers = next_tokens(lm, prompts, check_texts(list(texts)), TOP_K)
    reader, words = TokenReader(answers), [words_of(name) for name in names]
    votes = []
    for number, (tokens, matrix) in enumerate(
        zip(reader.tokens, reader.read(answers), strict=True)
    ):
        learner = name_learner(number, tokens, answers.token_bytes, words)
        if learner is not None:
            alone = replace(learner, prompt=0)
            votes.append(matrix @ coefficients_of([alone], [len(tokens)], len(names))[0])
    stacked = np.array(votes)
    ways = {
        "equal weights": stacked.sum(axis=0),
        "agreement": np.tensordot(agreement(stacked), stacked, 1),
    }
    return {
        f"{name}, {rule}": centred(scores / scores.std(), rule)
        for name, scores in ways.items()
        for rule in RULES
    }


def train_sources(
    lm: BaseBackend, prompts: PromptPool, pools: Mapping[str, data_sets.Rows], folder: Path
) -> Mapping[str, Path]:
    """Return for each task a library of models of the others, each trained on its whole pool."""
    models = {}
    for name, pool in pools.items():
        classifier = PromptBoostingClassifier(
            lm, prompts=prompts, store=False, random_state=0, embeddings=None
        )
        classifier.fit([str(text) for text in pool.texts], pool.labels)
        models[name] = folder / f"{name}.blackbox"
        classifier.save(models[name])
    for name in pools:
        for other, path in models.items():
            if other != name:
                Library.open(folder / name).add(path)
    return {name: folder / name for name in pools}


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA, type=click.Choice(DATA))
@click.option("--split", type=click.Choice(["development", "test"]), default="development")
@click.option("--n-judged", default=200, show_default=True, help="Rows that judge.")
@click.option("--shots", multiple=True, type=int, default=SHOTS, help="Labels per class.")
@click.option("--random", is_flag=True, help="Draw labels at random, so many in all.")
@click.option("--way", "only", multiple=True, help="Only these ways.  [default: all]")
@click.option("--rules", is_flag=True, help="Compare rules without labels, and stop.")
@click.option("--backend", default="onnx", show_default=True)
@click.option("--embeddings", default="onnx", show_default=True)
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("zero_labels.sqlite"),
    show_default=True,
)
def main(
    data_dir: Path,
    data: tuple[str, ...],
    split: str,
    n_judged: int,
    shots: tuple[int, ...],
    random: bool,
    only: tuple[str, ...],
    rules: bool,
    backend: str,
    embeddings: str,
    store: Path,
) -> None:
    """Print a table with a row for each way and a column for each data set."""
    file = open_store(store)
    lm, embedder = load_stored_lm(file, backend), load_stored_embeddings(file, embeddings)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    table: dict[str, dict[str, float]] = {}
    sets = {name: data_sets.read_data_set(name, data_dir) for name in data}
    pools = {name: found.train.take(pool_rows(name, found)) for name, found in sets.items()}
    with tempfile.TemporaryDirectory() as folder:
        asks_library = not rules and any(way in WITH_LIBRARY for way in only or WITH_LIBRARY)
        libraries = train_sources(lm, prompts, pools, Path(folder)) if asks_library else {}
        for name, found in sets.items():
            judged = (
                found.test_rows(n_judged)
                if split == "test"
                else further_rows(name, found, n_judged)
            )
            y = np.searchsorted(found.classes, judged.labels)
            texts = [str(text) for text in judged.texts]
            if rules:
                for way, scores in compare_rules(lm, prompts, texts, found.classes).items():
                    table.setdefault(way, {})[name] = measured(scores, y)
                continue
            ways: dict[str, dict[str, Any]] = {
                "names": {"embeddings": None},
                "names and a library": {"embeddings": None, "library": libraries.get(name)},
                "names and embeddings": {"embeddings": embedder},
                DESCRIBED: {
                    "embeddings": embedder,
                    "class_descriptions": found.card.descriptions or None,
                },
                "all three": {"embeddings": embedder, "library": libraries.get(name)},
                "labels alone": {"embeddings": None, "label_words": None},
            }
            ways = {way: options for way, options in ways.items() if way in only or not only}
            draws = draws_of(pools[name], found, () if random else shots, RANDOM if random else ())
            curve = _curve(lm, ways, prompts, pools[name], found.classes, texts, y, draws)
            for way, accuracy in curve.items():
                table.setdefault(way, {})[name] = accuracy
    click.echo("| " + " | ".join(["", *data, "mean"]) + " |")
    click.echo("|---" * (len(data) + 2) + "|")
    for way, cells in table.items():
        values = [cells[name] for name in data]
        shown = [f"{value:.1f}" for value in [*values, float(np.mean(values))]]
        click.echo(f"| {way} | " + " | ".join(shown) + " |")
    click.echo(f"\n{platform.machine()}, {os.cpu_count()} cores, {len(SEEDS)} seeds")


def pool_rows(name: str, found: data_sets.DataSet) -> list[int]:
    """Return the training rows that a seed draws its labels from."""
    return draw_pool(found.train.labels, found.train.texts, N_POOL.get(name, N_POOL_ELSEWHERE))


def further_rows(name: str, found: data_sets.DataSet, n: int) -> data_sets.Rows:
    """Return training rows that no pool has, drawn at random, with their shares of classes."""
    pool = {found.train.texts[row] for row in pool_rows(name, found)}
    free = [row for row in range(len(found.train)) if found.train.texts[row] not in pool]
    drawn = np.random.default_rng(0).choice(free, min(n, len(free)), replace=False)
    return found.train.take(sorted(drawn.tolist()))


Draw = Callable[[int], list[int]]
"""From a seed: the rows of a pool that have labels."""


def draws_of(
    pool: data_sets.Rows, found: data_sets.DataSet, shots: Sequence[int], random: Sequence[int]
) -> dict[str, Draw]:
    """Return the ways to draw labels: so many of each class, and so many in all."""
    labels = np.array(pool.labels)
    shares = found.class_shares()
    chances = np.array([shares[label] / (labels == label).sum() for label in pool.labels])

    def per_class(n: int) -> Draw:
        def draw(seed: int) -> list[int]:
            given: list[int] = []
            for code in found.classes:
                own = np.flatnonzero(labels == code)
                given += np.random.default_rng(seed).permutation(own)[:n].tolist()
            return given

        return draw

    def in_all(n: int) -> Draw:
        def draw(seed: int) -> list[int]:
            rng = np.random.default_rng(seed)
            drawn: list[int] = rng.choice(
                len(labels), min(n, len(labels)), replace=False, p=chances / chances.sum()
            ).tolist()
            return drawn

        return draw

    each = {f"{n} labels per class": per_class(n) for n in shots}
    return each | {f"{n} labels in all": in_all(n) for n in random}


def _curve(
    lm: BaseBackend,
    ways: Mapping[str, Mapping[str, Any]],
    prompts: PromptPool,
    pool: data_sets.Rows,
    classes: Sequence[str],
    texts: Sequence[str],
    y: NDArray[np.intp],
    draws: Mapping[str, Draw],
) -> dict[str, float]:
    """Return the accuracy of each way, without labels and with each draw of them."""
    pool_texts = [str(text) for text in pool.texts]
    labels = np.array(pool.labels)
    curve: dict[str, list[float]] = {}
    for title, options in ways.items():
        for drawn, draw in (("no labels", None), *draws.items()):
            if "label_words" in options and (draw is None or "in all" in drawn):
                continue  # labels alone say nothing of a class without one
            for seed in SEEDS if draw else SEEDS[:1]:
                given = draw(seed) if draw else []
                classifier = PromptBoostingClassifier(
                    lm, prompts=prompts, store=False, random_state=seed, classes=list(classes)
                ).set_params(**options)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of classes with a single row
                    known = np.full(len(labels), None, object)
                    known[given] = labels[given]
                    classifier.fit(pool_texts, known)
                accuracy = measured(classifier.predict_proba(list(texts)), y)
                curve.setdefault(f"{title}, {drawn}", []).append(accuracy)
    return {way: float(np.mean(found)) for way, found in curve.items()}


if __name__ == "__main__":
    main()
