"""Configuration files: the data sets, LMs, shots, seeds and methods of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from blackbox.errors import DataError
from eval.methods import METHODS, check_options

__all__ = ["Cell", "Configuration", "Lm", "MethodEntry", "read_configuration"]

_KEYS = {
    "title",
    "time",
    "lms",
    "data",
    "reported_only",
    "shots",
    "seeds",
    "n_test",
    "top_k",
    "prompts",
    "methods",
    "compare",
}
_ENTRY_KEYS = {"method", "name", "data", "shots", "seeds", "top_k", "prompts", "options"}
_HAND_WRITTEN = "hand-written"


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
        What the method is measured on.
    top_k : int
        Next tokens that it reads.
    prompts : str
        ``"hand-written"``, or the path of a pool file, in which ``{data}`` is the data set.
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
    """

    title: str
    time: str
    lms: tuple[Lm, ...]
    n_test: int | None
    methods: tuple[MethodEntry, ...]
    compare: str | None = None
    reported_only: tuple[str, ...] = ()

    def only(self, patterns: Sequence[str]) -> Configuration:
        """Return the same for the data sets that match one of some patterns, such as ``fifty:*``.

        Raises
        ------
        DataError
            If there is none.
        """
        entries = []
        for entry in self.methods:
            kept = tuple(
                name for name in entry.data if any(fnmatchcase(name, one) for one in patterns)
            )
            entries.append(replace(entry, data=kept))
        if not any(entry.data for entry in entries):
            raise DataError(f"no data set of the configuration matches {' or '.join(patterns)}")
        return replace(self, methods=tuple(entries))

    def cells(self) -> Iterator[Cell]:
        """Yield all cells, data set by data set, so that passes are shared while in memory."""
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
        If it can't be read, or contains an unknown key or value.
    """
    found = _read_mapping(path)
    common = _shared_values(path, found)
    entries = tuple(_parse_method(path, given, common) for given in found["methods"])
    names = [entry.name for entry in entries]
    lms = tuple(_parse_lm(path, given) for given in found["lms"])
    for kind, some in (("methods", names), ("LMs", [lm.name for lm in lms])):
        twice = next((name for name in some if some.count(name) > 1), None)
        if twice:
            raise DataError(f"{path}: two {kind} are called {twice!r}; give one another `name`")
    if found.get("compare") not in (None, *names):
        raise DataError(f"{path}: compare names {found['compare']!r}, which is no method here")
    n_test = found.get("n_test")
    if n_test is not None and not _is_positive(n_test):
        raise DataError(
            f"{path}: n_test is a positive number, got {n_test!r}; leave it out for all rows"
        )
    reported_only = found.get("reported_only", [])
    measured = {name for entry in entries for name in entry.data}
    if not isinstance(reported_only, list) or not all(
        name in sorted(measured) for name in reported_only
    ):
        raise DataError(
            f"{path}: reported_only is a list out of {sorted(measured)}, got {reported_only!r}"
        )
    return Configuration(
        title=str(found.get("title", path.stem)),
        time=str(found.get("time", "unknown")),
        lms=lms,
        n_test=n_test,
        methods=entries,
        compare=found.get("compare"),
        reported_only=tuple(reported_only),
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: a configuration is a mapping with the keys {sorted(_KEYS)}")
    _check_keys(path, "the configuration", found, _KEYS)
    for key in ("lms", "methods"):
        _check_list(path, "the configuration", key, found.get(key))
    return found


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_list(path: Path, where: str, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: {where}: {key} must be a list with at least one entry")
    return value


def _shared_values(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of methods that don't set their own."""
    return {
        "top_k": found.get("top_k", 200),
        "prompts": found.get("prompts", _HAND_WRITTEN),
        **{
            key: _check_list(path, "the configuration", key, found.get(key))
            for key in ("data", "shots", "seeds")
        },
    }


def _check_keys(path: Path, where: str, found: Mapping[str, Any], keys: set[str]) -> None:
    unknown = sorted(set(found) - keys)
    if unknown:
        raise DataError(f"{path}: {where} has no {unknown[0]!r}; it may have {sorted(keys)}")


def _parse_lm(path: Path, given: Any) -> Lm:
    if not isinstance(given, dict) or "backend" not in given:
        raise DataError(f"{path}: an LM needs a backend, such as {{backend: onnx}}")
    options = {key: value for key, value in given.items() if key not in ("name", "backend")}
    name = given.get("name") or options.get("model") or given["backend"]
    return Lm(str(name), str(given["backend"]), options)


def _parse_method(path: Path, given: Any, common: Mapping[str, Any]) -> MethodEntry:
    if isinstance(given, str):
        given = {"method": given}
    if not isinstance(given, dict) or str(given.get("method")) not in METHODS:
        named = given.get("method") if isinstance(given, dict) else given
        raise DataError(f"{path}: no method {named!r}; there are {', '.join(METHODS)}")
    where = f"method {given['method']!r}"
    _check_keys(path, where, given, _ENTRY_KEYS)
    data, shots, seeds = (
        _check_list(path, where, key, given.get(key, common[key]))
        for key in ("data", "shots", "seeds")
    )
    top_k, prompts = (given.get(key, common[key]) for key in ("top_k", "prompts"))
    options = given.get("options", {})
    for right, message in (
        (all(isinstance(one, str) for one in data), "data are names"),
        (
            all(one == "all" or _is_positive(one) for one in shots),
            'shots are positive numbers or "all"',
        ),
        (all(isinstance(one, int) for one in seeds), "seeds are whole numbers"),
        (_is_positive(top_k), "top_k is a positive number"),
        (isinstance(options, dict), "options are a mapping"),
    ):
        if not right:
            raise DataError(f"{path}: {where}: {message}")
    _check_pool(path, where, prompts)
    try:
        check_options(given["method"], options)
    except (TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path}: {where}: its options are not right: {message}") from error
    return MethodEntry(
        name=str(given.get("name", given["method"])),
        method=given["method"],
        data=tuple(data),
        shots=tuple(None if one == "all" else one for one in shots),
        seeds=tuple(seeds),
        top_k=top_k,
        prompts=prompts,
        options=options,
    )


def _check_pool(path: Path, where: str, prompts: Any) -> None:
    if prompts == "own":
        raise DataError(
            f"{path}: {where}: prompts are {_HAND_WRITTEN!r} or a file; the program's own are what "
            "the method 'ours, own pool' takes"
        )
    try:
        str.format(prompts, data="")
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(
            f"{path}: {where}: prompts are {_HAND_WRITTEN!r} or the path of a file, in which "
            f"{{data}} may stand and no other brace, got {prompts!r}"
        ) from error
