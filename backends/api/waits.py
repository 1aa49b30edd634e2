"""The time that a server asks to wait before the next try, wherever it says so."""

from __future__ import annotations

import datetime
import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any

__all__ = ["retry_after", "seconds_until"]

_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|millisec|d|h|m|s)[a-z]*", re.IGNORECASE)
_ASKED = re.compile(
    r"(?:try again|retry|wait)(?: again)?(?: in| after| for)?\s+"
    r"((?:\d+(?:\.\d+)?\s*(?:ms|milliseconds?|days?|d|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?"
    r"|s)\b[\s,]*(?:and )?)+|(?:\d+(?:\.\d+)?[hms]+)+)",
    re.IGNORECASE,
)
_DELAY = re.compile(r"retry_?delay\W{1,6}(\d+(?:\.\d+)?)\s*s", re.IGNORECASE)
_EPOCH = 10**9  # a number from here on is a time, and not a duration
_LONGEST_BODY = 20_000


def retry_after(headers: Mapping[str, str], body: Any = None) -> float | None:
    """Return the seconds that an error asks to wait, or None where it doesn't say.

    Parameters
    ----------
    headers : mapping
        `retry-after-ms`, `retry-after` (a number, or a date), and, for what is used up,
        `x-ratelimit-reset-*` (a number, a duration, or a time).
    body : JSON data, optional
        Words such as "try again in 20s", or Gemini's `retryDelay`.
    """
    for found in (
        _milliseconds(headers.get("retry-after-ms")),
        seconds_until(headers.get("retry-after")),
        _in_words(body),
        _reset(headers),
    ):
        if found is not None:
            return max(0.0, found)
    return None


def _milliseconds(said: str | None) -> float | None:
    number = _number(said)
    return None if number is None else number / 1000


def _number(said: str | None) -> float | None:
    try:
        number = float(said or "")
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None


def seconds_until(said: str | None) -> float | None:
    """Return seconds from now: of a number, a duration such as 1m30.5s, a date, or a time stamp."""
    if not said:
        return None
    number = _number(said)
    if number is not None:
        if number >= 1000 * _EPOCH:
            number /= 1000
        return number - time.time() if number >= _EPOCH else number
    if re.fullmatch(r"\s*(?:\d+(?:\.\d+)?\s*(?:ms|d|h|m|s)\s*)+", said):
        return _duration(said)
    for parse in (email.utils.parsedate_to_datetime, datetime.datetime.fromisoformat):
        try:
            at = parse(said)
            if at.tzinfo is None:  # servers tell the time of Greenwich
                at = at.replace(tzinfo=datetime.UTC)
            return at.timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            continue
    return None


def _duration(said: str) -> float:
    return sum(
        float(amount) * _UNITS[unit.lower().replace("millisec", "ms")]
        for amount, unit in _AMOUNT.findall(said)
    )


def _in_words(body: Any) -> float | None:
    if body is None:
        return None
    words = body if isinstance(body, str) else json.dumps(body, default=str)
    delay = _DELAY.search(words[:_LONGEST_BODY])
    if delay:
        return float(delay[1])
    asked = _ASKED.search(words[:_LONGEST_BODY])
    return _duration(asked[1]) if asked else None


def _reset(headers: Mapping[str, str]) -> float | None:
    """The latest reset of a limit of which nothing remains."""
    resets = [
        seconds_until(said)
        for name, said in headers.items()
        if "ratelimit" in name.lower()
        and "reset" in name.lower()
        and _number(headers.get(name.lower().replace("reset", "remaining"))) == 0
    ]
    return max((reset for reset in resets if reset is not None), default=None)
