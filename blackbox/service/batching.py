"""Puts the texts of many clients into one call of the LM."""

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
    """Collects requests for a short while and has them worked on together, off the event loop.

    While a batch is worked on, the next one collects. The threads are daemons: work that never ends
    doesn't keep the process.

    Parameters
    ----------
    work : callable
        Takes a list of requests and returns for each its result, or the error that it ends with;
        runs in a thread.
    size : int
        Items of a batch; a single request may have more.
    window : float
        Seconds that the first of a batch waits for others.
    capacity : int
        Items that may wait.
    at_once : int
        Batches that are worked on at a time.
    dropped : callable, optional
        Called with each request that will not be worked on.
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
        self._working: set[asyncio.Future[Result]] = set()
        self._begun: dict[int, float] = {}
        self._n_begun = 0
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def n_waiting(self) -> int:
        """Items that wait."""
        return self._n_waiting

    @property
    def seconds_at_work(self) -> float:
        """For how long the oldest batch has been worked on; 0 when there is none."""
        return time.monotonic() - min(self._begun.values()) if self._begun else 0.0

    async def submit(self, request: Request, size: int) -> Result:
        """The result of a request of so many items.

        Raises
        ------
        Problem
            If too many wait already.
        """
        if self._n_waiting + size > self._capacity:
            self._dropped(request)
            raise Problem(
                503, "too many texts are waiting; send fewer at a time, or later", _RETRY_AFTER
            )
        loop = asyncio.get_running_loop()
        mine: _Waiting[Request, Result] = _Waiting(request, size, loop.create_future())
        self._waiting.append(mine)
        self._n_waiting += size
        if len(self._begun) < self._at_once:
            if self._n_waiting >= self._size:
                self._start()
            elif self._timer is None:
                self._timer = loop.call_later(self._window, self._start)
        try:
            return await mine.future
        except asyncio.CancelledError:
            if mine in self._waiting:  # nobody waits for it any more
                self._waiting.remove(mine)
                self._n_waiting -= size
                self._dropped(request)
            raise

    def fail(self, error: Exception) -> None:
        """Answer everything that waits, or is worked on, with an error."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._n_waiting = 0
        for one in waiting:
            self._dropped(one.request)
        for future in (*(one.future for one in waiting), *self._working):
            if not future.done():
                future.set_exception(error)

    def close(self, seconds: float) -> bool:
        """Wait so long for what is worked on; whether it came to its end."""
        deadline = time.monotonic() + seconds
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._begun) < self._at_once:
            some = [self._waiting.popleft()]
            n = some[0].size
            while self._waiting and n + self._waiting[0].size <= self._size:
                some.append(self._waiting.popleft())
                n += some[-1].size
            self._n_waiting -= n
            self._n_begun += 1
            self._begun[self._n_begun] = time.monotonic()
            self._working.update(one.future for one in some)
            if len(self._threads) < len(self._begun):
                thread = threading.Thread(target=self._run, name="batch", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._batches.put((some, self._n_begun, asyncio.get_running_loop()))

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            some, number, loop = batch
            results: Sequence[Result | Exception]
            try:
                results = self._work([one.request for one in some])
            except Exception as error:
                results = [error] * len(some)
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(self._finish, some, number, results)

    def _finish(
        self,
        some: list[_Waiting[Request, Result]],
        number: int,
        results: Sequence[Result | Exception],
    ) -> None:
        del self._begun[number]
        self._working.difference_update(one.future for one in some)
        for one, result in zip(some, results, strict=True):
            if one.future.done():
                continue
            if isinstance(result, Exception):
                one.future.set_exception(result)
            else:
                one.future.set_result(result)
        self._start()
