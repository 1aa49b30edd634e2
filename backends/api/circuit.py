"""A circuit breaker: ends a run whose requests fail one after the other, after a few.

A text may be refused, or may break a server; the row is left out then. But when nothing is answered
any more, the fault is not the texts', and each further request may be billed. Which of the two it
is, a request tells that was answered before: it is sent again before a run ends.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from backends.api.errors import RefusedError
from backends.api.retries import RetryLaterError, StoppedError
from blackbox.errors import BackendError, BudgetError
from blackbox.protocol import Usage

__all__ = ["Circuit"]

# failures one after the other, by their way, at which it is in doubt whether it is the texts
_LIMITS = {
    "bad": 12,  # billed answers without a distribution
    "failed": 3,  # requests without an answer after all tries
    "rejected": 12,  # requests whose form is refused
    "refused": 20,  # those that a filter refuses, or too long ones, when none was ever answered
    "forbidden": 1,  # those with the status of a key that isn't good
}
_MAX_UNPROVEN = 3  # requests of a new form whose form is refused
_MOST_DOUBLED = 6  # times that a limit doubles
_ENDS_AT = {"bad": 4, "failed": 4}  # times after which a run ends, where failures are billed
_POLL = 0.1  # seconds between two looks at whether work was stopped

R = TypeVar("R")


class _TrippedError(BackendError):
    """Too many requests failed one after the other in one way; `why` is the last one's reason."""

    def __init__(self, message: str, way: str, why: object) -> None:
        super().__init__(message)
        self.way, self.why = way, str(why)


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
        self._asking = threading.Lock()
        self._answered = 0
        self._counts, self._doubled = Counter[str](), Counter[str]()
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
                if not self._goes_on(error.way, stop, usage):
                    raise
                return row_failed(error.why)
            except BackendError as error:
                # a firewall or a moderation has the status of a key that isn't good
                if getattr(error, "status", None) != 403:
                    raise
                with self._lock:
                    self._counts["forbidden"] += 1
                if not self._goes_on("forbidden", stop, usage):
                    raise
                return row_failed(str(error).partition("; check the key")[0])

    def _goes_on(self, way: str, stop: threading.Event, usage: Usage) -> bool:
        """Return whether a run goes on: below a limit, or as a known request is answered.

        Then the limit doubles, so that texts that all fail cost few known requests.
        """
        with self._asking:
            with self._lock:
                if not self._has_tripped(way):
                    return True  # it was sent, or another one answered, meanwhile
                is_spent = self._doubled[way] >= _ENDS_AT.get(way, math.inf)
            if is_spent or not self._proven or not self._is_answered(stop, usage):
                stop.set()
                return False
            with self._lock:
                self._answered += 1
                self._doubled[way] += 1
                self._counts.clear()
            return True

    def _is_answered(self, stop: threading.Event, usage: Usage) -> bool:
        """Return whether a request that was answered before still is."""
        if self._ask_again is None or stop.is_set():
            return False
        try:
            self._ask_again(stop, usage)
        except (BackendError, BudgetError, RetryLaterError, RefusedError):
            return False
        return True

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
            self._counts.clear()
            # a key stays good: where some texts are forbidden, the limit needn't begin anew
            self._doubled = Counter(forbidden=self._doubled["forbidden"])

    def bad_answer(self, why: object) -> None:
        """Count an answer that is of no use; raise after several with no good one between."""
        self._count("bad", "answers were of no use", why)

    def failed(self, why: object) -> None:
        """Count a row without an answer; raise if it is not the row's own fault.

        It is the row's where other rows are answered.
        """
        self._count("failed", "", why)

    def rejected(self, why: object) -> None:
        """Count a request whose form is refused; raise after a few with no answer between."""
        self._count("rejected", "requests were refused", why)

    def refused(self, why: object) -> None:
        """Count a refused request; raise after many where none was ever answered."""
        self._count("refused", "requests were refused", why)

    def _count(self, way: str, what: str, why: object) -> None:
        with self._lock:
            self._counts[way] += 1
            if self._has_tripped(way):
                many = f"{self._counts[way]} {what} one after the other, so it isn't the texts: "
                raise _TrippedError(f"{many if what else ''}{why}", way, why)

    def _has_tripped(self, way: str) -> bool:
        if way == "refused" and self._answered:
            return False
        limit = _LIMITS[way]
        if way == "failed" and not self._answered:
            limit = 1
        if way == "rejected" and not self._proven:
            limit = _MAX_UNPROVEN
        return self._counts[way] >= limit << min(self._doubled[way], _MOST_DOUBLED)
