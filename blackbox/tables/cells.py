"""Conversion of values for formats that lack their type: cells of CSV, and JSON."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["as_json", "as_text", "native"]


def native(value: Any) -> Any:
    """Return the Python value of a numpy one, which may come from an estimator."""
    tolist = getattr(value, "tolist", None)
    return tolist() if tolist is not None else value


def as_text(value: Any) -> str:
    """Return a value as a cell of CSV: empty for None and NaN, JSON for lists."""
    value = native(value)
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bool | list | tuple | dict):
        return as_json(value)
    return str(value, errors="backslashreplace") if isinstance(value, bytes) else str(value)


def as_json(value: Any) -> str:
    """Return a value as JSON, where NaN and infinity are null."""
    try:
        return _JSON.encode(value)
    except ValueError:
        return _JSON.encode(_finite(value))


def _finite(value: Any) -> Any:
    value = native(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _beyond_json(value: Any) -> Any:
    """Return a value of a type that JSON has, for one such as a date of Parquet."""
    plain = native(value)
    return as_text(value) if plain is value else plain


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_beyond_json)
