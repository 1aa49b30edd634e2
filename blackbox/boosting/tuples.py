"""The search of SAMME for the tuple of tokens, one per class, with the least weighted error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.verbalizers import TIE

__all__ = ["best_tuple"]

_BLOCK = 2**16  # elements in work at once: they fit in cache, and BLAS starts no threads for them
_MAX_WORK = 200_000_000  # tuples × rows × classes of one search: half a second
_MIN_TUPLES = 1_000  # however many rows and classes there are
_COMBINED = 16  # tuples per combination of tokens that is worked out once


def best_tuple(
    log_probs: Matrix,
    y: NDArray[np.intp],
    weights: NDArray[np.float64],
    candidates: Sequence[NDArray[np.intp]],
    *,
    rng: np.random.Generator,
    max_tuples: int = 20_000,
) -> tuple[NDArray[np.intp], float]:
    """Return the tuple of candidates, one per class, with the least weighted error Σᵢ wᵢ [wrong].

    A tuple predicts the class whose token is most probable, the lowest class on a tie. For two
    classes both orders of each pair are tried. All tuples are tried where they are few enough;
    otherwise as many as allowed are drawn at random, with repetition.

    Parameters
    ----------
    log_probs, y, weights
        As in `blackbox.boosting.verbalizers.token_scores`.
    candidates : sequence of int arrays
        Per class its columns.
    rng : numpy Generator
        Draws tuples; not used where all are tried.
    max_tuples : int, default=20_000
        Tuples to try at most. Fewer, but no fewer than 1,000, where rows and classes are many.

    Returns
    -------
    columns : int array of shape (n_classes,)
        The best tuple; of several, the first in lexicographic order.
    error : float
        Its error.

    Raises
    ------
    ValueError
        If a class has no candidate, or `max_tuples` is under 1.
    """
    sizes = [len(columns) for columns in candidates]
    if not sizes or min(sizes) < 1 or max_tuples < 1:
        raise ValueError(f"nothing to try: {sizes} candidates and max_tuples={max_tuples}")
    affordable = max(_MIN_TUPLES, _MAX_WORK // max(1, len(y) * len(sizes)))
    pool, places = np.unique(np.concatenate(candidates), return_inverse=True)
    choices = np.split(places, np.cumsum(sizes)[:-1])
    tuples = _tuples(choices, min(max_tuples, affordable), rng)
    errors = _errors(log_probs[:, pool], y, weights, tuples)
    best = np.flatnonzero(errors <= errors.min() + TIE)
    for columns in tuples:
        best = best[columns[best] == columns[best].min()]
    return pool[tuples[:, best[0]]], float(errors[best[0]])


def _tuples(
    choices: Sequence[NDArray[np.intp]], at_most: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return all tuples of one choice per class, or a sample: (n_classes, n_tuples)."""
    # one more digit than classes: whether the pair of two classes is swapped
    sizes = [*map(len, choices), 2 if len(choices) == 2 else 1]
    n_tuples = math.prod(sizes)
    if n_tuples <= at_most:
        # by hand, as np.unravel_index refuses more than 64 dimensions
        strides = np.cumprod([1, *sizes[:0:-1]])[::-1]
        digits = np.arange(n_tuples)[:, None] // strides % sizes
    else:
        # one bound for all draws the same numbers, and faster
        bound = sizes[0] if sizes == [sizes[0]] * len(choices) + [1] else sizes
        digits = rng.integers(0, bound, size=(at_most, len(choices) + (bound is sizes)))
    # small numbers, so that what is read across the rows stays in cache
    digits = digits.astype(np.min_scalar_type(max(sizes)))
    tuples = np.empty((len(choices), len(digits)), np.intp)
    for number, choice in enumerate(choices):
        np.take(choice, digits[:, number], out=tuples[number])
    if len(choices) == 2:
        swapped = digits[:, -1] == 1
        tuples[:, swapped] = tuples[::-1, swapped]
    return tuples


