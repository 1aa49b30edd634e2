"""Splits and samples of training rows: few-shot, balanced, cross-validation, validation."""

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
        Rows per class.
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
    """Return stratified folds for cross-validation.

    Parameters
    ----------
    y : int array of shape (n,)
        Classes.
    cv : int or None
        Number of folds.
    rng : numpy Generator
        Shuffles the rows; not used where there are no folds.

    Returns
    -------
    list of (int array, int array)
        Training rows and held-out rows. Fewer folds than `cv` if a class has fewer rows; none if
        one has a single row, or `cv` is None.
    """
    n_splits = min(cv or 0, int(np.bincount(y)[np.unique(y)].min())) if len(y) else 0
    if n_splits < 2:
        return []
    folds = StratifiedKFold(n_splits, shuffle=True, random_state=int(rng.integers(2**31)))
    return list(folds.split(np.empty((len(y), 0)), y))


def stratified_split(
    y: NDArray[np.intp], fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows to boost on, and validation rows to choose the number of rounds on.

    Parameters
    ----------
    y : int array of shape (n,)
        Classes.
    fraction : float
        Share of validation rows, in [0, 1).
    rng : numpy Generator
        Draws them; not used where there are none.

    Returns
    -------
    train, held_out : int arrays
        Ascending row numbers; `held_out` is empty if a class has too few rows for both parts.
    """
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
    """Return at most `n_rows` row numbers, in an order in which the classes alternate.

    At least two of each class that has two, even if that makes more rows.

    Parameters
    ----------
    y : int array of shape (n,)
        Classes.
    """
    order = rng.permutation(len(y))
    turn = np.empty(len(y), int)
    for label in np.unique(y):
        of_class = order[y[order] == label]
        turn[of_class] = np.arange(len(of_class))
    rank = np.lexsort((rng.permutation(len(y)), turn))
    return rank[: max(n_rows, int((turn < 2).sum()))]
