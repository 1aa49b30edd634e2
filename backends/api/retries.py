"""Many requests at a time behind a synchronous call: pace, retries, threads.

Threads and not a loop of coroutines, so that it works the same in a script and in a notebook, whose
own loop runs already.
"""

from __future__ import annotations

import email.utils
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from blackbox.errors import BackendError

__all__ = [
    "Pace",
    "RetryLaterError",
    "StoppedError",
    "answers_as_they_come",
    "retry_after",
    "send_with_retries",
]

_PART = 32  # answers that are handed over together, at most
_LONGEST_WAIT = 600.0  # seconds; a server that asks for more is not waited for
_BACKOFF = (0.5, 60.0)  # seconds: the first wait and the longest
_IN_FLIGHT = 30.0  # seconds that requests under way get when work is stopped

T = TypeVar("T")
R = TypeVar("R")


class RetryLaterError(Exception):
    """A request that failed and may succeed later.

    Parameters
    ----------
    reason : str
        What went wrong, for people.
    after : float or None
        Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class StoppedError(Exception):
    """Work was stopped before this request was sent."""


class Pace:
    """Spreads requests over time, for all threads together.

    Parameters
    ----------
    requests_per_minute, tokens_per_minute : float, optional
        The provider's limits; without one, only a server's own wish to wait holds requests back.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self._a_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._a_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: int, stop: threading.Event) -> None:
        """Wait for the turn of a request of so many tokens.

        Raises
        ------
        StoppedError
            If `stop` is set meanwhile.
        """
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + max(self._a_request, tokens * self._a_token)
        if stop.wait(max(0.0, start - now)) or stop.is_set():
            raise StoppedError

    def hold(self, seconds: float) -> None:
        """Let no request begin before so many seconds have gone by."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + seconds)


def send_with_retries(
    send: Callable[[], R],
    *,
    attempts: int,
    pace: Pace,
    tokens: int,
    stop: threading.Event,
    on_retry: Callable[[], None],
) -> R:
    """Send until it succeeds: backoff with jitter, or as long as the server asks to wait.

    Raises
    ------
    RetryLaterError
        The last failure, when `attempts` are used up.
    BackendError
        If the server asks to wait for longer than is reasonable.
    StoppedError
        If `stop` is set before a try.
    """
    import tenacity

    jittered = tenacity.wait_random_exponential(multiplier=_BACKOFF[0], max=_BACKOFF[1])

    def seconds(state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.after if isinstance(failure, RetryLaterError) else None
        if asked is None:
            return float(jittered(state))
        if asked > _LONGEST_WAIT:
            raise BackendError(f"{failure}; it asks to wait {asked:.0f} s: try again then")
        pace.hold(asked)
        return asked

    def before_sleep(_: tenacity.RetryCallState) -> None:
        on_retry()

    def attempt() -> R:
        pace.wait(tokens, stop)
        return send()

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RetryLaterError),
        stop=tenacity.stop_after_attempt(attempts),
        wait=seconds,
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=before_sleep,
        reraise=True,
    )
    return retrying(attempt)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer's headers ask to wait: a number, or a date."""
    exact = headers.get("retry-after-ms")
    said = headers.get("retry-after")
    try:
        if exact is not None:
            return max(0.0, float(exact) / 1000)
        if said is None:
            return None
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(said or "")
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def answers_as_they_come(
    jobs: Sequence[T],
    ask: Callable[[T, threading.Event], R],
    n_threads: int,
    stop: threading.Event,
) -> Iterator[list[tuple[int, R]]]:
    """Run jobs in threads and hand over (position, answer) in parts, as they come.

    When a job fails, the user interrupts, or `stop` is set, no other is begun; those under way are
    waited for and handed over, as they are paid for, and then the error, if any, is raised. Closing
    the iterator stops the jobs that have not begun.
    """
    waiting = iter(range(len(jobs)))
    lock = threading.Lock()
    answered: queue.SimpleQueue[tuple[int, R] | _Failure | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    job = next(waiting, None)
                if job is None:
                    return
                answered.put((job, ask(jobs[job], stop)))
        except StoppedError:
            pass
        except BaseException as error:
            stop.set()
            answered.put(_Failure(error))
        finally:
            answered.put(None)

    n_threads = min(n_threads, len(jobs))
    pool = ThreadPoolExecutor(max(n_threads, 1), "api")
    try:
        for _ in range(n_threads):
            pool.submit(work)
        yield from _drain(answered, n_threads, stop)
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _drain(
    answered: queue.SimpleQueue[Any], running: int, stop: threading.Event
) -> Iterator[list[tuple[int, Any]]]:
    failure: BaseException | None = None
    part: list[tuple[int, Any]] = []
    deadline = float("inf")
    while running:
        try:
            timeout = min(deadline - time.monotonic(), 3600.0)
            item = answered.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            if time.monotonic() >= deadline:
                break
            continue
        except KeyboardInterrupt as error:
            stop.set()
            failure, deadline = failure or error, time.monotonic() + _IN_FLIGHT
            continue
        if item is None:
            running -= 1
        elif isinstance(item, _Failure):
            failure = failure or item.error
            deadline = min(deadline, time.monotonic() + _IN_FLIGHT)
        else:
            part.append(item)
        if part and (len(part) >= _PART or answered.empty()):
            yield part
            part = []
    if part:
        yield part
    if failure is not None:
        raise failure
