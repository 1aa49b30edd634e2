"""A lock on a folder: one process at a time changes a store or a library in it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["folder_lock"]

_LOCK_SECONDS = 60.0
_PAUSE_SECONDS = 0.005


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made where there is none.

    Otherwise one process could move aside what another has just begun in the place of a damaged
    store, or write the index of a library without what another has just added. Where the system has
    no such locks, or one is held for long, it goes without.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = None if sys.platform == "win32" else os.open(path, os.O_RDONLY)
    except OSError:  # what it is about shows when the file is opened
        folder = None
    try:
        if folder is not None:
            _lock(folder)
        yield
    finally:
        if folder is not None:
            os.close(folder)


def _lock(folder: int) -> None:
    until = time.monotonic() + _LOCK_SECONDS
    while sys.platform != "win32":
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return
            time.sleep(_PAUSE_SECONDS)
        except OSError:  # a file system without locks
            return
        else:
            return
