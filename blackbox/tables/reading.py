"""Reading any table row by row."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Self

from blackbox.errors import DataError, MissingColumnError
from blackbox.tables.delimited import delimiter_name, read_delimited
from blackbox.tables.excel import read_excel
from blackbox.tables.formats import (
    DELIMITERS,
    format_of,
    refuse_other_formats,
    refuse_repeated,
    sniff,
)
from blackbox.tables.jsonl import read_jsonl
from blackbox.tables.parquet import read_feather, read_parquet
from blackbox.tables.sources import (
    as_utf8,
    check_encoding,
    copy_to_disk,
    decompressed,
    open_source,
    read_blocks,
    read_head,
    text_lines,
)

__all__ = ["Row", "TableReader"]

_SHOWN = 10
_BINARY = ("parquet", "feather", "excel")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Parameters
    ----------
    number : int
        Its place among the data rows, counted from 1.
    values : mapping of str to object
        The value of each column.
    source : object
        What a writer of the same format copies, so that nothing of the row changes: the JSON of an
        object, or a batch of Arrow with the row's place in it; else None.
    """

    number: int
    values: Mapping[str, Any]
    source: Any = None


class TableReader:
    """Streams the rows of a table; a context manager, iterable once.

    Parameters
    ----------
    path : str or Path
        The file; "-" is standard input.
    format : str, optional
        One of `READABLE`. By default the file's ending decides, without .gz; standard input and
        .txt are JSONL if they begin with `{` or `[`, Parquet, Feather or a workbook if they have
        its signature, and else CSV. What gzip has packed is unpacked.
    stream : binary file, optional
        Read this instead of opening `path`, which then only lends its name and ending. The stream
        stays open.
    encoding : str, optional
        The encoding of CSV, TSV and JSONL. By default UTF-8, and what a byte order mark shows;
        where that doesn't fit and the text looks like Windows-1252, that is taken and logged.
    delimiter : str, optional
        What stands between the columns of CSV and TSV. By default a comma or a tab; where the
        header has none, a semicolon, tab, comma or `|` that it has is taken, and that is logged.

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
        The types of the columns, if the table is Parquet or Feather.
    stat : os.stat_result or None
        Which file it is, if it is one.

    Raises
    ------
    DataError
        If there is no such file or no table in it; while iterating, if a row can't be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        stream: BinaryIO | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
    ) -> None:
        self.name = "<stdin>" if str(path) == "-" else str(path)
        self.schema: Any = None
        self.stat: os.stat_result | None = None
        self._required: list[str] = []
        _check_options(encoding, delimiter)
        found: Iterator[tuple[Mapping[str, Any], Any]]
        with ExitStack() as resources:
            source = stream or open_source(path, resources)
            if stream is None and str(path) != "-":
                self.stat = os.fstat(source.fileno())
            blocks = read_blocks(source, self.name)
            head = read_head(blocks, self.name)
            known = format_of(path, format, reading=True)
            head, blocks, is_packed = decompressed(head, blocks, self.name)
            self.format = known or sniff(head)
            if self.format in _BINARY:
                if is_packed or not source.seekable():
                    source = copy_to_disk(chain([head], blocks), resources, self.name)
                found = self._read_binary(source)
            else:
                head, blocks = as_utf8(head, blocks, self.name, encoding)
                refuse_other_formats(head, self.name)
                self.format = known or sniff(head)  # of UTF-16, only now
                lines = text_lines(chain([head], blocks), self.name, guess=encoding is None)
                found = self._read_lines(lines, delimiter)
            refuse_repeated(self.columns, self.name)
            self._resources = resources.pop_all()
        self._rows = (Row(number, *one) for number, one in enumerate(found, 1))

    def _read_binary(self, source: BinaryIO) -> Iterator[tuple[Mapping[str, Any], Any]]:
        """Read the names of the columns, and return the rows to come."""
        self.columns: list[str]
        if self.format == "excel":
            self.columns, rows = read_excel(source, self.name)
            return ((row, None) for row in rows)
        read = read_parquet if self.format == "parquet" else read_feather
        self.schema, found = read(source, self.name)
        self.columns = self.schema.names
        return found

    def _read_lines(
        self, lines: Iterator[str], delimiter: str | None
    ) -> Iterator[tuple[Mapping[str, Any], Any]]:
        """Read the names of the columns, and return the rows to come."""
        if self.format == "jsonl":
            self.columns, found = read_jsonl(lines, self.name, self._required)
            return found
        usual = DELIMITERS[self.format]
        self.columns, rows = read_delimited(lines, self.name, usual, delimiter)
        return ((row, None) for row in rows)

    def require(self, *columns: str) -> None:
        """Raise if the table lacks one of these columns.

        In JSONL, where each object has its own keys, rows that lack one are then refused too.

        Raises
        ------
        MissingColumnError
            If a column is missing; the message lists those there are.
        """
        for column in columns:
            if not column:
                raise DataError(f"{self.name}: a column without a name can't be used; name it")
            self._refuse_missing(column, self.columns)
        self._required.extend(columns)

    def require_in(self, rows: Iterable[Row], column: str) -> None:
        """Raise if none of these rows has a column, which some objects of JSONL may lack.

        Raises
        ------
        MissingColumnError
            As from `require`.
        """
        keys = dict.fromkeys(chain(self.columns, *(row.values for row in rows)))
        self._refuse_missing(column, list(keys))

    def _refuse_missing(self, column: str, columns: list[str]) -> None:
        if column not in columns:
            advice = _columns_advice(column, columns)
            raise MissingColumnError(f"{self.name}: no column {column!r}{advice}", column)

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def close(self) -> None:
        """Close the file; the caller's stream and standard input stay open."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_options(encoding: str | None, delimiter: str | None) -> None:
    if encoding is not None:
        check_encoding(encoding)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '\r\n"'):
        raise DataError(
            f"the delimiter {delimiter!r:.100} is no single character; give one such as "
            f"';' ({delimiter_name(';')})"
        )


def _columns_advice(wanted: str, columns: list[str]) -> str:
    """Return which columns there are, and which of them may be meant."""
    folded = {name.strip().casefold(): name for name in columns}
    close = difflib.get_close_matches(wanted.strip().casefold(), folded, n=1)
    question = f"; did you mean {folded[close[0]]!r}?" if close else ""
    shown = ", ".join(map(reprlib.repr, columns[:_SHOWN]))
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return f"; its columns are {shown}{more}{question}"
