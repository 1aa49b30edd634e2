"""The numbers of candidates and rows of a trial, so that a budget of forward passes is kept."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from blackbox.plurals import counted

__all__ = ["Schedule", "make_schedule", "min_budget", "writing_budget"]

_MIN_FIRST_ROWS = 32  # of the first rung
_ROWS = ((4, (1, 2, 4)), (4, (1, 1, 1)), (2, (1, 1, 1)))  # per class, and their growth; all to few
_SURVIVORS = (2.4, 1.3)  # candidates after each rung, per prompt that is wanted
_MAX_POOL_SHARE = 0.75  # of the budget, for the final pool alone
_MANY_ROWS = 192  # training rows from which on the final pool takes most of the usual budget
_FEW_PROMPTS = 3  # prompts that are worth more than a wider choice among candidates
_UNSEEN_SHARE = 0.25  # of the training rows, which prompts are not selected on
_WRITING_SHARE = 0.1  # of the budget, for what the LM writes
_MAX_BUDGET = 2**40

_Three = tuple[int, int, int]


@dataclass(frozen=True)
class Schedule:
    """The rungs of successive halving, and the number of prompts of the pool.

    Parameters
    ----------
    n_prompts : int
        Prompts of the pool.
    rows : tuple of int
        Rows of each rung.
    candidates : tuple of int
        Candidates of each rung.
    """

    n_prompts: int
    rows: _Three
    candidates: _Three

    def most_rows(self, n: int) -> int:
        """Return how many of n rows or groups may select prompts; the others calibrate."""
        return max(self.rows[0], n - math.ceil(_UNSEEN_SHARE * n))


def writing_budget(budget: int) -> int:
    """Return the passes of a budget that the LM may write with."""
    return round(_WRITING_SHARE * budget)


def make_schedule(
    n: int, n_classes: int, n_prompts: int, budget: int, passes_per_prompt: int = 1
) -> Schedule:
    """Return the rungs of successive halving.

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
    schedule = _find_schedule(n, n_classes, n_prompts, budget, passes_per_prompt)
    if schedule is None:
        enough = min_budget(n, n_classes, min(_FEW_PROMPTS, n_prompts), passes_per_prompt)
        raise ValueError(
            f"a generation budget of {counted(budget, 'forward pass')} is too small for "
            f"{counted(n, 'row')}: each "
            f"prompt takes {n * passes_per_prompt}, and more candidates must be tried; raise it "
            f"to {enough}, or pass prompts"
        )
    return schedule


def min_budget(n: int, n_classes: int, n_prompts: int, passes_per_prompt: int = 1) -> int:
    """Return the smallest budget under which a pool gets as many prompts as are wanted."""

    def is_enough(budget: int) -> bool:
        schedule = _find_schedule(n, n_classes, n_prompts, budget, passes_per_prompt)
        return schedule is not None and schedule.n_prompts == n_prompts

    return bisect_left(range(_MAX_BUDGET), True, key=is_enough)


def _find_schedule(
    n: int, n_classes: int, n_prompts: int, budget: int, passes_per_prompt: int
) -> Schedule | None:
    """Return the schedule with the most prompts that the budget holds, if any."""
    reading = (budget - writing_budget(budget)) // passes_per_prompt
    affordable = math.floor(_MAX_POOL_SHARE * budget / (n * passes_per_prompt))
    few = min(_FEW_PROMPTS, n_prompts) if n > _MANY_ROWS else 1
    full, *fewer = (_rows(n, n_classes, per_class, growth) for per_class, growth in _ROWS)
    for pool_size in range(min(n_prompts, affordable), few - 1, -1):
        if schedule := _with_pool_size(pool_size, full, n, reading):
            return schedule
    # of many training rows, candidates are tried on fewer before the pool gets still smaller
    for pool_size in range(few if n > _MANY_ROWS else 0, 0, -1):
        for rows in (full, *fewer):
            schedule = _with_pool_size(pool_size, rows, n, reading)
            if schedule and schedule.candidates[0] >= schedule.candidates[1]:
                return schedule
    return None


def _with_pool_size(pool_size: int, rows: _Three, n: int, reading: int) -> Schedule | None:
    """Return the schedule for a pool, or None where it leaves hardly more candidates than prompts.

    The passes of the later rungs are set aside, and the first rung takes what is left.
    """
    second, third = (math.ceil(share * pool_size) for share in _SURVIVORS)
    later = second * (rows[1] - rows[0]) + third * (rows[2] - rows[1])
    first = (reading - pool_size * (n - rows[2]) - later) // rows[0]
    return Schedule(pool_size, rows, (first, second, third)) if first >= third else None


def _rows(n: int, n_classes: int, per_class: int, growth: _Three) -> _Three:
    first = min(n, max(per_class * n_classes, _MIN_FIRST_ROWS))
    # some rows select no prompts, so that probabilities can be calibrated on them
    most = max(first, n - math.ceil(_UNSEEN_SHARE * n))
    second, third = (min(most, times * first) for times in growth[1:])
    return first, second, third
