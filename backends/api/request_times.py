"""The time that requests to a server take, and how many get through: a forecast of more of them.

What is known comes from requests that were sent anyway: the probe's at first, and later those of a
run. No request is sent to find it out.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.api.waits import seconds_until
from blackbox.plurals import counted
from blackbox.protocol import TimeEstimate

__all__ = ["RateLimit", "RequestTimes", "announced_limits"]

_KEPT = 256  # requests
_FEW = 16  # requests, of which the first one would count for much
_WINDOWS = (60.0, 3600.0, 86_400.0)  # seconds: the usual ones, the most usual first
_REFILLED = 0.25  # share by which a reset may differ from that of a limit that refills evenly
_NAMES = {60.0: "minute", 3600.0: "hour", 86_400.0: "day"}


@dataclass(frozen=True)
class RateLimit:
    """A limit of requests or tokens, as a server's headers announce it.

    Parameters
    ----------
    what : str
        ``"requests"`` or ``"tokens"``.
    limit, remaining : float
        Number within a window, and what is left of it.
    reset : float or None
        Seconds until all of it is there again; None where that isn't said.
    """

    what: str
    limit: float
    remaining: float
    reset: float | None = None

    @property
    def window(self) -> float:
        """Seconds in which the whole limit may be used: a minute, an hour or a day."""
        if self.reset is None:
            return _WINDOWS[0]
        if self._refilling:
            return self._refilling[0]
        return next((window for window in _WINDOWS if self.reset <= window), _WINDOWS[-1])

    @property
    def _refilling(self) -> list[float]:
        """The windows of a limit that refills evenly and has this reset."""
        used = self.limit - self.remaining
        return [
            window
            for window in _WINDOWS
            if self.reset and abs(used / self.limit * window / self.reset - 1) <= _REFILLED
        ]

    def seconds(self, n: float) -> float:
        """Return the least time that so many requests, or tokens, take from now on."""
        over = n - self.remaining
        if over <= 0:
            return 0.0
        if self.reset is None or self._refilling:
            return over * self.window / self.limit
        return self.reset + (over - 1) // self.limit * self.window

    def __str__(self) -> str:
        return f"{self.limit:.0f} {self.what} a {_NAMES[self.window]}"


def announced_limits(headers: Mapping[str, str]) -> list[RateLimit]:
    """Return the rate limits that the headers of a response announce.

    Those of OpenAI and most others (``x-ratelimit-limit-requests``, ``-remaining-``, ``-reset-``),
    of Anthropic (``anthropic-ratelimit-tokens-limit``) and of the IETF's draft
    (``ratelimit-limit``). A limit of what is written is left out.
    """
    found = []
    names = {name.lower(): value for name, value in headers.items()}
    for name, value in names.items():
        place = name.partition("ratelimit")[2]
        if "limit" not in place or "output" in place:
            continue
        other = name[: -len(place)] + place.replace("limit", "{}")
        limit = _number(value)
        remaining = _number(names.get(other.format("remaining"), ""))
        if limit is None or remaining is None or not 0 <= remaining <= limit or not limit:
            continue
        reset = seconds_until(names.get(other.format("reset")))
        what = "tokens" if "token" in place else "requests"
        found.append(RateLimit(what, limit, remaining, reset))
    return found


class RequestTimes:
    """Times of the latest requests to one server, and the limits that it announced last.

    Threads may add to it at the same time.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_KEPT)
        self._busy: deque[float] = deque(maxlen=_KEPT)
        self._limits: list[RateLimit] = []
        self._lock = threading.Lock()

    def add(self, seconds: float, busy: float) -> None:
        """Add a request that was answered.

        Parameters
        ----------
        seconds : float
            From its beginning to its answer, read.
        busy : float
            Processor time that it took here.
        """
        with self._lock:
            self._seconds.append(seconds)
            self._busy.append(busy)

    def announce(self, headers: Mapping[str, str]) -> None:
        """Keep the rate limits of a response, if it has any."""
        limits = announced_limits(headers)
        if limits:
            self._limits = limits

    def estimate(
        self,
        calls: Sequence[int],
        n_tokens: float,
        *,
        at_a_time: int,
        a_minute: Mapping[str, float | None] | None = None,
    ) -> TimeEstimate:
        """Return the time of further requests.

        It is the longest of these: all waves of requests at a time; the processor time here, as one
        process has one interpreter; the pace that the user set; what the server lets through.

        Parameters
        ----------
        calls : sequence of int
            Requests of each call; a call begins when the one before it is answered.
        n_tokens : float
            Tokens of all of them.
        at_a_time : int
            Requests at a time.
        a_minute : mapping of str to float or None, optional
            The user's limits of ``"requests"`` and ``"tokens"``.
        """
        if not self._seconds:
            return TimeEstimate(None, "no request was answered yet")
        with self._lock:
            each, busy = _typical(self._seconds), _typical(self._busy)
            n_measured = len(self._seconds)
        n = {"requests": sum(calls), "tokens": n_tokens}
        source = f"from {counted(n_measured, 'request')} of {each:.2g} s, {at_a_time} at a time"
        times = {
            source: max(sum(-(-some // at_a_time) for some in calls) * each, n["requests"] * busy)
        }
        for what, given in (a_minute or {}).items():
            if given:
                times[f"by {what}_per_minute={given:g}"] = n[what] * 60 / given
        for limit in self._limits:
            times[f"by the provider's limit of {limit}"] = limit.seconds(n[limit.what])
        source = max(times, key=lambda why: times[why])  # the first of those that are equal
        return TimeEstimate(times[source], source)


def _typical(times: Sequence[float]) -> float:
    """Return the mean, of few requests without the first, which connects and loads code."""
    some = list(times)
    return statistics.fmean(some[1:] if 1 < len(some) < _FEW else some)


def _number(said: str) -> float | None:
    try:
        number = float(said)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
