"""CSV and TSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import count
from typing import Any, BinaryIO

from blackbox.errors import DataError
from blackbox.tables.cells import as_text
from blackbox.tables.messages import at_row, reason

__all__ = ["DelimitedWriter", "read_delimited"]

_MAX_FIELD = 10_000_000


def read_delimited(
    lines: Iterator[str], name: str, delimiter: str
) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Read the header, and return its columns and the rows to come."""
    # The csv module's own limit, 131,072 characters, is less than a long document
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
    records = _records(lines, name, delimiter)
    header = next(records, None)
    if header is None:
        raise DataError(f"{name}: is empty; its first line must name the columns")
    nameless = count()
    columns = [
        column if column or next(nameless) == 0 else f"column {place}"
        for place, column in enumerate(header, 1)
    ]
    return columns, (dict(zip(columns, record, strict=True)) for record in records)


def _records(lines: Iterator[str], name: str, delimiter: str) -> Iterator[list[str]]:
    """Records that aren't blank; the first is the header, and the others have as many fields."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = width = 0
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{at_row(name, number, line)}: {_advice(error)}") from error
        if record is None:
            return
        if not record:
            continue
        width = width or len(record)
        if len(record) != width:
            raise DataError(
                f"{at_row(name, number, line)}: {len(record)} fields, but the header has {width}; "
                "put quotes around a field that holds a delimiter or line break"
            )
        yield record
        number += 1


def _advice(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote opens a field and is never closed; close it or remove it"
    if "field limit" in str(error):
        limit = csv.field_size_limit()
        return f"a field is longer than {limit:,} characters; shorten it, or close its quote"
    if "expected after" in str(error):
        return "text follows a closing quote; a quote inside a quoted field is written twice"
    return f"not CSV ({reason(error)})"


class DelimitedWriter:
    """Writes rows as CSV or TSV."""

    def __init__(self, file: BinaryIO, columns: list[str], delimiter: str) -> None:
        self._file = file
        self._columns = columns
        # With "\n" as line end, the csv module before Python 3.13 leaves a lone "\r" in a field
        # unquoted, and nothing reads that back. So rows are made with "\r\n", which is cut off.
        self._line = csv.writer(_Echo(), delimiter=delimiter, lineterminator="\r\n").writerow
        self._put(columns)

    def write(self, values: dict[str, Any]) -> None:
        """Write one row."""
        cells = map(values.get, self._columns)
        self._put([cell if type(cell) is str else as_text(cell) for cell in cells])

    def _put(self, cells: list[str]) -> None:
        self._file.write((self._line(cells)[:-2] + "\n").encode())


class _Echo:
    """Makes `csv.writer.writerow` return the line."""

    def write(self, line: str) -> str:
        return line
