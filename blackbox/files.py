"""Atomic file writing: a file is written completely or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | Path, data: bytes, error: type[Exception]) -> None:
    """Write a file atomically: the old content stays until the new one is complete.

    Parameters
    ----------
    path : str or Path
        The file; if it is a symbolic link, its target is replaced.
    data : bytes
        Its content.
    error : type of Exception
        The error to raise if the file can't be written.

    Raises
    ------
    Exception
        `error`, with a message of one line.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if target.exists() and not target.is_file():
            raise error(f"{path} can't be written: it exists and is not a file")
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as failure:
        raise error(f"{path} can't be written: {failure.strerror}") from failure
    finally:
        # a read-only disk fails to remove even a file that doesn't exist
        with suppress(OSError):
            partial.unlink()
