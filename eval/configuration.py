"""Configuration files: which data sets, LMs, shots, seeds and methods a table is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from blackbox.errors import DataError
from eval.methods import METHODS

__all__ = ["Cell", "Configuration", "Lm", "MethodEntry", "read_configuration"]

_KEYS = {
    "title", "time", "lms", "data", "reported_only", "shots", "seeds", "n_test", "top_k", "prompts",
    "methods", "compare",
}  # fmt: skip
_ENTRY_KEYS = {"method", "name", "data", "shots", "seeds", "top_k", "prompts", "options"}
_POOLS = ("hand-written", "own")


@dataclass(frozen=True)
class Lm:
    """A language model of a configuration.

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


@dataclass(frozen=True)
class MethodEntry:
    """A row of the table: a method with its options.

    Parameters
    ----------
    name : str
        In tables.
    method : str
        One of `eval.methods.METHODS`.
    data, shots, seeds : tuple
        What it is measured on.
    top_k : int
        Next tokens that it reads.
    prompts : str
        ``"hand-written"``, ``"own"`` (the program's) or the path of a pool file.
    options : mapping
        More parameters of the method.
    """

    name: str
    method: str
    data: tuple[str, ...]
    shots: tuple[int | None, ...]
    seeds: tuple[int, ...]
    top_k: int
    prompts: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One figure: a method on one draw of one data set with one LM; shots None is all rows."""

    lm: Lm
    data: str
    shots: int | None
    seed: int
    entry: MethodEntry


@dataclass(frozen=True)
class Configuration:
    """A whole table.

    Parameters
    ----------
    title, time : str
        For people: what it shows, and how long it takes on what machine.
    lms : tuple of Lm
        The language models.
    n_test : int or None
        Test rows of each data set, the same for all cells; all of them where there are fewer.
    methods : tuple of MethodEntry
        The rows.
    compare : str or None
        The method that the others are compared with.
    reported_only : tuple of str
        Data sets that are shown and stay out of means and comparisons.
    """

    title: str
    time: str
    lms: tuple[Lm, ...]
    n_test: int | None
    methods: tuple[MethodEntry, ...]
    compare: str | None = None
    reported_only: tuple[str, ...] = ()

    def cells(self) -> Iterator[Cell]:
        """All cells, data set by data set, so that passes are shared while they are in memory."""
        data = dict.fromkeys(name for entry in self.methods for name in entry.data)
        for lm in self.lms:
            for name in data:
                for entry in self.methods:
                    if name in entry.data:
                        for shots in entry.shots:
                            for seed in entry.seeds:
                                yield Cell(lm, name, shots, seed, entry)


def read_configuration(path: Path) -> Configuration:
    """Read a configuration file.

    Raises
    ------
    DataError
        If it can't be read, or something in it isn't known; the message says what and where.
    """
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: a configuration is a mapping with the keys {sorted(_KEYS)}")
    _only(path, "the configuration", found, _KEYS)
    for key in ("lms", "data", "shots", "seeds", "methods"):
        if not isinstance(found.get(key), list) or not found[key]:
            raise DataError(f"{path}: {key} must be a list with at least one entry")
    entries = tuple(_entry(path, given, found) for given in found["methods"])
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"{path}: two methods are called {twice!r}; give one another `name`")
    if found.get("compare") not in (None, *names):
        raise DataError(f"{path}: compare names {found['compare']!r}, which is no method here")
    return Configuration(
        title=str(found.get("title", path.stem)),
        time=str(found.get("time", "unknown")),
        lms=tuple(_lm(path, given) for given in found["lms"]),
        n_test=found.get("n_test"),
        methods=entries,
        compare=found.get("compare"),
        reported_only=tuple(found.get("reported_only", ())),
    )


def _only(path: Path, where: str, found: Mapping[str, Any], keys: set[str]) -> None:
    unknown = sorted(set(found) - keys)
    if unknown:
        raise DataError(f"{path}: {where} has no {unknown[0]!r}; it may have {sorted(keys)}")


def _lm(path: Path, given: Any) -> Lm:
    if not isinstance(given, dict) or "backend" not in given:
        raise DataError(f"{path}: an LM needs a backend, such as {{backend: llamacpp}}")
    options = {key: value for key, value in given.items() if key not in ("name", "backend")}
    name = given.get("name") or options.get("model") or given["backend"]
    return Lm(str(name), str(given["backend"]), options)


def _entry(path: Path, given: Any, common: Mapping[str, Any]) -> MethodEntry:
    if isinstance(given, str):
        given = {"method": given}
    if not isinstance(given, dict) or given.get("method") not in METHODS:
        named = given.get("method") if isinstance(given, dict) else given
        raise DataError(f"{path}: no method {named!r}; there are {', '.join(METHODS)}")
    where = f"method {given['method']!r}"
    _only(path, where, given, _ENTRY_KEYS)
    shots = tuple(None if one == "all" else one for one in given.get("shots", common["shots"]))
    if not all(one is None or (isinstance(one, int) and one > 0) for one in shots):
        raise DataError(f'{path}: {where}: shots are positive numbers or "all"')
    return MethodEntry(
        name=str(given.get("name", given["method"])),
        method=given["method"],
        data=tuple(given.get("data", common["data"])),
        shots=shots,
        seeds=tuple(given.get("seeds", common["seeds"])),
        top_k=int(given.get("top_k", common.get("top_k", 200))),
        prompts=str(given.get("prompts", common.get("prompts", _POOLS[0]))),
        options=dict(given.get("options", {})),
    )
