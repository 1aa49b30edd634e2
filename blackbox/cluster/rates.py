"""Rates of a job while it runs: one line a minute, for a log and for people."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property

from blackbox.cluster.ledger import Progress
from blackbox.errors import DataError
from blackbox.progress import duration

__all__ = ["Rates", "every_minute"]

_MINUTE = 60.0
_WINDOW = 10  # minutes over which rates are taken: a block of a slow LM may need several


class Rates:
    """Rows, forward passes and money per minute of a job, over its last ten minutes.

    Parameters
    ----------
    count : callable
        Returns the rows of the table; called once, by the first line. The share of rows is left out
        if that raises.
    done : int
        Rows that earlier runs have done.
    """

    def __init__(self, count: Callable[[], int], done: int) -> None:
        self._count, self._done = count, done
        self._seen: deque[tuple[float, int, int, float]] = deque([(0.0, 0, 0, 0.0)], _WINDOW + 1)

    def line(self, progress: Progress, seconds: float) -> str:
        """Return what is done, the rates, and the time that is left.

        Parameters
        ----------
        progress : Progress
            Of the actors.
        seconds : float
            Since the job began.
        """
        usage, rows = progress.usage, progress.counts.get("rows", 0)
        self._seen.append((seconds, rows, usage.passes_made, usage.cost or 0.0))
        (since, *before), (until, *now) = self._seen[0], self._seen[-1]
        minutes = max(until - since, 1e-9) / 60
        rate, passes, dollars = ((b - a) / minutes for a, b in zip(before, now, strict=True))
        said = f"{rate:,.0f} rows and {passes:,.0f} passes a minute"
        if dollars:
            said += f", ${dollars:,.2f} a minute"
        done = self._done + rows
        total = self._total
        if total is None:
            return f"{done:,} rows done, {said}"
        done = min(done, total)
        if rate and done < total:
            said += f", about {duration(60 * (total - done) / rate)} left"
        return f"{done:,} of {total:,} rows ({done / max(total, 1):.0%}), {said}"

    @cached_property
    def _total(self) -> int | None:
        with suppress(DataError):  # an actor will raise it
            return self._count()
        return None


@contextmanager
def every_minute(say: Callable[[], None]) -> Iterator[None]:
    """Call a function once a minute, in a thread, until the context ends."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_MINUTE):
            say()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
