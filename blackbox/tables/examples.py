"""The texts and labels of a training table, checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from blackbox.errors import DataError
from blackbox.images import NO_IMAGE, Image
from blackbox.plurals import counted
from blackbox.tables.images import image_of
from blackbox.tables.labels import (
    is_list,
    is_unlabelled,
    label_of,
    label_set,
    single_label,
    told,
)
from blackbox.tables.messages import at_cell, kind_of, usable
from blackbox.tables.reading import Row, TableReader

__all__ = ["LabelledExamples", "check_text", "is_blank", "read_examples", "texts_of_rows"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledExamples:
    """The texts of a table, with their labels.

    Parameters
    ----------
    texts : list of str, of (str, str), of Image, or of (str, Image)
        Texts, pairs of texts, or images.
    labels : list of str, or of list of str
        One for each text; empty if the table was read without labels, and "" for rows without a
        label that were kept. Where a text may have several, the list of them.
    numbers : list of int
        The number of each text's row in the table, counted from 1.
    groups : list of (str or None), optional
        The group of each text, where a column of groups was named; None where its cell is empty.
    n_unlabelled, n_empty : int
        Rows that were left out, as they have no label, or no text.
    n_rare : int
        Rows that were left out, as their class has too few.
    problems : dict of int to DataError
        What is wrong with a text, by its place in `texts`; `check` raises it.
    several : bool
        Whether a text may have several labels.
    are_lists : bool
        Whether cells held several labels as a list, and not as text.
    """

    texts: list[Any]
    labels: list[Any]
    numbers: list[int]
    groups: list[str | None] | None = None
    n_unlabelled: int = 0
    n_empty: int = 0
    n_rare: int = 0
    problems: dict[int, DataError] = field(default_factory=dict)
    several: bool = False
    are_lists: bool = False

    def take(self, places: Sequence[int]) -> LabelledExamples:
        """Return some of the texts, by their places in `texts`."""
        texts: list[Any] = [self.texts[place] for place in places]
        return replace(
            self,
            texts=texts,
            labels=[self.labels[place] for place in places],
            numbers=[self.numbers[place] for place in places],
            groups=None if self.groups is None else [self.groups[place] for place in places],
            problems={
                new: self.problems[old] for new, old in enumerate(places) if old in self.problems
            },
        )

    def join(self, other: LabelledExamples) -> LabelledExamples:
        """Return these texts, and then those of another part of the same table."""
        texts: list[Any] = [*self.texts, *other.texts]
        groups = None
        if self.groups is not None and other.groups is not None:
            groups = [*self.groups, *other.groups]
        return replace(
            self,
            texts=texts,
            labels=[*self.labels, *other.labels],
            numbers=[*self.numbers, *other.numbers],
            groups=groups,
            problems=self.problems
            | {len(self.texts) + place: why for place, why in other.problems.items()},
        )

    def check(self) -> None:
        """Raise what is wrong with the first text that can't be used."""
        if self.problems:
            raise self.problems[min(self.problems)]


