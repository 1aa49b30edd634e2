"""Writing any table row by row."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from blackbox.errors import DataError
from blackbox.files import FileBusyError, replacing
from blackbox.tables.delimited import DelimitedWriter
from blackbox.tables.formats import DELIMITERS, format_of, refuse_repeated
from blackbox.tables.jsonl import JsonlWriter
from blackbox.tables.messages import STDOUT, data_errors, reason
from blackbox.tables.parquet import ParquetWriter
from blackbox.tables.reading import Row, TableReader

__all__ = ["TableWriter"]

_COPIES = {"jsonl": str, "parquet": tuple}
"""The type of `Row.source` that a format can copy."""


class TableWriter:
    """Streams rows into a table; a context manager.

    A file is written under a hidden, random name beside it and gets its own when it is closed, so
    that no half table ever has the final name. Leaving the `with` block by an exception removes
    it. It is locked while it is written, so that a file has one writer; the next writer removes
    what a killed one left.
    What a format can't hold becomes the nearest that it can: in CSV and TSV missing values and NaN
    are empty cells, lists and objects are JSON; in JSONL NaN is null.

    Parameters
    ----------
    path : str or Path
        The file; "-" is standard output.
    columns : list of str
        Names of the columns, in order.
    format : str, optional
        One of `FORMATS`. By default the file's ending says it, before a .gz that packs it;
        standard output is CSV.
    like : TableReader, optional
        The table that columns are copied from; if it is Parquet, they keep their types in Parquet.
    escape_formulas : bool
        In CSV and TSV, write a `'` before a cell that a spreadsheet program would run as a formula:
        one that begins with `=`, `+`, `-`, `@`, a tab or CR and is no number.

    Raises
    ------
    DataError
        If the file can't be written, another run is writing it, or a row holds what its format
        can't.
    """

    def __init__(
        self,
        path: str | Path,
        columns: list[str],
        *,
        format: str | None = None,
        like: TableReader | None = None,
        escape_formulas: bool = False,
    ) -> None:
        self.name = STDOUT if str(path) == "-" else str(path)
        self.format = format_of(path, format) or "csv"
        refuse_repeated(columns, self.name)
        self._columns = frozenset(columns)
        self._rows = 0
        with data_errors(self.name, OSError, UnicodeEncodeError), ExitStack() as resources:
            self._file = resources.enter_context(
                _open_target(path, None if like is None else like.stat)
            )
            if Path(path).suffix.lower() == ".gz":
                packed: Any = gzip.GzipFile("", "wb", fileobj=self._file, mtime=0)
                self._file = resources.enter_context(packed)
            self._writer: DelimitedWriter | JsonlWriter | ParquetWriter
            if self.format == "jsonl":
                self._writer = JsonlWriter(self._file)
            elif self.format == "parquet":
                known = None if like is None else like.schema
                writer = ParquetWriter(self._file, list(columns), self.name, known)
                self._writer = resources.enter_context(writer)
            else:
                self._writer = DelimitedWriter(
                    self._file,
                    list(columns),
                    DELIMITERS[self.format],
                    escape_formulas=escape_formulas,
                )
            self._resources = resources.pop_all()

    def write(self, values: Mapping[str, Any], row: Row | None = None) -> None:
        """Write one row; a column that is lacking is left empty, or in JSONL left out.

        JSONL takes other keys than `columns` too, as each of its objects may have its own.

        Parameters
        ----------
        values : mapping of str to object
            The values.
        row : Row, optional
            A row that was read: its columns come first. Where both tables are of one format, they
            are copied as they are, down to the digits of a number.
        """
        self._rows += 1
        names = values if row is None else [*row.values, *values]
        if self.format != "jsonl" and not self._columns.issuperset(names):
            extra = next(key for key in names if key not in self._columns)
            raise DataError(
                f"{self.name}, row {self._rows}: {extra!r} is none of the columns, which come from "
                "the header or the first row; write JSONL, where each row has its own"
            )
        try:
            self._put(values, row)
        except (OSError, UnicodeEncodeError, RecursionError) as error:
            if isinstance(error, BrokenPipeError) and self.name == STDOUT:
                raise
            raise DataError(f"{self.name}, row {self._rows}: {reason(error)}") from error

    def _put(self, values: Mapping[str, Any], row: Row | None) -> None:
        source = None if row is None else row.source
        if isinstance(source, str) and row is not None and not values.keys().isdisjoint(row.values):
            source = None  # else its JSON would have a key twice
        writer: Any = self._writer
        if source is not None and isinstance(source, _COPIES.get(self.format, ())):
            writer.write(values, source)
        else:
            writer.write(values if row is None else {**row.values, **values})

    def flush(self) -> None:
        """Hand what was written to the system; Parquet waits until a group of rows is full."""
        with data_errors(self.name, OSError):
            self._file.flush()

    def close(self) -> None:
        """Finish the table and give the file its name."""
        with data_errors(self.name, OSError):
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> None:
        if kind is None:
            self.close()
            return
        with suppress(Exception):  # what went wrong first is what the user should see
            self._resources.__exit__(kind, *exception)


@contextmanager
def _open_target(path: str | Path, keep: os.stat_result | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that is there only when all went well."""
    if str(path) == "-":
        if sys.stdout is None:
            raise DataError("standard output is closed: name a file (--out)")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(os.path.realpath(path))  # a link stays one; what it points to is replaced
    if target.is_dir():
        raise DataError(f"{path}: is a folder; name a file in it")
    if not target.parent.is_dir():
        raise DataError(f"{path}: its folder doesn't exist; create it first")
    if target.exists() and not target.is_file():
        with target.open("wb") as file:  # a device or a named pipe must not be replaced by a file
            yield file
        return
    try:
        with replacing(target, one_writer=True, keep=keep) as file:
            yield file
    except FileBusyError as error:
        raise DataError(
            f"{path}: another run is writing it; wait until it ends, or write another file"
        ) from error
