"""Fits early stopping on training rows: bounds, the order of prompts, leads, and survival.

`blackbox.boosting.early_stopping` explains the terms and applies the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.early_stopping import (
    NEVER,
    RULES,
    EarlyStopping,
    guaranteed_lead,
    lead_of,
    no_bounds,
)

__all__ = [
    "contribution_bounds",
    "fit_early_stopping",
    "prompt_order",
    "risk_leads",
    "with_survival",
]

_HIGH, _LOW = 0.5, 0.3  # quantiles of contributions: to a class's own rows, to the others
_RISK = 0.005  # share of labels that may change
_LEVELS = np.geomspace(0.1, 1e-4, 31)  # probabilities of a change at which to stop
_LEAST_GROUPS = 20  # of rows, to learn from how leads change


def fit_early_stopping(
    contributions: NDArray[np.float64],
    initial: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    *,
    at_risk: bool = False,
    groups: NDArray[np.intp] | None = None,
    late: NDArray[np.float64] | None = None,
    late_bounds: NDArray[np.float64] | None = None,
) -> EarlyStopping:
    """Return the order of the prompts and when prediction may stop, from training rows.

    Parameters
    ----------
    contributions, initial, low, high, sample_weight
        As for `prompt_order`.
    at_risk : bool, default=False
        Whether to learn leads for stopping at a risk: only where contributions and initial scores
        are those of held-out rows.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.
    late : float64 array of shape (n, n_classes), optional
        What is added to the scores once all prompts are asked.
    late_bounds : float64 array of shape (2, n_classes), optional
        The least and the most of that, for any text.
    """
    order = prompt_order(contributions, initial, low, high, sample_weight)
    fitted = replace(no_bounds(*low.shape), low=low, high=high, order=order, late=late_bounds)
    if at_risk:
        leads = risk_leads(contributions, initial, order, sample_weight, groups, late)
        fitted = replace(fitted, leads=leads)
    return with_survival(fitted, contributions, initial, sample_weight)


def contribution_bounds(
    contributions: NDArray[np.float64], y: NDArray[np.intp], sample_weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds of what each prompt may add to the score of each class.

    The upper bound is the median of what it adds to the class's own rows, the lower bound the 30%
    quantile of what it adds to the other rows: beyond them it would only repeat itself, and louder.
    For a class without rows, both are of all rows.

    Parameters
    ----------
    contributions : float64 array of shape (P, n, n_classes)
        To the scores of training rows, not clipped.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights of the rows.

    Returns
    -------
    low, high : float64 arrays of shape (P, n_classes)
    """
    low, high = (np.zeros((len(contributions), contributions.shape[2])) for _ in range(2))
    for label in range(contributions.shape[2]):
        own = y == label
        added = contributions[:, :, label]
        for bounds, rows, quantile in ((high, own, _HIGH), (low, ~own, _LOW)):
            some = rows if rows.any() else np.ones(len(y), bool)
            bounds[:, label] = _quantiles(added[:, some], sample_weight[some], quantile)
    return low, np.maximum(low, high)


