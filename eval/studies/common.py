"""Data sets, row draws and LMs that several studies use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import backends
from blackbox.boosting.splits import draw_shots
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import LabelledExamples, read_examples

__all__ = ["DATA_SETS", "SEEDS", "SHOTS", "draw_study_rows", "load_stored_lm"]

DATA_SETS = ("trec", "agnews", "sst2")
SEEDS = {"test": (13, 21, 42, 87, 100), "development": (1, 2)}
SHOTS = 32


def draw_study_rows(
    data_dir: Path, data: str, split: str, seed: int, n_test: int
) -> tuple[list[Any], list[str], LabelledExamples]:
    """Return training texts and labels, and the test rows."""
    train = read_examples(data_dir / data / "train.csv")
    if split == "test":
        test = read_examples(data_dir / data / "test.csv")
        drawn = draw_shots(train.labels, train.texts, SHOTS, seed)
        tested = np.random.default_rng(0).permutation(len(test.texts))[:n_test].tolist()
        return _texts(train, drawn), _labels(train, drawn), _take(test, tested)
    used = {
        row
        for number in SEEDS["test"]
        for row in draw_shots(train.labels, train.texts, SHOTS, number)
    }
    free = [row for row in range(len(train.texts)) if row not in used]
    order = np.random.default_rng(0).permutation(free).tolist()
    rest = _take(train, order[n_test:])
    # a rare class of TREC has fewer rows left than that
    rows: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(len(rest.texts)).tolist():
        rows.setdefault(rest.labels[row], []).append(row)
    drawn = sorted(row for of_label in rows.values() for row in of_label[:SHOTS])
    return _texts(rest, drawn), _labels(rest, drawn), _take(train, order[:n_test])


def _texts(examples: LabelledExamples, rows: list[int]) -> list[Any]:
    return [examples.texts[row] for row in rows]


def _labels(examples: LabelledExamples, rows: list[int]) -> list[str]:
    return [examples.labels[row] for row in rows]


def _take(examples: LabelledExamples, rows: list[int]) -> LabelledExamples:
    return replace(
        examples,
        texts=_texts(examples, rows),
        labels=_labels(examples, rows),
        numbers=[examples.numbers[row] for row in rows],
    )


def load_stored_lm(file: StoreFile, backend: str, **options: str | None) -> StoredBackend:
    """Load an LM behind a store."""
    given = {key: value for key, value in options.items() if value is not None}
    return StoredBackend(backends.load(backend, **given), file)


def load_stored_embeddings(file: StoreFile, embeddings: str) -> StoredBackend:
    """Load an embedding model behind a store: each fit of a study reads the same vectors."""
    return StoredBackend(backends.load_embeddings(embeddings), file)
