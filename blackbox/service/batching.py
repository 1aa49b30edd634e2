"""Batches the texts of many clients into one call of the language model."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from blackbox.service.problems import Problem

__all__ = ["Batcher"]

Request = TypeVar("Request")
Result = TypeVar("Result")

_RETRY_AFTER = 1.0


@dataclass(eq=False)
class _Waiting(Generic[Request, Result]):
    request: Request
    size: int
    future: asyncio.Future[Result]


class Batcher(Generic[Request, Result]):
    """Collects requests for a short while and processes them together in a thread.

    While a batch runs, the next one collects. The threads are daemons, so that work that never ends
    doesn't keep the process alive.

    Parameters
    ----------
    work : callable
        Takes a list of requests and returns for each its result, or the exception that it fails
        with; runs in a thread.
    size : int
        Maximum number of items per batch; a single request may have more.
    window : float
        Seconds that the first request of a batch waits for others.
    capacity : int
        Maximum number of items that wait.
    at_once : int
        Maximum number of batches that run concurrently.
    dropped : callable, optional
        Called with each request that will never run.
    """

    def __init__(
        self,
        work: Callable[[list[Request]], Sequence[Result | Exception]],
        *,
        size: int,
        window: float,
        capacity: int,
        at_once: int = 1,
        dropped: Callable[[Request], None] = lambda _: None,
    ) -> None:
        self._work, self._dropped = work, dropped
        self._size, self._window, self._capacity = size, window, capacity
        self._at_once = at_once
        self._waiting: deque[_Waiting[Request, Result]] = deque()
        self._n_waiting = 0
        self._running_futures: set[asyncio.Future[Result]] = set()
        self._running_since: dict[int, float] = {}
        self._last_number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def n_waiting(self) -> int:
        """Number of items that wait."""
        return self._n_waiting

    @property
    def seconds_at_work(self) -> float:
        """Seconds for which the oldest batch has been running; 0 if none is."""
        return time.monotonic() - min(self._running_since.values()) if self._running_since else 0.0

    async def submit(self, request: Request, size: int) -> Result:
        """Wait for the result of a request that has `size` items.

        Raises
        ------
        Problem
            If too many items wait already.
        """
        if self._n_waiting + size > self._capacity:
            self._dropped(request)
            raise Problem(
                503, "too many texts are waiting; send fewer at a time, or later", _RETRY_AFTER
            )
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Request, Result] = _Waiting(request, size, loop.create_future())
        self._waiting.append(waiting)
        self._n_waiting += size
        if len(self._running_since) < self._at_once:
            if self._n_waiting >= self._size:
                self._start()
            elif self._timer is None:
                self._timer = loop.call_later(self._window, self._start)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._n_waiting -= size
                self._dropped(request)
            raise

    def fail(self, error: Exception) -> None:
        """Fail all requests, whether they wait or run."""
        dropped = list(self._waiting)
        self._waiting.clear()
        self._n_waiting = 0
        for waiting in dropped:
            self._dropped(waiting.request)
        for future in (*(waiting.future for waiting in dropped), *self._running_futures):
            if not future.done():
                future.set_exception(error)

    def close(self, seconds: float) -> bool:
        """Wait for running batches, at most so long; return whether all have ended."""
        deadline = time.monotonic() + seconds
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self) -> None:
        """Start as many batches as may run."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._running_since) < self._at_once:
            batch = [self._waiting.popleft()]
            n = batch[0].size
            while self._waiting and n + self._waiting[0].size <= self._size:
                batch.append(self._waiting.popleft())
                n += batch[-1].size
            self._n_waiting -= n
            self._last_number += 1
            self._running_since[self._last_number] = time.monotonic()
            self._running_futures.update(waiting.future for waiting in batch)
            if len(self._threads) < len(self._running_since):
                thread = threading.Thread(target=self._run, name="batch", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._batches.put((batch, self._last_number, asyncio.get_running_loop()))

    def _run(self) -> None:
        """Process batches in a thread until there are no more."""
        while (entry := self._batches.get()) is not None:
            batch, number, loop = entry
            results: Sequence[Result | Exception]
            try:
                results = self._work([waiting.request for waiting in batch])
            except Exception as error:
                results = [error] * len(batch)
            with suppress(RuntimeError):  # the loop has ended, so nobody waits any more
                loop.call_soon_threadsafe(self._finish, batch, number, results)

    def _finish(
        self,
        batch: list[_Waiting[Request, Result]],
        number: int,
        results: Sequence[Result | Exception],
    ) -> None:
        del self._running_since[number]
        self._running_futures.difference_update(waiting.future for waiting in batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.future.done():
                continue
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(result)
        self._start()