def prompt_order(
    contributions: NDArray[np.float64],
    initial: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
) -> NDArray[np.intp]:
    """Return the order of the prompts: next is always the one that brings rows closest to settled.

    Parameters
    ----------
    contributions : float64 array of shape (P, n, n_classes)
        Within the bounds.
    initial : float64 array of shape (n_classes,) or (n, n_classes)
        Scores before the first prompt.
    low, high : float64 arrays of shape (P, n_classes)
        The bounds.
    sample_weight : float array of shape (n,)
        Weights of the rows.

    Returns
    -------
    int array of shape (P,)
    """
    scores = np.broadcast_to(initial, contributions.shape[1:])
    left = list(range(len(contributions)))
    order: list[int] = []
    while left:
        lacking = []
        for prompt in left:
            rest = [other for other in left if other != prompt]
            lead = guaranteed_lead(
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
    groups: NDArray[np.intp] | None = None,
    late: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return for each number of prompts the lead at which few labels still change.

    After each number of prompts, the final lead of the class that leads is regressed on its lead
    so far, with Student-t errors, on rows that the prompts were not boosted on. Rows stop where the
    estimated probability that the leader loses is below a level, and the level is the highest at
    which half a percent of labels change, by those probabilities as well as by counting rows.

    Parameters
    ----------
    contributions, initial, order, sample_weight
        As for `prompt_order`, of held-out rows.
    groups : int array of shape (n,), optional
        The groups of the rows: they count as observations, as rows of one group are not
        independent. By default each row counts.
    late : float64 array of shape (n, n_classes), optional
        As for `fit_early_stopping`.

    Returns
    -------
    float64 array of shape (P,)
        `NEVER` where there are too few groups, or no level is low enough.
    """
    n_prompts, n, _ = contributions.shape
    leads = np.full(n_prompts, NEVER)
    n_groups = n if groups is None else len(np.unique(groups))
    if n_groups < _LEAST_GROUPS or n_prompts < 2:
        return leads
    stages = initial + np.cumsum(contributions[order], axis=0)
    final = stages[-1] if late is None else stages[-1] + late
    models = [_LeadRegression.fit(scores, final, n_groups) for scores in stages[:-1]]
    share = sample_weight / sample_weight.sum()
    leads_so_far = [lead_of(scores) for scores in stages[:-1]]
    lost = [model.probability(lead) for model, lead in zip(models, leads_so_far, strict=True)]
    is_lost = stages[:-1].argmax(axis=2) != final.argmax(axis=1)
    for least_leads in np.column_stack([model.leads_at(_LEVELS) for model in models]):
        waiting = np.ones(n, bool)
        expected = changed = 0.0
        for place, least in enumerate(least_leads):
            stop = waiting & (leads_so_far[place] >= least)
            expected += float(lost[place][stop] @ share[stop])
            changed += float(share[stop & is_lost[place]].sum())
            waiting &= ~stop
        if expected <= _RISK and changed <= _RISK:
            leads[:-1] = np.minimum(least_leads, NEVER)
            break
    return leads


def with_survival(
    early_stopping: EarlyStopping,
    contributions: NDArray[np.float64],
    initial: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
) -> EarlyStopping:
    """Return the same rules with the share of rows not settled after each number of prompts.

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
        waiting = np.ones(len(share), bool)
        for place, scores in enumerate(stages):
            waiting &= ~early_stopping.settled(scores, place + 1, rule)
            survival[number, place] = share[waiting].sum()
    return replace(early_stopping, survival=survival)


@dataclass(frozen=True)
class _LeadRegression:
    """A linear regression of a class's final lead on its lead so far."""

    intercept: float
    slope: float
    spread: float
    degrees_of_freedom: int

    @classmethod
    def fit(
        cls, scores: NDArray[np.float64], final: NDArray[np.float64], n_groups: int
    ) -> _LeadRegression:
        rows = np.arange(len(scores))
        leader = scores.argmax(axis=1)
        others = final.copy()
        others[rows, leader] = -np.inf
        last = final[rows, leader] - others.max(axis=1)
        lead = lead_of(scores)
        centred = lead - lead.mean()
        variation = float(centred @ centred)
        slope = float(centred @ last) / variation if variation > 0 else 0.0
        intercept = float(last.mean() - slope * lead.mean())
        degrees_of_freedom = n_groups - 2
        errors = last - intercept - slope * lead
        squares = errors @ errors * (n_groups / len(rows))
        spread = max(float(np.sqrt(squares / degrees_of_freedom)), 1e-9)
        return cls(intercept, slope, spread, degrees_of_freedom)

    def probability(self, lead: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability that a class with such a lead loses it."""
        from scipy.special import stdtr

        final_lead = self.intercept + self.slope * lead
        return np.asarray(stdtr(self.degrees_of_freedom, -final_lead / self.spread))

    def leads_at(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the least leads that are lost with at most these probabilities, else infinity."""
        from scipy.special import stdtrit

        if self.slope <= 0:
            return np.full(len(levels), np.inf)
        final_leads = -stdtrit(self.degrees_of_freedom, levels) * self.spread
        return np.asarray(np.maximum((final_leads - self.intercept) / self.slope, 0.0))


def _quantiles(
    values: NDArray[np.float64], weights: NDArray[np.float64], quantile: float
) -> NDArray[np.float64]:
    """Return a weighted quantile of each row of (P, n); a weight of 2 counts a value twice."""
    order = values.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    running = np.cumsum(weights[order], axis=1)
    wanted = quantile * running[:, -1:]
    # a rounding error in the sums must not decide: on the edge, the mean of both sides
    lower = (running < wanted * (1 - 1e-12)).sum(axis=1)
    upper = (running < wanted * (1 + 1e-12)).sum(axis=1).clip(max=values.shape[1] - 1)
    rows = np.arange(len(values))
    return np.asarray((ordered[rows, lower] + ordered[rows, upper]) / 2)
