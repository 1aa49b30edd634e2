"""Folder of results: one line per finished cell, and its probabilities."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCHEMA", "Results"]

SCHEMA = 3
"""Raised when a change of the code makes figures that were written before wrong."""


class Results:
    """Finished cells by their digest; a later line replaces an earlier one.

    Parameters
    ----------
    folder : Path
        The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._cells = folder / "cells.jsonl"
        self._probabilities = folder / "probabilities"

    def append(self, cell: dict[str, Any]) -> None:
        """Append a cell; it is on the disk when this returns."""
        with self._cells.open("a+b") as file:
            # a crash may have left half a line
            file.seek(max(file.tell() - 1, 0))
            if file.read(1) not in (b"", b"\n"):
                file.write(b"\n")
            line = json.dumps(cell, ensure_ascii=False) + "\n"
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def cells(self) -> dict[str, dict[str, Any]]:
        """Read all cells; a line that was cut off by a crash is skipped."""
        found: dict[str, dict[str, Any]] = {}
        if self._cells.exists():
            for line in self._cells.read_bytes().split(b"\n"):
                try:
                    cell = json.loads(line)
                except ValueError:
                    continue
                found[cell["digest"]] = cell
        return found

    def write_probabilities(
        self, digest: str, probabilities: NDArray[np.float64], codes: NDArray[np.intp]
    ) -> None:
        """Write a cell's probabilities for the test rows, and the true classes."""
        self._probabilities.mkdir(exist_ok=True)
        path = self._probabilities / f"{digest}.npz"
        part = path.with_name(f"{digest}.{os.getpid()}.part.npz")
        np.savez_compressed(
            part, probabilities=probabilities.astype(np.float32), codes=codes.astype(np.int16)
        )
        part.replace(path)

    def read_probabilities(self, digest: str) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Read a cell's probabilities for the test rows, and the true classes."""
        with np.load(self._probabilities / f"{digest}.npz", allow_pickle=False) as arrays:
            return arrays["probabilities"], arrays["codes"]
