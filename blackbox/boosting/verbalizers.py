"""Verbalizers: which tokens speak for which class, chosen from log-probability matrices.

In SAMME (Hou et al., "PromptBoosting", ICML 2023) a verbalizer is a *tuple*, one token per class:
`token_scores` scores each token for each class, `candidate_tokens` keeps the best per class, and
`best_tuple` returns the tuple of candidates with the least weighted error. `logit` weights tokens
by their correlation with the residual (`correlated_tokens`). Lower columns win ties, and values
that differ by less than `TIE` are tied: the last digits of a sum depend on the order of its terms,
and must not decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix

__all__ = [
    "TIE",
    "best_tuple",
    "candidate_tokens",
    "correlated_tokens",
    "signed_sums",
    "token_scores",
    "top_tokens",
]

TIE = 1e-12
"""Scores and errors, sums weighted by shares of 1, that are this close are equal."""

_STEPS = 1e5  # correlations are compared in so many steps, from 0 to the strongest
_ALIKE = 1e-4  # of the strongest: correlations that differ by less don't differ
_BLOCK = 2**16  # elements in work at once: they fit in cache, and BLAS starts no threads for them
_MAX_WORK = 200_000_000  # tuples × rows × classes of one search: half a second
_COMBINED = 16  # tuples per combination of tokens that is worked out once
_MIN_TUPLES = 1_000  # however many rows and classes there are


def token_scores(
    log_probs: Matrix, y: NDArray[np.intp], weights: NDArray[np.float64], n_classes: int
) -> NDArray[np.float64]:
    """Return how much each token speaks for each class: s_c(v) = Σᵢ wᵢ (2.[yᵢ = c] − 1) pᵢ(v).

    Parameters
    ----------
    log_probs : float32 array of shape (n, V)
        One prompt's matrix.
    y : int array of shape (n,)
        Classes from 0.
    weights : float array of shape (n,)
        Weights of the rows that sum to 1.

    Returns
    -------
    float64 array of shape (n_classes, V)
    """
    return signed_sums(np.exp(log_probs), np.eye(n_classes)[y], weights)


def signed_sums(
    probabilities: Matrix, target: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the `token_scores` of probabilities (n, V) and one-hot classes (n, n_classes)."""
    signed = ((2 * target - 1) * weights[:, None]).T
    scores = np.empty((target.shape[1], probabilities.shape[1]))
    # sums in double precision, without a copy of the whole matrix in double precision
    step = max(1, _BLOCK // len(probabilities))
    for start in range(0, scores.shape[1], step):
        columns = slice(start, start + step)
        scores[:, columns] = signed @ probabilities[:, columns]
    return scores


def candidate_tokens(
    log_probs: Matrix, y: NDArray[np.intp], weights: NDArray[np.float64], n_classes: int, k: int
) -> list[NDArray[np.intp]]:
    """Return the `top_tokens` of the `token_scores`, whose parameters these are."""
    return top_tokens(token_scores(log_probs, y, weights, n_classes), k)


def top_tokens(scores: NDArray[np.float64], k: int) -> list[NDArray[np.intp]]:
    """Return per class the k tokens with the highest scores, out of those that belong to it.

    A token belongs to the class with the largest of its scores (n_classes, V), the lowest class on
    a tie. A class with fewer than k tokens has fewer candidates; one without any takes any tokens.

    Returns
    -------
    list of int arrays
        Per class between 1 and k columns, in ascending order.

    Raises
    ------
    ValueError
        If there is no token, or k is under 1.
    """
    if k < 1 or not scores.size:
        raise ValueError(f"no candidates: scores of shape {scores.shape}, k={k}")
    owner = (scores >= scores.max(axis=0) - TIE).argmax(axis=0)
    candidates = []
    for number, of_class in enumerate(scores):
        owned = np.flatnonzero(owner == number)
        if not len(owned):
            owned = np.arange(len(of_class))
        candidates.append(owned[_largest(of_class[owned], k)])
    return candidates


def _largest(values: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    """Return the places of the k largest values, lower ones on a tie, in ascending order."""
    if len(values) <= k:
        return np.arange(len(values))
    least = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > least + TIE)
    tied = np.flatnonzero(np.abs(values - least) <= TIE)
    return np.sort(np.concatenate([above, tied[: k - len(above)]]))


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
        As in `token_scores`.
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
    for column in tuples.T:
        best = best[column[best] == column[best].min()]
    return pool[tuples[best[0]]], float(errors[best[0]])


def _tuples(
    choices: Sequence[NDArray[np.intp]], at_most: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return all tuples of one choice per class, or a sample: (n_tuples, n_classes)."""
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
    tuples = np.empty((len(digits), len(choices)), np.intp)
    for number, choice in enumerate(choices):
        tuples[:, number] = choice[digits[:, number]]
    if len(choices) == 2:
        swapped = digits[:, -1] == 1
        tuples[swapped] = tuples[swapped, ::-1]
    return tuples


def _errors(
    values: Matrix, y: NDArray[np.intp], weights: NDArray[np.float64], tuples: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the weighted error of each tuple of columns of `values`: (n_tuples,)."""
    n_rows, n_classes = len(y), tuples.shape[1]
    order = np.argsort(y, kind="stable")  # the rows of one class are a slice
    bounds = np.searchsorted(y[order], np.arange(n_classes + 1))
    # small integers are several times as fast to fetch and compare as log-probabilities
    ranks = np.ascontiguousarray(_ranks(values[order]).T)
    parts = _parts_of_tuples(ranks, bounds, tuples)
    errors = np.empty(len(tuples))
    step = max(1, _BLOCK // max(1, n_rows))
    for start in range(0, len(tuples), step):
        some = slice(start, start + step)
        right = np.zeros((len(tuples[some]), n_rows), ranks.dtype)
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
    tuples : int array of shape (n_tuples, n_classes)
        The columns of each tuple.
    """
    at_most = len(tuples) // _COMBINED
    parts = []
    begin = 0
    while begin < tuples.shape[1]:
        used = _used_columns(tuples[:, begin], len(ranks))
        columns, codes, end = [used[0]], used[1], begin + 1
        while end < tuples.shape[1]:
            more, places = _used_columns(tuples[:, end], len(ranks))
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


def correlated_tokens(
    correlation: NDArray[np.float32], tokens_per_class: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return per class the tokens most correlated with its residual, and their weights.

    The weight of a token is what its correlation exceeds that of the strongest token not taken:
    soft thresholding (Donoho and Johnstone 1994), so that no token enters with a jump.

    Parameters
    ----------
    correlation : float array of shape (n_classes, V)
        Of each token's standardised log-probability with the residual of each class.
    tokens_per_class : int
        Tokens to take, those of the largest absolute correlation, ties by lower column.

    Returns
    -------
    columns : int array of shape (n_classes, tokens_per_class)
        Columns of the matrix; 0 where there are fewer tokens.
    token_weights : float32 array of shape (n_classes, tokens_per_class)
        With the sign of the correlation; their absolute values sum to 1. 0 where there are fewer
        tokens or no correlation.
    """
    n_classes, n_tokens = correlation.shape
    taken = min(tokens_per_class, n_tokens)
    # the last bits of a product depend on how it was summed; they must not decide between tokens
    strength = np.abs(correlation).astype(np.float64)
    scale = strength.max(axis=1, keepdims=True)
    # adding 2⁵² rounds: faster than `np.rint`, and the same
    rounded = (_STEPS * (strength / np.where(scale > 0, scale, 1.0)) + 2.0**52) - 2.0**52
    # the column from the right makes each key unique, so no sort of all tokens has to be stable
    keys = (rounded * n_tokens + np.arange(n_tokens - 1.0, -1.0, -1.0)).astype(np.int64)
    dropped = max(n_tokens - taken - 1, 0)
    if dropped:
        keys = np.partition(keys, dropped, axis=1)[:, dropped:]
    order = n_tokens - 1 - np.sort(keys, axis=1)[:, ::-1] % n_tokens
    rows = np.arange(n_classes)[:, None]
    best = order[:, :taken]
    strongest = strength[rows, order]
    excess = strongest[:, :taken]
    if n_tokens > taken:
        excess = np.maximum(excess - strongest[:, -1:], 0.0)
    # where all that are taken are as strong as the next, they have equal weights
    alike = excess.sum(axis=1, keepdims=True) <= _ALIKE * scale
    excess = np.where(alike, strongest[:, :taken], excess)
    total = excess.sum(axis=1, keepdims=True)
    share = excess / np.where(total > 0, total, 1.0)
    columns = np.zeros((n_classes, tokens_per_class), np.intp)
    weights = np.zeros((n_classes, tokens_per_class), np.float32)
    columns[:, :taken] = best
    weights[:, :taken] = np.sign(correlation[rows, best]) * share
    return columns, weights
