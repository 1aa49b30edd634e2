"""When a prediction is settled before all prompts were asked.

What a prompt may add to the score of a class is limited. The limits are found on training rows when
boosting, which knows none, is done; they hold in calibration and in prediction. So when the prompts
that are left, all at their limits, couldn't change which class leads, they need not be asked: that
is exact. Where a small risk is accepted, prediction stops at leads which rarely changed in
cross-validation.

*Contributions* here are what each of P prompts adds to the scores of n rows: float64 of shape
(P, n, n_classes), each row of it summing to 0 before limits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NEVER",
    "RULES",
    "EarlyStopping",
    "argmax_with_ties",
    "as_decision",
    "clip_contributions",
    "contribution_bounds",
    "no_bounds",
    "prompt_order",
    "risk_leads",
    "with_survival",
]

RULES = ("exact", "risk")
"""The ways to stop early."""

NEVER = 1e9
"""A lead, or a limit, that no score reaches."""

_HIGH, _LOW = 0.5, 0.3  # quantiles of what prompts say of a class: of its own rows, of the others
_RISK = 0.005  # share of labels that may change
_LEVELS = np.geomspace(0.1, 1e-4, 31)  # chances of a change at which to stop
_ROUNDING = 1e-9  # of the scores: a smaller lead is none
_LEAST_ROWS = 20  # to learn from how leads change


@dataclass(frozen=True)
class EarlyStopping:
    """What an ensemble of P prompts knows about stopping.

    Parameters
    ----------
    low, high : float64 arrays of shape (P, n_classes)
        The least and the most that a prompt adds to the score of a class.
    order : int array of shape (P,)
        The prompts, those first that settle most.
    leads : float64 array of shape (P,)
        After so many prompts in that order, the lead over the second class at which a class rarely
        loses any more; `NEVER` where none is known.
    waiting : float64 array of shape (2, P)
        For each of `RULES`, the share of training rows that go on after so many prompts.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    order: NDArray[np.intp]
    leads: NDArray[np.float64]
    survival: NDArray[np.float64]

    @property
    def knows_risk(self) -> bool:
        """Whether there is a lead at which to stop."""
        return bool((self.leads[:-1] < NEVER).any())

    def settled(self, scores: NDArray[np.float64], n_asked: int, rule: str) -> NDArray[np.bool_]:
        """Which rows need no further prompt.

        Parameters
        ----------
        scores : float64 array of shape (n, n_classes)
            After the first `n_asked` prompts of the order.
        n_asked : int
            How many were asked.
        rule : {"exact", "risk"}
            Whether no label may change, or few.
        """
        rest = self.order[n_asked:]
        if not len(rest):
            return np.ones(len(scores), bool)
        low, high = self.low[rest], self.high[rest]
        # the final scores are no larger than this, and twice their rounding is no tie in the end
        largest = np.abs(scores).max(axis=1) + np.maximum(-low, high).sum(axis=0).max()
        done = _certain_lead(scores, low.sum(axis=0), high.sum(axis=0))
        settled = done > 2 * _rounding(largest)
        if rule == "risk":
            settled |= _lead(scores) >= self.leads[n_asked - 1]
        return np.asarray(settled)

    def stages(self, rule: str, costs: NDArray[np.float64]) -> list[int]:
        """After how many prompts to look whether a class is settled, so that it costs least.

        Prompts that begin alike cost less together, so looking after each may cost more than it
        saves.

        Parameters
        ----------
        rule : {"exact", "risk"}
            As for `settled`.
        costs : float64 array of shape (P + 1, P + 1)
            What the prompts from the i-th to before the j-th of the order cost when they are asked
            together, at [i, j].

        Returns
        -------
        list of int
            Growing numbers of prompts; the last is P.
        """
        n_prompts = len(self.order)
        going = [1.0, *self.survival[RULES.index(rule)].tolist()]
        cost = costs.tolist()
        # the best way on from each number of prompts: its cost, its stages, and where it looks next
        best: list[tuple[float, int, int]] = [(0.0, 0, n_prompts)] * (n_prompts + 1)
        for asked in reversed(range(n_prompts)):
            best[asked] = min(
                (
                    round(going[asked] * cost[asked][then] + best[then][0], 9),
                    best[then][1] + 1,
                    then,
                )
                for then in range(asked + 1, n_prompts + 1)
            )
        looks = [best[0][2]]
        while looks[-1] < n_prompts:
            looks.append(best[looks[-1]][2])
        return looks


