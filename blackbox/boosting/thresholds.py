"""Decision thresholds: from which probability on a text gets a label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_PROBABLE", "best_f1_threshold", "with_odds"]

MOST_PROBABLE = 0.5
"""The threshold that makes fewest errors, if probabilities are calibrated."""


def best_f1_threshold(
    probabilities: NDArray[np.float64], sample_weight: NDArray[np.float64]
) -> float:
    """Return the threshold with the largest expected F1 score, by the probabilities themselves.

    With calibrated probabilities the expected numbers of right and wrong decisions above a
    threshold are sums over them, so no label is read: few labelled rows give no odd threshold, and
    figures of the same rows are not too good. See Lipton, Elkan and Naryanaswamy, "Optimal
    thresholding of classifiers to maximize F1 measure", ECML 2014: it is half the largest F1.

    Parameters
    ----------
    probabilities : float64 array of shape (n,)
        Of the label, for rows that were not trained on.
    sample_weight : float64 array of shape (n,)
        Their weights.
    """
    order = np.argsort(-probabilities, kind="stable")
    weight, hits = sample_weight[order], (sample_weight * probabilities)[order]
    f1 = 2 * np.cumsum(hits) / (np.cumsum(weight) + hits.sum())
    return float(f1.max() / 2)


def with_odds(probabilities: Any, factor: float) -> NDArray[np.float64]:
    """Return probabilities whose odds are multiplied by a factor.

    Parameters
    ----------
    probabilities : float array
        In [0, 1].
    factor : float
        Above 0; with 1 they are as they were.
    """
    if factor == 1:
        return np.asarray(probabilities, np.float64)
    odds = factor * np.asarray(probabilities, np.float64)
    return np.asarray(odds / (odds + 1 - probabilities))
