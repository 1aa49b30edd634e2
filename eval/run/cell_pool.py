"""Cells that need no engine, computed in other processes while the engine works."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from joblib import cpu_count
from threadpoolctl import threadpool_limits

from eval.run.cells import compute_from_store
from eval.run.jobs import Job

__all__ = ["KILLED", "CellOrReason", "CellPool", "end_with_parent"]

CellOrReason = dict[str, Any] | str
"""A cell's figures, or one line with the reason why it has none."""

KILLED = "its process was killed; it may have needed more memory than there is"


class CellPool:
    """A pool of processes for cells whose answers are in the store.

    With one process they are computed after the engine's, so that nothing competes with it.

    Parameters
    ----------
    n_jobs : int
        Processes.
    """

    def __init__(self, n_jobs: int) -> None:
        self._n_jobs = n_jobs
        self._executor = self._start(n_jobs) if n_jobs > 1 else None
        self._waiting: dict[Future[Any], Job] = {}
        self._later: list[Job] = []

    def add(self, jobs: Sequence[Job]) -> None:
        """Start some cells."""
        if self._executor is None:
            self._later += jobs
            return
        for number, job in enumerate(jobs):
            try:
                self._waiting[self._executor.submit(compute_from_store, job)] = job
            except BrokenProcessPool:  # a process of it was killed
                self._later += jobs[number:]
                return

    def finished(self) -> Iterator[tuple[Job, CellOrReason | None]]:
        """Yield the cells that are finished by now; None for one whose answers are missing."""
        for future in [one for one in self._waiting if _is_finished(one)]:
            job = self._waiting.pop(future)
            yield job, self._outcome(job, future)

    def rest(self) -> Iterator[tuple[Job, CellOrReason | None]]:
        """Yield all others as they are finished."""
        for future in as_completed(list(self._waiting)):
            job = self._waiting.pop(future)
            try:
                found = self._outcome(job, future)
            except BrokenProcessPool:
                self._later.append(job)
            else:
                yield job, found
        # each in a process of its own where one was killed, so that it is known which
        while self._later:
            job = self._later.pop(0)
            yield job, self._compute_alone(job) if self._executor else compute_from_store(job)

    def close(self) -> None:
        """Start no more."""
        if self._executor:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _outcome(self, job: Job, future: Future[Any]) -> CellOrReason | None:
        found: CellOrReason | None = future.result()
        return found

    def _compute_alone(self, job: Job) -> CellOrReason | None:
        with self._start(1) as alone:
            try:
                return self._outcome(job, alone.submit(compute_from_store, job))
            except BrokenProcessPool:
                return f"{job}: {KILLED}"

    def _start(self, n_jobs: int) -> ProcessPoolExecutor:
        threads = max(1, cpu_count() // self._n_jobs)
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(n_jobs, context, _prepare_process, (threads,))


def _is_finished(future: Future[Any]) -> bool:
    """Return whether a cell has an outcome; none has one that was interrupted or killed."""
    return future.done() and not future.cancelled() and future.exception() is None


def end_with_parent() -> None:
    """Let this process end with the one that started it, also where that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _prepare_process(n_threads: int) -> None:
    """Let the processes share the cores, and leave Ctrl-C to the one that started them."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(n_threads)
