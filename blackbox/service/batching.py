"""Puts the texts of many clients into one call of the LM."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from blackbox.service.problems import Problem

__all__ = ["Batcher"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_RETRY_AFTER = 1.0


@dataclass
class _Waiting(Generic[Item, Result]):
    items: Sequence[Item]
    future: asyncio.Future[list[Result]]


class Batcher(Generic[Item, Result]):
    """Collects items for a short while and has them worked on together, off the event loop.

    A request's items stay together. While a batch is worked on, the next one collects.

    Parameters
    ----------
    work : callable
        Takes a list of items and returns a result for each; runs in a thread.
    size : int
        Items of a batch; a single request may have more.
    window : float
        Seconds that the first of a batch waits for others.
    capacity : int
        Items that may wait.
    at_once : int
        Batches that are worked on at a time.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], list[Result]],
        *,
        size: int,
        window: float,
        capacity: int,
        at_once: int = 1,
    ) -> None:
        self._work = work
        self._size, self._window, self._capacity = size, window, capacity
        self._at_once = at_once
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._n_waiting = 0
        self._working: set[asyncio.Future[list[Result]]] = set()
        self._running = 0
        self._begun: dict[int, float] = {}
        self._n_begun = 0
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="batch")

    @property
    def n_waiting(self) -> int:
        """Items that wait."""
        return self._n_waiting

    @property
    def seconds_at_work(self) -> float:
        """For how long the oldest batch has been worked on; 0 when there is none."""
        return time.monotonic() - min(self._begun.values()) if self._begun else 0.0

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """The results of some items.

        Raises
        ------
        Problem
            If too many wait already.
        """
        if self.n_waiting + len(items) > self._capacity:
            raise Problem(
                503, "too many texts are waiting; send fewer at a time, or later", _RETRY_AFTER
            )
        loop = asyncio.get_running_loop()
        mine: _Waiting[Item, Result] = _Waiting(items, loop.create_future())
        self._waiting.append(mine)
        self._n_waiting += len(items)
        if self._running < self._at_once:
            if self.n_waiting >= self._size:
                self._start()
            elif self._timer is None:
                self._timer = loop.call_later(self._window, self._start)
        try:
            return await mine.future
        except asyncio.CancelledError:
            if mine in self._waiting:  # nobody waits for it any more
                self._waiting.remove(mine)
                self._n_waiting -= len(items)
            raise

    def fail(self, error: Exception) -> None:
        """Answer everything that waits, or is worked on, with an error."""
        waiting = [one.future for one in self._waiting]
        self._waiting.clear()
        self._n_waiting = 0
        for future in (*waiting, *self._working):
            if not future.done():
                future.set_exception(error)

    def close(self) -> None:
        """Wait for what is worked on."""
        self._threads.shutdown()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._running < self._at_once:
            some: list[_Waiting[Item, Result]] = [self._waiting.popleft()]
            n = len(some[0].items)
            while self._waiting and n + len(self._waiting[0].items) <= self._size:
                some.append(self._waiting.popleft())
                n += len(some[-1].items)
            self._n_waiting -= n
            self._running += 1
            self._n_begun += 1
            self._begun[self._n_begun] = time.monotonic()
            self._working.update(one.future for one in some)
            items = [item for one in some for item in one.items]
            done = asyncio.get_running_loop().run_in_executor(self._threads, self._work, items)
            done.add_done_callback(partial(self._finish, some, self._n_begun))

    def _finish(
        self,
        some: list[_Waiting[Item, Result]],
        number: int,
        done: asyncio.Future[list[Result]],
    ) -> None:
        self._running -= 1
        del self._begun[number]
        self._working.difference_update(one.future for one in some)
        error = done.exception()
        begin = 0
        for one in some:
            end = begin + len(one.items)
            if not one.future.done():
                if error is not None:
                    one.future.set_exception(error)
                else:
                    one.future.set_result(done.result()[begin:end])
            begin = end
        self._start()
