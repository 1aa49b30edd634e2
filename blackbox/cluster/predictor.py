"""Actors that predict: each holds one LM, and turns blocks of a table into their results.

Neither class knows Ray: each takes a table of Arrow and returns one, so that any engine that calls
such a class, as Spark's `mapInArrow` does through a function, can run it.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from blackbox.backend import BaseBackend
from blackbox.cluster.ledger import SharedLedger, SharedMeter
from blackbox.cluster.source import ROW_ID
from blackbox.errors import BudgetError, RowError
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import STORE_VARIABLE, find_store, with_store_and_budget
from blackbox.model.columns import PredictionColumns
from blackbox.model.model import Model
from blackbox.protocol import Usage
from blackbox.store.file import StoreFile, default_path
from blackbox.tables import Row
from blackbox.tables.cells import as_text
from blackbox.tables.parquet import arrow_array, batch_rows

__all__ = ["Connector", "Predictor", "clients", "find_shard", "reported", "rows_of", "store_here"]

_DRAIN = 30.0  # seconds in which others may finish and write after the budget is used up


class Connector(Protocol):
    """Connects an actor to the LM of a trained model; the command line has one."""

    def connect(self, trained: Model, path: Path) -> BaseBackend:
        """Return the LM."""

    def connect_embedder(self, trained: Model, path: Path) -> BaseBackend | None:
        """Return the embedding model, if the trained model reads one."""


class Predictor:
    """Predicts the rows of blocks: a class for `map_batches` of Ray Data, in batches of Arrow.

    Parameters
    ----------
    columns : PredictionColumns
        The columns that it adds.
    connector : Connector
        How it reaches the LM.
    path : Path
        The model's file, for messages.
    table : str, default="a block"
        A file of the table, for messages, and from which paths of images begin.
    store : path, bool or None, default=None
        Where answers are kept on this machine; see `store_here`.
    store_max_bytes : int, optional
        The most bytes of that file; see `StoreFile`.
    budget : Budget, optional
        What may be spent: by all actors of a ledger together, or else by this one.
    ledger : SharedLedger, optional
        The job's ledger.
    n_cpus : int, optional
        Processor cores that an engine in this process may use; by default all of them.
    driver_host : str, optional
        The machine of the command, whose store this actor uses if it runs there.
    """

    def __init__(
        self,
        columns: PredictionColumns,
        connector: Connector,
        path: Path,
        *,
        table: str = "a block",
        store: Path | bool | None = None,
        store_max_bytes: int | None = None,
        budget: Budget | None = None,
        ledger: SharedLedger | None = None,
        n_cpus: int | None = None,
        driver_host: str | None = None,
    ) -> None:
        self._columns, self._ledger, self._table = columns, ledger, table
        self._name = uuid.uuid4().hex
        self._stopped: float | None = None  # when the budget was used up
        model = columns.model
        with reported(ledger):
            self._lm, self._embedder = clients(
                [
                    lambda: connector.connect(model, path),
                    lambda: connector.connect_embedder(model, path),
                ],
                budget or Budget(),
                ledger,
                find_shard(store, store_max_bytes, driver_host),
                n_cpus,
            )

    def __call__(self, table: Any) -> Any:
        """Return a block with the columns of predictions.

        Parameters
        ----------
        table : pyarrow.Table
            Rows; those of the job's columns of texts have to be there.
        """
        if self._stopped is not None and time.monotonic() > self._stopped + _DRAIN:
            raise BudgetError("the budget is used up")
        rows = rows_of(table, self._table)
        counts: dict[str, int] = {}
        failure = ""
        with reported(self._ledger):
            try:
                if self._stopped is not None:
                    return self._nothing(table)
                part = self._columns.predict(self._lm, rows, self._table, embedder=self._embedder)
                counts, failure = part.counts, _first(rows, part.failures)
            except RowError as error:
                raise RowError(_first(rows, error.reasons), error.reasons) from error
            except BudgetError as error:
                if self._ledger is None:
                    raise
                self._ledger.fail(error)
                self._stopped = time.monotonic()
                return self._nothing(table)
            finally:
                if self._ledger is not None:
                    self._ledger.report(self._name, counts, self._usage(), failure)
            return with_columns(table, self._columns, part.columns)

    def _nothing(self, table: Any) -> Any:
        """Return a block without rows: those of a block that the budget doesn't hold stay open."""
        return with_columns(table.slice(0, 0), self._columns, [])

    def _usage(self) -> Usage:
        usage: Usage = self._lm.usage
        return usage if self._embedder is None else usage + self._embedder.usage


