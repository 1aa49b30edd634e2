"""The models of other tasks in a model file: as JSON and arrays, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import ModelFileError
from blackbox.experts.source_models import MAX_SOURCES, SourceModel

__all__ = ["ARRAYS_PER_SOURCE", "describe_sources", "read_sources", "source_arrays"]

ARRAYS_PER_SOURCE = 9

_MAX_NAME = 1000  # characters of a name, and of a class
_MAX_CLASSES = 10_000

ReadArray = Callable[[str, Any, tuple[int | None, ...]], NDArray[Any]]


def describe_sources(sources: Sequence[SourceModel]) -> list[dict[str, Any]]:
    """Return what a file says of sources in words."""
    return [{"name": one.name, "classes": list(one.classes)} for one in sources]


def source_arrays(sources: Sequence[SourceModel]) -> dict[str, NDArray[Any]]:
    """Return the arrays of sources, `ARRAYS_PER_SOURCE` each."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, source in enumerate(sources):
        of_source: dict[str, NDArray[Any]] = {
            "prompts": np.array(source.prompts, np.int32),
            "sizes": np.array([len(ids) for ids in source.token_ids], np.int32),
            "token_ids": np.concatenate(source.token_ids),
            "coefficients": np.concatenate(source.coefficients),
            "offsets": source.offsets,
            "low": source.low,
            "high": source.high,
            "floors": source.floors,
            "initial": source.initial,
        }
        arrays |= {f"source_{number}_{name}": array for name, array in of_source.items()}
    return arrays


def read_sources(
    described: Any, read: ReadArray, token_ids: Sequence[NDArray[np.int32]]
) -> tuple[SourceModel, ...]:
    """Return the sources of a file.

    Parameters
    ----------
    described : object
        What `describe_sources` returned.
    read : callable
        Returns an array by its name, type and shape, checked to be finite.
    token_ids : sequence of int32 arrays
        The tokens that the model reads of each of its prompts.

    Raises
    ------
    ModelFileError
        If they are of another form.
    """
    if not isinstance(described, list) or len(described) > MAX_SOURCES:
        raise ModelFileError("its models of other tasks are no list, or too many")
    return tuple(_source(one, f"source_{n}_", read, token_ids) for n, one in enumerate(described))


def _source(
    described: dict[str, Any], prefix: str, read: ReadArray, token_ids: Sequence[NDArray[np.int32]]
) -> SourceModel:
    name, classes = described["name"], described["classes"]
    names = [name, *classes] if isinstance(classes, list) else []
    if not 3 <= len(names) <= _MAX_CLASSES + 1 or not all(
        isinstance(one, str) and len(one) <= _MAX_NAME for one in names
    ):
        raise ModelFileError("a model of another task without a name, or with too few classes")
    z = len(classes)
    prompts = read(f"{prefix}prompts", np.int32, (None,))
    r = len(prompts)
    sizes = read(f"{prefix}sizes", np.int32, (r,))
    if (
        not r
        or len(set(prompts.tolist())) != r
        or not set(prompts.tolist()) <= set(range(len(token_ids)))
    ):
        raise ModelFileError("a model of another task reads no prompt, or an unknown one")
    if (sizes < 1).any():
        raise ModelFileError("a model of another task reads no token")
    ids = read(f"{prefix}token_ids", np.int32, (int(sizes.sum()),))
    coefficients = read(f"{prefix}coefficients", np.float16, (len(ids), z))
    ends = np.cumsum(sizes)[:-1]
    parts = np.split(ids, ends)
    for prompt, part in zip(prompts.tolist(), parts, strict=True):
        if (np.diff(part) <= 0).any() or not np.isin(part, token_ids[prompt]).all():
            raise ModelFileError("a model of another task reads unknown tokens")
    low, high = (read(f"{prefix}{one}", np.float64, (r, z)) for one in ("low", "high"))
    if (low > high).any():
        raise ModelFileError("a lower limit above the upper")
    return SourceModel(
        name,
        tuple(classes),
        tuple(prompts.tolist()),
        tuple(parts),
        tuple(np.split(coefficients, ends)),
        read(f"{prefix}offsets", np.float64, (r, z)),
        low,
        high,
        read(f"{prefix}floors", np.float64, (r,)),
        read(f"{prefix}initial", np.float64, (z,)),
    )
