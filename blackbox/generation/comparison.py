"""Compares the answers of candidates: which prompts are answered, and which are duplicates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers
from blackbox.protocol import NO_TOKEN

__all__ = ["answered_prompts", "distinct_prompts", "mean_distances"]

_MAX_LOST = 0.25  # share of rows that may be lost to refusals under some prompts only
_MIN_DISTANCE = 0.03  # mean total variation distance under which two prompts are duplicates


def answered_prompts(answers: Answers) -> list[int]:
    """Return the prompts that the LM answers on enough rows to compare them.

    A row that is refused under one of them is lost to all, so those that lose most rows are left
    out. A row that is refused under every prompt counts against none.
    """
    refused = answers.token_ids[:, :, 0] == NO_TOKEN
    order = np.argsort(refused.sum(axis=1), kind="stable").tolist()
    lost = refused[order[0]]
    max_lost = lost.sum() + _MAX_LOST * len(lost)
    usable = []
    for number in order:
        lost_with_it = lost | refused[number]
        if lost_with_it.sum() <= max_lost:
            lost = lost_with_it
            usable.append(number)
    return sorted(usable)


def mean_distances(answers: Answers) -> NDArray[np.float64]:
    """Return the mean total variation distance between the answers of each two of P prompts.

    Returns a float64 array of shape (P, P) with values in [0, 1]; tokens that are not among the top
    k count as probability 0. Two prompts are compared on the rows that were answered under both,
    and have distance 1 where there is none.
    """
    from scipy.spatial.distance import pdist, squareform

    n_prompts, n, _ = answers.token_ids.shape
    total = np.zeros(n_prompts * (n_prompts - 1) // 2)
    compared = np.zeros(len(total))
    first, second = np.triu_indices(n_prompts, 1)
    answered = answers.token_ids[:, :, 0] != NO_TOKEN
    for row in range(n):
        tokens, places = np.unique(answers.token_ids[:, row], return_inverse=True)
        dense = np.zeros((n_prompts, len(tokens)))
        prompts = np.repeat(np.arange(n_prompts), answers.token_ids.shape[2])
        dense[prompts, places.ravel()] = np.exp(answers.log_probs[:, row].ravel())
        both = answered[first, row] & answered[second, row]
        total += pdist(dense, "cityblock") / 2 * both
        compared += both
    return np.asarray(squareform(np.where(compared, total / np.maximum(compared, 1), 1.0)))


def distinct_prompts(
    distances: NDArray[np.float64],
    known: Sequence[int],
    new: Sequence[int],
    costs: NDArray[np.float64],
) -> list[int]:
    """Return the known prompts and those new ones that are duplicates of none.

    Of two duplicates the cheaper one is kept, and the earlier one at equal cost.

    Parameters
    ----------
    distances : float64 array of shape (P, P)
        From `mean_distances`.
    known, new : sequence of int
        Numbers of prompts; all known ones are kept.
    costs : float64 array of shape (P,)
        Costs of the prompts.
    """
    kept = list(known)
    for number in sorted(new, key=lambda n: (costs[n], n)):
        if not kept or distances[number, kept].min() >= _MIN_DISTANCE:
            kept.append(number)
    return sorted(kept)
