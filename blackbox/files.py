"""Files that are written whole or not at all.

Until a file is whole it has a side file of a random name beside it, which is opened exclusively:
nobody else's file is written, and no symbolic link is followed.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

__all__ = ["FileBusyError", "replacing", "write_whole"]


class FileBusyError(Exception):
    """Another process is writing the file."""


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
    try:
        if target.exists() and not target.is_file():
            raise error(f"{path} can't be written: it is there and is no file")
        with replacing(target) as file:
            file.write(data)
    except OSError as failure:
        raise error(f"{path} can't be written: {failure.strerror}") from failure


@contextmanager
def replacing(
    target: Path, *, one_writer: bool = False, keep: os.stat_result | None = None
) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `target` when the block ends, and is removed if it fails.

    Parameters
    ----------
    target : Path
        A file, which may be missing, and no link. Its permissions are kept.
    one_writer : bool
        Refuse a second writer while there is one, where the file system has locks, and remove what
        killed writers of the same file have left.
    keep : os.stat_result, optional
        A file that is read meanwhile, which is never taken for such a remainder.

    Raises
    ------
    FileBusyError
        If there is another writer.
    OSError
        If the file can't be written.
    """
    side, file = _open_side_file(target, one_writer, keep)
    try:
        with file:
            with suppress(FileNotFoundError):
                # a private file stays private, from its first byte
                side.chmod(stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        side.replace(target)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what the user should see
            side.unlink()
        raise
    _sync_folder(target.parent)


def _open_side_file(
    target: Path, one_writer: bool, keep: os.stat_result | None
) -> tuple[Path, BinaryIO]:
    if not one_writer:
        return _create(target)
    if sys.platform == "win32":
        _remove_side_files(target)
        return _create(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        # Two writers that begin together look one after the other
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        _clear_side_files(target, keep)
        side, file = _create(target)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return side, file
    finally:
        os.close(folder)


def _create(target: Path) -> tuple[Path, BinaryIO]:
    side = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_BINARY", 0)
    return side, os.fdopen(os.open(side, flags, 0o666), "wb")


def _side_files(target: Path) -> list[Path]:
    """Return the side files of a file, those of killed writers among them."""
    ours = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{16}\.partial")
    names = os.listdir(target.parent)  # noqa: PTH208
    return [target.with_name(name) for name in names if ours.fullmatch(name)]


def _remove_side_files(target: Path) -> None:
    """Do what `_clear_side_files` does on Windows, where nobody can remove a file that is open."""
    for side in _side_files(target):
        try:
            side.unlink(missing_ok=True)
        except PermissionError as error:
            raise FileBusyError from error


def _clear_side_files(target: Path, keep: os.stat_result | None) -> None:
    """Remove what killed writers have left; raise `FileBusyError` if one is alive."""
    for side in _side_files(target):
        try:
            file = os.open(side, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # a link, a file of another user, or just gone
        try:
            found = os.fstat(file)
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if keep is None or not os.path.samestat(found, keep):
                    side.unlink(missing_ok=True)
        except BlockingIOError as error:
            raise FileBusyError from error
        except OSError:
            continue  # without locks nobody knows whether it is in use
        finally:
            os.close(file)


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power failure, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
