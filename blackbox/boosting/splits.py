"""Draws of training rows: few-shot, balanced, folds, splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from blackbox.errors import DataError

__all__ = ["balanced_rows", "draw_shots", "stratified_folds", "stratified_split"]


def draw_shots(labels: Sequence[str], shots: int, seed: int) -> list[int]:
    """Draw the same number of rows from each class, without replacement.

    Parameters
    ----------
    labels : sequence of str
        The label of each row.
    shots : int
        Rows a class.
    seed : int
        The same seed draws the same rows.

    Returns
    -------
    list of int
        Row numbers from 0, ascending.

    Raises
    ------
    DataError
        If a class has fewer rows.
    """
    rng = np.random.default_rng(seed)
    array = np.asarray(labels, object)  # text of a fixed width takes that of the longest label
    drawn: list[int] = []
    for label in sorted(set(labels)):
        rows = np.flatnonzero(array == label)
        if len(rows) < shots:
            raise DataError(
                f"class {label!r} has {len(rows)} rows and {shots} are wanted: lower --shots"
            )
        drawn += rng.choice(rows, shots, replace=False).tolist()
    return sorted(drawn)


def stratified_folds(
    y: NDArray[np.intp], cv: int | None, rng: np.random.Generator
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Stratified folds, fewer where a class is small; none where a class has a single row."""
    n_splits = min(cv or 0, int(np.bincount(y)[np.unique(y)].min())) if len(y) else 0
    if n_splits < 2:
        return []
    folds = StratifiedKFold(n_splits, shuffle=True, random_state=int(rng.integers(2**31)))
    return list(folds.split(np.empty((len(y), 0)), y))


def stratified_split(
    y: NDArray[np.intp], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to boost on, and rows to pick the number of rounds on (none if a class is small)."""
    everything = np.arange(len(y))
    n_held_out = round(fraction * len(y))
    n_classes = len(np.unique(y))
    if np.bincount(y)[np.unique(y)].min() < 2 or not n_classes <= n_held_out <= len(y) - n_classes:
        return everything, everything[:0]
    splitter = StratifiedShuffleSplit(
        1, test_size=n_held_out, random_state=int(rng.integers(2**31))
    )
    train, held_out = next(splitter.split(np.empty((len(y), 0)), y))
    return np.sort(train), np.sort(held_out)


def balanced_rows(y: NDArray[np.intp], n_rows: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """At most `n_rows` rows in an order in which the classes take turns.

    At least two of each class that has two, even if that makes more rows.
    """
    order = rng.permutation(len(y))
    turn = np.empty(len(y), int)
    for label in np.unique(y):
        of_class = order[y[order] == label]
        turn[of_class] = np.arange(len(of_class))
    rank = np.lexsort((rng.permutation(len(y)), turn))
    return rank[: max(n_rows, int((turn < 2).sum()))]
