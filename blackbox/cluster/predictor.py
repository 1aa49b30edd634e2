"""Predictors: the actors of `blackbox predict --ray`, which Spark can run, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from blackbox.backend import BaseBackend
from blackbox.cluster.actor import Actor, rows_of
from blackbox.cluster.source import ROW_ID
from blackbox.errors import RowError
from blackbox.model.columns import PredictionColumns
from blackbox.model.model import Model
from blackbox.tables import Row
from blackbox.tables.cells import as_text
from blackbox.tables.parquet import arrow_array, arrow_field, batch_rows, is_list_type

__all__ = ["Connector", "Predictor"]


class Connector(Protocol):
    """Connects an actor to the LM of a trained model; the command line has one."""

    def connect(self, trained: Model, path: Path) -> BaseBackend:
        """Return the LM."""

    def connect_embedder(self, trained: Model, path: Path) -> BaseBackend | None:
        """Return the embedding model, if the trained model reads one."""


class Predictor(Actor):
    """Predicts the rows of blocks: a class for `map_batches` of Ray Data, in batches of Arrow.

    Parameters
    ----------
    columns : PredictionColumns
        The columns that it adds.
    connector : Connector
        How it reaches the LM.
    path : Path
        The model's file, for messages.
    **settings
        Of `Actor`.
    """

    def __init__(
        self, columns: PredictionColumns, connector: Connector, path: Path, **settings: Any
    ) -> None:
        self._columns = columns
        model = columns.model
        super().__init__(
            [
                lambda: connector.connect(model, path),
                lambda: connector.connect_embedder(model, path),
            ],
            **settings,
        )

    def _work(self, table: Any) -> tuple[Any, dict[str, int], str]:
        rows = rows_of(table, self._table)
        lm, embedder = self._lms
        try:
            part = self._columns.predict(
                lm,
                rows,
                self._table,
                embedder=embedder,
                lists=_has_lists(table, self._columns.fill),
            )
        except RowError as error:
            raise RowError(_first(rows, error.reasons), error.reasons) from error
        results = with_columns(table, self._columns, part.columns)
        return results, part.counts, _first(rows, part.failures)

    def _nothing(self, table: Any) -> Any:
        return with_columns(table.slice(0, 0), self._columns, [])


def _has_lists(table: Any, column: str | None) -> bool:
    return column in table.column_names and is_list_type(table.schema.field(column).type)


def _first(rows: list[Row], reasons: dict[int, str]) -> str:
    """Return the first of some rows, by its id, with its reason; "" if there is none."""
    if not reasons:
        return ""
    place = min(reasons)
    return f"{ROW_ID} {rows[place].values.get(ROW_ID, place)}: {reasons[place]}"


def with_columns(table: Any, columns: PredictionColumns, found: list[dict[str, Any]]) -> Any:
    """Return a table of Arrow with the columns of predictions, before the ids if it has them."""
    import pyarrow as pa

    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), list: pa.string()}
    fill = columns.fill
    if fill is not None:
        known = [row.get(fill) for row in batch_rows(table, "a block")]
        values = [new.get(fill, old) for new, old in zip(found, known, strict=True)]
        if fill in table.column_names:
            field = arrow_field(fill, values, table.schema)
            array = arrow_array(field, values, "a block", 1)
            table = table.set_column(table.column_names.index(fill), field, array)
        else:
            table = table.append_column(fill, pa.array(map(as_text, values), pa.string()))
    for name, kind in columns.types.items():
        values = [new.get(name) for new in found]
        field = pa.field(name, kinds[kind])
        table = table.append_column(field, arrow_array(field, values, "a block", 1))
    if ROW_ID in table.column_names:
        others = [name for name in table.column_names if name != ROW_ID]
        table = table.select([*others, ROW_ID])
    return table
