"""Verbalizers: which tokens speak for which class, chosen from log-probability matrices.

In SAMME (Hou et al., "PromptBoosting", ICML 2023) a verbalizer is a *tuple*, one token per class:
`token_scores` scores each token for each class, `candidate_tokens` keeps the best per class, and
`blackbox.boosting.tuples` finds the tuple of candidates with the least weighted error. `logit`
weights tokens by their correlation with the residual (`correlated_tokens`). Lower columns win ties,
and values that differ by less than `TIE` are tied: the last digits of a sum depend on the order of
its terms, and must not decide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix

__all__ = [
    "TIE",
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
    # in place, as this is done in every round of boosting
    steps = strength / np.where(scale > 0, scale, 1.0)
    steps *= _STEPS
    # adding 2⁵² rounds: faster than `np.rint`, and the same
    steps += 2.0**52
    steps -= 2.0**52
    # integers of 32 bits, where they suffice, are faster to sort
    keys = steps.astype(np.min_scalar_type(-int(_STEPS + 1) * n_tokens))
    # the column from the right makes each key unique, so no sort of all tokens has to be stable
    keys *= n_tokens
    keys += np.arange(n_tokens - 1, -1, -1, dtype=keys.dtype)
    dropped = max(n_tokens - taken - 1, 0)
    if dropped:
        keys.partition(dropped, axis=1)
    strongest_first = np.sort(keys[:, dropped:], axis=1)[:, ::-1]
    order = n_tokens - 1 - strongest_first % n_tokens
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