def rows_of(table: Any, name: str) -> list[Row]:
    """Return the rows of a block; in messages an id, where it has any, is the number of a row.

    Parameters
    ----------
    table : pyarrow.Table
        The block.
    name : str
        The table that it is of, for messages.
    """
    cells = batch_rows(table, name)
    ids = table.column(ROW_ID).to_pylist() if ROW_ID in table.column_names else range(len(cells))
    return [Row(number, one) for number, one in zip(ids, cells, strict=True)]


def _first(rows: list[Row], reasons: dict[int, str]) -> str:
    """Return the first of some rows, by its id, with its reason; "" if there is none."""
    if not reasons:
        return ""
    place = min(reasons)
    return f"{ROW_ID} {rows[place].values.get(ROW_ID, place)}: {reasons[place]}"


@contextmanager
def reported(ledger: SharedLedger | None) -> Iterator[None]:
    """Tell the ledger of an error inside: the driver shows it from there."""
    try:
        yield
    except Exception as error:
        if ledger is not None:
            ledger.fail(error)
        raise


def with_columns(table: Any, columns: PredictionColumns, found: list[dict[str, Any]]) -> Any:
    """Return a table of Arrow with the columns of predictions, before the ids if it has them."""
    import pyarrow as pa

    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), list: pa.string()}
    fill = columns.fill
    if fill is not None:
        known = [row.get(fill) for row in batch_rows(table, "a block")]
        values = [new.get(fill, old) for new, old in zip(found, known, strict=True)]
        if fill in table.column_names:
            field = table.schema.field(fill)
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


def clients(
    connects: list[Callable[[], BaseBackend | None]],
    budget: Budget,
    ledger: SharedLedger | None,
    store: StoreFile | None,
    n_cpus: int | None,
) -> list[Any]:
    """Return what each of `connects` reaches, behind the store and the job's budget; None stays.

    Parameters
    ----------
    connects : list of callable
        Each connects an LM or an embedding model.
    budget, ledger, n_cpus
        As for `Predictor`.
    store : StoreFile or None
        The store.
    """
    if n_cpus is not None:
        os.environ["LOKY_MAX_CPU_COUNT"] = str(n_cpus)  # which engines have by `joblib.cpu_count`
    meter = Meter(budget) if ledger is None else SharedMeter(budget, ledger)
    with meter.charging():
        reached = [connect() for connect in connects]
    return [
        None if one is None else with_store_and_budget(one, store or False, meter.budget, meter)
        for one in reached
    ]


def find_shard(
    store: Path | bool | None, max_bytes: int | None, driver_host: str | None
) -> StoreFile | None:
    """Return the open store of an actor; see `store_here`."""
    file = find_store(store_here(store, driver_host))
    if file is not None and max_bytes is not None:
        file.max_bytes = max_bytes
    return file


def store_here(store: Path | bool | None, driver_host: str | None = None) -> Path | bool | None:
    """Return the store of an actor on this machine, as a parameter of `find_store`.

    Each machine has a file of its own, by its name: the actors of one machine share it, and on a
    network file system, where SQLite's log would be unsafe, no two machines do. On the machine of
    the command it is the store that the command would use by itself.

    Parameters
    ----------
    store : path, bool or None
        As for `find_store`.
    driver_host : str, optional
        The machine of the command.
    """
    host = socket.gethostname()
    named = os.environ.get(STORE_VARIABLE)
    if store is False or driver_host in (None, host):
        return store
    if not isinstance(store, Path):
        if named == "off":
            return False
        store = Path(named) if named else default_path()
    return store.with_name(f"{store.stem}-{host}{store.suffix}")
