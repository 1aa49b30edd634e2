"""Addresses of files: paths of this machine, or of Arrow's file systems (``s3://bucket/folder``)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from posixpath import normpath
from typing import Any

from blackbox.errors import DataError
from blackbox.tables.messages import data_errors, is_address, public, reason

__all__ = ["file_system", "in_folder", "read_beside"]


@lru_cache(maxsize=8)
def file_system(path: str) -> tuple[Any, str]:
    """Return the file system of Arrow of a path or address, and the path in it.

    Raises
    ------
    DataError
        If there is no such file system.
    """
    from pyarrow import fs

    try:
        if is_address(path):
            found: tuple[Any, str] = fs.FileSystem.from_uri(path)
            return found
    except (OSError, ValueError) as error:
        said = reason(error).replace(path, public(path))
        raise DataError(f"{public(path)}: can't be reached: {said}") from None
    return fs.LocalFileSystem(), Path(path).expanduser().absolute().as_posix()


def in_folder(folder: str, name: str) -> str:
    """Return the address of a file in a folder; options of the address (``?…``) stay its end."""
    place, mark, options = folder.partition("?") if is_address(folder) else (folder, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def read_beside(table: str, name: str) -> bytes:
    """Return the bytes of a file by its path from the folder of a table at an address.

    Raises
    ------
    DataError
        If it can't be read.
    """
    system, path = file_system(table)
    inside = normpath(f"{path.rpartition('/')[0]}/{name}")  # an object store knows no ".."
    with data_errors(f"{name}: can't be read", OSError), system.open_input_stream(inside) as file:
        return bytes(file.read())
