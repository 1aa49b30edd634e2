"""Splits and samples of training rows: few-shot, balanced, cross-validation, validation.

Rows of one group are not independent: copies of a text, or rows that the user says belong together.
A group is never split over training and held-out rows, as what is known of one of its rows is no
test for another. Groups are int arrays of shape (n,); without groups each row is one of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import DataError

__all__ = [
    "FEW_IN_ALL",
    "FEW_PER_CLASS",
    "are_few_labels",
    "balanced_rows",
    "draw_shots",
    "groups_per_class",
    "stratified_folds",
    "stratified_split",
]

Groups = NDArray[np.intp] | None

FEW_PER_CLASS, FEW_IN_ALL = 4, 24
"""Labels, per class on average and in all, below which priors are believed where names speak."""

_TIE = 1e-9  # the weight of a part's size where it is filled as another one is


def draw_shots(
    labels: Sequence[str], texts: Sequence[Hashable], shots: int, seed: int
) -> list[int]:
    """Draw the same number of different texts from each class.

    Parameters
    ----------
    labels : sequence of str
        The label of each row.
    texts : sequence of str or of tuple of str
        The text, or pair, of each row. A text that a class has several times is drawn as one.
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
        If a class has fewer texts.
    """
    rng = np.random.default_rng(seed)
    array = np.asarray(labels, object)  # text of a fixed width takes that of the longest label
    drawn: list[int] = []
    lacking: list[tuple[NDArray[np.intp], int]] = []
    for label in sorted(set(labels)):
        rows = np.flatnonzero(array == label)
        different = np.sort(list({texts[row]: row for row in reversed(rows.tolist())}.values()))
        if len(different) < shots:
            what = "rows" if len(different) == len(rows) else "different texts"
            raise DataError(
                f"class {label!r} has {len(different)} {what} and {shots} are wanted: take "
                "fewer shots"
            )
        found = np.intersect1d(rng.choice(rows, shots, replace=False), different)
        drawn += found.tolist()
        if len(found) < shots:
            lacking.append((np.setdiff1d(different, found), shots - len(found)))
    # copies make way for others at the end, so that few of them change few rows of a draw
    for rest, n in lacking:
        drawn += rng.choice(rest, n, replace=False).tolist()
    return sorted(drawn)


def groups_per_class(y: NDArray[np.intp], groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the number of groups in which each class has rows: (max(y) + 1,).

    Parameters
    ----------
    y : int array of shape (n,)
        Classes.
    groups : int array of shape (n,)
        Groups.
    """
    n_groups = int(groups.max()) + 1
    return np.bincount(np.unique(y * n_groups + groups) // n_groups)


def are_few_labels(y: NDArray[np.intp], n_classes: int, groups: Groups = None) -> bool:
    """Return whether labels are too few to weigh what class names say by held-out rows.

    They are with fewer than four per class on average, fewer than 24 in all, or of a single class.

    Parameters
    ----------
    y : int array of shape (n,)
        Classes, of which some may have no row.
    n_classes : int
        Number of classes.
    groups : int array of shape (n,), optional
        Groups; rows of one group count as one.
    """
    n = len(y) if groups is None else len(np.unique(groups))
    return n < max(FEW_PER_CLASS * n_classes, FEW_IN_ALL) or len(np.unique(y)) < 2


def stratified_folds(
    y: NDArray[np.intp],
    cv: int | None,
    rng: np.random.Generator,
    groups: Groups = None,
    *,
    may_lack: bool = False,
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
    groups : int array of shape (n,), optional
        Groups, each of which is in one fold.
    may_lack : bool, default=False
        Whether the training rows of a fold may lack a class that has few groups. There are then
        `cv` folds also where a class has fewer groups.

    Returns
    -------
    list of (int array, int array)
        Training rows and held-out rows; each class is among the training rows of each fold. Fewer
        folds than `cv` if a class has fewer groups; none if one has a single group, or `cv` is
        None.
    """
    from sklearn.model_selection import StratifiedKFold

    if not len(y):
        return []
    first, groups = _numbered(y, groups)
    fewest = _fewest_groups(y, groups)
    lacking = may_lack and fewest < FEW_PER_CLASS
    n_splits = min(cv or 0, len(first) if lacking else fewest)
    if n_splits < 2:
        return []
    seed = int(rng.integers(2**31))
    if not lacking and _alike(y, first, groups):
        folds = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
        split = folds.split(np.empty((len(first), 0)), y[first])
        return [(_rows_of(train, groups), _rows_of(test, groups)) for train, test in split]
    part = _assign(y, groups, np.full(n_splits, 1 / n_splits), np.random.default_rng(seed))
    parts = [
        (np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in np.unique(part)
    ]
    return parts if lacking or all(_has_all(y, train) for train, _ in parts) else []


def stratified_split(
    y: NDArray[np.intp], fraction: float, rng: np.random.Generator, groups: Groups = None
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
    groups : int array of shape (n,), optional
        Groups, each of which is in one part.

    Returns
    -------
    train, held_out : int arrays
        Ascending row numbers; `held_out` is empty if a class has too few groups for both parts.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    everything = np.arange(len(y))
    first, groups = _numbered(y, groups)
    n_held_out = round(fraction * len(first))
    if _fewest_groups(y, groups) < 2 or not n_held_out:
        return everything, everything[:0]
    if _alike(y, first, groups):
        n_classes = len(np.unique(y))
        if not n_classes <= n_held_out <= len(first) - n_classes:
            return everything, everything[:0]
        splitter = StratifiedShuffleSplit(
            1, test_size=n_held_out, random_state=int(rng.integers(2**31))
        )
        train, held_out = next(splitter.split(np.empty((len(first), 0)), y[first]))
        return _rows_of(train, groups), _rows_of(held_out, groups)
    part = _assign(y, groups, np.array([1 - fraction, fraction]), rng)
    train, held_out = np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    if not (_has_all(y, train) and _has_all(y, held_out)):
        return everything, everything[:0]
    return train, held_out


def balanced_rows(
    y: NDArray[np.intp], n_rows: int, rng: np.random.Generator, groups: Groups = None
) -> NDArray[np.intp]:
    """Return at most `n_rows` row numbers, in an order in which the classes alternate.

    At least two of each class that has two, even if that makes more rows. In each class, no second
    row of a group comes before the first rows of all groups.

    Parameters
    ----------
    y : int array of shape (n,)
        Classes.
    groups : int array of shape (n,), optional
        Groups.
    """
    order = rng.permutation(len(y))
    turn = np.empty(len(y), int)
    for label in np.unique(y):
        of_class = order[y[order] == label]
        if groups is not None:
            of_class = of_class[np.argsort(_repeats(groups[of_class]), kind="stable")]
        turn[of_class] = np.arange(len(of_class))
    rank = np.lexsort((rng.permutation(len(y)), turn))
    return rank[: max(n_rows, int((turn < 2).sum()))]


def _numbered(y: NDArray[np.intp], groups: Groups) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first row of each group, ascending, and the groups numbered in that order."""
    if groups is None:
        return np.arange(len(y)), np.arange(len(y))
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.sort(first), np.argsort(np.argsort(first))[inverse]


def _fewest_groups(y: NDArray[np.intp], groups: NDArray[np.intp]) -> int:
    return int(groups_per_class(y, groups)[np.unique(y)].min())


def _alike(y: NDArray[np.intp], first: NDArray[np.intp], groups: NDArray[np.intp]) -> bool:
    """Whether all groups have one class and one size, so that they can be drawn as rows are."""
    return bool(np.ptp(np.bincount(groups)) == 0 and (y == y[first][groups]).all())


def _rows_of(some: NDArray[np.intp], groups: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.flatnonzero(np.isin(groups, some))


def _has_all(y: NDArray[np.intp], rows: NDArray[np.intp]) -> bool:
    return len(np.unique(y[rows])) == len(np.unique(y))


def _assign(
    y: NDArray[np.intp],
    groups: NDArray[np.intp],
    shares: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Return the part of each row: groups stay whole, and each part gets its share of each class.

    Greedy, the groups with most of a class first: each goes where it adds least to the sum of
    squares of what the parts have of each class, over their shares.
    """
    held = np.zeros((groups.max() + 1, y.max() + 1))  # what each group has of each class
    np.add.at(held, (groups, y), 1.0)
    held /= np.maximum(held.sum(axis=0), 1.0)
    order = rng.permutation(len(held))
    order = order[np.argsort(-held[order].max(axis=1), kind="stable")]
    filled = np.zeros((len(shares), held.shape[1]))
    part = np.empty(len(held), np.intp)
    for group in order:
        added = (2 * filled + held[group]) @ held[group] + _TIE * filled.sum(axis=1)
        part[group] = np.argmin(added / shares)
        filled[part[group]] += held[group]
    return part[groups]


def _repeats(groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return how often the group of each row has come before."""
    by_group = np.argsort(groups, kind="stable")
    counts = np.unique(groups, return_counts=True)[1]
    repeats = np.empty(len(groups), np.intp)
    repeats[by_group] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    return repeats
