"""Threads of a service for work beside the language model's, so that none holds up another.

Checks of the language models have threads of their own: a check that waits behind other work would
look like a language model that doesn't answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from blackbox.service.problems import RETRY_AFTER, Problem

__all__ = ["Checks", "RequestThreads"]

_T = TypeVar("_T")

_THREADS = 2
_MAX_WAITING = 16


class RequestThreads:
    """A few threads for requests: images to decode, reports to render. Few may wait for one."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, "request")
        self._n_given = 0

    async def run(self, function: Callable[[], _T]) -> _T:
        """Return what a function returns that runs in a thread.

        Raises
        ------
        Problem
            If too many wait.
        """
        if self._n_given >= _THREADS + _MAX_WAITING:
            raise Problem(503, "too much work is waiting; try again later", RETRY_AFTER)
        self._n_given += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function)
        finally:
            self._n_given -= 1

    def close(self) -> None:
        """Start no more."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Checks:
    """One thread for the checks of each language model.

    Parameters
    ----------
    names : collection of str
        The models.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._executor = ThreadPoolExecutor(len(names), "check")
        self._running: dict[str, Future[object]] = {}

    async def run(self, name: str, check: Callable[[], object], timeout: float) -> None:
        """Run a check, or wait for the one that still runs.

        Raises
        ------
        TimeoutError
            If it takes longer.
        """
        running = self._running.get(name)
        if running is None or running.done():
            running = self._running[name] = self._executor.submit(check)
        async with asyncio.timeout(timeout):
            await asyncio.shield(asyncio.wrap_future(running))

    def close(self) -> None:
        """Start no more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
