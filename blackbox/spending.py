"""The account of a run, to which a backend charges each request before it is sent.

`charged_to` puts an account in force for the calls inside it. A backend whose requests may be
billed (`Limits.charges_tries`) asks for it with `current_account`, in the thread that was called,
and reserves the worst case of every try. So the probe of an endpoint, retries, and tries whose
answer is lost or useless are inside the budget.

`stopping_at_refusals` puts a gate in force in the same way: when a row is refused and that is an
error, no further try is begun, and what is under way is still handed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "CACHED_FROM",
    "Account",
    "Gate",
    "Rate",
    "TryLoad",
    "charged_to",
    "current_account",
    "current_gate",
    "stopping_at_refusals",
]


CACHED_FROM = 1024
"""Tokens from which the beginning of a prompt is cached, where an API bills that apart."""


@dataclass(frozen=True)
class Rate:
    """Who bills a request.

    Parameters
    ----------
    provider, model : str
        As in the LM's identity.
    price_share : float, default=1.0
        Share of the price that is paid.
    host : str, default=""
        The public host name of the API, by which list prices are found.
    is_free : bool, default=False
        Whether nobody bills, as the LM runs in this process; the user may still name a price.
    is_decisions : bool, default=False
        Whether a decision endpoint bills, which may have prices of its own.
    """

    provider: str
    model: str
    price_share: float = 1.0
    host: str = ""
    is_free: bool = False
    is_decisions: bool = False


@dataclass(frozen=True)
class TryLoad:
    """The forward passes and tokens of one try of a request, at worst or as reported.

    Some input tokens may be billed apart: those read from a prefix cache, and those written to it.
    """

    passes: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class Account(Protocol):
    """The part of a budget that a backend needs."""

    def reserve_try(self, rate: Rate, worst: TryLoad) -> None:
        """Reserve the worst case of a try, or raise `BudgetError`: it must not be sent then."""

    def settle_try(self, rate: Rate, worst: TryLoad, real: TryLoad) -> None:
        """Replace what was reserved for a try by what it took."""

    def seconds_left(self) -> float:
        """Return the seconds in which a try may begin; infinity without a limit."""

    def check_wait(self, seconds: float) -> None:
        """Raise `BudgetError` if a wait of so many seconds would go beyond the limit."""


_account: ContextVar[Account | None] = ContextVar("account", default=None)


@contextmanager
def charged_to(account: Account | None) -> Iterator[None]:
    """Put an account in force for the calls inside; None is no account."""
    token = _account.set(account)
    try:
        yield
    finally:
        _account.reset(token)


def current_account() -> Account | None:
    """Return the account in force, if there is one."""
    return _account.get()


class Gate:
    """Whether a run may send requests; closed once, when a row is refused.

    Attributes
    ----------
    closed : bool
        Whether no try may be begun any more.
    """

    def __init__(self) -> None:
        self.closed = False


_gate: ContextVar[Gate | None] = ContextVar("gate", default=None)


@contextmanager
def stopping_at_refusals(on_row_error: str) -> Iterator[None]:
    """Stop sending at the first refused row of the calls inside, under ``"raise"``."""
    token = _gate.set(Gate() if on_row_error == "raise" else None)
    try:
        yield
    finally:
        _gate.reset(token)


def current_gate() -> Gate | None:
    """Return the gate in force, if there is one."""
    return _gate.get()
