"""Configurations: the data sets, LMs, shots, seeds and methods of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from blackbox.errors import DataError
from eval.methods import METHODS

__all__ = ["Cell", "Configuration", "Lm", "MethodEntry"]


@dataclass(frozen=True)
class Lm:
    """Language model of a configuration.

    Parameters
    ----------
    name : str
        In tables.
    backend : str
        As `backends.load` knows it.
    options : mapping
        For its constructor; keys of APIs come from the environment.
    """

    name: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, backend: str, options: Mapping[str, Any], name: str | None = None) -> Lm:
        """Return the LM of a backend, called by its model unless it has a name."""
        model = options.get("model")
        return cls(str(name or (Path(model).name if model else backend)), backend, options)


@dataclass(frozen=True)
class MethodEntry:
    """Row of the table: a method with its options.

    Parameters
    ----------
    name : str
        In tables.
    method : str
        One of `eval.methods.METHODS`.
    data, shots, seeds : tuple
        What the method is measured on; 0 shots are texts without labels, None all rows.
    top_k : int
        Next tokens that it reads.
    prompts : str
        ``"hand-written"``, or the path of a pool file, in which ``{data}`` is the data set.
    options : mapping
        More parameters of the method.
    alone : bool
        Whether each of its cells has a process of its own and no store, so that seconds and memory
        are those of a user who runs it once.
    shots_of : mapping of str to tuple
        The shots of data sets that have others.
    sources : tuple of str
        The data sets whose models are its library, for a method that reads one.
    """

    name: str
    method: str
    data: tuple[str, ...]
    shots: tuple[int | None, ...]
    seeds: tuple[int, ...]
    top_k: int
    prompts: str
    options: Mapping[str, Any]
    alone: bool = False
    shots_of: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    def shots_on(self, data: str) -> tuple[int | None, ...]:
        """Return the shots on a data set; without labels only where the method needs none."""
        some = self.shots_of.get(data, self.shots)
        return tuple(n for n in some if n != 0 or METHODS[self.method].works_unlabelled)


@dataclass(frozen=True)
class Cell:
    """One method on one draw of one data set with one LM; shots None is all rows."""

    lm: Lm
    data: str
    shots: int | None
    seed: int
    entry: MethodEntry


@dataclass(frozen=True)
class Configuration:
    """Contents of a configuration file.

    Parameters
    ----------
    title, time : str
        Shown to people: what it measures, and how long it takes on which machine.
    lms : tuple of Lm
        The language models.
    n_test : int or None
        Maximum number of test rows of each data set, the same for all cells.
    methods : tuple of MethodEntry
        The rows.
    compare : str or None
        The method that the others are compared with.
    reported_only : tuple of str
        Data sets that are shown but left out of means and comparisons.
    against : mapping of str to str
        For a data set the one whose accuracy its own is compared with, row by row.
    is_part : bool
        Whether rows or data sets of the file are left out.
    """

    title: str
    time: str
    lms: tuple[Lm, ...]
    n_test: int | None
    methods: tuple[MethodEntry, ...]
    compare: str | None = None
    reported_only: tuple[str, ...] = ()
    against: Mapping[str, str] = field(default_factory=dict)
    is_part: bool = False

    def only(self, data: Sequence[str] = (), methods: Sequence[str] = ()) -> Configuration:
        """Return the same for the data sets and rows that match patterns, such as ``fifty:*``.

        Parameters
        ----------
        data, methods : sequence of str
            Patterns of the names of data sets and of rows; none for all.

        Raises
        ------
        DataError
            If a pattern matches nothing, or no row has one of the data sets.
        """
        for what, patterns, names in (
            ("row", methods, {entry.name for entry in self.methods}),
            ("data set", data, {name for entry in self.methods for name in entry.data}),
        ):
            for one in patterns:
                if not any(fnmatchcase(name, one) for name in names):
                    raise DataError(
                        f"no {what} of the configuration matches {one!r}; it has "
                        f"{', '.join(sorted(names))}"
                    )
        entries = tuple(
            replace(entry, data=tuple(name for name in entry.data if _matches(name, data)))
            for entry in self.methods
            if _matches(entry.name, methods)
        )
        if not any(entry.data for entry in entries):
            raise DataError(f"no row that matches {' or '.join(methods)} is on {' or '.join(data)}")
        compare = self.compare if self.compare in {entry.name for entry in entries} else None
        is_part = self.is_part or entries != self.methods
        return replace(self, methods=entries, compare=compare, is_part=is_part)

    def on_lm(self, lm: Lm) -> tuple[Configuration, list[str]]:
        """Return the same with one other LM, and the rows left out, which need an LM's weights."""
        entries = [one for one in self.methods if not METHODS[one.method].needs_weights]
        left_out = [one.name for one in self.methods if one not in entries]
        return replace(self, lms=(lm,), methods=tuple(entries)), left_out

    def cells(self) -> Iterator[Cell]:
        """Yield all cells, data set by data set, so that passes are shared while in memory."""
        data = dict.fromkeys(name for entry in self.methods for name in entry.data)
        for lm in self.lms:
            for name in data:
                for entry in self.methods:
                    if name in entry.data:
                        for shots in entry.shots_on(name):
                            for seed in entry.seeds:
                                yield Cell(lm, name, shots, seed, entry)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, one) for one in patterns)
