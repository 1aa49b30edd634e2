"""Checks of what is read from a model file: arrays, texts, numbers and classes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import ModelFileError
from blackbox.protocol import BackendIdentity

__all__ = [
    "check_plain",
    "checked_array",
    "checked_floor",
    "checked_identity",
    "checked_text",
    "classes_as_json",
    "classes_from_json",
]

_MAX_CLASSES = 10_000
_MAX_CLASS_TEXT = 10**7  # characters: numpy gives each class as many as the longest
_MAX_IDENTITY = 10_000
_MAX_VALUE = 1e12  # so that no sum of products overflows
_MIN_FLOOR = -1e9
_CLASS_TYPES = {"str": str, "int": int, "bool": bool, "float": float}
_CLASS_KINDS = {"str": "U", "int": "iu", "bool": "b", "float": "f"}  # of numpy


def checked_array(
    arrays: dict[str, NDArray[Any]], name: str, dtype: Any, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """Take an array out of those of a file.

    Parameters
    ----------
    arrays : dict
        The arrays, of which it is taken out.
    name : str
        Its name.
    dtype : dtype
        Its type.
    shape : tuple of int or None
        Its shape; None is any length.

    Raises
    ------
    ModelFileError
        If there is none, or it is of another type or shape, or holds a number that is not finite.
    """
    if name not in arrays:
        raise ModelFileError(f"no array {name}")
    array = arrays.pop(name)
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits or not (np.abs(array) <= np.float64(_MAX_VALUE)).all():
        raise ModelFileError(f"array {name} is of another type or shape, or out of range")
    return array


def checked_text(value: Any) -> str:
    """Return a text, or raise `ModelFileError` if it is none."""
    if not isinstance(value, str):
        raise ModelFileError("text was expected")
    return value


def checked_floor(value: Any) -> float:
    """Return a log-probability, or raise `ModelFileError` if it is none."""
    if type(value) not in (int, float) or not _MIN_FLOOR <= value <= 0:
        raise ModelFileError("a floor is not a log-probability")
    return float(value)


def checked_identity(described: Any) -> BackendIdentity:
    """Return the identity of an LM, or raise `ModelFileError` if it is too long."""
    if len(json.dumps(described)) > _MAX_IDENTITY:
        raise ModelFileError("the name of its language model is too long")
    found = BackendIdentity.from_dict(described)
    # the version of an API's engine, which stood among what makes another LM up to format 10
    extra = dict(found.extra)
    version = extra.pop("system_fingerprint", None)
    return replace(found, extra=extra, engine=f"system_fingerprint {version}") if version else found


def check_plain(value: Any, depth: int) -> None:
    """Raise if a value is nested too deeply or holds a number that is not finite."""
    if isinstance(value, dict | list):
        if not depth:
            raise ModelFileError("the training summary is too deep")
        for inner in value.values() if isinstance(value, dict) else value:
            check_plain(inner, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ModelFileError("a number in the training summary is not finite")


def classes_as_json(classes: NDArray[Any]) -> dict[str, Any]:
    """Return classes as JSON data, or raise `ModelFileError` if they can't be kept."""
    if classes.dtype.kind in "mM":  # in nanoseconds they look like whole numbers
        raise ModelFileError(f"labels of type {classes.dtype}: use str, int, bool or float")
    values = [v.item() if isinstance(v, np.generic) else v for v in classes.tolist()]
    kinds = {type(value) for value in values}
    for name, kind in _CLASS_TYPES.items():
        if kinds == {kind}:
            described = {"type": name, "values": values}
            classes_from_json(described, fewest=1)  # a file that can't be read is none
            return described
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ModelFileError(f"labels of type {names}: use str, int, bool or float")


def classes_from_json(described: dict[str, Any], fewest: int = 2) -> NDArray[Any]:
    """Return the classes that `classes_as_json` described: (n_classes,).

    Raises
    ------
    ModelFileError
        If they are fewer than `fewest`, too many, of several types, or can't be told apart.
    """
    kind, values = _CLASS_TYPES[described["type"]], described["values"]
    if not isinstance(values, list) or not fewest <= len(values) <= _MAX_CLASSES:
        raise ModelFileError(f"fewer classes than {fewest}, or too many")
    if any(type(value) is not kind for value in values) or len(set(values)) != len(values):
        raise ModelFileError("classes are of several types, or occur twice")
    if kind is str and max(map(len, values)) * len(values) > _MAX_CLASS_TEXT:
        raise ModelFileError("the name of a class is too long")
    classes = np.array(values)
    # numpy changes some values: integers beyond its range, and text that ends in NUL
    if classes.dtype.kind not in _CLASS_KINDS[described["type"]] or classes.tolist() != values:
        raise ModelFileError("classes that can't be told apart, or are out of range")
    if kind is float and not np.isfinite(classes).all():
        raise ModelFileError("a class is not finite")
    return classes
