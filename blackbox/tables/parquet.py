"""Parquet and Feather, through Arrow, which is imported only where a table is of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, Self

from blackbox.tables.cells import as_text, native
from blackbox.tables.messages import at_cell, data_errors

__all__ = [
    "ParquetWriter",
    "arrow_array",
    "arrow_field",
    "arrow_table",
    "batch_rows",
    "is_list_type",
    "read_feather",
    "read_parquet",
]

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
    rows of that table are copied without a way through Python, but for columns that are given anew.
    The other columns get their types from the first group: float64, int64 or bool if all values
    are of that kind, and else string.
    """

    def __init__(self, file: BinaryIO, columns: list[str], name: str, known: Any) -> None:
        self._file = file
        self._columns = columns
        self._name = name
        self._known = known
        self._group: list[tuple[dict[str, Any], Source | None]] = []
        self._written = 0
        self._writer: Any = None

    def write(self, values: Mapping[str, Any], source: Source | None = None) -> None:
        """Take one row, and write the group if it is full; `source` has the other columns."""
        self._group.append((dict(values), source))
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

        group, self._group = self._group, []
        sources = [source for _, source in group]
        given: set[str] = set().union(*(values for values, _ in group))
        # where all rows were read, a column that none of them gives is copied as a whole
        needed = set(self._columns) if None in sources else given
        columns = [
            [_cell(name, *row) for row in group] if name in needed else [None] * len(group)
            for name in self._columns
        ]
        with data_errors(f"{self._name}: can't be written", Exception):
            if self._writer is None:
                metadata = None if self._known is None else self._known.metadata
                fields = [
                    arrow_field(column, values, self._known)
                    for column, values in zip(self._columns, columns, strict=True)
                ]
                self._writer = pq.ParquetWriter(self._file, pa.schema(fields, metadata))
            schema = self._writer.schema
            table = arrow_table(schema, columns, sources, self._name, self._written + 1, given)
            self._writer.write_table(table)
        self._written += len(group)


def _cell(name: str, values: Mapping[str, Any], source: Source | None) -> Any:
    """Return a value that is given, or else that of the row that was read."""
    if name not in values and source is not None:
        batch, place = source
        return batch.column(name)[place].as_py() if name in batch.schema.names else None
    return native(values.get(name))


def arrow_table(
    schema: Any,
    columns: list[Any],
    sources: Iterable[Source | None],
    name: str,
    first: int,
    given: Collection[str] = (),
) -> Any:
    """Return rows as a table of Arrow.

    Parameters
    ----------
    schema : pyarrow.Schema
        Its columns.
    columns : list of sequence
        The values of each.
    sources : iterable of (Source or None)
        Where each row was read from; what its source has is copied, if all rows have one.
    name : str
        The table, for messages.
    first : int
        The number of the first row, for messages.
    given : collection of str, optional
        Columns whose values are taken from `columns`, though the sources have them.
    """
    import pyarrow as pa

    copied = _copied(sources)
    arrays = [
        copied.column(field.name)
        if copied is not None and field.name in copied.schema.names and field.name not in given
        else arrow_array(field, values, name, first)
        for field, values in zip(schema, columns, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _copied(sources: Iterable[Source | None]) -> Any:
    """Return rows as they were read, if all of them were."""
    import pyarrow as pa

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


def arrow_field(column: str, values: Iterable[Any], known: Any = None) -> Any:
    """Return a field of Arrow: as `known` has it, or for the kind that all values have.

    A known column without a value, which has a type by chance, becomes one of text if its values
    are text now.
    """
    import pyarrow as pa

    if known is not None and column in known.names:
        field = known.field(column)
        return field.with_type(pa.string()) if _is_untyped(field.type, values) else field
    kinds = {type(value) for value in values if value is not None}
    for members, arrow in (
        ({bool}, pa.bool_()),
        ({int}, pa.int64()),
        ({int, float}, pa.float64()),
    ):
        if kinds and kinds <= members:
            return pa.field(column, arrow)
    return pa.field(column, pa.string())


def _is_untyped(type_: Any, values: Iterable[Any]) -> bool:
    """Return whether a column had no value, and has such now as its type can't hold."""
    import pyarrow as pa

    found = [value for value in values if value is not None and value == value]
    if pa.types.is_null(type_):
        return bool(found)
    # pandas writes a column of None or NaN as one of double
    texts = [value for value in found if isinstance(value, str)]
    return (
        pa.types.is_floating(type_)
        and len(texts) == len(found)
        and any(isinstance(_number(text, float), str) for text in texts)
    )


def arrow_array(field: Any, values: Iterable[Any], name: str, first: int) -> Any:
    """Return the values of a field as an array of Arrow.

    Raises
    ------
    DataError
        If one doesn't fit; the message has its row, where the first one has the number `first`.
    """
    try:
        return _convert(values, field.type)
    except Exception:  # Arrow doesn't say which row it is
        problem = f"doesn't fit into a column of type {field.type}"
        for number, value in enumerate(values, first):
            where = at_cell(name, number, field.name)
            with data_errors(f"{where}: {problem}", Exception):
                _convert([value], field.type)
        raise


def batch_rows(batch: Any, name: str) -> list[Cells]:
    """Return the rows of a batch, or table, of Arrow; values are converted as they are read."""
    columns = _Columns(batch, name)
    return [Cells(columns, place) for place in range(batch.num_rows)]


def _convert(values: Iterable[Any], type_: Any) -> Any:
    import pyarrow as pa

    fit = _fitter(type_)
    return pa.array([None if value is None else fit(value) for value in values], type_)


def _fitter(type_: Any) -> Callable[[Any], Any]:
    """Return what makes a value fit a type; a label that was predicted is text."""
    import pyarrow as pa

    if pa.types.is_string(type_):
        return as_text
    if pa.types.is_boolean(type_):
        return lambda value: _TRUTH.get(value.lower(), value) if isinstance(value, str) else value
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        kind = int if pa.types.is_integer(type_) else float
        return lambda value: _number(value, kind) if isinstance(value, str) else value
    if is_list_type(type_):
        item = _fitter(type_.value_type)
        # text would become a list of its letters
        return lambda value: [
            None if one is None else item(one)
            for one in ([value] if isinstance(value, str) else value)
        ]
    return lambda value: value


def is_list_type(type_: Any) -> bool:
    """Return whether a type of Arrow is one of lists."""
    import pyarrow as pa

    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))


_TRUTH = {"true": True, "false": False, "": None}


def _number(text: str, kind: type) -> Any:
    """Return the number that a text is, None for that of no answer, or else the text."""
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        return text
