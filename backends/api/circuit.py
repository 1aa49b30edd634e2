"""A circuit breaker: ends a run whose requests fail one after the other, after a few.

A text may be refused, or may break a server; the row is left out then. But when nothing is answered
any more, the fault is not the texts', and each further request may be billed. Which of the two it
is, a request tells that was answered before: it is sent again before a run ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from backends.api.errors import RefusedError
from backends.api.retries import RetryLaterError, StoppedError
from blackbox.errors import BackendError
from blackbox.protocol import Usage

__all__ = ["Circuit"]

_MAX_BAD = 12  # billed answers without a distribution, one after the other
_MAX_FAILED = 3  # rows without an answer after all tries
_MAX_REJECTED = 3  # requests of a new form whose form is refused, and of a proven one
_MAX_REJECTED_PROVEN = 12
_MAX_REFUSED = 20  # requests that a filter refuses, or too long ones, when none was ever answered
_MAX_ASKED_AGAIN = 8  # times that a known request is sent with no other answer between
_POLL = 0.1  # seconds between two looks at whether work was stopped

R = TypeVar("R")


class _TrippedError(BackendError):
    """Too many requests failed one after the other; `why` is the last one's reason."""

    def __init__(self, message: str, why: object) -> None:
        super().__init__(message)
        self.why = str(why)


class Circuit:
    """The outcomes of one form of request, for all threads together.

    Parameters
    ----------
    proven : bool
        Whether a request of this form was answered before; until then they are sent one by one.
    ask_again : callable, optional
        Sends a request that was answered before, and adds what that takes to a usage; raises where
        it isn't answered any more.
    """

    def __init__(
        self, *, proven: bool, ask_again: Callable[[threading.Event, Usage], None] | None = None
    ) -> None:
        self._proven = proven
        self._ask_again = ask_again
        self._asked_again = 0
        self._asking = threading.Lock()
        self._answered = 0
        self._bad = self._failed = self._rejected = self._refused = 0
        self._lock = threading.Lock()
        self._first = threading.Lock()

    def pass_through(
        self,
        stop: threading.Event,
        usage: Usage,
        ask: Callable[[], R],
        row_failed: Callable[[str], R],
    ) -> R:
        """Return what `ask` gives, in its turn; `row_failed` where that is the text's own fault.

        Parameters
        ----------
        stop : threading.Event
            Set where the run ends.
        usage : Usage
            To which a request that is sent besides is added.
        ask : callable
            Sends a request, and counts its outcome by the methods below.
        row_failed : callable
            Makes a result of the reason why a text has no answer.

        Raises
        ------
        BackendError
            If the run ends: nothing is answered any more, or the key is no longer good.
        """
        with self._turn(stop):
            try:
                return ask()
            except _TrippedError as error:
                if not self._goes_on(stop, usage):
                    raise
                return row_failed(error.why)
            except BackendError as error:
                # a firewall or a moderation has the status of a key that isn't good
                if getattr(error, "status", None) != 403 or not self._is_answered(stop, usage):
                    raise
                return row_failed(str(error).partition("; check the key")[0])

    def _goes_on(self, stop: threading.Event, usage: Usage) -> bool:
        """Return whether a run goes on at its limit: a known request is answered."""
        with self._asking:
            with self._lock:
                if not self._has_tripped():
                    return True  # it was sent, or another one answered, meanwhile
                self._asked_again += 1
                if self._asked_again > _MAX_ASKED_AGAIN:
                    return False
            if not self._is_answered(stop, usage):
                return False
            with self._lock:
                self._begin_anew()
            return True

    def _is_answered(self, stop: threading.Event, usage: Usage) -> bool:
        """Return whether a request that was answered before still is; stop all others if not."""
        try:
            if self._ask_again is not None and not stop.is_set():
                self._ask_again(stop, usage)
                return True
        except (BackendError, RetryLaterError, RefusedError):
            pass
        stop.set()
        return False

    @contextmanager
    def _turn(self, stop: threading.Event) -> Iterator[None]:
        """Let one request at a time pass, until one of this form was answered.

        An error that ends the run stops the others before their turn.
        """
        alone = not self.is_proven()
        while alone and not self._first.acquire(timeout=_POLL):
            if stop.is_set():
                raise StoppedError
        if alone and self.is_proven():
            self._first.release()
            alone = False
        try:
            with self._asking:
                pass  # none is sent while it is in doubt whether any is answered
            if stop.is_set():
                raise StoppedError
            yield
        except BackendError:
            stop.set()  # before the next one has its turn
            raise
        finally:
            if alone:
                self._first.release()

    def is_proven(self) -> bool:
        """Whether a request of this form was answered."""
        return self._proven

    def answered(self) -> None:
        """Count a good answer."""
        with self._lock:
            self._proven = True
            self._answered += 1
            self._asked_again = 0
            self._begin_anew()

    def bad_answer(self, why: object) -> None:
        """Count an answer that is of no use; raise after several with no good one between."""
        with self._lock:
            self._bad += 1
            self._check(self._bad, "answers were of no use", why)

    def failed(self, why: object) -> None:
        """Count a row without an answer; raise if it is not the row's own fault.

        It is the row's where other rows are answered.
        """
        with self._lock:
            self._failed += 1
            if self._has_tripped():
                raise _TrippedError(str(why), why)

    def rejected(self, why: object) -> None:
        """Count a request whose form is refused; raise after a few with no answer between."""
        with self._lock:
            self._rejected += 1
            self._check(self._rejected, "requests were refused", why)

    def refused(self, why: object) -> None:
        """Count a refused request; raise after many where none was ever answered."""
        with self._lock:
            self._refused += 1
            self._check(self._refused, "requests were refused", why)

    def _begin_anew(self) -> None:
        self._bad = self._failed = self._rejected = self._refused = 0

    def _has_tripped(self) -> bool:
        return (
            self._bad >= _MAX_BAD
            or self._failed >= (_MAX_FAILED if self._answered else 1)
            or self._rejected >= (_MAX_REJECTED_PROVEN if self._proven else _MAX_REJECTED)
            or (self._refused >= _MAX_REFUSED and not self._answered)
        )

    def _check(self, count: int, what: str, why: object) -> None:
        if self._has_tripped():
            said = f"{count} {what} one after the other, so it isn't the texts: {why}"
            raise _TrippedError(said, why)
