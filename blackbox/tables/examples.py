"""The texts and labels of a training table, and what may be one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blackbox.errors import DataError
from blackbox.tables.messages import at_cell, kind_of
from blackbox.tables.reading import TableReader

__all__ = ["LabelledExamples", "check_text", "label_of", "read_examples"]


@dataclass(frozen=True)
class LabelledExamples:
    """The texts of a table, with their labels.

    Parameters
    ----------
    texts : list of str, or list of (str, str)
        Texts, or pairs of texts.
    labels : list of str
        One for each text; empty if the table was read without labels.
    numbers : list of int
        The number of each text's row in the table, counted from 1.
    groups : list of (str or None), optional
        The group of each text, where a column of groups was named; None where its cell is empty.
    """

    texts: list[str] | list[tuple[str, str]]
    labels: list[str]
    numbers: list[int]
    groups: list[str | None] | None = None


def read_examples(
    path: str | Path,
    *,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str | None = "label",
    group_column: str | None = None,
    format: str | None = None,
    stream: BinaryIO | None = None,
    allow_empty: bool = False,
) -> LabelledExamples:
    """Load all texts of a table, with their labels.

    Parameters
    ----------
    path, format, stream
        As in `TableReader`.
    text_column : str
        The column of the texts.
    text_pair_column : str, optional
        The column of the second texts; the texts are pairs then.
    label_column : str or None
        The column of the labels; None reads texts only.
    group_column : str, optional
        The column that says which texts belong together.
    allow_empty : bool
        Take a missing or blank text as "" instead of refusing it.

    Raises
    ------
    DataError
        If the table can't be read, has no rows, lacks a column, or a text or label can't be used.
    """
    columns = [text_column] if text_pair_column is None else [text_column, text_pair_column]
    named = [*columns, *(c for c in (label_column, group_column) if c is not None)]
    _refuse_shared(named)
    texts: list[Any] = []
    labels: list[str] = []
    numbers: list[int] = []
    groups: list[str | None] = []
    with TableReader(path, format=format, stream=stream) as reader:
        reader.require(*named)
        for row in reader:
            at: dict[str, Any] = {"row": row.number, "name": reader.name}
            cells = [_text_of(row.values[c], allow_empty, column=c, **at) for c in columns]
            texts.append(cells[0] if text_pair_column is None else tuple(cells))
            if label_column is not None:
                labels.append(label_of(row.values[label_column], column=label_column, **at))
            if group_column is not None:
                groups.append(_group_of(row.values[group_column]))
            numbers.append(row.number)
    if not numbers:
        raise DataError(f"{reader.name}: has columns but no rows; add examples")
    return LabelledExamples(texts, labels, numbers, None if group_column is None else groups)


def _group_of(value: object) -> str | None:
    """Return a group as a str; None where the cell is empty."""
    missing = value is None or value != value
    return None if missing or not str(value).strip() else str(value)


def _refuse_shared(columns: list[str]) -> None:
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(
                f"the column {column!r} is named twice; texts, second texts, labels and groups "
                "come from different columns"
            )


def _text_of(value: object, allow_empty: bool, **at: Any) -> str:
    if allow_empty and (value is None or (isinstance(value, str) and not value.strip())):
        return ""
    return check_text(value, **at)


def check_text(value: object, *, row: int, column: str, name: str) -> str:
    """Return `value` if it is a text that an LM can be given.

    Raises
    ------
    DataError
        If it isn't a str, is empty or blank, or holds a NUL or half a surrogate pair.
    """
    if not isinstance(value, str):
        where = at_cell(name, row, column)
        raise DataError(f"{where}: a text is needed, not {kind_of(value)}")
    return _usable(value, "text", row, column, name)


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
        return _usable(value, "label", row, column, name)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    where = at_cell(name, row, column)
    raise DataError(f"{where}: a label is needed, not {kind_of(value)}; use a word or whole number")


def _usable(value: str, what: str, row: int, column: str, name: str) -> str:
    if not value or value.isspace():
        where = at_cell(name, row, column)
        raise DataError(f"{where}: the {what} is empty; fill it in or remove the row")
    if "\0" in value:
        where = at_cell(name, row, column)
        raise DataError(f"{where}: the {what} holds a NUL character; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        where, half = at_cell(name, row, column), value[error.start]
        raise DataError(
            f"{where}: the {what} holds {half!r}, half a character; remove it"
        ) from error
    return value
