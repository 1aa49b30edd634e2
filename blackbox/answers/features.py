"""Features: complete matrices of token log-probabilities from an LM's top-k answers.

An LM reports the log-probabilities of its k most likely tokens. A missing value is bounded, not
zero, and imputed alike in training, in prediction from the top k and in prediction from `score`:
each prompt has a *floor*, learned on training rows; every value is max(reported, floor), and a
missing one is the floor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.memory import require_memory
from blackbox.protocol import NO_TOKEN

__all__ = [
    "FLOOR_MARGIN",
    "Matrix",
    "floor_of",
    "frequent_matrices",
    "frequent_tokens",
    "gather",
    "weighted_median",
]

Matrix = NDArray[np.float32]
"""The log-probabilities of one prompt: n rows by V tokens, in ascending order of token id."""

_MAX_TOKENS = 4096  # tokens kept per prompt, so that memory stays bounded by the rows
_MAX_VOCABULARY = 2**22  # up to which a table over all ids is faster than a search
_BLOCK = 1024  # rows that are gathered at once
_FULL_LENGTH = 200  # tokens of an answer, to which shares of rows refer

FLOOR_MARGIN = 0.5
"""Distance of the floor below the median of the smallest reported log-probabilities."""


def floor_of(
    token_ids: NDArray[np.int32], log_probs: Matrix, sample_weight: NDArray[np.float64]
) -> float:
    """Return a prompt's floor: the median over rows of the smallest log-probability, less a margin.

    Where all rows report the same tokens, as of a question with few options, nothing was cut off,
    and the smallest value of all takes the place of the median.

    Parameters
    ----------
    token_ids : int32 array of shape (n, k)
        As in `blackbox.protocol.TokenLogProbs`.
    log_probs : float32 array of shape (n, k)
        Likewise.
    sample_weight : float array of shape (n,)
        Weights of the rows.
    """
    reported = np.where(token_ids == NO_TOKEN, np.inf, log_probs)
    last = reported.min(axis=1)
    known = np.isfinite(last)
    if not known.any():
        return -FLOOR_MARGIN
    if known.sum() > 1 and _same_tokens(token_ids[known]):
        return float(last[known].min()) - FLOOR_MARGIN
    return weighted_median(last[known].astype(np.float64), sample_weight[known]) - FLOOR_MARGIN


def _same_tokens(token_ids: NDArray[np.int32]) -> bool:
    """Return whether all rows report the same tokens, in whatever order."""
    first = np.sort(token_ids[0])
    # the last row alone tells most prompts from questions
    return bool(
        (np.sort(token_ids[-1]) == first).all() and (np.sort(token_ids, axis=1) == first).all()
    )


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the weighted median.

    It is the mean of the two middle values where the weights split into equal halves.
    """
    order = np.argsort(values, kind="stable")
    running = np.cumsum(weights[order])
    half = running[-1] / 2
    lower = int(np.searchsorted(running, half * (1 - 1e-12)))
    upper = int(np.searchsorted(running, half * (1 + 1e-12)))
    return float((values[order[lower]] + values[order[min(upper, len(order) - 1)]]) / 2)


def frequent_tokens(
    token_ids: NDArray[np.int32],
    sample_weight: NDArray[np.float64],
    *,
    share: float,
    at_most: int,
) -> NDArray[np.int32]:
    """Return the tokens reported in at least a share of the rows, in ascending order.

    Parameters
    ----------
    token_ids : int32 array of shape (n, k)
        As in `blackbox.protocol.TokenLogProbs`.
    sample_weight : float array of shape (n,)
        Weights of the rows; a row of weight 0 is ignored.
    share : float
        Share of the total weight, in [0, 1].
    at_most : int
        Largest number of tokens to keep: the most frequent ones, ties by token id.
    """
    row_weights = np.repeat(sample_weight, token_ids.shape[1])
    if token_ids.max(initial=0) < _MAX_VOCABULARY:
        weight = np.bincount(token_ids.ravel() - NO_TOKEN, weights=row_weights)
        tokens = np.arange(len(weight)) + NO_TOKEN
    else:
        tokens, places = np.unique(token_ids, return_inverse=True)
        weight = np.bincount(places.ravel(), weights=row_weights, minlength=len(tokens))
    # a rounding error in the sum must not exclude a token
    kept = (weight >= share * sample_weight.sum() * (1 - 1e-9)) & (weight > 0)
    kept &= tokens != NO_TOKEN
    order = np.lexsort((tokens[kept], -weight[kept]))[:at_most]
    return np.sort(tokens[kept][order]).astype(np.int32)


