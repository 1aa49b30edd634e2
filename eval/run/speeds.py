"""Seconds per forward pass: measured when passes are made, and written beside the store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from blackbox.protocol import Usage

__all__ = ["LmWork", "Speeds"]

_MIN_TIMED_PASSES = 200  # fewer passes are too few for a speed


@dataclass(frozen=True)
class LmWork:
    """Work of the LM itself during one step of a method.

    Parameters
    ----------
    made, known : int
        Passes made, and answers from the store.
    seconds : float
        Time inside the LM.
    """

    made: int = 0
    known: int = 0
    seconds: float = 0.0

    @classmethod
    def between(cls, before: Usage, after: Usage) -> LmWork:
        """Return the difference of two usages of a `StoredBackend`."""
        return cls(
            after.passes_made - before.passes_made,
            after.passes_from_store - before.passes_from_store,
            after.seconds_lm - before.seconds_lm,
        )

    def __add__(self, other: LmWork) -> LmWork:
        return LmWork(
            self.made + other.made, self.known + other.known, self.seconds + other.seconds
        )


class Speeds:
    """Seconds per pass of each LM, by kind of passes.

    A measurement is a line of its own at the end of the file, so that several runs may share it;
    the last one holds.

    Parameters
    ----------
    store : Path
        The forward-pass store that the passes go into.
    """

    def __init__(self, store: Path) -> None:
        self._path = store.with_name(f"{store.name}.speeds.jsonl")

    def record(self, lm: str, kind: str, work: LmWork) -> None:
        """Record a measurement, if it covers enough passes.

        Parameters
        ----------
        lm : str
            The digest of the LM's identity.
        kind : str
            Data set, top k and prompts of the passes.
        work : LmWork
            The measurement.
        """
        if work.made >= _MIN_TIMED_PASSES and work.seconds > 0:
            line = json.dumps([lm, kind, round(work.seconds / work.made, 6)])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def seconds(self, lm: str, kind: str, passes: int, work: LmWork) -> float | None:
        """Return the seconds of an LM that makes all the passes; None if never measured."""
        if passes == 0:
            return 0.0
        made_all = work.made > 0 and (work.known == 0 or work.made >= passes)
        if made_all and work.seconds > 0:
            return round(work.seconds, 3)
        speed = self._read().get((lm, kind))
        return None if speed is None else round(passes * speed, 3)

    def _read(self) -> dict[tuple[str, str], float]:
        if not self._path.exists():
            return {}
        found = {}
        for line in self._path.read_bytes().split(b"\n"):
            try:
                lm, kind, speed = json.loads(line)
            except ValueError:  # cut off by a crash
                continue
            found[lm, kind] = speed
        return found
