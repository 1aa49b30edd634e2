"""Promised error rates and prediction sets against what came of them on test rows.

    python -m eval.studies.promises --data-dir DIR [--data sst2] [--labels 64] [--draws 200]
        [--split development]

Of each data set 640 training rows, drawn at random, and 500 test rows are asked about once, the
same ten prompts; what is in the store isn't asked again. Each draw takes some of these training
rows at random, trains on them as `blackbox train --prompts FILE --embeddings none` does, and asks
for promises; test rows judge, or with ``--split development`` 1,000 further training rows, which
are as the held-out rows are. A draw keeps a promise of 5% if at most 5% of the labels that it gives
to these rows are wrong, so the share of kept promises has their noise in it.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.model.model import Model
from blackbox.store.file import open_store
from eval.data import data_sets
from eval.studies.common import load_stored_lm

DATA_SETS = ("sst2", "agnews", "trec", "tweet_sentiment")
LABELS = (32, 64, 128, 256, 512)
MAX_ERRORS = (0.02, 0.05, 0.1, 0.2)
COVERAGES = (0.8, 0.9, 0.95)
N_TRAIN, N_TEST, N_FURTHER, TOP_K = 640, 500, 1_000, 200


@dataclass
class _Promised:
    """The outcome of one promise over draws."""

    n_draws: int = 0
    coverage: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, codes: np.ndarray, truth: np.ndarray) -> None:
        given = codes >= 0
        self.coverage.append(float(given.mean()))
        self.errors.append(float((codes[given] != truth[given]).mean()) if given.any() else 0.0)

    def cells(self, max_error: float) -> list[str]:
        share = f"{100 * len(self.errors) / self.n_draws:.0f}"
        if not self.errors:
            return [share, "–", "–", "–"]
        kept = np.mean(np.array(self.errors) <= max_error + 1e-9)
        return [
            share,
            f"{100 * kept:.0f}",
            f"{100 * np.mean(self.errors):.1f}",
            f"{100 * np.mean(self.coverage):.0f}",
        ]


def _texts_and_labels(rows: data_sets.Rows) -> tuple[list[str], np.ndarray]:
    return [str(text) for text in rows.texts], np.array(rows.labels)


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", multiple=True, default=DATA_SETS, type=click.Choice(DATA_SETS))
@click.option("--labels", multiple=True, type=int, default=LABELS, help="Training rows.")
@click.option("--draws", type=int, default=200)
@click.option("--split", type=click.Choice(["development", "test"]), default="test")
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("promises.sqlite"),
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
    """Print a table of promises and one of sets for each data set."""
    lm = load_stored_lm(open_store(store), backend)
    prompts = PromptPool.read(data_sets.PROMPTS / "shared.txt")
    for name in data:
        found = data_sets.read_data_set(name, data_dir)
        rows = np.random.default_rng(0).permutation(len(found.train)).tolist()
        pool, pool_y = _texts_and_labels(found.train.take(rows[:N_TRAIN]))
        further = found.train.take(rows[N_TRAIN : N_TRAIN + N_FURTHER])
        tested, test_y = _texts_and_labels(further if split != "test" else found.test_rows(N_TEST))
        for texts in (pool, tested):
            next_tokens(lm, prompts, check_texts(texts), TOP_K)
        promised = {(n, e): _Promised() for n in labels for e in MAX_ERRORS}
        sets: dict[tuple[int, float], list[tuple[float, float]]] = {}
        for n in labels:
            for draw in range(draws):
                drawn = np.random.default_rng([n, draw]).permutation(len(pool))[:n]
                classifier = PromptBoostingClassifier(
                    lm, prompts=prompts, embeddings=None, store=False, random_state=draw
                )
                classifier.fit([pool[row] for row in drawn], pool_y[drawn])
                _judge(classifier.model_, classifier, tested, test_y, n, promised, sets)
        click.echo(f"\n**{name}**\n")
        click.echo(
            "| labels | promised error | given in draws | kept | realised error | coverage |"
        )
        click.echo("|---|---|---|---|---|---|")
        for (n, max_error), kept in promised.items():
            cells = [str(n), f"{100 * max_error:.0f}", *kept.cells(max_error)]
            click.echo("| " + " | ".join(cells) + " |")
        click.echo("\n| labels | promised to hold | holds | labels in a set |\n|---|---|---|---|")
        for (n, coverage), pairs in sets.items():
            holds, size = np.mean(pairs, axis=0)
            click.echo(f"| {n} | {100 * coverage:.0f} | {100 * holds:.1f} | {size:.2f} |")
    click.echo(f"\n{draws} draws; {platform.machine()}, {os.cpu_count()} cores")


def _judge(
    model: Model,
    classifier: PromptBoostingClassifier,
    texts: list[str],
    labels: np.ndarray,
    n: int,
    promised: dict[tuple[int, float], _Promised],
    sets: dict[tuple[int, float], list[tuple[float, float]]],
) -> None:
    """Add what came of one model's promises on test rows."""
    known = np.isin(labels, model.classes)  # a class that wasn't drawn is an error
    truth = np.where(known, np.searchsorted(model.classes, labels), len(model.classes))
    predictions = model.predict(classifier.connect(), texts)
    assert predictions.probabilities is not None
    for max_error in MAX_ERRORS:
        found = promised[n, max_error]
        found.n_draws += 1
        try:
            promise = model.promise(max_error)
        except ValueError:
            continue
        found.add(predictions.keeping(promise).codes, truth)
    for coverage in COVERAGES:
        try:
            chosen = model.prediction_sets(predictions.probabilities, coverage)
        except ValueError:
            continue
        padded = np.concatenate([chosen, np.zeros((len(chosen), 1), bool)], axis=1)
        holds = padded[np.arange(len(truth)), truth].mean()
        sets.setdefault((n, coverage), []).append((holds, chosen.sum(axis=1).mean()))


if __name__ == "__main__":
    main()
