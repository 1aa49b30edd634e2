"""Parquet, through Arrow, which is imported only where a table is Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO, Self

from blackbox.tables.cells import as_text, native
from blackbox.tables.messages import at_cell, data_errors

__all__ = ["ParquetWriter", "read_parquet"]

_BUFFER = 1 << 16
_GROUP = 1_000


def read_parquet(file: BinaryIO, name: str) -> tuple[Any, Iterator[dict[str, Any]]]:
    """Return the Arrow schema and the rows to come."""
    import pyarrow.parquet as pq

    with data_errors(f"{name}: damaged, or not Parquet; write it anew", Exception):
        # By default Arrow loads whole row groups, however large they are
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        return parquet.schema_arrow, _rows(parquet.iter_batches(batch_size=_GROUP), name)


def _rows(batches: Iterator[Any], name: str) -> Iterator[dict[str, Any]]:
    start = 1
    while True:
        where = f"{name}, rows from {start}"
        with data_errors(f"{where}: can't be read from Parquet; write it anew", Exception):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        yield from rows
        start += len(rows)


class ParquetWriter:
    """Writes rows as Parquet, in groups; a context manager.

    Columns of `known`, the Arrow schema of a table that was read, keep their type. The others get
    theirs from the first group: float64, int64 or bool if all values are of that kind, and else
    string.
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
        """Take one row, and write the group if it is full."""
        self._group.append([native(values.get(column)) for column in self._columns])
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
        with data_errors(f"{self._name}: can't be written", Exception):
            if self._writer is None:
                schema = pa.schema(list(map(self._field, self._columns, columns)))
                self._writer = pq.ParquetWriter(self._file, schema)
            schema = self._writer.schema
            arrays = list(map(self._array, schema, columns))
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
