"""How many candidates are tried on how many rows, so that a budget of forward passes is kept."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

__all__ = ["Schedule", "for_refinement", "for_writing", "least_budget", "schedule"]

_FIRST_ROWS = 32  # of the first step, at least
_ROWS = ((4, (1, 2, 4)), (4, (1, 1, 1)), (2, (1, 1, 1)))  # a class, and how they grow; all to few
_STAYING = (2.4, 1.3)  # so many times the prompts that are wanted stay after each step
_MOST_POOLED = 0.75  # of the budget, for the final pool alone
_MANY = 192  # training rows; on as many, trying is the smaller part of the usual budget
_FEW = 3  # prompts that are worth more than a wider choice among others
_UNSEEN = 0.25  # of the training rows, which prompts are not chosen by
_WRITTEN = 0.1  # of the budget, for what the LM writes
_MOST_REFINED = 100
_MOST_BUDGET = 2**40

_Three = tuple[int, int, int]


@dataclass(frozen=True)
class Schedule:
    """How many prompts a pool gets, and on how many rows how many candidates are tried for it.

    Parameters
    ----------
    n_prompts : int
        Prompts of the pool.
    rows : tuple of int
        Rows of each step.
    candidates : tuple of int
        Candidates of each step.
    """

    n_prompts: int
    rows: _Three
    candidates: _Three


def for_writing(budget: int) -> int:
    """The passes of a budget that the LM may write with."""
    return round(_WRITTEN * budget)


def schedule(
    n: int, n_classes: int, n_prompts: int, budget: int, passes_per_prompt: int = 1
) -> Schedule:
    """The steps of successive halving.

    Parameters
    ----------
    n : int
        Training rows, which all get an answer under each prompt of the pool.
    n_classes : int
        Number of classes.
    n_prompts : int
        Prompts that are wanted.
    budget : int
        Forward passes in all.
    passes_per_prompt : int, default=1
        Passes that one answer takes.

    Raises
    ------
    ValueError
        If the budget is too small for the rows; the message names one that isn't.
    """
    found = _schedule(n, n_classes, n_prompts, budget, passes_per_prompt)
    if found is None:
        least = least_budget(n, n_classes, min(_FEW, n_prompts), passes_per_prompt)
        raise ValueError(_too_small(budget, n, passes_per_prompt, least))
    return found


def least_budget(n: int, n_classes: int, n_prompts: int, passes_per_prompt: int = 1) -> int:
    """The smallest budget under which a pool gets as many prompts as are wanted."""

    def is_enough(budget: int) -> bool:
        found = _schedule(n, n_classes, n_prompts, budget, passes_per_prompt)
        return found is not None and found.n_prompts == n_prompts

    return bisect_left(range(_MOST_BUDGET), True, key=is_enough)


def for_refinement(n: int, n_prompts: int, budget: int, passes_per_prompt: int = 1) -> int:
    """Candidates that refinement tries, all of them on all rows.

    Raises
    ------
    ValueError
        If the budget doesn't hold one.
    """
    candidates = (budget - for_writing(budget)) // (n * passes_per_prompt)
    if candidates < 1:
        least = math.ceil(min(_FEW, n_prompts) * n * passes_per_prompt / (1 - _WRITTEN)) + 1
        raise ValueError(_too_small(budget, n, passes_per_prompt, least))
    return min(_MOST_REFINED, candidates)


def _schedule(
    n: int, n_classes: int, n_prompts: int, budget: int, passes_per_prompt: int
) -> Schedule | None:
    reading = (budget - for_writing(budget)) // passes_per_prompt
    pooled = min(n_prompts, math.floor(_MOST_POOLED * budget / (n * passes_per_prompt)))
    few = min(_FEW, n_prompts) if n > _MANY else 1
    full, *fewer = (_rows(n, n_classes, a_class, growth) for a_class, growth in _ROWS)
    for pool in range(pooled, few - 1, -1):
        if found := _steps(pool, full, n, reading):
            return found
    # where training rows are many, candidates are tried on fewer of them before prompts are spared
    for pool in range(few if n > _MANY else 0, 0, -1):
        for rows in (full, *fewer):
            found = _steps(pool, rows, n, reading)
            if found and found.candidates[0] >= found.candidates[1]:
                return found
    return None


def _steps(pool: int, rows: _Three, n: int, reading: int) -> Schedule | None:
    """The steps for a pool; None where hardly more candidates can be tried than it has prompts.

    The passes of the last steps are set aside, and the first step takes what is left.
    """
    better, best = (math.ceil(share * pool) for share in _STAYING)
    later = better * (rows[1] - rows[0]) + best * (rows[2] - rows[1])
    tried = (reading - pool * (n - rows[2]) - later) // rows[0]
    return Schedule(pool, rows, (tried, better, best)) if tried >= best else None


def _rows(n: int, n_classes: int, a_class: int, growth: _Three) -> _Three:
    first = min(n, max(a_class * n_classes, _FIRST_ROWS))
    # some rows decide nothing, so that probabilities can be calibrated on them
    most = max(first, n - math.ceil(_UNSEEN * n))
    second, third = (min(most, times * first) for times in growth[1:])
    return first, second, third


def _too_small(budget: int, n: int, passes_per_prompt: int, least: int) -> str:
    return (
        f"a generation budget of {budget} forward passes is too small for {n} rows: a prompt takes "
        f"{n * passes_per_prompt}, and others must be tried; raise it to "
        f"{least}, or name the prompts"
    )
