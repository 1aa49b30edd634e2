"""A job on Ray Data: from a table through actors to Parquet, and on after a death.

Each actor writes the results of a block by itself, before it takes another; see `JobFolder`. With
Ray's own checkpoint, finished blocks wait until a task has written them: of 10,000 rows in blocks
of 250, two fast actors computed 2,576 again after three kills.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, read_datasource
from ray.data.datasource import FileBasedDatasource
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RaySystemError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from blackbox.cluster.actor import reported
from blackbox.cluster.folder import JobFolder
from blackbox.cluster.ledger import Ledger, Progress
from blackbox.cluster.metrics import Metrics
from blackbox.cluster.rates import Rates, every_minute
from blackbox.cluster.source import SourceTable, left_over
from blackbox.errors import BackendError, BlackboxError, DataError
from blackbox.lm.meter import Budget, Load
from blackbox.protocol import Usage
from blackbox.tables.addresses import file_system

__all__ = [
    "Actors",
    "Finished",
    "raise_ours",
    "run",
    "start_ledger",
    "survive",
    "through_actors",
]

_RESTARTS = 3  # times in a row that a job goes on although no new row was written
_BLOCK_BYTES = (
    16_000_000  # that a reader hands on at a time: Ray's default takes a large object store
)
_KEPT = "all that was written is kept, and the same command goes on from it"
_DEATHS = (NodeDiedError, ObjectLostError, RayActorError, RaySystemError, WorkerCrashedError)


@dataclass(frozen=True)
class Actors:
    """The number of actors of a job, and the resources that each of them needs.

    Parameters
    ----------
    least, most : int
        Their number: the job starts with the least, and Ray adds more as long as blocks wait.
    cpus, gpus : float
        Processor cores and GPUs of each.
    resources : mapping of str to float
        Resources of the cluster that have names of their own.
    block_rows : int
        Rows of a block: what one actor works on at a time, and loses if it dies.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    block_rows: int = 1_000


@dataclass(frozen=True)
class Finished:
    """The result of a run of a job.

    Parameters
    ----------
    rows : int
        Rows that were written.
    progress : Progress
        Of its actors.
    seconds : float
        Its time, without the start of the cluster.
    restarts : int
        How often it went on after the death of an actor or a node.
    """

    rows: int
    progress: Progress
    seconds: float
    restarts: int


class LedgerLostError(BackendError):
    """A job without its ledger: the process died, or the cluster did."""


