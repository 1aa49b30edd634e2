"""Tables of a job: their files, on any file system of Arrow, as blocks of rows with ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import DataError
from blackbox.tables import Row, TableReader
from blackbox.tables.addresses import file_system, in_folder
from blackbox.tables.messages import data_errors, public, reason
from blackbox.tables.parquet import arrow_field, arrow_table

__all__ = ["ROW_ID", "SourceTable", "left_over", "row_id"]

ROW_ID = "row_id"
"""The column of ids."""

_SAMPLE = 1_000  # rows that the types of columns are read from, as a Parquet file gets them
_BLOCK = 1_000  # rows that are read at a time


@dataclass(frozen=True)
class SourceTable:
    """A table in one file, or in all files of a folder, as `TableReader` reads each.

    Parameters
    ----------
    data : str
        A file or folder: a path that every machine of the cluster has, or an address such as
        ``s3://bucket/folder``. In a folder, names that begin with "_" or "." are left out.
    text_columns : tuple of str
        The columns of texts, which ids are made from.
    format, delimiter, encoding : str, optional
        As for `TableReader`.
    """

    data: str
    text_columns: tuple[str, ...]
    format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None

    @cached_property
    def files(self) -> dict[str, str]:
        """The path of each file, and its bytes and time of writing, which tell a change.

        Raises
        ------
        DataError
            If there is none.
        """
        from pyarrow import fs

        system, path = file_system(self.data)
        try:
            found = system.get_file_info(path)
            if found.type == fs.FileType.NotFound:
                raise DataError(f"{self._shown}: no such file or folder; check its name")
            if found.type == fs.FileType.File:
                return {found.path: _state(found)}
            inside = system.get_file_info(fs.FileSelector(path, recursive=True))
        except OSError as error:
            raise DataError(f"{self._shown}: can't be read: {reason(error)}") from error
        files = {one.path: _state(one) for one in inside if one.type == fs.FileType.File}
        named = {one: state for one, state in sorted(files.items()) if not _is_hidden(one, path)}
        if not named:
            raise DataError(f"{self._shown}: a folder without a table; add one")
        return named

    def takes(self, folder: str) -> bool:
        """Return whether the files of a folder would be files of the table."""
        from pyarrow import fs

        (system, path), (other, inside) = file_system(self.data), file_system(folder)
        if system.type_name != other.type_name:
            return False
        if isinstance(system, fs.LocalFileSystem):
            path, inside = (Path(one).resolve().as_posix() for one in (path, inside))
        return PurePosixPath(inside).is_relative_to(path) and not _is_hidden(inside, path)

    @property
    def _shown(self) -> str:
        return public(self.data)

    @property
    def example(self) -> str:
        """A name of a file of the table, from which paths in it begin."""
        is_folder = list(self.files) != [file_system(self.data)[1]]
        return in_folder(self.data, "table") if is_folder else self.data

    @cached_property
    def schema(self) -> Any:
        """The columns and types of Arrow, from the first file: what `TableWriter` would write.

        Raises
        ------
        DataError
            If the file can't be read, or lacks a column of texts.
        """
        import pyarrow as pa

        system, _ = file_system(self.data)
        first = next(iter(self.files))
        with (
            data_errors(f"{first}: can't be read", OSError),
            system.open_input_file(first) as file,
            self._reader(file, first) as reader,
        ):
            reader.require(*self.text_columns)
            head = list(islice(reader, _SAMPLE))
            columns, known = reader.columns, reader.schema
        fields = [
            arrow_field(column, [row.values.get(column) for row in head], known)
            for column in columns
        ]
        return pa.schema([*fields, pa.field(ROW_ID, pa.int64())])

    def rows(self) -> Iterator[Row]:
        """Yield the rows, file after file, here and without ids.

        Raises
        ------
        DataError
            If a file can't be read, or lacks a column of texts.
        """
        system, _ = file_system(self.data)
        for path in self.files:
            with (
                data_errors(f"{path}: can't be read", OSError),
                system.open_input_file(path) as file,
                self._reader(file, path) as reader,
            ):
                reader.require(*self.text_columns)
                yield from reader

    def count_rows(self) -> int:
        """Return the number of rows; files other than Parquet are read for that."""
        import pyarrow.parquet as pq

        if all(path.endswith(".parquet") for path in self.files) and self.format is None:
            system, _ = file_system(self.data)
            with data_errors(f"{self._shown}: damaged, or not Parquet", Exception):
                metadata = [pq.read_metadata(path, filesystem=system) for path in self.files]
            return sum(one.num_rows for one in metadata)
        return sum(1 for _ in self.rows())

    def read(self, file: BinaryIO, path: str) -> Iterator[Any]:
        """Yield the rows of one file as tables of Arrow, with their ids.

        Parameters
        ----------
        file : binary file
            The open file.
        path : str
            Its path, one of `files`.

        Raises
        ------
        DataError
            If a row can't be read, or has a column that `schema` lacks.
        """
        columns = self.schema.names[:-1]
        name = self.name(path)
        with self._reader(file, path) as reader:
            reader.require(*self.text_columns)
            rows = iter(reader)
            while chunk := list(islice(rows, _BLOCK)):
                self._refuse_others(chunk if reader.format == "jsonl" else chunk[:1], path)
                values: list[Any] = [[row.values.get(one) for row in chunk] for one in columns]
                values.append([row_id(name, row, self.text_columns) for row in chunk])
                sources = [row.source if isinstance(row.source, tuple) else None for row in chunk]
                yield arrow_table(self.schema, values, sources, path, chunk[0].number)

    def _reader(self, file: Any, path: str) -> TableReader:
        return TableReader(
            path,
            stream=file,
            format=self.format,
            delimiter=self.delimiter,
            encoding=self.encoding,
        )

    def name(self, path: str) -> str:
        """Return the name of a file in the table, which stays when all of it is moved."""
        inside = path.removeprefix(file_system(self.data)[1]).strip("/")
        return inside or path.rpartition("/")[2]

    def _refuse_others(self, rows: Sequence[Row], path: str) -> None:
        known = frozenset(self.schema.names)
        for row in rows:
            for column in row.values:
                if column not in known:
                    raise DataError(
                        f"{path}, row {row.number}: column {column!r} is none of the first file's "
                        f"first rows ({', '.join(self.schema.names[:-1])}); give all the same"
                    )


def row_id(name: str, row: Row, text_columns: Sequence[str]) -> int:
    """Return the id of a row: 64 bits of a digest of its file, its number and its texts.

    Among n rows, two have the same id with a probability of n² / 2⁶⁵: 3% for 10⁹ rows.

    Parameters
    ----------
    name : str
        The name of its file.
    row : Row
        The row.
    text_columns : sequence of str
        The columns of texts.
    """
    texts = [repr(row.values.get(column)) for column in text_columns]
    whole = "\0".join([name, str(row.number), *texts]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "big", signed=True)


def left_over(rows: Any, done: NDArray[np.int64]) -> Any:
    """Return the rows of a table of Arrow whose ids are not among those that are done.

    Parameters
    ----------
    rows : pyarrow.Table
        Rows with their ids.
    done : int64 array
        Ids, ascending.
    """
    if not len(done):
        return rows
    ids = rows.column(ROW_ID).to_numpy()
    places = np.minimum(np.searchsorted(done, ids), len(done) - 1)
    return rows.filter(done[places] != ids)


def _state(file: Any) -> str:
    return f"{file.size} bytes of {file.mtime_ns}"


def _is_hidden(path: str, folder: str) -> bool:
    inside = path.removeprefix(folder).strip("/")
    return any(part.startswith(("_", ".")) for part in inside.split("/"))
