"""Rate limit on forward passes per minute."""

from __future__ import annotations

import math
import threading
import time
from collections import deque

from blackbox.plurals import counted
from blackbox.service.problems import Problem

__all__ = ["PassesPerMinute"]

_MINUTE = 60.0


class PassesPerMinute:
    """A sliding-window rate limit: no span of a minute has more forward passes than the limit.

    Passes are reserved before they are made, and count for a minute from when they were made.

    Parameters
    ----------
    limit : int or None
        Forward passes per minute; None is no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._reserved = 0
        self._made: deque[tuple[float, int]] = deque()  # when they expire, and how many
        self._n_made = 0
        self._lock = threading.Lock()

    def reserve(self, passes: int) -> None:
        """Reserve passes.

        Raises
        ------
        Problem
            If they exceed the limit.
        """
        if self._limit is None:
            return
        with self._lock:
            now = time.monotonic()
            while self._made and self._made[0][0] <= now:
                self._n_made -= self._made.popleft()[1]
            lacking = passes - (self._limit - self._reserved - self._n_made)
            if lacking > 0:
                detail = f"the service makes {counted(self._limit, 'forward pass')} a minute"
                if passes > self._limit:  # at any time, so there is none to retry at
                    detail += f", and this request may take {passes}: send fewer texts at a time"
                    raise Problem(429, detail)
                raise Problem(429, detail, self._seconds_until(lacking, now))
            self._reserved += passes

    def settle(self, reserved: int, made: int) -> None:
        """Replace a reservation by the passes that were made."""
        if self._limit is None:
            return
        with self._lock:
            self._reserved -= reserved
            if not made:
                return
            self._n_made += made
            # one entry per second keeps the queue short; rounding up makes passes count longer
            expires = math.ceil(time.monotonic()) + _MINUTE
            if self._made and self._made[-1][0] == expires:
                made += self._made.pop()[1]
            self._made.append((expires, made))

    def _seconds_until(self, lacking: int, now: float) -> float:
        for expires, made in self._made:
            lacking -= made
            if lacking <= 0:
                return expires - now
        return _MINUTE
