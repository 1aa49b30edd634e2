"""CSV and TSV."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import Any, BinaryIO

from blackbox.errors import DataError
from blackbox.tables.cells import as_text
from blackbox.tables.messages import at_row, reason

__all__ = ["DelimitedWriter", "delimiter_name", "read_delimited"]

_log = logging.getLogger(__name__)

_MAX_FIELD = 10_000_000
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
_OTHERS = (",", ";", "\t", "|")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?[0-9.,]+([eE][+-]?[0-9]+)?")


def read_delimited(
    lines: Iterator[str], name: str, delimiter: str, given: str | None = None
) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Read the header, and return its columns and the rows to come.

    Where no delimiter is given and the header has none of the usual one, the one that it has is
    taken, and that is logged; a first line such as `sep=;`, as Excel writes it, is obeyed.
    """
    # The csv module's own limit, 131,072 characters, is less than a long document
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
    lines, found = _recognise(lines, delimiter)
    if given is None and found != delimiter:
        _log.warning(
            "%s: read with %s between columns, not %s; if that is wrong, give the delimiter "
            "(--delimiter)",
            name,
            delimiter_name(found),
            delimiter_name(delimiter),
        )
    records = _records(lines, name, given or found)
    header = next(records, None)
    if header is None:
        raise DataError(f"{name}: is empty; its first line must name the columns")
    nameless = count()
    columns = [
        column if column or next(nameless) == 0 else f"column {place}"
        for place, column in enumerate(header, 1)
    ]
    return columns, (dict(zip(columns, record, strict=True)) for record in records)


def delimiter_name(delimiter: str) -> str:
    """Return the name of a delimiter in messages."""
    return _NAMES.get(delimiter, repr(delimiter))


def _recognise(lines: Iterator[str], usual: str) -> tuple[Iterator[str], str]:
    """Return the lines, and the delimiter that the first of them shows."""
    read: list[str] = []
    for line in lines:
        if line.strip():
            if re.fullmatch(r"sep=[^\r\n\"]\s*", line, re.IGNORECASE):
                # an empty line in its place keeps the numbers of the others
                return chain(read, ["\n"], lines), line[4]
            read.append(line)
            break
        read.append(line)
    counts = {one: _fields(read[-1] if read else "", one) for one in (usual, *_OTHERS)}
    best = max(counts, key=lambda one: counts[one])
    # none of the usual one: 1 field, and not 0, as where the header goes on in the next line
    return chain(read, lines), best if counts[usual] == 1 else usual


def _fields(line: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=delimiter, strict=True), ""))
    except csv.Error:
        return 0


def _records(lines: Iterator[str], name: str, delimiter: str) -> Iterator[list[str]]:
    """Records that aren't blank; the first is the header, and the others have as many fields."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = width = 0
    warned = False
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
                f"{at_row(name, number, line)}: {len(record)} fields, but the header has {width} "
                f"(between {delimiter_name(delimiter)}); put quotes around a field that holds a "
                "delimiter or line break"
            )
        if reader.line_num > line and _swallows(record, delimiter):
            where = (
                f"{at_row(name, number, line)}: a quote opens a field there that goes on to line "
            )
            where += f"{reader.line_num}, over lines that look like rows"
            if delimiter == "\t":
                raise DataError(
                    f"{where}; quote the texts as CSV does, or write the table as JSONL"
                )
            if not warned:
                _log.warning("%s; if they are rows, quote the texts as CSV does", where)
            warned = True
        yield record
        number += 1


def _swallows(record: list[str], delimiter: str) -> bool:
    """Return whether lines inside a field have the delimiters of rows.

    Programs that write no quotes of CSV leave those of a text as they are; one that begins with a
    quote takes in all rows up to the next quote.
    """
    more = len(record) - 1
    for place, field in enumerate(record):
        counts = [line.count(delimiter) for line in re.split("[\r\n]+", field) if line]
        of_rows = [more - place, *[more] * (len(counts) - 2), place]
        if more and len(counts) > 1 and counts == of_rows:
            return True
    return False


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
    """Writes rows as CSV or TSV; with `escape_formulas`, a quote stands before each formula."""

    def __init__(
        self, file: BinaryIO, columns: list[str], delimiter: str, *, escape_formulas: bool = False
    ) -> None:
        self._file = file
        self._columns = columns
        self._escape = escape_formulas
        # With "\n" as line end, the csv module before Python 3.13 leaves a lone "\r" in a field
        # unquoted, and nothing reads that back. So rows are made with "\r\n", which is cut off.
        self._line = csv.writer(_Echo(), delimiter=delimiter, lineterminator="\r\n").writerow
        self._put(columns)

    def write(self, values: Mapping[str, Any]) -> None:
        """Write one row."""
        cells = map(values.get, self._columns)
        self._put([cell if type(cell) is str else as_text(cell) for cell in cells])

    def _put(self, cells: list[str]) -> None:
        if self._escape:
            cells = list(map(_escaped, cells))
        self._file.write((self._line(cells)[:-2] + "\n").encode())


def _escaped(cell: str) -> str:
    """Return a cell that no spreadsheet program takes for a formula."""
    formula = cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if formula else cell


class _Echo:
    """Makes `csv.writer.writerow` return the line."""

    def write(self, line: str) -> str:
        return line
