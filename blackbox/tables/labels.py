"""Labels of a training table: what may be one, what annotation tools write, and near-duplicates."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

from blackbox.errors import DataError
from blackbox.tables.messages import at_cell, kind_of, usable

__all__ = ["is_unlabelled", "label_of", "similar_labels", "single_label"]

_SEVERAL = (
    "{where}: {count} labels, and a classifier gives one per text; for several labels per text see "
    "docs/several-labels.md"
)


def label_of(value: object, *, row: int, column: str, name: str) -> str:
    """Return a label as a str.

    A str stays as it is. A bool becomes "true" or "false", as JSON spells it. An int becomes its
    digits, and so does a whole float, because pandas turns a column of int into float where a value
    is missing. Any other float is a measurement rather than a class, and is refused.

    Raises
    ------
    DataError
        If it is none of these, is empty or blank, or holds a NUL or half a surrogate pair.
    """
    if isinstance(value, str):
        return usable(value, "label", row, column, name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    where = at_cell(name, row, column)
    raise DataError(f"{where}: a label is needed, not {kind_of(value)}; use a word or whole number")


def single_label(value: object, *, row: int, column: str, name: str) -> object:
    """Return the label in a list of one, as doccano and Label Studio write it; else the value.

    A list is one of JSON or Parquet, `{"choices": [...]}`, or text that is JSON of either. Of an
    empty list, None.

    Raises
    ------
    DataError
        If there are several.
    """
    labels = _as_list(value)
    if labels is None:
        return value
    if len(labels) > 1:
        raise DataError(_SEVERAL.format(where=at_cell(name, row, column), count=len(labels)))
    return labels[0] if labels else None


def _as_list(value: object) -> list[Any] | None:
    if isinstance(value, str) and value.lstrip().startswith(('{"choices"', '["', "[]")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict) and list(value) == ["choices"]:
        value = value["choices"]
        value = value if isinstance(value, list) else [value]
    return value if isinstance(value, list) else None


def is_unlabelled(value: object) -> bool:
    """Return whether a label is missing: None, NaN or blank."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def similar_labels(labels: Iterable[object]) -> list[tuple[str, str]]:
    """Return pairs of labels that differ by blanks, case or Unicode form only."""
    first: dict[str, str] = {}
    pairs = []
    for label in dict.fromkeys(label for label in labels if isinstance(label, str)):
        folded = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
        if folded in first:
            pairs.append((first[folded], label))
        else:
            first[folded] = label
    return pairs
