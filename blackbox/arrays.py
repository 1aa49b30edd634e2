"""Arrays that may be larger than memory."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["empty"]

_SHARE = 0.25  # of the machine's memory: a larger array is kept in a file
_UNKNOWN = 4 << 30  # bytes of memory, where the system doesn't tell


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array to be filled: in memory, or in a temporary file where it would take much of it.

    The file has no name, and is gone with the array.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= _SHARE * _memory():
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="promptboosting-") as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def _memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN
