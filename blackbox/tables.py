"""Tables of any size, read and written row by row: CSV, TSV, JSONL and Parquet.

`TableReader` streams a file or standard input, `TableWriter` streams one out, and `read_examples`
loads the texts and labels of a training table. Reader and writer keep their memory constant however
long a table is. Values come as they are: from CSV and TSV always str ("NA", "null" and "007" are
text), from JSONL and Parquet whatever type they have. `check_text` and `label_of` decide what may
be a text or a label.

Whatever is wrong with a table ends in a `DataError` of one line that names file, row and column
and says what to do. Rows are counted from 1, without the header and without blank lines.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import math
import os
import reprlib
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, Self

from blackbox.errors import DataError

__all__ = [
    "FORMATS",
    "Examples",
    "Row",
    "TableReader",
    "TableWriter",
    "check_text",
    "label_of",
    "read_examples",
]

FORMATS = ("csv", "tsv", "jsonl", "parquet")
"""Names of the formats that tables are read and written in."""

_ENDINGS = {f".{name}": name for name in FORMATS} | {".ndjson": "jsonl"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_DELIMITER_NAMES = {",": "commas", ";": "';'", "\t": "tabs", "|": "'|'"}

_BLOCK = 1 << 16
_GROUP = 1_000
_SHOWN = 10
_MAX_FIELD = 10_000_000
_MAX_LINE = 2 * _MAX_FIELD

_EXCEL = "is an Excel workbook or a zip archive; save the table as CSV in UTF-8"
_PACKED = "is compressed; unpack it first"
_UTF16 = "is UTF-16; save or convert it as UTF-8"
_SIGNATURES = {
    b"PK\x03\x04": _EXCEL,
    b"\xd0\xcf\x11\xe0": _EXCEL,
    b"\x1f\x8b": _PACKED,
    b"\x28\xb5\x2f\xfd": _PACKED,
    b"\xfd7zXZ": _PACKED,
    b"\x89PNG": "is an image, not a table; give it a table of texts",
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
}


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


@dataclass(frozen=True)
class Examples:
    """The texts of a table, with their labels.

    Parameters
    ----------
    texts : list of str, or list of (str, str)
        Texts, or pairs of texts.
    labels : list of str
        One for each text; empty if the table was read without labels.
    numbers : list of int
        The number of each text's row in the table, counted from 1.
    """

    texts: list[str] | list[tuple[str, str]]
    labels: list[str]
    numbers: list[int]


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

    Raises
    ------
    DataError
        If there is no such file or no table in it; while iterating, if a row can't be read.
    """

    def __init__(
        self, path: str | Path, *, format: str | None = None, stream: BinaryIO | None = None
    ) -> None:
        self.name = "<stdin>" if str(path) == "-" else str(path)
        self._required: list[str] = []
        self._schema: Any = None
        with ExitStack() as resources:
            source = stream or _open_source(path, resources)
            blocks = _blocks(source, self.name)
            head = _head(blocks, self.name)
            self.format = _format_of(path, format) or _sniff(head)
            if self.format == "parquet":
                if not source.seekable():
                    source = _on_disk(chain([head], blocks), resources, self.name)
                self._schema, self._rows = _read_parquet(source, self.name)
                self.columns: list[str] = self._schema.names
            else:
                _refuse_signatures(head, self.name)
                lines = _lines(chain([head], blocks), self.name)
                if self.format == "jsonl":
                    self.columns, self._rows = _read_jsonl(lines, self.name, self._required)
                else:
                    self.columns, self._rows = _read_delimited(
                        lines, self.name, _DELIMITERS[self.format]
                    )
            _refuse_repeated(self.columns, self.name)
            self._resources = resources.pop_all()

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
                raise DataError(f"{self.name}: no column {column!r}{self._advice(column)}")
        self._required.extend(columns)

    def _advice(self, column: str) -> str:
        own = _DELIMITERS.get(self.format)
        for other, words in _DELIMITER_NAMES.items():
            if own and len(self.columns) == 1 and other in self.columns[0]:
                cure = "give its format as tsv" if other == "\t" else "save it with commas as .csv"
                return (
                    f": the file seems to use {words} instead of {_DELIMITER_NAMES[own]} between "
                    f"columns; {cure}"
                )
        folded = {name.strip().casefold(): name for name in self.columns}
        close = difflib.get_close_matches(column.strip().casefold(), folded, n=1)
        question = f"; did you mean {folded[close[0]]!r}?" if close else ""
        shown = ", ".join(map(reprlib.repr, self.columns[:_SHOWN]))
        more = f" and {len(self.columns) - _SHOWN} more" if len(self.columns) > _SHOWN else ""
        return f"; its columns are {shown}{more}{question}"

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def close(self) -> None:
        """Close the file; the caller's stream and standard input stay open."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_examples(
    path: str | Path,
    *,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str | None = "label",
    format: str | None = None,
    stream: BinaryIO | None = None,
    allow_empty: bool = False,
) -> Examples:
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
    allow_empty : bool
        Take a missing or blank text as "" instead of refusing it.

    Raises
    ------
    DataError
        If the table can't be read, has no rows, lacks a column, or a text or label can't be used.
    """
    named = [c for c in (text_column, text_pair_column, label_column) if c is not None]
    for column in named:
        if named.count(column) > 1:
            raise DataError(
                f"the column {column!r} is named twice; texts, second texts and labels must come "
                "from different columns"
            )
    texts: list[str] = []
    pairs: list[tuple[str, str]] = []
    labels: list[str] = []
    numbers: list[int] = []
    with TableReader(path, format=format, stream=stream) as reader:
        reader.require(*named)
        for row in reader:
            at: dict[str, Any] = {"row": row.number, "name": reader.name}
            text = _text_of(row.values[text_column], allow_empty, column=text_column, **at)
            if text_pair_column is None:
                texts.append(text)
            else:
                second = row.values[text_pair_column]
                second = _text_of(second, allow_empty, column=text_pair_column, **at)
                pairs.append((text, second))
            if label_column is not None:
                labels.append(label_of(row.values[label_column], column=label_column, **at))
            numbers.append(row.number)
    if not numbers:
        raise DataError(f"{reader.name}: has columns but no rows; add examples")
    return Examples(texts if text_pair_column is None else pairs, labels, numbers)


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
        where = _cell_at(name, row, column)
        raise DataError(f"{where}: a text is needed, not {_kind(value)}")
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
    where = _cell_at(name, row, column)
    raise DataError(f"{where}: a label is needed, not {_kind(value)}; use a word or whole number")


