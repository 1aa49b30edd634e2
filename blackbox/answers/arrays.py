"""Arrays that may be larger than memory."""

from __future__ import annotations

import functools
import itertools
import math
import os
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["empty"]

_SHARE = 0.25  # of memory that these arrays take together: what is more is kept in files
_UNKNOWN = 4 << 30  # bytes of memory, where the system doesn't tell

_numbers = itertools.count()
_in_memory: weakref.WeakValueDictionary[int, NDArray[Any]] = weakref.WeakValueDictionary()


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array to be filled: in memory, or in a temporary file where it would take much of it.

    What counts is what all such arrays of the process take that are still there. The file has no
    name, and is gone with the array.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    held = sum(array.nbytes for array in list(_in_memory.values()))
    if not size or held + size <= _SHARE * _memory():
        array = np.empty(shape, dtype)
        _in_memory[next(_numbers)] = array
        return array
    with tempfile.TemporaryFile(prefix="promptboosting-") as file:
        return np.memmap(file, dtype, "w+", shape=shape)


@functools.cache
def _memory() -> int:
    """Bytes of memory that this process may take: the machine's, or what its container has."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = _UNKNOWN
    return min([physical, *_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _limits(groups: Path, own: Path) -> list[int]:
    """The memory limits of the control groups of a process, as container engines set them."""
    lines = []
    with suppress(OSError):
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    limits = []
    # version 2 has one tree of groups, version 1 one for memory
    for kind, root, name in (
        ("", groups, "memory.max"),
        ("memory", groups / "memory", "memory.limit_in_bytes"),
    ):
        for path in ["/", *(path for _, kinds, path in lines if kinds == kind)]:
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                # "max" is no number: there is no limit
                with suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text()))
    return limits