def gather(
    token_ids: NDArray[np.int32], log_probs: Matrix, wanted: NDArray[np.int32], floor: float
) -> Matrix:
    """Return the log-probabilities of the wanted tokens, none below the floor.

    Parameters
    ----------
    token_ids : int32 array of shape (n, k)
        As in `blackbox.protocol.TokenLogProbs`.
    log_probs : float32 array of shape (n, k)
        Likewise.
    wanted : int32 array of shape (V,)
        Token ids in ascending order.
    floor : float
        The prompt's floor.

    Returns
    -------
    float32 array of shape (n, V)
    """
    n_tokens = len(wanted)
    matrix = np.full((len(token_ids), n_tokens), floor, np.float32)
    table = _column_table(wanted)
    for start in range(0, len(token_ids) if n_tokens else 0, _BLOCK):
        ids = token_ids[start : start + _BLOCK]
        if table is None:
            columns = np.searchsorted(wanted, ids).clip(max=n_tokens - 1)
            known = wanted[columns] == ids
        else:
            # an id beyond the table, and `NO_TOKEN`, is at its end
            columns = table[np.minimum(ids, len(table) - 1)]
            known = columns >= 0
        places = (columns + n_tokens * np.arange(len(ids))[:, None])[known]
        values = log_probs[start : start + _BLOCK][known]
        matrix[start : start + _BLOCK].ravel()[places] = np.maximum(values, np.float32(floor))
    return matrix


def _column_table(wanted: NDArray[np.int32]) -> NDArray[np.intp] | None:
    """Return the column of each token id, −1 for none and at the end; None if ids are large."""
    if not len(wanted) or wanted[-1] >= _MAX_VOCABULARY:
        return None
    table = np.full(int(wanted[-1]) + 2, -1)
    table[wanted] = np.arange(len(wanted))
    return table


def frequent_matrices(
    token_ids: NDArray[np.int32],
    log_probs: NDArray[np.float32],
    sample_weight: NDArray[np.float64],
    share: float,
    rows: NDArray[np.intp] | None = None,
) -> tuple[list[Matrix], list[NDArray[np.int32]], list[float]]:
    """Return for each prompt the matrix of its frequent tokens, those tokens, and the floor.

    Parameters
    ----------
    token_ids : int32 array of shape (P, n, k)
        The answers under P prompts, as in `blackbox.answers.passes.Answers`.
    log_probs : float32 array of shape (P, n, k)
        Likewise.
    sample_weight : float array of shape (n,)
        Weights of the rows.
    share : float
        As for `frequent_tokens`, of answers of 200 tokens. Where they are shorter, it is less in
        proportion: a token is then among them in fewer rows.
    rows : int array, optional
        Rows to use; `sample_weight` has their weights, in their order.

    Raises
    ------
    DataError
        If the matrices don't fit in memory beside the answers.
    """
    chosen = slice(None) if rows is None else rows
    tokens, floors = [], []
    for ids, values in zip(token_ids, log_probs, strict=True):
        seen = ids[chosen]
        floors.append(floor_of(seen, values[chosen], sample_weight))
        length = np.count_nonzero(seen != NO_TOKEN) / max(len(seen), 1)
        some = share * min(length / _FULL_LENGTH, 1.0)
        tokens.append(frequent_tokens(seen, sample_weight, share=some, at_most=_MAX_TOKENS))
    n_rows, n_tokens = len(sample_weight), sum(map(len, tokens))
    require_memory(
        token_ids.nbytes + log_probs.nbytes + np.dtype(np.float32).itemsize * n_rows * n_tokens,
        f"the answers to {token_ids.shape[1]:,} rows and a matrix of {n_tokens:,} tokens",
    )
    matrices = [
        gather(token_ids[p][chosen], log_probs[p][chosen], tokens[p], floors[p])
        for p in range(len(tokens))
    ]
    return matrices, tokens, floors
