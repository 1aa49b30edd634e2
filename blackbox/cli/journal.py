"""What `blackbox predict` knows already when it is started again after a crash.

While it writes OUT, every chunk of answers is also appended to a journal beside it, which is
removed when OUT is complete. The next run of the same job takes from it what it holds and asks the
LM for the rest only, with or without a store, and writes the same file to the last byte. It holds
answers and digests of texts, no texts.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Self

__all__ = ["Journal", "digest_of"]


def digest_of(*parts: Any) -> str:
    """A digest of JSON data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


class Journal:
    """The journal of one output; a context manager.

    Parameters
    ----------
    out : Path or None
        The output; without one nothing is kept.
    job : str
        A digest of all that decides the answers. The journal of another job is begun anew.
    """

    def __init__(self, out: Path | None, job: str) -> None:
        self._path = None if out is None else out.with_name(out.name + ".journal")
        self._job = job
        self._file: BinaryIO | None = None
        self._is_reading = True

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "r+b")
        if self._next() != {"job": self._job}:
            self._append({"job": self._job}, 0)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

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
            self._append({"texts": texts, "answers": answers}, self._file.tell())

    def finish(self) -> None:
        """The output is complete: the journal goes."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)

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