class TableWriter:
    """Streams rows into a table; a context manager.

    A file is written as `<name>.partial` and gets its name when it is closed, so that no half table
    ever stands under the final name. Leaving the `with` block by an exception removes the partial.
    What a format can't hold becomes the nearest that it can: in CSV and TSV missing values and NaN
    are empty cells, lists and objects are JSON; in JSONL NaN is null.

    Parameters
    ----------
    path : str or Path
        The file; "-" is standard output.
    columns : list of str
        Names of the columns, in order.
    format : str, optional
        One of `FORMATS`. By default the file's ending says it; standard output is CSV.
    like : TableReader, optional
        The table that columns are copied from; if it is Parquet, they keep their types in Parquet.

    Raises
    ------
    DataError
        If the file can't be written, or a row holds what its format can't.
    """

    def __init__(
        self,
        path: str | Path,
        columns: list[str],
        *,
        format: str | None = None,
        like: TableReader | None = None,
    ) -> None:
        self.name = "<stdout>" if str(path) == "-" else str(path)
        self.format = _format_of(path, format) or "csv"
        _refuse_repeated(columns, self.name)
        self._columns = frozenset(columns)
        self._rows = 0
        self._open = True
        self._target: Path | None = None
        self._partial: Path | None = None
        with _data_errors(self.name, OSError, UnicodeEncodeError), ExitStack() as undo:
            self._file = sys.stdout.buffer if str(path) == "-" else self._create(path, undo)
            self._sink = self._make_sink(columns, like)
            undo.callback(self._sink.abandon)
            self._undo = undo.pop_all()

    def write(self, values: dict[str, Any]) -> None:
        """Write one row; a column that `values` lacks is left empty, or in JSONL left out.

        JSONL takes other keys than `columns` too, as each of its objects may have its own.
        """
        self._rows += 1
        if self.format != "jsonl" and not self._columns.issuperset(values):
            extra = next(key for key in values if key not in self._columns)
            raise DataError(
                f"{self.name}, row {self._rows}: {extra!r} is none of the columns, which come from "
                "the header or the first row; write JSONL, where each row has its own"
            )
        try:
            self._sink.write(values)
        except (OSError, UnicodeEncodeError, RecursionError):
            # Entered for each row, the context manager would take a fourth of the time
            with _data_errors(f"{self.name}, row {self._rows}", Exception):
                raise

    def flush(self) -> None:
        """Hand what was written to the system; Parquet waits until a group of rows is full."""
        with _data_errors(self.name, OSError):
            self._file.flush()

    def close(self) -> None:
        """Finish the table and give the file its name."""
        if not self._open:
            return
        try:
            with _data_errors(self.name, OSError):
                self._sink.finish()
                self._file.flush()
                if self._target is not None:
                    self._file.close()
                    if self._partial is not None:
                        self._partial.replace(self._target)
        except BaseException:
            self._discard()
            raise
        self._open = False
        self._undo.pop_all()

    def _create(self, path: str | Path, undo: ExitStack) -> BinaryIO:
        target = Path(os.path.realpath(path))  # a link stays one; what it points to is replaced
        if target.is_dir():
            raise DataError(f"{path}: is a folder; name a file in it")
        if not target.parent.is_dir():
            raise DataError(f"{path}: its folder doesn't exist; create it first")
        self._target = target
        if target.exists() and not target.is_file():
            file = target.open("wb")  # a device or pipe must not be replaced by a file
        else:
            self._partial = target.with_name(target.name + ".partial")
            file = self._partial.open("wb")
            undo.callback(self._partial.unlink)
        undo.callback(file.close)
        return file

    def _make_sink(self, columns: list[str], like: TableReader | None) -> _Sink:
        if self.format == "jsonl":
            return _JsonlSink(self._file)
        if self.format == "parquet":
            schema = like._schema if like is not None else None
            return _ParquetSink(self._file, list(columns), self.name, schema)
        return _DelimitedSink(self._file, list(columns), _DELIMITERS[self.format])

    def _discard(self) -> None:
        self._open = False
        with suppress(Exception):  # what went wrong first is what the user should see
            self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        elif self._open:
            self._discard()


def _open_source(path: str | Path, resources: ExitStack) -> BinaryIO:
    if str(path) == "-":
        return sys.stdin.buffer
    with _data_errors(f"{path}: can't be opened", OSError):
        if not Path(path).exists():
            raise DataError(f"{path}: no such file; check its name and folder")
        if Path(path).is_dir():
            raise DataError(f"{path}: is a folder; name a file in it")
        return resources.enter_context(Path(path).open("rb"))


def _blocks(source: BinaryIO, name: str) -> Iterator[bytes]:
    # read1 hands on what a pipe has now, where read would wait for a full block
    read = getattr(source, "read1", source.read)
    with _data_errors(f"{name}: can't be read", OSError):
        while block := read(_BLOCK):
            yield block


def _head(blocks: Iterator[bytes], name: str) -> bytes:
    """Enough of the beginning to tell a format by."""
    head = b""
    while len(head.lstrip()) < 8 and len(head) < _BLOCK and (block := next(blocks, b"")):
        head += block
    if not head:
        raise DataError(f"{name}: is empty (0 bytes); fill it or name another file")
    return head


def _sniff(head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{") else "csv"


def _refuse_signatures(head: bytes, name: str) -> None:
    for signature, advice in _SIGNATURES.items():
        if head.startswith(signature):
            raise DataError(f"{name}: {advice}")
    if head.startswith(b"PAR1") and b"\0" in head:
        raise DataError(f"{name}: is Parquet; give it the ending .parquet")


def _lines(blocks: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode lines, each with its end (LF, CRLF or CR), as the csv module wants them."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number = 0
    waiting: list[str] = []
    for block in chain(blocks, [b""]):
        if b"\0" in block:
            line = number + _count_lines(waiting, block[: block.index(0)])
            raise DataError(
                f"{name}, line {line}: a NUL byte, so this is a binary file or UTF-16; save the "
                "table as text in UTF-8"
            )
        try:
            text = decoder.decode(block, not block)
        except UnicodeDecodeError as error:
            line = number + _count_lines(waiting, error.object[: error.start])
            bad = error.object[error.start : error.start + 1]
            raise DataError(
                f"{name}, line {line}: byte 0x{bad.hex()} is not UTF-8 (in Windows-1252 it is "
                f"{bad.decode('cp1252', 'replace')!r}); save or convert the file as UTF-8"
            ) from error
        waiting.append(text)
        if block and "\n" not in text and "\r" not in text:
            if sum(map(len, waiting)) > _MAX_LINE:
                raise DataError(
                    f"{name}, line {number + 1}: longer than {_MAX_LINE:,} characters; is it a "
                    "table, with line breaks?"
                )
            continue
        lines = io.StringIO("".join(waiting), newline="").readlines()
        # The last line may go on in the next block, and so may its end: CR here, LF there
        waiting = [lines.pop()] if block and not lines[-1].endswith("\n") else []
        number += len(lines)
        yield from lines


def _count_lines(waiting: list[str], block: bytes) -> int:
    """The line in which the byte after `block` stands, counted from the first that is waiting."""
    text = "".join(waiting) + block.decode("utf-8", "replace") + "x"
    return len(io.StringIO(text, newline="").readlines())


def _read_delimited(
    lines: Iterator[str], name: str, delimiter: str
) -> tuple[list[str], Iterator[Row]]:
    # The csv module's own limit, 131,072 characters, is less than a long document
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
    records = _records(lines, name, delimiter)
    _, header = next(records, (0, []))
    if not header:
        raise DataError(f"{name}: is empty; its first line must name the columns")
    nameless = count()
    columns = [
        column if column or next(nameless) == 0 else f"column {place}"
        for place, column in enumerate(header, 1)
    ]
    width = len(columns)

    def rows() -> Iterator[Row]:
        for number, (line, record) in enumerate(records, 1):
            if len(record) != width:
                raise DataError(
                    f"{_row_at(name, number, line)}: {len(record)} fields, but the header has "
                    f"{width}; put quotes around a field that holds a delimiter or line break"
                )
            yield Row(number, dict(zip(columns, record, strict=True)))

    return columns, rows()


def _records(lines: Iterator[str], name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records that aren't blank, with the line each begins in; the header is the first."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{_row_at(name, number, line)}: {_csv_advice(error)}") from error
        if record:
            yield line, record
            number += 1


def _csv_advice(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote opens a field and is never closed; close it or remove it"
    if "field limit" in str(error):
        limit = csv.field_size_limit()
        return f"a field is longer than {limit:,} characters; shorten it, or close its quote"
    if "expected after" in str(error):
        return "text follows a closing quote; a quote inside a quoted field is written twice"
    return f"not CSV ({_reason(error)})"


def _read_jsonl(
    lines: Iterator[str], name: str, required: list[str]
) -> tuple[list[str], Iterator[Row]]:
    objects = _objects(lines, name)
    first = next(objects, None)
    if first is None:
        raise DataError(f"{name}: is empty; write one JSON object a line")

    def rows() -> Iterator[Row]:
        for number, (line, values) in enumerate(chain([first], objects), 1):
            for column in required:
                if column not in values:
                    where = _row_at(name, number, line)
                    raise DataError(f"{where}: no key {column!r}; every object needs it")
            yield Row(number, values)

    return list(first[1]), rows()


def _objects(lines: Iterator[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for line, text in enumerate(lines, 1):
        if text.isspace():
            continue
        number += 1
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{_row_at(name, number, line)}: broken JSON ({_reason(error)}); each line must "
                "be one whole object"
            ) from error
        if type(value) is not dict:
            where = _row_at(name, number, line)
            raise DataError(f"{where}: {_kind(value)}; each line must be one JSON object")
        yield line, value


def _read_parquet(file: BinaryIO, name: str) -> tuple[Any, Iterator[Row]]:
    import pyarrow.parquet as pq

    with _data_errors(f"{name}: damaged, or not Parquet; write it anew", Exception):
        # By default Arrow loads whole row groups, however large they are
        parquet = pq.ParquetFile(file, buffer_size=_BLOCK, pre_buffer=False)
        batches = parquet.iter_batches(batch_size=_GROUP)
        schema = parquet.schema_arrow

    def rows() -> Iterator[Row]:
        start = 1
        while True:
            where = f"{name}, rows from {start}"
            with _data_errors(f"{where}: can't be read from Parquet; write it anew", Exception):
                batch = next(batches, None)
                records = [] if batch is None else batch.to_pylist()
            if batch is None:
                return
            for number, values in enumerate(records, start):
                yield Row(number, values)
            start += len(records)

    return schema, rows()


def _on_disk(blocks: Iterable[bytes], resources: ExitStack, name: str) -> BinaryIO:
    """Copy a stream to where Parquet can be read from its end, without taking memory."""
    with _data_errors(f"{name}: no room for a temporary copy", OSError):
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        resources.callback(copy.close)
        copy.writelines(blocks)
        copy.seek(0)
    return copy


class _Sink:
    """Where `TableWriter` puts its rows; one class for each kind of format."""

    def write(self, values: dict[str, Any]) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Write what the format needs at the end."""

    def abandon(self) -> None:
        """Let go of everything; nobody will read the table."""


class _DelimitedSink(_Sink):
    def __init__(self, file: BinaryIO, columns: list[str], delimiter: str) -> None:
        self._file = file
        self._columns = columns
        # With "\n" as line end, the csv module before Python 3.13 leaves a lone "\r" in a field
        # unquoted, and nothing reads that back. So rows are made with "\r\n", which is cut off.
        self._line = csv.writer(_Echo(), delimiter=delimiter, lineterminator="\r\n").writerow
        self._put(columns)

    def write(self, values: dict[str, Any]) -> None:
        cells = map(values.get, self._columns)
        self._put([cell if type(cell) is str else _as_text(cell) for cell in cells])

    def _put(self, cells: list[str]) -> None:
        self._file.write((self._line(cells)[:-2] + "\n").encode())


class _Echo:
    """Makes `csv.writer.writerow` return the line."""

    def write(self, line: str) -> str:
        return line


class _JsonlSink(_Sink):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, values: dict[str, Any]) -> None:
        line = _as_json(values) + "\n"
        # "backslashreplace" spells half a surrogate pair as JSON does, and changes nothing else
        self._file.write(line.encode("utf-8", "backslashreplace"))


class _ParquetSink(_Sink):
    """Rows as Parquet, in groups.

    Columns of a Parquet table that was read keep their type. The others get theirs from the first
    group: float64, int64 or bool if all values are of that kind, and else string.
    """

    def __init__(self, file: BinaryIO, columns: list[str], name: str, known: Any) -> None:
        self._file = file
        self._columns = columns
        self._name = name
        self._known = known
        self._group: list[list[Any]] = []
        self._written = 0
        self._writer: Any = None

    def write(self, values: dict[str, Any]) -> None:
        self._group.append([_native(values.get(column)) for column in self._columns])
        if len(self._group) == _GROUP:
            self._write_group()

    def finish(self) -> None:
        if self._group or self._writer is None:
            self._write_group()
        with _data_errors(f"{self._name}: can't be finished", Exception):
            self._writer.close()

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.close()  # else it tries when it is collected, after the file is closed

    def _write_group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows, self._group = self._group, []
        columns: list[Any] = list(zip(*rows, strict=True)) or [()] * len(self._columns)
        with _data_errors(f"{self._name}: can't be written", Exception):
            if self._writer is None:
                named = zip(self._columns, columns, strict=True)
                schema = pa.schema([self._field(column, values) for column, values in named])
                self._writer = pq.ParquetWriter(self._file, schema)
            schema = self._writer.schema
            arrays = [self._array(field, v) for field, v in zip(schema, columns, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        self._written += len(rows)

    def _field(self, column: str, values: Iterable[Any]) -> Any:
        import pyarrow as pa

        if self._known is not None and column in self._known.names:
            return self._known.field(column)
        kinds = {type(value) for value in values if value is not None}
        for members, arrow in (
            ({bool}, pa.bool_()),
            ({int}, pa.int64()),
            ({int, float}, pa.float64()),
        ):
            if kinds and kinds <= members:
                return pa.field(column, arrow)
        return pa.field(column, pa.string())

    def _array(self, field: Any, values: Iterable[Any]) -> Any:
        import pyarrow as pa

        def convert(some: Iterable[Any]) -> Any:
            if pa.types.is_string(field.type):
                some = [value if value is None else _as_text(value) for value in some]
            return pa.array(some, field.type)

        try:
            return convert(values)
        except Exception:  # Arrow doesn't say which row it is
            problem = f"doesn't fit into a column of type {field.type}"
            for number, value in enumerate(values, self._written + 1):
                with _data_errors(
                    f"{_cell_at(self._name, number, field.name)}: {problem}", Exception
                ):
                    convert([value])
            raise


def _native(value: Any) -> Any:
    """Make a Python value of a numpy one, which may come from an estimator."""
    tolist = getattr(value, "tolist", None)
    return tolist() if tolist is not None else value


def _as_text(value: Any) -> str:
    """What stands for a value in a cell."""
    value = _native(value)
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bool | list | tuple | dict):
        return _as_json(value)
    return str(value, errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _as_json(value: Any) -> str:
    try:
        return _JSON.encode(value)
    except ValueError:  # NaN and infinity, which JSON doesn't have
        return _JSON.encode(_finite(value))


def _beyond_json(value: Any) -> Any:
    """What stands for a value of a type that JSON lacks, such as a date of Parquet."""
    native = _native(value)
    return _as_text(value) if native is value else native


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_beyond_json)


def _finite(value: Any) -> Any:
    value = _native(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _format_of(path: str | Path, format: str | None) -> str | None:
    known = f"{', '.join(list(_ENDINGS)[:-1])} and {list(_ENDINGS)[-1]}"
    if format is not None:
        if f".{format.lower()}" not in _ENDINGS:
            raise DataError(f"no format {format!r}; there are {', '.join(FORMATS)}")
        return _ENDINGS[f".{format.lower()}"]
    if str(path) == "-":
        return None
    ending = Path(path).suffix
    if ending.lower() not in _ENDINGS:
        raise DataError(f"{path}: unknown ending {ending!r}; tables end in {known}")
    return _ENDINGS[ending.lower()]


def _refuse_repeated(columns: list[str], name: str) -> None:
    if len(set(columns)) < len(columns):
        column = next(column for column in columns if columns.count(column) > 1)
        raise DataError(f"{name}: two columns are called {column!r}; rename one")


def _row_at(name: str, number: int, line: int) -> str:
    return f"{name}, {f'row {number}' if number else 'header'} (line {line})"


def _cell_at(name: str, row: int, column: str) -> str:
    return f"{name}, row {row}, column {column!r}"


def _usable(value: str, what: str, row: int, column: str, name: str) -> str:
    if not value or value.isspace():
        where = _cell_at(name, row, column)
        raise DataError(f"{where}: the {what} is empty; fill it in or remove the row")
    if "\0" in value:
        where = _cell_at(name, row, column)
        raise DataError(f"{where}: the {what} holds a NUL character; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        where, half = _cell_at(name, row, column), value[error.start]
        raise DataError(
            f"{where}: the {what} holds {half!r}, half a character; remove it"
        ) from error
    return value


def _kind(value: object) -> str:
    """A value in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    names = {"str": "a string", "list": "a list", "dict": "an object"}
    return names.get(type(value).__name__, f"a value of type {type(value).__name__}")


@contextmanager
def _data_errors(where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of the system and of libraries into ours."""
    try:
        yield
    except (DataError, BrokenPipeError):  # nothing is wrong with a table that `head` cuts off
        raise
    except kinds as error:
        raise DataError(f"{where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line about an error that isn't ours."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.pos + 1}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__
