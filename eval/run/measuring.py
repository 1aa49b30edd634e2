"""Seconds and memory of one step of a cell."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

from blackbox.protocol import Usage
from blackbox.store.stored_backend import StoredBackend
from eval.run.charging import ReadOnce
from eval.run.speeds import Spent

__all__ = ["Clock", "begin_peak", "peak_mb"]


class Clock:
    """What the LM did, and all seconds, since the last look.

    Parameters
    ----------
    stored : StoredBackend, ReadOnce or None
        The LM, where one is asked.
    """

    def __init__(self, stored: StoredBackend | ReadOnce | None) -> None:
        self._stored = stored
        self._last = self._now()

    def lap(self) -> tuple[Spent, float]:
        """Both, and begin anew."""
        (before, since), self._last = self._last, self._now()
        return Spent.between(before, self._last[0]), self._last[1] - since

    def _now(self) -> tuple[Usage, float]:
        return self._stored.usage if self._stored else Usage(), time.perf_counter()


def begin_peak() -> None:
    """Forget how much memory this process held, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float | None:
    """The most that this process held since then, in MB; None where the system doesn't tell.

    `resource.getrusage` would count what the parent held when it made this process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else None
