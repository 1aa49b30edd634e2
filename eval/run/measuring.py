"""Measure the seconds and memory of one step of a cell."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

from blackbox.backend import BaseBackend
from blackbox.protocol import Usage
from eval.run.speeds import LmWork

__all__ = ["Clock", "peak_memory", "reset_peak_memory"]


class Clock:
    """Stopwatch of the LM's work and of all seconds.

    Parameters
    ----------
    lm : backend or None
        The LM, if the method calls one.
    """

    def __init__(self, lm: BaseBackend | None) -> None:
        self._lm = lm
        self._last = self._now()

    def lap(self) -> tuple[LmWork, float]:
        """Return the LM's work and the seconds since the last lap."""
        (before, since), self._last = self._last, self._now()
        return LmWork.between(before, self._last[0]), self._last[1] - since

    def _now(self) -> tuple[Usage, float]:
        return self._lm.usage if self._lm else Usage(), time.perf_counter()


def reset_peak_memory() -> None:
    """Reset the peak memory of this process, if the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float | None:
    """Return the peak memory in MB since the reset; None if the system doesn't report it.

    `resource.getrusage` would include the memory of the parent at the fork.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else None
