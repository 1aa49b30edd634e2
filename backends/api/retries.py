"""Many requests at a time behind a synchronous call: pace, retries, threads.

Threads and not a loop of coroutines, so that it works the same in a script and in a notebook, whose
own loop runs already.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from blackbox.errors import BackendError
from blackbox.plurals import counted
from blackbox.spending import Account, current_gate

__all__ = [
    "Pace",
    "RetryLaterError",
    "StoppedError",
    "answers_as_they_come",
    "send_with_retries",
]

_PART = 32  # answers that are handed over together, at most
_LONGEST_WAIT = 600.0  # seconds; a server that asks for more is not waited for
_BACKOFF = (0.5, 60.0)  # seconds: the first wait and the longest
_RATE_WINDOW = 1.5  # of the longest wait: a rate limit is per minute, and its window has to pass
_IN_FLIGHT = 30.0  # seconds that requests under way get when a request failed
_POLL = 0.25  # seconds between two looks at whether the user interrupted
_INTERRUPTED = 10.0  # the same when the user interrupts; a second interrupt ends at once

_TOLD = 5.0  # seconds: a wait that is as long is said
_TOLD_AGAIN = 60.0  # seconds until it is said again

_log = logging.getLogger(__name__)

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

    Attributes
    ----------
    tries : int
        How often it was sent, when no more are made.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after
        self.tries = 1

    def after_tries(self, tries: int | None = None) -> str:
        """Return the reason with the number of tries, by default `self.tries`."""
        return f"{str(self).rstrip('.')}, in {counted(tries or self.tries, 'try')}"


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
        self._told_at = -float("inf")
        self._lock = threading.Lock()

    def wait(self, tokens: int, stop: threading.Event, account: Account | None = None) -> None:
        """Wait for the turn of a request of so many tokens.

        Raises
        ------
        StoppedError
            If `stop` is set meanwhile.
        BudgetError
            If its turn comes after the account's time is up.
        """
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            if account is not None:
                account.check_wait(start - now)
            self._free_at = start + max(self._a_request, tokens * self._a_token)
        if stop.wait(max(0.0, start - now)) or stop.is_set():
            raise StoppedError

    def hold(self, seconds: float) -> None:
        """Let no request begin before so many seconds have gone by."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + seconds)

    def tell(self, failure: BaseException | None, seconds: float) -> None:
        """Log that a failed request waits, if long, and once a minute for all threads."""
        with self._lock:
            now = time.monotonic()
            if seconds < _TOLD or now - self._told_at < _TOLD_AGAIN:
                return
            self._told_at = now
        _log.warning("%s; trying again in %.0f s", failure, seconds)


def send_with_retries(
    send: Callable[[], R],
    *,
    attempts: int,
    pace: Pace,
    tokens: int,
    stop: threading.Event,
    on_retry: Callable[[], None],
    account: Account | None = None,
) -> R:
    """Send until it succeeds: backoff with jitter, or as long as the server asks to wait.

    A rate limit is waited out for more than a minute, however many tries that takes.

    Raises
    ------
    RetryLaterError
        The last failure, when `attempts` are used up.
    BackendError
        If the server asks to wait for longer than is reasonable.
    BudgetError
        If a wait goes beyond the account's time.
    StoppedError
        If `stop` is set, or the gate in force is closed, before a try.
    """
    import tenacity

    jittered = tenacity.wait_random_exponential(multiplier=_BACKOFF[0], max=_BACKOFF[1])

    def gives_up(state: tenacity.RetryCallState) -> bool:
        failure = _failure_of(state)
        if state.attempt_number < attempts:
            return False
        if getattr(failure, "kind", None) != "rate_limit":
            return True
        return (state.seconds_since_start or 0.0) >= _RATE_WINDOW * _BACKOFF[1]

    def seconds(state: tenacity.RetryCallState) -> float:
        failure = _failure_of(state)
        asked = failure.after if isinstance(failure, RetryLaterError) else None
        if asked is not None and asked > _LONGEST_WAIT:
            raise BackendError(f"{failure}; it asks to wait {asked:.0f} s: try again then")
        if asked is None or state.attempt_number >= attempts:
            asked = max(asked or 0.0, float(jittered(state)))
        else:
            pace.hold(asked)
        if account is not None:
            account.check_wait(asked)
        return asked

    def before_sleep(state: tenacity.RetryCallState) -> None:
        on_retry()
        if state.next_action is not None:
            pace.tell(_failure_of(state), state.next_action.sleep)

    gate = current_gate()

    def attempt() -> R:
        pace.wait(tokens, stop, account)
        if gate is not None and gate.closed:
            raise StoppedError
        return send()

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RetryLaterError),
        stop=gives_up,
        wait=seconds,
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=before_sleep,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except RetryLaterError as error:
        error.tries = retrying.statistics.get("attempt_number", attempts)
        raise


def _failure_of(state: Any) -> BaseException | None:
    failure: BaseException | None = state.outcome.exception() if state.outcome else None
    return failure


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def answers_as_they_come(
    jobs: Sequence[T],
    ask: Callable[[T, threading.Event], Iterable[R]],
    n_threads: int,
    stop: threading.Event,
) -> Iterator[list[tuple[int, R]]]:
    """Run jobs in threads and hand over (position, answer) in parts, as they come.

    A job of several requests has an answer for each, which is handed over though a later one fails.

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
                for answer in ask(jobs[job], stop):
                    answered.put((job, answer))
        except StoppedError:
            pass
        except BaseException as error:
            stop.set()
            answered.put(_Failure(error))
        finally:
            answered.put(None)

    n_threads = min(n_threads, len(jobs))
    try:
        for number in range(n_threads):
            # daemons, so that none of them keeps a process alive that was interrupted
            threading.Thread(
                target=copy_context().run, args=(work,), name=f"api-{number}", daemon=True
            ).start()
        with _interrupt_held(stop) as interrupted:
            yield from _drain(answered, n_threads, stop, interrupted)
    finally:
        stop.set()


@contextmanager
def _interrupt_held(stop: threading.Event) -> Iterator[threading.Event]:
    """Hold a first Ctrl-C back, so that it never meets whoever writes an answer down.

    It stops new requests and sets the event that this yields; a second one is raised at once.
    """
    interrupted = threading.Event()

    def hold(number: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        stop.set()

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted  # only the main thread has signals, and another handler stays
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _drain(
    answered: queue.SimpleQueue[Any],
    running: int,
    stop: threading.Event,
    interrupted: threading.Event,
) -> Iterator[list[tuple[int, Any]]]:
    failure: BaseException | None = None
    part: list[tuple[int, Any]] = []
    deadline = float("inf")
    while running:
        if interrupted.is_set() and not isinstance(failure, KeyboardInterrupt):
            failure, deadline = KeyboardInterrupt(), time.monotonic() + _INTERRUPTED
        try:
            timeout = min(deadline - time.monotonic(), _POLL)
            item = answered.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            if time.monotonic() >= deadline:
                break
            continue
        except KeyboardInterrupt as error:
            if isinstance(failure, KeyboardInterrupt):
                raise
            stop.set()
            failure, deadline = error, time.monotonic() + _INTERRUPTED
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
