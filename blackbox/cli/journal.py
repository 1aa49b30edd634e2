"""What `blackbox predict` knows already when it is started again after a crash.

While it writes OUT, every chunk of answers is also appended to a journal beside it, which is
removed when OUT is complete. The next run of the same job takes from it what it holds and asks the
LM for the rest only, with or without a store, and writes the same file to the last byte. It holds
answers and digests of texts, no texts. While it is open it is locked, so that OUT has one writer.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

if sys.platform != "win32":
    import fcntl

__all__ = ["Journal", "digest_of"]


def digest_of(*parts: Any) -> str:
    """A digest of JSON data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


class Journal:
    """The journal of one output; a context manager.

    One that holds no answer is removed in the end.

    Parameters
    ----------
    out : Path or None
        The output; without one, or for a device or a pipe, nothing is kept.
    job : str
        A digest of all that decides the answers. The journal of another job is begun anew.

    Raises
    ------
    DataError
        If another run has it, or it can't be read or written.
    """

    def __init__(self, out: Path | None, job: str) -> None:
        kept = out is not None and not _is_special(out)
        self._path = out.with_name(out.name + ".journal") if out is not None and kept else None
        self._job = job
        self._head = 0
        self._file: BinaryIO | None = None
        self._is_reading = True

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        with self._errors(), ExitStack() as opened:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            self._file = opened.enter_context(os.fdopen(descriptor, "r+b"))
            _lock(self._file)
            if self._next() != {"job": self._job}:
                self._append({"job": self._job}, 0)
            self._head = self._file.tell()
            opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is None or self._path is None:
            return
        with suppress(OSError):  # what went wrong first is what the user should see
            is_empty = os.fstat(self._file.fileno()).st_size <= self._head
            self._file.close()
            if is_empty:
                self._path.unlink()

    def take(self, texts: str) -> Any:
        """What an earlier run answered to the next chunk, or None.

        Parameters
        ----------
        texts : str
            A digest of the chunk's texts. The first chunk that isn't the journal's next one ends
            what can be taken from it.
        """
        if self._file is None or not self._is_reading:
            return None
        with self._errors():
            start = self._file.tell()
            entry = self._next()
            if isinstance(entry, dict) and entry.get("texts") == texts:
                return entry["answers"]
            self._is_reading = False
            self._file.seek(start)
            self._file.truncate()
        return None

    def write(self, texts: str, answers: Any) -> None:
        """Append the answers to a chunk that could not be taken."""
        if self._file is not None:
            with self._errors():
                self._append({"texts": texts, "answers": answers}, self._file.tell())

    def finish(self) -> None:
        """The output is complete: the journal goes."""
        if self._file is not None and self._path is not None:
            with self._errors():
                self._file.close()
                self._path.unlink(missing_ok=True)
            self._file = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of the system into ours."""
        from blackbox.errors import DataError

        try:
            yield
        except BlockingIOError as error:
            out = str(self._path).removesuffix(".journal")
            raise DataError(
                f"{out}: another run is writing it; wait for that, or name another --out"
            ) from error
        except OSError as error:
            raise DataError(
                f"{self._path}: {error.strerror}; answers are kept there until the output is "
                "complete: name another --out"
            ) from error

    def _next(self) -> Any:
        """The next line's content, or None for one that is missing or was cut off by a crash."""
        assert self._file is not None
        line = self._file.readline()
        try:
            return json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return None

    def _append(self, entry: Any, place: int) -> None:
        assert self._file is not None
        self._file.seek(place)
        self._file.truncate()
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()


def _is_special(path: Path) -> bool:
    """Whether there is something that is no file."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _lock(file: BinaryIO) -> None:
    """Take the lock on a file, where the system has locks, or raise `BlockingIOError`."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks
