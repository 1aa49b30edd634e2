"""The ledger of a job: one budget over all of its actors, and what they did, in one place."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol

from blackbox.errors import BudgetError
from blackbox.lm.meter import Budget, Load, Meter
from blackbox.protocol import Usage

__all__ = ["Ledger", "Progress", "SharedLedger", "SharedMeter"]

_PATIENCE = 120.0  # seconds without a settlement after which reservations are taken for spent
_PAUSE = 0.05  # seconds between two tries to reserve


@dataclass(frozen=True)
class Progress:
    """The progress of the actors of a job.

    Parameters
    ----------
    counts : dict of str to int
        As in `PredictedRows`.
    usage : Usage
        Passes, tokens and cost.
    failure : str
        The reason of one row without an answer; "" if there is none.
    error : Exception, optional
        What ended an actor's work.
    """

    counts: dict[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    failure: str = ""
    error: Exception | None = None


class SharedLedger(Protocol):
    """The methods of the ledger that actors call, wherever it is."""

    def reserve(self, loads: Sequence[Load], whole: bool) -> int | str | None:
        """See `Ledger.reserve`."""

    def settle(self, reserved: Load, real: Load) -> None:
        """See `Ledger.settle`."""

    def seconds_left(self) -> float:
        """See `Ledger.seconds_left`."""

    def report(self, actor: str, counts: dict[str, int], usage: Usage, failure: str) -> None:
        """See `Ledger.report`."""

    def fail(self, error: Exception) -> None:
        """See `Ledger.fail`."""


class Ledger:
    """The ledger; on a cluster an actor of its own, beside the driver.

    The worst case of every request is reserved here before it is sent. What an actor had reserved
    when it died stays taken, as it may have been spent: the budget is never exceeded.

    Parameters
    ----------
    budget : Budget
        What all actors together may spend. Seconds run from now on.
    n_actors : int
        The most actors that spend it. No reservation takes more than their share of what is left,
        so that none of them holds all of it while it works.
    """

    def __init__(self, budget: Budget, n_actors: int) -> None:
        self._meter = Meter(budget)
        self._n_actors = n_actors
        self._open = Load()
        self._settled = time.monotonic()
        self._counts = Counter[str]()
        self._usages: dict[str, Usage] = {}
        self._failure = ""
        self._error: Exception | None = None

    def reserve(self, loads: Sequence[Load], whole: bool = False) -> int | str | None:
        """Reserve as many of these loads, from the first on, as an actor's share holds.

        Parameters
        ----------
        loads : sequence of Load
            The worst cases of requests.
        whole : bool, default=False
            Reserve all or none.

        Returns
        -------
        int, str or None
            How many were reserved; the reason if the budget is used up; None where others may
            still give back what they have reserved.
        """
        count = len(loads)
        if not whole:
            shares = (total * self._n_actors for total in accumulate(loads))
            count = next((n for n, all_ in enumerate(shares) if not self._meter.holds(all_)), count)
        some = loads[: max(count, 1)]
        try:
            self._meter.reserve([sum(some, Load())])
        except BudgetError as error:
            waits = self._open != Load() and time.monotonic() - self._settled < _PATIENCE
            return None if waits and not self._meter.is_late() else str(error)
        if self._open == Load():
            self._settled = time.monotonic()
        self._open = _rounded(sum(some, self._open))
        return len(some)

    def settle(self, reserved: Load, real: Load) -> None:
        """Replace what was reserved by what was really taken."""
        self._meter.settle(reserved, real)
        self._open = _rounded(self._open - reserved)
        self._settled = time.monotonic()

    def seconds_left(self) -> float:
        """Return the seconds in which a request may begin; infinity without a limit."""
        return self._meter.seconds_left()

    def report(self, actor: str, counts: dict[str, int], usage: Usage, failure: str = "") -> None:
        """Take note of a batch that an actor is done with.

        Parameters
        ----------
        actor : str
            Its name.
        counts : dict of str to int
            As in `PredictedRows`, of this batch.
        usage : Usage
            Of all batches of this actor.
        failure : str
            The reason of one row without an answer; "" if all have one.
        """
        self._counts.update(counts)
        self._usages[actor] = usage
        self._failure = self._failure or failure

    def fail(self, error: Exception) -> None:
        """Take note of what ended an actor's work; the first one counts."""
        self._error = self._error or error

    def progress(self) -> Progress:
        """Return what was done so far."""
        usage = sum(self._usages.values(), Usage())
        return Progress(dict(self._counts), usage, self._failure, self._error)


class SharedMeter(Meter):
    """The account of one actor: each reservation and settlement is made in the job's ledger.

    Parameters
    ----------
    budget : Budget
        What all actors together may spend.
    ledger : SharedLedger
        The ledger.
    """

    def __init__(self, budget: Budget, ledger: SharedLedger) -> None:
        left = None if budget.max_seconds is None else max(ledger.seconds_left(), 0.0)
        super().__init__(replace(budget, max_seconds=left))
        self._ledger = ledger

    def reserve(self, loads: Sequence[Load]) -> int:
        """See `Meter.reserve`; waits while other actors may give back what they reserved."""
        while True:
            self._check_time()
            answer: Any = self._ledger.reserve(loads, self.whole)
            if isinstance(answer, str):
                raise BudgetError(answer)
            if answer is not None:
                return int(answer)
            time.sleep(_PAUSE)

    def settle(self, reserved: Load, real: Load) -> None:
        """See `Meter.settle`."""
        self._ledger.settle(reserved, real)


def _rounded(load: Load) -> Load:
    """Return a load without what sums of floats leave over."""
    return replace(load, cost=round(load.cost, 12))
