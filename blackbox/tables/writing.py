"""Writing any table row by row."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from blackbox.errors import DataError
from blackbox.tables.delimited import DelimitedWriter
from blackbox.tables.formats import DELIMITERS, format_of, refuse_repeated
from blackbox.tables.jsonl import JsonlWriter
from blackbox.tables.messages import data_errors, reason
from blackbox.tables.parquet import ParquetWriter
from blackbox.tables.reading import TableReader

if sys.platform != "win32":
    import fcntl

__all__ = ["TableWriter"]


class TableWriter:
    """Streams rows into a table; a context manager.

    A file is written as `<name>.partial` and gets its name when it is closed, so that no half table
    ever stands under the final name. Leaving the `with` block by an exception removes the partial.
    The partial is locked while it is written, so that a file has one writer; one that a killed
    process left behind is overwritten.
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
    ) -> None:
        self.name = "<stdout>" if str(path) == "-" else str(path)
        self.format = format_of(path, format) or "csv"
        refuse_repeated(columns, self.name)
        self._columns = frozenset(columns)
        self._rows = 0
        with data_errors(self.name, OSError, UnicodeEncodeError), ExitStack() as resources:
            self._file = resources.enter_context(_open_target(path))
            self._writer: DelimitedWriter | JsonlWriter | ParquetWriter
            if self.format == "jsonl":
                self._writer = JsonlWriter(self._file)
            elif self.format == "parquet":
                known = None if like is None else like.schema
                writer = ParquetWriter(self._file, list(columns), self.name, known)
                self._writer = resources.enter_context(writer)
            else:
                self._writer = DelimitedWriter(self._file, list(columns), DELIMITERS[self.format])
            self._resources = resources.pop_all()

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
            self._writer.write(values)
        except BrokenPipeError:
            raise
        except (OSError, UnicodeEncodeError, RecursionError) as error:
            raise DataError(f"{self.name}, row {self._rows}: {reason(error)}") from error

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
def _open_target(path: str | Path) -> Iterator[BinaryIO]:
    """Standard output, or a file that is there only when all went well."""
    if str(path) == "-":
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
    partial = target.with_name(f"{target.name}.partial")
    with _locked(partial, path):
        file = partial.open("wb")
        try:
            yield file
            file.close()
            partial.replace(target)
        except BaseException:
            with suppress(OSError):
                file.close()
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _locked(partial: Path, name: str | Path) -> Iterator[None]:
    """Hold the lock on an unfinished file, where the system and the file system have locks.

    The lock is on the file itself, so nothing is left behind, and it ends with the process.

    Raises
    ------
    DataError
        If another run holds it.
    """
    if sys.platform == "win32":
        yield
        return
    while True:
        with partial.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"{name}: another run is writing it; wait until it ends, or write another file"
                ) from error
            except OSError:
                pass  # a file system without locks
            if _is_at(file, partial):
                yield
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file still has this path: another run may just have finished it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