def _errors(
    values: Matrix, y: NDArray[np.intp], weights: NDArray[np.float64], tuples: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the weighted error of each tuple of columns of `values`: (n_tuples,)."""
    n_rows, (n_classes, n_tuples) = len(y), tuples.shape
    order = np.argsort(y, kind="stable")  # the rows of one class are a slice
    bounds = np.searchsorted(y[order], np.arange(n_classes + 1))
    # small integers are several times as fast to fetch and compare as log-probabilities
    ranks = np.ascontiguousarray(_ranks(values[order]).T)
    parts = _parts_of_tuples(ranks, bounds, tuples)
    errors = np.empty(n_tuples)
    step = max(1, _BLOCK // max(1, n_rows))
    for start in range(0, n_tuples, step):
        some = slice(start, min(start + step, n_tuples))
        right = np.zeros((some.stop - start, n_rows), ranks.dtype)
        most = np.zeros_like(right)
        for part in parts:
            part.add_to(right, most, some)
        errors[some] = (right != most) @ weights[order]
    return errors


@dataclass(frozen=True)
class _PartOfTuples:
    """Neighbouring classes of all tuples, with each combination of their tokens worked out once.

    Parameters
    ----------
    rows : slice
        The rows of these classes.
    codes : int array of shape (n_tuples,)
        The combination of each tuple.
    own : int array of shape (n_combinations, n_rows of these classes)
        The rank of the row's own token if it exceeds those of the lower classes, else 0.
    most : int array of shape (n_combinations, n_rows)
        The largest rank of these classes' tokens.
    """

    rows: slice
    codes: NDArray[np.intp]
    own: NDArray[np.unsignedinteger]
    most: NDArray[np.unsignedinteger]

    def add_to(
        self,
        right: NDArray[Any],
        most: NDArray[Any],
        some: slice,
    ) -> None:
        """Add these classes to the lower ones, for some of the tuples."""
        codes = self.codes[some]
        own = np.take(self.own, codes, axis=0)
        # on a tie the lower class wins, so only what exceeds all lower classes can be right
        right[:, self.rows] = own * (own > most[:, self.rows])
        np.maximum(most, np.take(self.most, codes, axis=0), out=most)


def _parts_of_tuples(
    ranks: NDArray[np.unsignedinteger], bounds: NDArray[np.intp], tuples: NDArray[np.intp]
) -> list[_PartOfTuples]:
    """Return the classes of tuples in parts with few combinations each; see `_PartOfTuples`.

    Parameters
    ----------
    ranks : int array of shape (n_columns, n_rows)
        From `_ranks`.
    bounds : int array of shape (n_classes + 1,)
        Where the rows of each class begin.
    tuples : int array of shape (n_classes, n_tuples)
        The columns of each tuple.
    """
    n_classes, n_tuples = tuples.shape
    at_most = n_tuples // _COMBINED
    parts = []
    begin = 0
    while begin < n_classes:
        used = _used_columns(tuples[begin], len(ranks))
        columns, codes, end = [used[0]], used[1], begin + 1
        while end < n_classes:
            more, places = _used_columns(tuples[end], len(ranks))
            if math.prod(map(len, columns)) * len(more) > at_most:
                break
            codes = codes * len(more) + places
            columns.append(more)
            end += 1
        grid = np.meshgrid(*columns, indexing="ij")
        rows = slice(int(bounds[begin]), int(bounds[end]))
        own, most = (
            np.zeros((grid[0].size, n), ranks.dtype)
            for n in (rows.stop - rows.start, len(ranks[0]))
        )
        for number, column in enumerate(grid, begin):
            rank = ranks[column.ravel()]
            of_class = slice(int(bounds[number]), int(bounds[number + 1]))
            here = slice(of_class.start - rows.start, of_class.stop - rows.start)
            own[:, here] = rank[:, of_class] * (rank[:, of_class] > most[:, of_class])
            np.maximum(most, rank, out=most)
        parts.append(_PartOfTuples(rows, codes, own, most))
        begin = end
    return parts


def _used_columns(
    columns: NDArray[np.intp], n_columns: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the columns that occur, ascending, and the place of each among them."""
    occurs = np.zeros(n_columns, bool)
    occurs[columns] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[columns]


def _ranks(values: Matrix) -> NDArray[np.unsignedinteger]:
    """Return ranks from 1 within each row, equal for equal values; same shape."""
    order = np.argsort(values, axis=1)
    ascending = np.take_along_axis(values, order, axis=1)
    steps = np.ones(values.shape, np.min_scalar_type(values.shape[1]))
    steps[:, 1:] = ascending[:, 1:] > ascending[:, :-1]
    ranks = np.empty_like(steps)
    np.put_along_axis(ranks, order, np.cumsum(steps, axis=1, dtype=steps.dtype), axis=1)
    return ranks
