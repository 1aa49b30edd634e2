"""A circuit breaker: ends a run whose requests fail one after the other, after a few.

A text may be refused, or may break a server; the row is left out then. But when nothing is answered
any more, the fault is not the texts', and each further request may be billed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backends.api.retries import StoppedError
from blackbox.errors import BackendError

__all__ = ["Circuit"]

_MAX_BAD = 12  # billed answers without a distribution, one after the other
_MAX_FAILED = 3  # rows without an answer after all tries
_MAX_REJECTED = 3  # requests of a new form whose form is refused, and of a proven one
_MAX_REJECTED_PROVEN = 12
_MAX_REFUSED = 20  # texts that a filter refuses, or that are too long, when none was ever answered
_POLL = 0.1  # seconds between two looks at whether work was stopped


class Circuit:
    """The outcomes of one form of request, for all threads together.

    Parameters
    ----------
    proven : bool
        Whether a request of this form was answered before; until then they are sent one by one.
    """

    def __init__(self, *, proven: bool) -> None:
        self._proven = proven
        self._answered = 0
        self._bad = self._failed = self._rejected = self._refused = 0
        self._lock = threading.Lock()
        self._first = threading.Lock()

    @contextmanager
    def turn(self, stop: threading.Event) -> Iterator[None]:
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
            self._bad = self._failed = self._rejected = self._refused = 0

    def bad_answer(self, why: object) -> None:
        """Count an answer that is of no use; raise after several with no good one between."""
        with self._lock:
            self._bad += 1
            self._check(self._bad, _MAX_BAD, "answers were of no use", why)

    def failed(self, why: object) -> None:
        """Count a row without an answer; raise if it is not the row's own fault.

        It is the row's where other rows are answered.
        """
        with self._lock:
            self._failed += 1
            most = _MAX_FAILED if self._answered else 1
            if self._failed >= most:
                raise BackendError(str(why))

    def rejected(self, why: object) -> None:
        """Count a request whose form is refused; raise after a few with no answer between."""
        with self._lock:
            self._rejected += 1
            most = _MAX_REJECTED_PROVEN if self._proven else _MAX_REJECTED
            self._check(self._rejected, most, "requests were refused", why)

    def refused(self, why: object) -> None:
        """Count a text that is refused; raise after many where none was ever answered."""
        with self._lock:
            self._refused += 1
            if not self._answered:
                self._check(self._refused, _MAX_REFUSED, "texts were refused", why)

    def _check(self, count: int, most: int, what: str, why: object) -> None:
        if count >= most:
            raise BackendError(f"{count} {what} one after the other, so it isn't the texts: {why}")
