"""A frame: rows that are all combinations of the levels of some factors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blackbox.errors import DataError

__all__ = ["SEPARATOR", "expand"]

SEPARATOR = " · "
"""Between the levels in the name of a row."""


def expand(path: Path, frame: Any) -> list[dict[str, Any]]:
    """Return the rows of a frame, as a configuration gives them.

    Parameters
    ----------
    path : Path
        The configuration, for messages.
    frame : mapping of str to mapping
        For each factor its levels, and for each level what it sets: `method`, `prompts`, `top_k`,
        `options` (merged), and `unless`, the levels of other factors that it has no row with.

    Raises
    ------
    DataError
        If it is none.
    """
    if not isinstance(frame, dict) or not all(
        isinstance(levels, dict) and all(isinstance(one, dict) for one in levels.values())
        for levels in frame.values()
    ):
        raise DataError(f"{path}: a frame is a mapping of factors to levels to what these set")
    if not frame:
        return []
    rows = []
    for chosen in itertools.product(*(levels.items() for levels in frame.values())):
        names = [str(name) for name, _ in chosen]
        if not any(set(level.get("unless", ())) & set(names) for _, level in chosen):
            rows.append({"name": SEPARATOR.join(names)} | _merged([level for _, level in chosen]))
    return rows


def _merged(levels: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what some levels set together."""
    merged: dict[str, Any] = {}
    for level in levels:
        given = {key: value for key, value in level.items() if key != "unless"}
        options = merged.get("options", {}) | given.get("options", {})
        merged |= given | ({"options": options} if options else {})
    return merged
