"""Reading any table row by row."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Self

from blackbox.errors import DataError
from blackbox.tables.delimited import read_delimited
from blackbox.tables.formats import (
    DELIMITERS,
    format_of,
    refuse_other_formats,
    refuse_repeated,
    sniff,
)
from blackbox.tables.jsonl import read_jsonl
from blackbox.tables.parquet import read_parquet
from blackbox.tables.sources import (
    copy_to_disk,
    open_source,
    read_blocks,
    read_head,
    text_lines,
)

__all__ = ["Row", "TableReader"]

_DELIMITER_NAMES = {",": "commas", ";": "';'", "\t": "tabs", "|": "'|'"}
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Parameters
    ----------
    number : int
        Its place among the data rows, counted from 1.
    values : dict of str to object
        The value of each column.
    """

    number: int
    values: dict[str, Any]


class TableReader:
    """Streams the rows of a table; a context manager, iterable once.

    Parameters
    ----------
    path : str or Path
        The file; "-" is standard input.
    format : str, optional
        One of `FORMATS`. By default the file's ending says it; standard input is JSONL if it
        begins with `{`, Parquet if it has its signature, and else CSV.
    stream : binary file, optional
        Read this instead of opening `path`, which then only lends its name and ending. The stream
        stays open.

    Attributes
    ----------
    name : str
        The file as the user named it, or "<stdin>".
    format : str
        The format it is read in.
    columns : list of str
        Names of the columns; of JSONL, the keys of the first object. If a CSV header has several
        empty names, those after the first become "column 4" and the like.
    schema : pyarrow.Schema or None
        The types of the columns, if the table is Parquet.

    Raises
    ------
    DataError
        If there is no such file or no table in it; while iterating, if a row can't be read.
    """

    def __init__(
        self, path: str | Path, *, format: str | None = None, stream: BinaryIO | None = None
    ) -> None:
        self.name = "<stdin>" if str(path) == "-" else str(path)
        self.schema: Any = None
        self._required: list[str] = []
        with ExitStack() as resources:
            source = stream or open_source(path, resources)
            blocks = read_blocks(source, self.name)
            head = read_head(blocks, self.name)
            self.format = format_of(path, format) or sniff(head)
            if self.format == "parquet":
                if not source.seekable():
                    source = copy_to_disk(chain([head], blocks), resources, self.name)
                self.schema, rows = read_parquet(source, self.name)
                self.columns: list[str] = self.schema.names
            else:
                refuse_other_formats(head, self.name)
                lines = text_lines(chain([head], blocks), self.name)
                if self.format == "jsonl":
                    self.columns, rows = read_jsonl(lines, self.name, self._required)
                else:
                    self.columns, rows = read_delimited(lines, self.name, DELIMITERS[self.format])
            refuse_repeated(self.columns, self.name)
            self._resources = resources.pop_all()
        self._rows = (Row(number, values) for number, values in enumerate(rows, 1))

    def require(self, *columns: str) -> None:
        """Refuse a table that lacks one of these columns.

        In JSONL, where each object has its own keys, rows that lack one are then refused too.

        Raises
        ------
        DataError
            If a column is missing; the message lists those there are.
        """
        for column in columns:
            if not column:
                raise DataError(f"{self.name}: a column without a name can't be used; name it")
            if column not in self.columns:
                advice = _delimiter_advice(self.format, self.columns)
                advice = advice or _columns_advice(column, self.columns)
                raise DataError(f"{self.name}: no column {column!r}{advice}")
        self._required.extend(columns)

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def close(self) -> None:
        """Close the file; the caller's stream and standard input stay open."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _delimiter_advice(format: str, columns: list[str]) -> str | None:
    """What is wrong if all columns were taken for one."""
    own = DELIMITERS.get(format)
    for other, words in _DELIMITER_NAMES.items():
        if own and len(columns) == 1 and other in columns[0]:
            cure = "give its format as tsv" if other == "\t" else "save it with commas as .csv"
            return (
                f": the file seems to use {words} instead of {_DELIMITER_NAMES[own]} between "
                f"columns; {cure}"
            )
    return None


def _columns_advice(wanted: str, columns: list[str]) -> str:
    """Which columns there are, and which of them may be meant."""
    folded = {name.strip().casefold(): name for name in columns}
    close = difflib.get_close_matches(wanted.strip().casefold(), folded, n=1)
    question = f"; did you mean {folded[close[0]]!r}?" if close else ""
    shown = ", ".join(map(reprlib.repr, columns[:_SHOWN]))
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return f"; its columns are {shown}{more}{question}"
