"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | Path, data: bytes, error: type[Exception]) -> None:
    """Write all of a file or nothing; what stood there stays until the new one is complete.

    Parameters
    ----------
    path : str or Path
        The file; where it is a link, what it points to is replaced.
    data : bytes
        Its content.
    error : type of Exception
        Raised with one line where it can't be written.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if target.exists() and not target.is_file():
            raise error(f"{path} can't be written: it is there and is no file")
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as failure:
        raise error(f"{path} can't be written: {failure.strerror}") from failure
    finally:
        # a read-only disk refuses to remove even what isn't there
        with suppress(OSError):
            partial.unlink()
