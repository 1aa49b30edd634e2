"""Paired comparison of two methods over data sets and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, t

__all__ = ["Difference", "paired_difference"]

_DRAWS = 10_000
_MIN_SEEDS = 3  # two hardly estimate a variance

Paired = Mapping[tuple[str, int], float]
"""A figure for each data set and seed."""


@dataclass(frozen=True)
class Difference:
    """Difference between two methods.

    Parameters
    ----------
    mean : float
        Mean over data sets of the mean over seeds.
    low, high : float or None
        95% bootstrap interval: seeds drawn with replacement within each data set. None where a data
        set has fewer than three seeds.
    ahead, behind, n : int
        Pairs in which it is ahead, behind, and all.
    sign_p : float
        Two-sided sign test over the pairs that differ, as if they were independent; the seeds of a
        data set share their test rows, and are not.
    """

    mean: float
    low: float | None
    high: float | None
    ahead: int
    behind: int
    n: int
    sign_p: float

    def interval(self, digits: int) -> str:
        """Format the interval for a table; a dash if there is none."""
        if self.low is None or self.high is None:
            return "–"
        return f"[{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def paired_difference(one: Paired, other: Paired, seed: int = 0) -> Difference | None:
    """Return the difference of two methods over the data sets and seeds that both have.

    The seeds of a data set share their test rows, so the interval doesn't cover the variance
    between draws of test rows.
    """
    gaps: dict[str, list[float]] = {}
    for pair in sorted(set(one) & set(other)):
        gaps.setdefault(pair[0], []).append(one[pair] - other[pair])
    if not gaps:
        return None
    each = [np.array(some) for some in gaps.values()]
    low, high = _interval(each, seed)
    every = np.concatenate(each)
    ahead, behind = int((every > 0).sum()), int((every < 0).sum())
    sign_p = float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    mean = float(np.mean([some.mean() for some in each]))
    return Difference(mean, low, high, ahead, behind, len(every), sign_p)


def _interval(
    each: Sequence[NDArray[np.float64]], seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Return the expanded percentile interval of the mean over data sets of seed means.

    Plain percentiles of so few seeds are too narrow: the bootstrap's standard error is too small by
    √((n − 1) / n), and the normal quantile has to be replaced by Student's.
    Source: Hesterberg, "What teachers should know about the bootstrap", 2015, section 3.3.
    """
    n = min(map(len, each))
    if n < _MIN_SEEDS:
        return None, None
    rng = np.random.default_rng(seed)
    drawn = np.mean([rng.choice(some, (_DRAWS, len(some))).mean(axis=1) for some in each], axis=0)
    freedom = sum(len(some) - 1 for some in each)
    level = norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.975, freedom))
    low, high = np.quantile(drawn, [level, 1 - level])
    return float(low), float(high)
