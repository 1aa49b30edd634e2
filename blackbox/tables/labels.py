"""Labels of a table: what may be one or several, what annotation tools write, near-duplicates."""

from __future__ import annotations

import ast
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

from blackbox.errors import DataError
from blackbox.tables.messages import at_cell, kind_of, usable
from blackbox.tables.reading import Row

__all__ = [
    "is_list",
    "is_open",
    "is_unlabelled",
    "label_of",
    "label_set",
    "similar_labels",
    "single_label",
    "told",
]

_SEVERAL = (
    "{where}: {count} labels, and a classifier gives one per text; to give several, name what "
    "stands between labels (--label-separator ';'), which reads lists too; see "
    "docs/several-labels.md"
)
_TOLD = {"0": False, "1": True, "false": False, "true": True}
_TOLD |= {"0.0": False, "1.0": True}  # as pandas writes a column with missing values into CSV
_BEGIN_LIST = ('["', "['", "[]")


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

    A list is one of JSON or Parquet, `{"choices": [...]}`, text that is JSON of either, or a list
    of str as Python spells it. Of an empty list, None.

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


def label_set(
    value: object, separator: str, *, row: int, column: str, name: str
) -> list[str] | None:
    """Return the distinct labels in a cell that may hold several; None where they are missing.

    A str is split at the separator, and blanks around a label don't matter. Lists are read as
    `single_label` does. A text without any label has an empty list (``[]``), or the separator
    alone; an empty cell is a missing one.

    Raises
    ------
    DataError
        If one of them is no label, as in `label_of`.
    """
    if is_unlabelled(value):
        return None
    found = _as_list(value)
    if found is None and isinstance(value, str):
        found = [part.strip() for part in value.split(separator)]
        found = [part for part in found if part]
    labels = [value] if found is None else found
    at: dict[str, Any] = {"row": row, "column": column, "name": name}
    return list(dict.fromkeys(label_of(label, **at) for label in labels))


def told(value: object, *, row: int, column: str, name: str) -> bool | None:
    """Return whether a text has the label of a column of 0 and 1; None where that is missing.

    Raises
    ------
    DataError
        If it is neither 0, 1, true nor false.
    """
    if is_unlabelled(value):
        return None
    word = str(value).strip().casefold()
    if isinstance(value, float) and value.is_integer():  # of a table with missing values
        word = str(int(value))
    if word not in _TOLD:
        shown = repr(value) if isinstance(value, str) else kind_of(value)
        raise DataError(
            f"{at_cell(name, row, column)}: {shown} is neither 0 nor 1, true nor false; where "
            "several columns of labels are named, each says whether a text has its label"
        )
    return _TOLD[word]


def is_list(value: object) -> bool:
    """Return whether a cell holds a list, and not text."""
    return not isinstance(value, str) and _as_list(value) is not None


def _as_list(value: object) -> list[Any] | None:
    if isinstance(value, str) and value.lstrip().startswith(('{"choices"', *_BEGIN_LIST)):
        text = value
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return _python_list(text)
    if isinstance(value, dict) and list(value) == ["choices"]:
        value = value["choices"]
        value = value if isinstance(value, list) else [value]
    return value if isinstance(value, list) else None


def _python_list(text: str) -> list[Any] | None:
    """Return the list of str that a text spells in Python, as pandas writes lists into CSV."""
    if not text.lstrip().startswith(_BEGIN_LIST):
        return None
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        return None
    # an array of numpy has no commas, and Python would join what stands in it
    is_whole = repr(found).replace(" ", "") == text.strip().replace(" ", "")
    return found if is_whole else None


def is_unlabelled(value: object) -> bool:
    """Return whether a label is missing: None, NaN or blank."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def is_open(row: Row, column: str, *, several: bool = False) -> bool:
    """Return whether a row has no label yet; where it may have several, none may be its labels."""
    value = row.values.get(column)
    return is_unlabelled(value) or (not several and value in ([], {"choices": []}, "[]"))


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
