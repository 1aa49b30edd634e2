"""The answers that a process read last, by the requests that they answer.

The points of a grid search, and the folds of a cross-validation, read the same answers again and
again: from memory that takes a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

__all__ = ["MAX_BYTES", "RecentAnswers"]

MAX_BYTES = 64_000_000
"""The most that is remembered; of more, what was not used for longest is forgotten."""


class RecentAnswers:
    """Answers by the requests that they answer, up to `MAX_BYTES`; one thread at a time uses it."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[int, Sequence[Any]]] = {}
        self._n_bytes = 0

    def get(self, requests: Hashable) -> Sequence[Any] | None:
        """Return the parts of the answers to these requests; None if they aren't remembered."""
        found = self._known.pop(requests, None)
        if found is None:
            return None
        self._known[requests] = found  # now the last that was used
        return found[1]

    def add(self, requests: Hashable, parts: Sequence[Any], n_bytes: int) -> None:
        """Remember parts, of this size with their requests; they must not be changed any more."""
        if n_bytes > MAX_BYTES:
            return
        self._n_bytes += n_bytes - self._known.pop(requests, (0, ()))[0]
        self._known[requests] = n_bytes, parts
        while self._n_bytes > MAX_BYTES:
            self._n_bytes -= self._known.pop(next(iter(self._known)))[0]

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()
        self._n_bytes = 0
