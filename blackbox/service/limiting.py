"""How many forward passes a service may make in a minute."""

from __future__ import annotations

import threading
import time

from blackbox.service.problems import Problem

__all__ = ["PassesPerMinute"]


class PassesPerMinute:
    """A bucket that fills evenly: passes are reserved before they are made, and what wasn't made
    is given back.

    Parameters
    ----------
    limit : int or None
        Passes a minute; None is no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._left = float(limit or 0)
        self._then = time.monotonic()
        self._lock = threading.Lock()

    def reserve(self, passes: int) -> None:
        """Take so many.

        Raises
        ------
        Problem
            If they are not there.
        """
        if self._limit is None:
            return
        with self._lock:
            self._fill()
            if passes > self._left:
                wait = 60 * (min(passes, self._limit) - self._left) / self._limit
                detail = f"the service makes {self._limit} forward passes a minute"
                if passes > self._limit:
                    detail += f", and this request may take {passes}: send fewer texts at a time"
                raise Problem(429, detail, wait)
            self._left -= passes

    def give_back(self, passes: int) -> None:
        """Passes that were reserved and not made."""
        if self._limit is not None:
            with self._lock:
                self._left = min(float(self._limit), self._left + passes)

    def _fill(self) -> None:
        now = time.monotonic()
        assert self._limit is not None
        self._left += (now - self._then) * self._limit / 60
        self._left, self._then = min(self._left, float(self._limit)), now
