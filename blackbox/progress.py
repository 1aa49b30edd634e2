"""Progress on standard error: a bar on a terminal or in a notebook, lines in a log."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import Any

__all__ = ["ProgressDisplay", "duration"]

_EVERY = 10.0  # seconds between two lines of a log, and before the first


class ProgressDisplay:
    """Shows the stages of a run; see the estimator's `callback`.

    On a terminal and in a notebook a bar is drawn and removed. Elsewhere, as in a log, a line is
    written every ten seconds, so that a short run writes nothing.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._began = self._said = time.monotonic()
        self._first = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are done."""
        is_new = stage != self._stage
        self._stage = stage
        if sys.stderr.isatty() or _in_notebook():
            self._draw(stage, done, total, is_new=is_new)
        else:
            self._write(stage, done, total, is_new=is_new)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, stage: str, done: int, total: int, *, is_new: bool) -> None:
        if self._bar is None or is_new or total != self._bar.total:
            self.close()
            self._bar = _bar_class()(total=total, desc=stage, file=sys.stderr, leave=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def _write(self, stage: str, done: int, total: int, *, is_new: bool) -> None:
        now = time.monotonic()
        if is_new:
            self._began, self._first = now, done
        if now - self._said < _EVERY or done >= total:
            return
        self._said = now
        line = f"{stage}: {done:,} of {total:,} ({done / total:.0%})"
        made = done - self._first
        if made > 0:
            line += f", about {duration((now - self._began) / made * (total - done))} left"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _bar_class() -> Any:
    """Return tqdm's bar for a notebook where its widgets are installed, else that of a terminal."""
    if _in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widgets

        return widgets
    from tqdm import tqdm

    return tqdm


def duration(seconds: float) -> str:
    """Return seconds for people: in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _in_notebook() -> bool:
    """Whether this is a kernel of Jupyter, which shows tqdm's bars."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and "IPKernelApp" in getattr(running, "config", {})