def as_decision(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (n, n_classes) as they are told: of two classes the second's less the first's, (n,).

    A class that lags the first by rounding alone is made level with it: the last digits of a sum
    depend on the order of its terms, and must not decide. So a tie is one in scores, in differences
    and in probabilities alike, and `argmax_with_ties` finds the same class in all of them.
    """
    top = scores.max(axis=1, keepdims=True)
    largest = np.abs(scores).max(axis=1, keepdims=True)
    level = np.where(top - scores <= _rounding(largest), top, scores)
    return np.asarray(level[:, 1] - level[:, 0] if level.shape[1] == 2 else level)


def argmax_with_ties(decision: NDArray[np.float64]) -> NDArray[np.intp]:
    """The class of each row, the lowest on a tie.

    Parameters
    ----------
    decision : float64 array of shape (n, n_classes), or (n,) for two classes
        As from `as_decision`; or the probabilities of that, of shape (n, n_classes).
    """
    if decision.ndim == 1:
        return (decision > 0).astype(np.intp)
    return np.asarray(decision.argmax(axis=1), np.intp)


def _rounding(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """What sums may be off by, whose largest is this."""
    return np.asarray(_ROUNDING * (1 + largest))


def with_survival(
    early_stopping: EarlyStopping,
    contributions: NDArray[np.float64],
    initial: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
) -> EarlyStopping:
    """The same, with the shares of rows that go on after so many prompts.

    Parameters
    ----------
    early_stopping : EarlyStopping
        All but `survival`.
    contributions, initial, sample_weight
        As for `prompt_order`.
    """
    share = sample_weight / sample_weight.sum()
    stages = initial + np.cumsum(contributions[early_stopping.order], axis=0)
    survival = np.zeros((len(RULES), len(stages)))
    for number, rule in enumerate(RULES):
        going = np.ones(len(share), bool)
        for place, scores in enumerate(stages):
            going &= ~early_stopping.settled(scores, place + 1, rule)
            survival[number, place] = share[going].sum()
    return replace(early_stopping, survival=survival)


def no_bounds(n_prompts: int, n_classes: int) -> EarlyStopping:
    """No limits, and so no stop."""
    shape = (n_prompts, n_classes)
    return EarlyStopping(
        np.full(shape, -NEVER),
        np.full(shape, NEVER),
        np.arange(n_prompts),
        np.full(n_prompts, NEVER),
        np.ones((len(RULES), n_prompts)),
    )


def contribution_bounds(
    contributions: NDArray[np.float64], y: NDArray[np.intp], sample_weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the most that each prompt may add to each class, from training rows.

    The most is what it adds to the class's own rows in the median, the least what it takes from the
    others at the 30% quantile: beyond that it would only repeat itself, and louder.

    Returns
    -------
    low, high : float64 arrays of shape (P, n_classes)
    """
    low, high = (np.zeros((len(contributions), contributions.shape[2])) for _ in range(2))
    for label in range(contributions.shape[2]):
        own = y == label
        said = contributions[:, :, label]
        high[:, label] = _quantiles(said[:, own], sample_weight[own], _HIGH)
        low[:, label] = _quantiles(said[:, ~own], sample_weight[~own], _LOW)
    return low, np.maximum(low, high)


def clip_contributions(
    contributions: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Contributions within their limits."""
    return np.clip(contributions, low[:, None], high[:, None])


def prompt_order(
    contributions: NDArray[np.float64],
    initial: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
) -> NDArray[np.intp]:
    """The prompts, each next the one after which rows lack least to be settled.

    Parameters
    ----------
    contributions : float64 array of shape (P, n, n_classes)
        Within the limits.
    initial : float64 array of shape (n_classes,) or (n, n_classes)
        Scores before the first prompt.
    low, high : float64 arrays of shape (P, n_classes)
        The limits.
    sample_weight : float array of shape (n,)
        Weights of the rows.
    """
    scores = np.broadcast_to(initial, contributions.shape[1:])
    left = list(range(len(contributions)))
    order: list[int] = []
    while left:
        lacking = []
        for prompt in left:
            rest = [other for other in left if other != prompt]
            lead = _certain_lead(
                scores + contributions[prompt], low[rest].sum(axis=0), high[rest].sum(axis=0)
            )
            lacking.append(-float(np.minimum(lead, 0.0) @ sample_weight))
        order.append(left.pop(int(np.argmin(lacking))))
        scores = scores + contributions[order[-1]]
    return np.array(order, np.intp)


def risk_leads(
    contributions: NDArray[np.float64],
    initial: NDArray[np.float64],
    order: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """For each number of prompts the lead at which few labels change any more.

    How much a lead changes until the end is taken to be a line in the lead itself and a Student-t
    error around it, fitted after each number of prompts on rows that the prompts were not boosted
    on. Rows stop where the chance that the leader loses is below a level, and the level is the
    highest at which half a percent of labels change, by those chances as by counting rows.

    Parameters
    ----------
    contributions, initial, order, sample_weight
        As for `prompt_order`, of held-out rows.

    Returns
    -------
    float64 array of shape (P,)
    """
    n_prompts, n, _ = contributions.shape
    leads = np.full(n_prompts, NEVER)
    if n < _LEAST_ROWS or n_prompts < 2:
        return leads
    stages = initial + np.cumsum(contributions[order], axis=0)
    final = stages[-1]
    models = [_Change.fit(scores, final) for scores in stages[:-1]]
    share = sample_weight / sample_weight.sum()
    for level in _LEVELS:
        found = [model.lead_at(float(level)) for model in models]
        survival = np.ones(n, bool)
        expected = changed = 0.0
        for scores, model, least in zip(stages, models, found, strict=False):
            stop = survival & (_lead(scores) >= least)
            expected += float(model.chance(_lead(scores[stop])) @ share[stop])
            changed += float(share[stop & (scores.argmax(axis=1) != final.argmax(axis=1))].sum())
            survival &= ~stop
        if expected <= _RISK and changed <= _RISK:
            leads[:-1] = np.minimum(found, NEVER)
            break
    return leads


@dataclass(frozen=True)
class _Change:
    """How the lead of a class changes until all prompts were asked."""

    base: float
    slope: float
    spread: float
    freedom: int

    @classmethod
    def fit(cls, scores: NDArray[np.float64], final: NDArray[np.float64]) -> _Change:
        rows = np.arange(len(scores))
        leader = scores.argmax(axis=1)
        others = final.copy()
        others[rows, leader] = -np.inf
        last = final[rows, leader] - others.max(axis=1)
        lead = _lead(scores)
        centred = lead - lead.mean()
        varies = float(centred @ centred)
        slope = float(centred @ last) / varies if varies > 0 else 0.0
        base = float(last.mean() - slope * lead.mean())
        freedom = len(rows) - 2
        errors = last - base - slope * lead
        return cls(base, slope, max(float(np.sqrt(errors @ errors / freedom)), 1e-9), freedom)

    def chance(self, lead: NDArray[np.float64]) -> NDArray[np.float64]:
        """That a class with such a lead loses it."""
        from scipy.stats import t

        return np.asarray(t.cdf(-(self.base + self.slope * lead) / self.spread, self.freedom))

    def lead_at(self, level: float) -> float:
        """The least lead with no greater chance; infinite where a lead says nothing."""
        from scipy.stats import t

        if self.slope <= 0:
            return np.inf
        return float(max((-t.ppf(level, self.freedom) * self.spread - self.base) / self.slope, 0.0))


def _lead(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much the first class leads the second."""
    two = np.partition(scores, -2, axis=1)
    return np.asarray(two[:, -1] - two[:, -2])


def _certain_lead(
    scores: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What the leader keeps at the worst: all that is left against it and for another."""
    rows, leader = np.arange(len(scores)), scores.argmax(axis=1)
    others = scores + high
    others[rows, leader] = -np.inf
    return np.asarray(scores[rows, leader] + low[leader] - others.max(axis=1))


def _quantiles(
    values: NDArray[np.float64], weights: NDArray[np.float64], quantile: float
) -> NDArray[np.float64]:
    """Weighted quantile of each row of (P, n): a weight of 2 is a value that stands twice."""
    order = values.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    running = np.cumsum(weights[order], axis=1)
    wanted = quantile * running[:, -1:]
    # a rounding error in the sums must not decide: on the edge, the mean of both sides
    lower = (running < wanted * (1 - 1e-12)).sum(axis=1)
    upper = (running < wanted * (1 + 1e-12)).sum(axis=1).clip(max=values.shape[1] - 1)
    rows = np.arange(len(values))
    return np.asarray((ordered[rows, lower] + ordered[rows, upper]) / 2)