class RemoteLedger:
    """The ledger as actors and the driver have it; what needs no answer is not waited for.

    Raises
    ------
    LedgerLostError
        If it can't be reached. It isn't started again: what had been spent would be forgotten.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._metrics: Metrics | None = None

    def reserve(self, loads: Sequence[Load], whole: bool) -> int | str | None:
        """See `Ledger.reserve`."""
        answer: int | str | None = self._ask("reserve", loads, whole)
        return answer

    def settle(self, reserved: Load, real: Load) -> None:
        """See `Ledger.settle`."""
        self._actor.settle.remote(reserved, real)

    def seconds_left(self) -> float:
        """See `Ledger.seconds_left`."""
        return float(self._ask("seconds_left"))

    def report(self, actor: str, counts: dict[str, int], usage: Usage, failure: str) -> None:
        """See `Ledger.report`; the metrics of this process grow, too."""
        self._actor.report.remote(actor, counts, usage, failure)
        self._metrics = self._metrics or Metrics()
        self._metrics.report(counts.get("rows", 0), usage)

    def fail(self, error: Exception) -> None:
        """See `Ledger.fail`; if the ledger is lost, the driver finds that out by itself."""
        with suppress(LedgerLostError):
            self._ask("fail", error)

    def progress(self) -> Progress:
        """See `Ledger.progress`."""
        progress: Progress = self._ask("progress")
        return progress

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except RayError as error:
            raise LedgerLostError(
                "the job lost its ledger, the process that keeps its budget and its counts "
                f"({_first_line(error)}): what this run spent is unknown; {_KEPT}"
            ) from error


class TableDatasource(FileBasedDatasource):  # type: ignore[misc]
    """The files of a table, which Ray lists, opens and distributes, and `TableReader` reads.

    Parameters
    ----------
    source : SourceTable
        The table.
    done : ray.ObjectRef
        The ids of the rows to leave out, ascending; the processes of a node share them in memory.
    """

    def __init__(self, source: SourceTable, done: Any) -> None:
        system, _ = file_system(source.data)
        super().__init__(list(source.files), filesystem=system, schema=source.schema)
        self._source, self._done = source, done

    def _open_input_source(self, filesystem: Any, path: str, **_: Any) -> Any:
        return filesystem.open_input_file(path)  # Parquet is read from its end

    def _read_stream(self, f: Any, path: str) -> Iterator[Any]:
        done = ray.get(self._done)
        for rows in self._source.read(f, path):
            yield left_over(rows, done)


class Worker:
    """An actor that writes what it makes of a block, and returns how many rows that is.

    Parameters
    ----------
    actor : type
        The class that does the work, which takes a table of Arrow and returns one.
    settings : mapping
        Its arguments.
    folder : JobFolder
        Where the results go.
    """

    def __init__(self, actor: type, settings: Mapping[str, Any], folder: JobFolder) -> None:
        self._folder, self._ledger = folder, settings["ledger"]
        self._work = actor(**settings)

    def __call__(self, table: Any) -> Any:
        """Return a table with the number of rows."""
        results = self._work(table)
        with reported(self._ledger):
            if results.num_rows:
                self._folder.save(results)
        return pa.table({"rows": [results.num_rows]})


def run(
    source: SourceTable,
    folder: JobFolder,
    actor: type,
    settings: Mapping[str, Any],
    actors: Actors,
    budget: Budget,
    say: Callable[[str], None],
) -> Finished:
    """Run a job on the cluster that Ray is connected to, until all rows are written.

    Parameters
    ----------
    source : SourceTable
        The rows.
    folder : JobFolder
        Where results go; it was claimed for this job.
    actor : type
        The class of the actors, which take a table of Arrow and return one.
    settings : mapping
        Its arguments; `ledger` and `budget` are added.
    actors : Actors
        How many.
    budget : Budget
        What all of them may spend.
    say : callable
        Called once a minute, with a line about what is done.

    Raises
    ------
    BlackboxError, ValueError, TypeError
        What an actor raised, or a file that can't be read. All rows that were written stay.
    BackendError
        If the cluster fails time after time.
    """
    ledger = start_ledger(budget, actors)
    settings = {**settings, "ledger": ledger, "budget": budget}
    started, before = time.monotonic(), folder.n_done()
    rates = Rates(source.count_rows, before)

    def say_rates() -> None:
        with suppress(LedgerLostError):  # that ends the job, and not its reports
            say(rates.line(ledger.progress(), time.monotonic() - started))

    def attempt() -> None:
        rows = read_datasource(TableDatasource(source, ray.put(folder.done_ids())))
        for _ in through_actors(rows, Worker, (actor, settings, folder), actors):
            pass

    def go_on(error: RayError) -> None:
        raise_ours(error, ledger)
        folder.renew()

    with every_minute(say_rates):
        restarts = survive(attempt, folder.n_done, go_on)
    progress = ledger.progress()
    if progress.error is not None:
        raise progress.error
    return Finished(folder.n_done() - before, progress, time.monotonic() - started, restarts)


def start_ledger(budget: Budget, actors: Actors) -> RemoteLedger:
    """Start the ledger of a job, in a process beside the driver.

    Parameters
    ----------
    budget : Budget
        What all actors may spend.
    actors : Actors
        How many they are.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    beside = {"num_cpus": 0, "scheduling_strategy": here}
    return RemoteLedger(ray.remote(Ledger).options(**beside).remote(budget, actors.most))


def survive(
    attempt: Callable[[], None], n_done: Callable[[], int], go_on: Callable[[RayError], None]
) -> int:
    """Repeat what the death of an actor or a node ended; return how often.

    Parameters
    ----------
    attempt : callable
        Does what is left to do.
    n_done : callable
        Returns how much is done: it may fail for ever as long as this grows.
    go_on : callable
        Is told of each failure before the next attempt; may raise instead.

    Raises
    ------
    BackendError
        If the cluster fails time after time, or for another reason.
    """
    restarts = failures = 0
    while True:
        done = n_done()
        try:
            attempt()
            return restarts
        except RayError as error:
            go_on(error)
            failures = 0 if n_done() > done else failures + 1
            if failures > _RESTARTS or not isinstance(error, _DEATHS):
                reason = str(error).strip().splitlines()[-1]
                raise BackendError(f"the cluster failed: {reason}; {_KEPT}") from error
            restarts += 1


def through_actors(
    rows: Any, actor: type, arguments: tuple[Any, ...], actors: Actors
) -> Iterator[Any]:
    """Yield what actors make of each block of rows, as tables of Arrow, in any order.

    Parameters
    ----------
    rows : ray.data.Dataset
        The rows.
    actor : type
        The class of the actors, which take a table of Arrow and return one.
    arguments : tuple
        Its arguments.
    actors : Actors
        How many.
    """
    DataContext.get_current().target_max_block_size = _BLOCK_BYTES
    # small blocks: what is done is written soon, and all nodes have work
    blocks = rows.repartition(target_num_rows_per_block=actors.block_rows)
    results = blocks.map_batches(
        actor,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(min_size=actors.least, max_size=actors.most),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus or None,
        resources=dict(actors.resources) or None,
    )
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow")


def raise_ours(error: BaseException, ledger: RemoteLedger) -> None:
    """Raise the error of ours that ended a job, if it is one: an actor's, or that of a file."""
    told = ledger.progress().error
    if told is not None:
        raise told from error
    cause: BaseException | None = error
    while isinstance(cause, RayError):  # which is an instance of its cause's class, too
        cause = getattr(cause, "cause", None)
    if isinstance(cause, BlackboxError):
        raise DataError(str(cause).splitlines()[0]) from error  # Ray adds advice of its own


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
