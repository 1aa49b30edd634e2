"""How long a forward pass takes: measured where passes are made, and kept beside the store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from blackbox.protocol import Usage

__all__ = ["Speeds", "Spent"]

_LEAST_TIMED = 200  # passes whose time says something


@dataclass(frozen=True)
class Spent:
    """What an LM did itself while a method worked.

    Parameters
    ----------
    made, known : int
        Passes that it made, and answers that the store had.
    seconds : float
        Of the LM.
    """

    made: int = 0
    known: int = 0
    seconds: float = 0.0

    @classmethod
    def between(cls, before: Usage, after: Usage) -> Spent:
        """The difference of two states of a `StoredBackend`."""
        return cls(
            after.passes_made - before.passes_made,
            after.passes_from_store - before.passes_from_store,
            after.seconds_lm - before.seconds_lm,
        )

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.made + other.made, self.known + other.known, self.seconds + other.seconds)


class Speeds:
    """Seconds a pass of each LM, for each kind of passes.

    Parameters
    ----------
    store : Path
        The forward-pass store that the passes go into.
    """

    def __init__(self, store: Path) -> None:
        self._path = store.with_name(f"{store.name}.speeds.json")

    def note(self, lm: str, kind: str, spent: Spent) -> None:
        """Keep a measurement, if it was long enough to say something.

        Parameters
        ----------
        lm : str
            The digest of the LM's identity.
        kind : str
            What passes are alike in: data set, top k, prompts.
        spent : Spent
            What was measured.
        """
        if spent.made >= _LEAST_TIMED and spent.seconds > 0:
            known = self._known()
            known.setdefault(lm, {})[kind] = round(spent.seconds / spent.made, 6)
            self._path.write_text(json.dumps(known, indent=1) + "\n", "utf-8")

    def seconds(self, lm: str, kind: str, passes: int, spent: Spent) -> float | None:
        """What so many passes take an LM that must make all of them; None where nobody measured."""
        if passes == 0:
            return 0.0
        made_all = spent.made > 0 and (spent.known == 0 or spent.made >= passes)
        if made_all and spent.seconds > 0:
            return round(spent.seconds, 3)
        speed = self._known().get(lm, {}).get(kind)
        return None if speed is None else round(passes * speed, 3)

    def _known(self) -> dict[str, dict[str, float]]:
        known: dict[str, dict[str, float]] = {}
        if self._path.exists():
            known = json.loads(self._path.read_text("utf-8"))
        return known
