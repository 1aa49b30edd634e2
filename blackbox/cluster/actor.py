"""Actors of a job: each holds one LM, and turns blocks of a table into their results.

No class here knows Ray: each takes a table of Arrow and returns one, so that any engine that calls
such a class, as Spark's `mapInArrow` does through a function, can run it.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blackbox.backend import BaseBackend
from blackbox.cluster.ledger import SharedLedger, SharedMeter
from blackbox.cluster.source import ROW_ID
from blackbox.errors import BudgetError
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import STORE_VARIABLE, find_store, with_store_and_budget
from blackbox.protocol import Usage
from blackbox.store.file import StoreFile, default_path
from blackbox.tables import Row
from blackbox.tables.parquet import batch_rows

__all__ = [
    "RATE_LIMITS",
    "Actor",
    "clients",
    "find_shard",
    "reported",
    "rows_of",
    "store_here",
    "with_rate_share",
]

RATE_LIMITS = ("requests_per_minute", "tokens_per_minute")
"""Options of a backend that are limits of a contract, whatever uses it."""

_DRAIN = 30.0  # seconds in which others may finish and write after the budget is used up


class Actor(ABC):
    """An actor: its LMs, its part of the job's budget, and what the ledger is told of its work.

    Parameters
    ----------
    connects : sequence of callable
        Each connects an LM or an embedding model, or returns None.
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
        connects: Sequence[Callable[[], BaseBackend | None]],
        *,
        table: str = "a block",
        store: Path | bool | None = None,
        store_max_bytes: int | None = None,
        budget: Budget | None = None,
        ledger: SharedLedger | None = None,
        n_cpus: int | None = None,
        driver_host: str | None = None,
    ) -> None:
        self._ledger, self._table = ledger, table
        self._name = uuid.uuid4().hex
        self._stopped: float | None = None  # when the budget was used up
        with reported(ledger):
            shard = find_shard(store, store_max_bytes, driver_host)
            self._lms = clients(connects, budget or Budget(), ledger, shard, n_cpus)

    def __call__(self, table: Any) -> Any:
        """Return the results of a block; none if the budget doesn't hold it, so that it stays open.

        Parameters
        ----------
        table : pyarrow.Table
            Rows; those of the job's columns of texts have to be there.

        Raises
        ------
        BudgetError
            If the budget was used up a while ago, or is this actor's alone.
        """
        if self._stopped is not None and time.monotonic() > self._stopped + _DRAIN:
            raise BudgetError("the budget is used up")
        counts: dict[str, int] = {}
        failure = ""
        with reported(self._ledger):
            try:
                if self._stopped is None:
                    results, counts, failure = self._work(table)
                    return results
            except BudgetError as error:
                if self._ledger is None:
                    raise
                self._ledger.fail(error)
                self._stopped = time.monotonic()
            finally:
                if self._ledger is not None:
                    self._ledger.report(self._name, counts, self._usage(), failure)
        return self._nothing(table)

    @abstractmethod
    def _work(self, table: Any) -> tuple[Any, dict[str, int], str]:
        """Return the results of a block, counts of its rows, and the reason of one that failed."""

    @abstractmethod
    def _nothing(self, table: Any) -> Any:
        """Return the results of a block of no row."""

    def _usage(self) -> Usage:
        return sum((lm.usage for lm in self._lms if lm is not None), Usage())


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


@contextmanager
def reported(ledger: SharedLedger | None) -> Iterator[None]:
    """Tell the ledger of an error inside: the driver shows it from there."""
    try:
        yield
    except Exception as error:
        if ledger is not None:
            ledger.fail(error)
        raise


def clients(
    connects: Sequence[Callable[[], BaseBackend | None]],
    budget: Budget,
    ledger: SharedLedger | None,
    store: StoreFile | None,
    n_cpus: int | None,
) -> list[Any]:
    """Return what each of `connects` reaches, behind the store and the job's budget; None stays.

    Parameters
    ----------
    connects : sequence of callable
        Each connects an LM or an embedding model.
    budget, ledger, n_cpus
        As for `Actor`.
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


def with_rate_share(options: Mapping[str, Any], n_actors: int) -> dict[str, Any]:
    """Return the options of a backend in one of some actors, which share its rate limits."""
    limits = {name: options[name] for name in RATE_LIMITS if name in options}
    shares = {
        name: limit / n_actors for name, limit in limits.items() if isinstance(limit, int | float)
    }
    return {**options, **shares}


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
