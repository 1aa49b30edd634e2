"""Early stopping: predict without asking the prompts that cannot, or will hardly, change the label.

What a prompt adds to the score of a class is bounded. The bounds are fitted on training rows after
boosting, which itself has none, and hold in calibration and in prediction. If the remaining
prompts, all at their bounds, could not change which class leads, they need not be asked: that is
exact. Where a small risk is accepted, prediction stops at leads that were rarely lost in
cross-validation. `blackbox.boosting.early_stopping_fit` fits all of this.

*Contributions* here are what each of P prompts adds to the scores of n rows: float64 of shape
(P, n, n_classes); those of a prompt to a row sum to 0 over the classes before they are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NEVER",
    "RULES",
    "EarlyStopping",
    "argmax_with_ties",
    "as_decision",
    "clip_contributions",
    "guaranteed_lead",
    "lead_of",
    "no_bounds",
]

RULES = ("exact", "risk")
"""The rules by which prediction may stop early."""

NEVER = 1e9
"""A lead, or a bound, that no score reaches."""

_ROUNDING = 1e-9  # of the scores: a smaller lead is none


@dataclass(frozen=True)
class EarlyStopping:
    """The early-stopping rules of an ensemble of P prompts.

    Parameters
    ----------
    low, high : float64 arrays of shape (P, n_classes)
        The least and the most that a prompt adds to the score of a class.
    order : int array of shape (P,)
        The order in which to ask the prompts: those first that settle most rows.
    leads : float64 array of shape (P,)
        After each number of prompts in that order, the lead over the second class that is rarely
        lost; `NEVER` where none is known.
    survival : float64 array of shape (2, P)
        For each of `RULES`, the share of training rows not settled after each number of prompts.
    late : float64 array of shape (2, n_classes), optional
        The least and the most that is added to each score once all prompts are asked.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    order: NDArray[np.intp]
    leads: NDArray[np.float64]
    survival: NDArray[np.float64]
    late: NDArray[np.float64] | None = None

    @property
    def knows_risk(self) -> bool:
        """Whether there is a lead at which to stop at a small risk."""
        return bool((self.leads[:-1] < NEVER).any())

    def settled(self, scores: NDArray[np.float64], n_asked: int, rule: str) -> NDArray[np.bool_]:
        """Return which rows need no further prompt.

        Parameters
        ----------
        scores : float64 array of shape (n, n_classes)
            After the first `n_asked` prompts of the order.
        n_asked : int
            How many were asked.
        rule : {"exact", "risk"}
            Whether no label may change, or few.

        Returns
        -------
        bool array of shape (n,)
        """
        rest = self.order[n_asked:]
        if not len(rest):
            return np.ones(len(scores), bool)
        low, high = self.low[rest], self.high[rest]
        if self.late is not None:
            low, high = np.vstack([low, self.late[:1]]), np.vstack([high, self.late[1:]])
        # the final scores are no larger than this, and twice their rounding is no tie in the end
        largest = np.abs(scores).max(axis=1) + np.maximum(-low, high).sum(axis=0).max()
        lead = guaranteed_lead(scores, low.sum(axis=0), high.sum(axis=0))
        settled = lead > 2 * _rounding(largest)
        if rule == "risk":
            settled |= lead_of(scores) >= self.leads[n_asked - 1]
        return np.asarray(settled)

    def stages(self, rule: str, costs: NDArray[np.float64]) -> list[int]:
        """Return after how many prompts to check for settled rows, at the least expected cost.

        Prompts with a common prefix cost less when asked together, so checking after each of them
        may cost more than it saves.

        Parameters
        ----------
        rule : {"exact", "risk"}
            As for `settled`.
        costs : float64 array of shape (P + 1, P + 1)
            At [i, j] the cost of asking prompts i to j − 1 of the order together.

        Returns
        -------
        list of int
            Ascending numbers of prompts; the last is P.
        """
        n_prompts = len(self.order)
        waiting = [1.0, *self.survival[RULES.index(rule)].tolist()]
        cost = costs.tolist()
        # the best continuation from each number of prompts: its cost, its stages, the next check
        best: list[tuple[float, int, int]] = [(0.0, 0, n_prompts)] * (n_prompts + 1)
        for asked in reversed(range(n_prompts)):
            best[asked] = min(
                (
                    round(waiting[asked] * cost[asked][upto] + best[upto][0], 9),
                    best[upto][1] + 1,
                    upto,
                )
                for upto in range(asked + 1, n_prompts + 1)
            )
        stages = [best[0][2]]
        while stages[-1] < n_prompts:
            stages.append(best[stages[-1]][2])
        return stages


def no_bounds(n_prompts: int, n_classes: int) -> EarlyStopping:
    """Return rules without bounds, under which no row is settled before the last prompt."""
    shape = (n_prompts, n_classes)
    return EarlyStopping(
        np.full(shape, -NEVER),
        np.full(shape, NEVER),
        np.arange(n_prompts),
        np.full(n_prompts, NEVER),
        np.ones((len(RULES), n_prompts)),
    )


def clip_contributions(
    contributions: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return contributions clipped to their bounds.

    Parameters
    ----------
    contributions : float64 array of shape (P, n, n_classes)
    low, high : float64 arrays of shape (P, n_classes)
    """
    return np.clip(contributions, low[:, None], high[:, None])


def lead_of(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lead of the first class over the second, of scores (n, n_classes): (n,)."""
    two = np.partition(scores, -2, axis=1)
    return np.asarray(two[:, -1] - two[:, -2])


def guaranteed_lead(
    scores: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what remains of the lead if the remaining prompts all speak against the leader.

    Parameters
    ----------
    scores : float64 array of shape (n, n_classes)
        So far.
    low, high : float64 arrays of shape (n_classes,)
        The least and the most that the remaining prompts add together.

    Returns
    -------
    float64 array of shape (n,)
    """
    rows, leader = np.arange(len(scores)), scores.argmax(axis=1)
    others = scores + high
    others[rows, leader] = -np.inf
    return np.asarray(scores[rows, leader] + low[leader] - others.max(axis=1))


def as_decision(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scores in scikit-learn's form: (n, n_classes), or second less first (n,) of two.

    A class that lags the first by rounding alone is made level with it: the last digits of a sum
    depend on the order of its terms, and must not decide. So a tie is one in scores, in differences
    and in probabilities alike, and `argmax_with_ties` returns the same class for all of them.

    Parameters
    ----------
    scores : float64 array of shape (n, n_classes)
    """
    top = scores.max(axis=1, keepdims=True)
    largest = np.abs(scores).max(axis=1, keepdims=True)
    level = np.where(top - scores <= _rounding(largest), top, scores)
    return np.asarray(level[:, 1] - level[:, 0] if level.shape[1] == 2 else level)


def argmax_with_ties(decision: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the class of each row, the lowest on a tie.

    Parameters
    ----------
    decision : float64 array of shape (n, n_classes), or (n,) for two classes
        As from `as_decision`; or the probabilities of that, of shape (n, n_classes).

    Returns
    -------
    int array of shape (n,)
    """
    if decision.ndim == 1:
        return (decision > 0).astype(np.intp)
    return np.asarray(decision.argmax(axis=1), np.intp)


def _rounding(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a bound on the rounding error of sums whose largest value is this."""
    return np.asarray(_ROUNDING * (1 + largest))
