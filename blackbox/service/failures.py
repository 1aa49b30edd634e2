"""Why a language model fails: the kind of error and its HTTP status, without its message.

A provider's message may repeat the text that it was sent, which belongs neither in the log nor in
the response to another client. `blackbox probe` shows it to whoever runs the service.
"""

from __future__ import annotations

from dataclasses import dataclass

from blackbox.errors import BackendIdentityError, ModelNotFoundError

__all__ = ["KINDS", "Failure", "failure_of"]

KINDS = {
    "timeout": "it doesn't answer in time",
    "rate_limit": "it takes no more requests for now",
    "connection": "it can't be reached",
    "refused": "it refuses what it is sent",
    "other": "it ends with an error",
}
"""Kinds of error, and their description for clients and the log."""


@dataclass(frozen=True)
class Failure:
    """The reason why an LM fails.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    status : int or None
        HTTP status of an API's response.
    """

    kind: str
    status: int | None = None

    def __str__(self) -> str:
        description = KINDS[self.kind]
        return description if self.status is None else f"{description} (status {self.status})"


def failure_of(error: BaseException) -> Failure:
    """Return the failure that an error stands for.

    It is found along the chain of causes: by an attribute `kind`, one of `KINDS`, which a backend
    gave to the error, with `status` if there is one, or else by the type of the exception.
    """
    cause: BaseException | None = error
    while cause is not None:
        kind = getattr(cause, "kind", None)
        if isinstance(kind, str) and kind in KINDS:
            status = getattr(cause, "status", None)
            return Failure(kind, status if isinstance(status, int) else None)
        if isinstance(cause, TimeoutError):
            return Failure("timeout")
        if isinstance(cause, ConnectionError):
            return Failure("connection")
        if isinstance(cause, ModelNotFoundError | BackendIdentityError):
            return Failure("refused")
        cause = cause.__cause__
    return Failure("other")
