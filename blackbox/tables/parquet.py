"""Parquet and Feather, through Arrow, which is imported only where a table is of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, Self

from blackbox.tables.cells import as_text, native
from blackbox.tables.messages import at_cell, data_errors

__all__ = ["ParquetWriter", "read_feather", "read_parquet"]

_BUFFER = 1 << 16
_GROUP = 1_000


Source = tuple[Any, int]
"""A batch of Arrow, and the place of a row in it."""


def read_parquet(file: BinaryIO, name: str) -> tuple[Any, Iterator[tuple[Cells, Source]]]:
    """Return the Arrow schema and the rows to come."""
    import pyarrow.parquet as pq

    with data_errors(f"{name}: damaged, or not Parquet; write it anew", Exception):
        # By default Arrow loads whole row groups, however large they are
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        return parquet.schema_arrow, _rows(parquet.iter_batches(batch_size=_GROUP), name)


def read_feather(file: BinaryIO, name: str) -> tuple[Any, Iterator[tuple[Cells, Source]]]:
    """Return the Arrow schema and the rows to come, of a Feather (Arrow IPC) file."""
    import pyarrow as pa

    with data_errors(f"{name}: damaged, or not Feather; write it anew", Exception):
        feather = pa.ipc.open_file(file)
        batches = (feather.get_batch(number) for number in range(feather.num_record_batches))
        return feather.schema, _rows(batches, name)


def _rows(batches: Iterator[Any], name: str) -> Iterator[tuple[Cells, Source]]:
    start = 1
    while True:
        where = f"{name}, rows from {start}"
        with data_errors(f"{where}: can't be read from Parquet; write it anew", Exception):
            batch = next(batches, None)
        if batch is None:
            return
        columns = _Columns(batch, where)
        for place in range(batch.num_rows):
            yield Cells(columns, place), (batch, place)
        start += batch.num_rows


class _Columns(dict[str, list[Any]]):
    """The columns of a batch as Python values; each is converted when it is first read."""

    def __init__(self, batch: Any, where: str) -> None:
        super().__init__()
        self.names: list[str] = batch.schema.names
        self._batch = batch
        self._where = where

    def __missing__(self, column: str) -> list[Any]:
        if column not in self.names:
            raise KeyError(column)
        problem = f"{self._where}, column {column!r}: can't be read from Parquet; write it anew"
        with data_errors(problem, Exception):
            self[column] = self._batch.column(column).to_pylist()
        return self[column]


class Cells(Mapping[str, Any]):
    """The values of a row."""

    __slots__ = ("_columns", "_place")

    def __init__(self, columns: _Columns, place: int) -> None:
        self._columns = columns
        self._place = place

    def __getitem__(self, column: str) -> Any:
        return self._columns[column][self._place]

    def __contains__(self, column: object) -> bool:
        return column in self._columns.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)


class ParquetWriter:
    """Writes rows as Parquet, in groups; a context manager.

    Columns of `known`, the Arrow schema of a table that was read, keep their type and metadata, and
    rows of that table are copied without a way through Python. The other columns get their types
    from the first group: float64, int64 or bool if all values are of that kind, and else string.
    """

    def __init__(self, file: BinaryIO, columns: list[str], name: str, known: Any) -> None:
        self._file = file
        self._columns = columns
        self._name = name
        self._known = known
        self._group: list[list[Any]] = []
        self._sources: list[Source | None] = []
        self._written = 0
        self._writer: Any = None

    def write(self, values: Mapping[str, Any], source: Source | None = None) -> None:
        """Take one row, and write the group if it is full; `source` has the other columns."""
        self._group.append([native(values.get(column)) for column in self._columns])
        self._sources.append(source)
        if len(self._group) == _GROUP:
            self._write_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._writer is not None:
                with suppress(Exception):
                    self._writer.close()  # else it tries when it is collected, without a file

    def _finish(self) -> None:
        if self._group or self._writer is None:
            self._write_group()
        with data_errors(f"{self._name}: can't be finished", Exception):
            self._writer.close()

    def _write_group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows, self._group = self._group, []
        columns: list[Any] = list(zip(*rows, strict=True)) or [()] * len(self._columns)
        copied = self._copied()
        with data_errors(f"{self._name}: can't be written", Exception):
            if self._writer is None:
                metadata = None if self._known is None else self._known.metadata
                fields = list(map(self._field, self._columns, columns))
                self._writer = pq.ParquetWriter(self._file, pa.schema(fields, metadata))
            schema = self._writer.schema
            arrays = [
                copied.column(field.name)
                if copied is not None and field.name in copied.schema.names
                else self._array(field, values)
                for field, values in zip(schema, columns, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        self._written += len(rows)

    def _copied(self) -> Any:
        """Return the rows of the group as they were read, if all of them were."""
        import pyarrow as pa

        sources, self._sources = self._sources, []
        slices: list[list[Any]] = []  # batch, first row, number of rows
        for source in sources:
            if source is None:
                return None
            batch, place = source
            if slices and slices[-1][0] is batch and sum(slices[-1][1:]) == place:
                slices[-1][2] += 1
            else:
                slices.append([batch, place, 1])
        if not slices:
            return None
        parts = [batch.slice(first, length) for batch, first, length in slices]
        return pa.Table.from_batches(parts).unify_dictionaries()

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
        try:
            return _convert(values, field.type)
        except Exception:  # Arrow doesn't say which row it is
            problem = f"doesn't fit into a column of type {field.type}"
            for number, value in enumerate(values, self._written + 1):
                where = at_cell(self._name, number, field.name)
                with data_errors(f"{where}: {problem}", Exception):
                    _convert([value], field.type)
            raise


def _convert(values: Iterable[Any], type_: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_string(type_):
        values = [value if value is None else as_text(value) for value in values]
    return pa.array(values, type_)
