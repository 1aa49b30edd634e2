"""Memory checks: whether the large arrays of a training fit, before they are allocated."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from pathlib import Path

from blackbox.errors import DataError

__all__ = ["require_memory"]

_UNKNOWN = 4 << 30  # bytes of memory, where the system doesn't report them


def require_memory(n_bytes: int, what: str) -> None:
    """Raise if this process may not use so much memory.

    Parameters
    ----------
    n_bytes : int
        Lower bound of the memory needed.
    what : str
        Description of the arrays with their size, for the message.

    Raises
    ------
    DataError
        If `n_bytes` exceeds the memory of the machine or the limit of its container.
    """
    limit = _memory_limit()
    if n_bytes > limit:
        raise DataError(
            f"{what} need at least {n_bytes / 1e9:,.2f} GB of memory, and this process may use "
            f"{limit / 1e9:,.2f} GB: give fewer rows (--shots), fewer prompts or a "
            "lower top_k (--top-k)"
        )


@functools.cache
def _memory_limit() -> int:
    """Return the bytes that this process may use: the machine's memory or the container's limit."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = _UNKNOWN
    return min([physical, *_container_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _container_limits(groups: Path, own: Path) -> list[int]:
    """Return the memory limits of a process's control groups, as container engines set them."""
    lines = []
    with suppress(OSError):
        lines = [line.split(":", 2) for line in own.read_text("utf-8", "replace").splitlines()]
    limits = []
    # version 2 has one tree of groups, version 1 one for memory
    for kind, root, name in (
        ("", groups, "memory.max"),
        ("memory", groups / "memory", "memory.limit_in_bytes"),
    ):
        for path in ["/", *(path for _, kinds, path in lines if kinds == kind)]:
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                # "max" is not a number and means no limit
                with suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text("utf-8")))
    return limits
