"""Read a configuration file, and check it before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from blackbox.errors import DataError
from eval.methods import METHODS, check_options
from eval.run.configuration import Configuration, Lm, MethodEntry
from eval.run.frame import expand

__all__ = ["read_configuration"]

_KEYS = {
    "title",
    "time",
    "lms",
    "data",
    "reported_only",
    "against",
    "shots",
    "shots_of",
    "seeds",
    "n_test",
    "top_k",
    "prompts",
    "methods",
    "frame",
    "compare",
}
_ENTRY_KEYS = {"method", "name", "data", "shots", "seeds", "top_k", "prompts", "options", "alone"}
_HAND_WRITTEN = "hand-written"
_SHOTS = 'shots are numbers from 0 or "all"'


def read_configuration(path: Path) -> Configuration:
    """Read a configuration file.

    Raises
    ------
    DataError
        If it can't be read, or contains an unknown key or value.
    """
    found = _read_mapping(path)
    common = _shared_values(path, found)
    given = [*expand(path, found.get("frame", {})), *(found.get("methods") or [])]
    entries = tuple(_parse_method(path, one, common) for one in given)
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
    against = found.get("against", {})
    if not isinstance(against, dict) or not {*against, *against.values()} <= measured:
        raise DataError(f"{path}: against is a mapping between data sets, got {against!r}")
    return Configuration(
        title=str(found.get("title", path.stem)),
        time=str(found.get("time", "unknown")),
        lms=lms,
        n_test=n_test,
        methods=entries,
        compare=found.get("compare"),
        reported_only=tuple(reported_only),
        against=against,
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
    for key in ("lms", *(() if found.get("frame") else ("methods",))):
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
    shots_of = found.get("shots_of", {})
    if not isinstance(shots_of, dict):
        raise DataError(f"{path}: shots_of is a mapping from data sets to lists of shots")
    for name, shots in shots_of.items():
        if not _are_shots(_check_list(path, "shots_of", str(name), shots)):
            raise DataError(f"{path}: shots_of: {name}: {_SHOTS}")
    return {
        "shots_of": {str(name): _read_shots(some) for name, some in shots_of.items()},
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
    return Lm.of(str(given["backend"]), options, given.get("name"))


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
        (_are_shots(shots), _SHOTS),
        (
            all(type(one) is int and one >= 0 for one in seeds) and len(set(seeds)) == len(seeds),
            "seeds are different whole numbers from 0",
        ),
        (len(set(data)) == len(data), "a data set stands there twice"),
        (len(set(shots)) == len(shots), "a number of shots stands there twice"),
        (_is_positive(top_k), "top_k is a positive number"),
        (isinstance(options, dict), "options are a mapping"),
        (isinstance(given.get("alone", False), bool), "alone is true or false"),
    ):
        if not right:
            raise DataError(f"{path}: {where}: {message}")
    _check_pool(path, where, prompts)
    try:
        check_options(given["method"], options)
    except (TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path}: {where}: its options are not right: {message}") from error
    method = METHODS[given["method"]]
    entry = MethodEntry(
        name=str(given.get("name", given["method"])),
        method=given["method"],
        data=tuple(data),
        shots=_read_shots(shots),
        seeds=tuple(seeds),
        top_k=top_k,
        prompts=prompts,
        options=options,
        alone=given.get("alone", False),
        shots_of={} if "shots" in given else common["shots_of"],
        sources=tuple(common["data"]) if method.reads_library else (),
    )
    if not any(entry.shots_on(name) for name in entry.data):
        raise DataError(f"{path}: {where}: it needs labels, and has 0 shots alone")
    return entry


def _are_shots(shots: list[Any]) -> bool:
    return all(
        one == "all" or _is_positive(one) or (one == 0 and one is not False) for one in shots
    )


def _read_shots(shots: list[Any]) -> tuple[int | None, ...]:
    return tuple(None if one == "all" else one for one in shots)


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
