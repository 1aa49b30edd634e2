"""Is one method better than another? Paired over data sets and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

__all__ = ["Difference", "paired_difference"]

_DRAWS = 10_000

Paired = Mapping[tuple[str, int], float]
"""A figure for each data set and seed."""


@dataclass(frozen=True)
class Difference:
    """How far one method is ahead of another.

    Parameters
    ----------
    mean : float
        Mean over data sets of the mean over seeds.
    low, high : float
        95% bootstrap interval: seeds drawn with replacement within each data set.
    ahead, behind, n : int
        Pairs in which it is ahead, behind, and all.
    sign_p : float
        Two-sided sign test over the pairs that differ.
    """

    mean: float
    low: float
    high: float
    ahead: int
    behind: int
    n: int
    sign_p: float


def paired_difference(one: Paired, other: Paired, seed: int = 0) -> Difference | None:
    """The difference of two methods over the data sets and seeds that both were measured on.

    The seeds of a data set share their test rows, and what draws of other test rows would do is not
    in the interval.
    """
    gaps: dict[str, list[float]] = {}
    for pair in sorted(set(one) & set(other)):
        gaps.setdefault(pair[0], []).append(one[pair] - other[pair])
    if not gaps:
        return None
    rng = np.random.default_rng(seed)
    each = [np.array(some) for some in gaps.values()]
    drawn = np.mean([rng.choice(some, (_DRAWS, len(some))).mean(axis=1) for some in each], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    every = np.concatenate(each)
    ahead, behind = int((every > 0).sum()), int((every < 0).sum())
    sign_p = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    mean = float(np.mean([some.mean() for some in each]))
    return Difference(mean, float(low), float(high), ahead, behind, len(every), sign_p)
