"""Batches the texts of many clients into one call of the language model."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from blackbox.service.batch_size import BatchSize
from blackbox.service.problems import Problem

__all__ = ["Batcher"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_RETRY_AFTER = 1.0


@dataclass(eq=False)
class _Request(Generic[Item, Result]):
    """Items that were submitted together, of which the first `n_begun` are in batches."""

    items: Sequence[Item]
    future: asyncio.Future[list[Result]]
    results: dict[int, Sequence[Result]] = field(default_factory=dict)
    n_begun: int = 0

    @property
    def waiting(self) -> Sequence[Item]:
        return self.items[self.n_begun :]

    def add(self, start: int, results: Sequence[Result]) -> None:
        """Keep the results of the items from `start` on, and answer when all are there."""
        self.results[start] = results
        if sum(map(len, self.results.values())) == len(self.items) and not self.future.done():
            self.future.set_result(
                [one for _, some in sorted(self.results.items()) for one in some]
            )


@dataclass(frozen=True, eq=False)
class _Piece(Generic[Item, Result]):
    """Items of a request that are in one batch."""

    request: _Request[Item, Result]
    start: int
    items: Sequence[Item]


class Batcher(Generic[Item, Result]):
    """Collects items of requests for a short while and processes them together in a thread.

    While a batch runs, the next one collects. A request that has more items than a batch takes is
    cut, and requests take turns, so that a large one doesn't keep small ones waiting. Threads are
    daemons, so that work that never ends doesn't keep the process alive.

    Parameters
    ----------
    work : callable
        Takes pieces, each with items of one request, and returns for each the results of its items,
        or the exception that its request fails with; runs in a thread.
    size : int
        Maximum number of items per batch.
    window : float
        Seconds that the first request of a batch waits for others.
    capacity : int
        Maximum number of items that wait.
    at_once : int
        Maximum number of batches that run concurrently.
    cuts : bool, default=True
        Whether a request may be cut; otherwise one may have more items than `size`.
    dropped : callable, optional
        Called with items that will never run.
    """

    def __init__(
        self,
        work: Callable[[list[Sequence[Item]]], Sequence[Sequence[Result] | Exception]],
        *,
        size: int,
        window: float,
        capacity: int,
        at_once: int = 1,
        cuts: bool = True,
        dropped: Callable[[Sequence[Item]], object] = lambda _: None,
    ) -> None:
        self._work, self._dropped = work, dropped
        self._size, self._window, self._capacity = BatchSize(size), window, capacity
        self._at_once, self._cuts = at_once, cuts
        self._waiting: deque[_Request[Item, Result]] = deque()
        self._n_waiting = 0
        self._running: set[_Request[Item, Result]] = set()
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

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """Wait for the results of a request's items.

        Raises
        ------
        Problem
            If too many items wait already.
        """
        if self._n_waiting + len(items) > self._capacity:
            self._dropped(items)
            raise Problem(
                503, "too many texts are waiting; send fewer at a time, or later", _RETRY_AFTER
            )
        loop = asyncio.get_running_loop()
        request: _Request[Item, Result] = _Request(items, loop.create_future())
        self._waiting.append(request)
        self._n_waiting += len(items)
        if len(self._running_since) < self._at_once:
            if self._n_waiting >= self._size.choose(self._n_waiting):
                self._start()
            elif self._timer is None:
                self._timer = loop.call_later(self._window, self._start)
        try:
            return await request.future
        finally:
            self._drop(request)

    def fail(self, error: Exception) -> None:
        """Fail all requests, whether they wait or run."""
        for request in [*self._waiting, *self._running]:
            self._drop(request)
            if not request.future.done():
                request.future.set_exception(error)

    def close(self, seconds: float) -> bool:
        """Wait for running batches, at most so long; return whether all have ended."""
        deadline = time.monotonic() + seconds
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _drop(self, request: _Request[Item, Result]) -> None:
        """Take back the items of a request that are in no batch yet."""
        if request in self._waiting:
            self._waiting.remove(request)
            self._n_waiting -= len(request.waiting)
            self._dropped(request.waiting)

    def _start(self) -> None:
        """Start as many batches as may run."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._running_since) < self._at_once:
            batch = self._next_batch()
            self._last_number += 1
            self._running_since[self._last_number] = time.monotonic()
            self._running.update(piece.request for piece in batch)
            if len(self._threads) < len(self._running_since):
                thread = threading.Thread(target=self._run, name="batch", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._batches.put((batch, self._last_number, asyncio.get_running_loop()))

    def _next_batch(self) -> list[_Piece[Item, Result]]:
        """Return the next items: of one request after the other, in turns."""
        batch: list[_Piece[Item, Result]] = []
        room = self._size.choose(self._n_waiting)
        while self._waiting and room > 0:
            request = self._waiting[0]
            items = request.waiting
            if self._cuts:
                items = items[:room]
            elif batch and len(items) > room:
                break
            self._waiting.popleft()
            batch.append(_Piece(request, request.n_begun, items))
            request.n_begun += len(items)
            room -= len(items)
            self._n_waiting -= len(items)
            if request.waiting:
                self._waiting.append(request)
        return batch

    def _run(self) -> None:
        """Process batches in a thread until there are no more."""
        while (entry := self._batches.get()) is not None:
            batch, number, loop = entry
            results: Sequence[Sequence[Result] | Exception]
            try:
                results = self._work([piece.items for piece in batch])
            except Exception as error:
                results = [error] * len(batch)
            with suppress(RuntimeError):  # the loop has ended, so nobody waits any more
                loop.call_soon_threadsafe(self._finish, batch, number, results)

    def _finish(
        self,
        batch: list[_Piece[Item, Result]],
        number: int,
        results: Sequence[Sequence[Result] | Exception],
    ) -> None:
        seconds = time.monotonic() - self._running_since.pop(number)
        if not any(isinstance(result, Exception) for result in results):
            self._size.record(sum(len(piece.items) for piece in batch), seconds)
        for piece, result in zip(batch, results, strict=True):
            request = piece.request
            if not isinstance(result, Exception):
                request.add(piece.start, result)
            elif not request.future.done():
                request.future.set_exception(result)
            if request.future.done():
                self._drop(request)
                self._running.discard(request)
        self._start()
