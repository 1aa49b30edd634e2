"""Cells that need no engine, computed in other processes while the engine works."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from joblib import cpu_count
from threadpoolctl import threadpool_limits

from eval.run.cells import compute_from_store
from eval.run.jobs import Job

__all__ = ["KILLED", "Beside", "CellOrReason"]

CellOrReason = dict[str, Any] | str
"""A cell's figures, or one line with the reason why it has none."""

KILLED = "its process was killed; it may have needed more memory than there is"


class Beside:
    """Cells whose answers are in the store.

    With one process they are computed after the engine's, so that nothing competes with it.

    Parameters
    ----------
    n_jobs : int
        Processes.
    """

    def __init__(self, n_jobs: int) -> None:
        self._executor = None
        if n_jobs > 1:
            context = multiprocessing.get_context("spawn")
            threads = max(1, cpu_count() // n_jobs)
            self._executor = ProcessPoolExecutor(n_jobs, context, _limit_threads, (threads,))
        self._waiting: dict[Future[Any], Job] = {}
        self._later: list[Job] = []

    def add(self, jobs: Sequence[Job]) -> None:
        """Start some cells."""
        if self._executor is None:
            self._later += jobs
            return
        for job in jobs:
            self._waiting[self._executor.submit(compute_from_store, job)] = job

    def finished(self) -> Iterator[tuple[Job, CellOrReason | None]]:
        """Yield the cells that are finished by now; None for one whose answers are missing."""
        for future in [one for one in self._waiting if one.done() and not one.cancelled()]:
            job = self._waiting.pop(future)
            yield job, self._outcome(job, future)

    def rest(self) -> Iterator[tuple[Job, CellOrReason | None]]:
        """Yield all others as they are finished."""
        while self._later:
            job = self._later.pop(0)
            yield job, compute_from_store(job)
        for future in as_completed(list(self._waiting)):
            job = self._waiting.pop(future)
            yield job, self._outcome(job, future)

    def close(self) -> None:
        """Start no more."""
        if self._executor:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _outcome(self, job: Job, future: Future[Any]) -> CellOrReason | None:
        try:
            found: CellOrReason | None = future.result()
        except BrokenProcessPool:
            return f"{job}: {KILLED}"
        return found


def _limit_threads(n: int) -> None:
    """Let the processes share the cores."""
    threadpool_limits(n)