def read_examples(
    path: str | Path,
    *,
    text_column: str | None = "text",
    text_pair_column: str | None = None,
    image_column: str | None = None,
    label_column: str | Sequence[str] | None = "label",
    label_separator: str | None = None,
    group_column: str | None = None,
    format: str | None = None,
    stream: BinaryIO | None = None,
    empty: str = "raise",
    defer: bool = False,
    keep_unlabelled: bool = False,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> LabelledExamples:
    """Load all texts of a table, with their labels.

    Rows without a label are left out, and their number is logged. A list of one label is that
    label, as annotation tools write it.

    Parameters
    ----------
    path, format, stream, encoding, delimiter
        As in `TableReader`.
    text_column : str or None
        The column of the texts; None reads images alone.
    text_pair_column : str, optional
        The column of the second texts; the texts are pairs then.
    image_column : str, optional
        The column of images; see `blackbox.tables.images.image_of`.
    label_column : str, sequence of str, or None
        The column of the labels; None reads texts only. Several columns are labels that a text may
        have, with 0 or 1 in each row.
    label_separator : str, optional
        What stands between the labels of a text in their column; with it, and with several columns,
        a text has a list of labels.
    group_column : str, optional
        The column that says which texts belong together.
    empty : {"raise", "keep", "drop"}
        Whether a missing or blank text is an error, or taken as "", or left out, and their number
        logged.
    defer : bool
        Don't raise what is wrong with a text, but return it in `LabelledExamples.problems`.
    keep_unlabelled : bool
        Keep rows without a label, with "" in its place; the column of labels may be missing then.

    Raises
    ------
    DataError
        If the table can't be read, has no rows, lacks a column, or a text or label can't be used.
    """
    columns = [c for c in (text_column, text_pair_column, image_column) if c is not None]
    if label_column is None:
        of_labels = []
    else:
        of_labels = [label_column] if isinstance(label_column, str) else list(label_column)
    named = [*columns, *of_labels, *([] if group_column is None else [group_column])]
    _refuse_shared(named)
    if keep_unlabelled:
        named = [column for column in named if column not in of_labels]
    texts: list[Any] = []
    numbers: list[int] = []
    groups: list[str | None] = []
    blank: list[int] = []
    problems: dict[int, DataError] = {}
    with TableReader(
        path, format=format, stream=stream, encoding=encoding, delimiter=delimiter
    ) as reader:
        # in JSONL an object may lack the key of its label
        reader.require(*(columns if reader.format == "jsonl" else named))
        labels = _labels_of(reader, of_labels, label_separator, keep_unlabelled)
        for row in reader:
            if not labels.take(row):
                continue
            at: dict[str, Any] = {"row": row.number, "name": reader.name}
            given = [row.values[c] for c in columns]
            needed = given if image_column is None else [row.values[image_column]]
            if empty == "drop" and any(map(is_blank, needed)):
                blank.append(row.number)
                labels.forget()
                continue
            try:
                cells = [
                    _image_of(value, empty == "keep", column=c, **at)
                    if c == image_column
                    else _text_of(value, empty == "keep" or bool(image_column), column=c, **at)
                    for c, value in zip(columns, given, strict=True)
                ]
            except DataError as error:
                if not defer:
                    raise
                problems[len(texts)] = error
                cells = [NO_IMAGE if c == image_column else "" for c in columns]
            texts.append(cells[0] if len(cells) == 1 else tuple(cells))
            if group_column is not None:
                groups.append(_group_of(row.values.get(group_column)))
            numbers.append(row.number)
    labels.report(bool(blank))
    if blank:
        _log.warning(
            "%s: rows without a text are left out: %d, the first is row %d",
            reader.name,
            len(blank),
            blank[0],
        )
    if not numbers:
        what = "no rows with a text" if blank else "columns but no rows"
        raise DataError(f"{reader.name}: has {what}; add examples")
    found = None if group_column is None else groups
    return LabelledExamples(
        texts,
        labels.found,
        numbers,
        found,
        n_unlabelled=labels.n_unlabelled,
        n_empty=len(blank),
        problems=problems,
        several=isinstance(labels, _LabelSets | _LabelColumns),
        are_lists=labels.are_lists,
    )


def _group_of(value: object) -> str | None:
    """Return a group as a str; None where the cell is empty."""
    missing = value is None or value != value
    return None if missing or not str(value).strip() else str(value)


def _labels_of(
    reader: TableReader, columns: list[str], separator: str | None, keep: bool
) -> _Labels:
    """Return what takes the labels of a table's rows."""
    if len(columns) > 1:
        return _LabelColumns(reader, columns, keep)
    column = columns[0] if columns else None
    if separator is not None and column is not None:
        return _LabelSets(reader, column, separator, keep)
    return _Labels(reader, column, keep)


class _Labels:
    """The labels of a table, and the rows that have none."""

    are_lists = False

    def __init__(self, reader: TableReader, column: str | None, keep: bool = False) -> None:
        self.found: list[Any] = []
        self._keep = keep
        self._reader = reader
        self._column = column
        self._lists = 0
        self._unlabelled: list[Row] = []  # the first of them alone, and how many
        self.n_unlabelled = 0

    def take(self, row: Row) -> bool:
        """Take the label of a row; return whether the row can be used."""
        if self._column is None:
            return True
        label = self._read(row)
        if label is None:
            self._unlabelled = self._unlabelled or [row]
            self.n_unlabelled += 1
            if self._keep:
                self.found.append("")
            return self._keep
        self.found.append(label)
        return True

    def _read(self, row: Row) -> Any:
        """Return the label of a row, or its labels; None where it has none."""
        at = self._at(row)
        value = row.values.get(str(self._column))
        label = single_label(value, **at)
        if is_unlabelled(label):
            return None
        self._lists += label is not value
        return label_of(label, **at)

    def _at(self, row: Row) -> dict[str, Any]:
        return {"column": self._column, "row": row.number, "name": self._reader.name}

    def forget(self) -> None:
        """Forget the last label, whose row isn't used."""
        if self._column is not None:
            self.found.pop()

    def report(self, has_blank: bool) -> None:
        """Log what was left out or assumed; raise if no row has a label."""
        name = self._reader.name
        if self._lists:
            _log.warning(
                "%s: lists of one label are read as that label, in %s",
                name,
                counted(self._lists, "row"),
            )
        for row in () if self._keep else self._unlabelled:
            column = str(self._column)
            if not self.found and not has_blank:  # it is the column that is wrong
                self._reader.require(column)
                label_of(row.values.get(column), row=row.number, column=column, name=name)
            _log.warning(
                "%s: rows without a label are left out: %d, the first is row %d%s",
                name,
                self.n_unlabelled,
                row.number,
                self._advice(),
            )

    def _advice(self) -> str:
        return ""


class _LabelSets(_Labels):
    """The labels of a table whose cells may hold several."""

    def __init__(self, reader: TableReader, column: str, separator: str, keep: bool) -> None:
        super().__init__(reader, column, keep)
        self._separator = separator

    def _read(self, row: Row) -> Any:
        value = row.values.get(str(self._column))
        self.are_lists |= is_list(value)
        return label_set(value, self._separator, **self._at(row))

    def _advice(self) -> str:
        return "; of a text that has none of the labels, write [] into the cell"


class _LabelColumns(_Labels):
    """The labels of a table that has a column of 0 and 1 for each."""

    def __init__(self, reader: TableReader, columns: list[str], keep: bool) -> None:
        super().__init__(reader, columns[0], keep)
        self._columns = columns

    def _read(self, row: Row) -> Any:
        values = {
            column: told(
                row.values.get(column), row=row.number, column=column, name=self._reader.name
            )
            for column in self._columns
        }
        missing = [column for column, value in values.items() if value is None]
        if len(missing) == len(values):
            return None
        if missing:
            raise DataError(
                f"{at_cell(self._reader.name, row.number, missing[0])}: is empty, and other "
                "columns of labels in this row aren't; write 0 or 1"
            )
        return [column for column, value in values.items() if value]


def _refuse_shared(columns: list[str]) -> None:
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(
                f"the column {column!r} is named twice; texts, second texts, labels and groups "
                "come from different columns"
            )


def is_blank(value: object) -> bool:
    """Return whether a cell is missing, or holds nothing but white space."""
    return (
        value is None
        or (isinstance(value, float) and value != value)
        or (isinstance(value, str) and not value.strip())
    )


def _image_of(value: object, allow_missing: bool, **at: Any) -> Image:
    return NO_IMAGE if allow_missing and is_blank(value) else image_of(value, **at)


def _text_of(value: object, allow_empty: bool, **at: Any) -> str:
    if allow_empty and is_blank(value):
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
    return usable(value, "text", row, column, name)


def texts_of_rows(
    rows: Sequence[Row],
    columns: Sequence[str],
    name: str,
    *,
    image_column: str | None = None,
    raises: bool = False,
) -> tuple[list[Any], dict[int, str]]:
    """Return the text, pair or image of each row, and why some can't be used.

    In the place of such a text is "", and of such an image `NO_IMAGE`.

    Parameters
    ----------
    rows : sequence of Row
        Rows of a table.
    columns : sequence of str
        The column of texts; of pairs, both; and that of images.
    name : str
        The table, for messages.
    image_column : str, optional
        Which of them is the one of images.
    raises : bool, default=False
        Raise for the first text that can't be used, also where it is missing or blank.

    Raises
    ------
    DataError
        Under `raises`.
    """
    texts: list[Any] = []
    unusable: dict[int, str] = {}
    for row in rows:
        cells: list[Any] = []
        for column in columns:
            cell = row.values.get(column)
            try:
                if column == image_column:
                    cells.append(
                        _image_of(cell, not raises, row=row.number, column=column, name=name)
                    )
                    continue
                if (raises and not image_column) or not is_blank(cell):
                    check_text(cell, row=row.number, column=column, name=name)
                cells.append("" if is_blank(cell) else cell)
            except DataError as error:
                if raises:
                    raise
                unusable[len(texts)] = str(error).partition(f"column {column!r}: ")[2]
                cells.append(NO_IMAGE if column == image_column else "")
        texts.append(cells[0] if len(cells) == 1 else tuple(cells))
    return texts, unusable
