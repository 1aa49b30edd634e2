"""What is told of an LM that fails: a class of error and a status, never its own words.

A provider's words may repeat the text that it was sent, and neither the log nor another client may
see that. `blackbox probe` shows them to whoever runs the service.
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
"""Classes of error, in words."""


@dataclass(frozen=True)
class Failure:
    """Why an LM fails.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    status : int or None
        What an API answered with.
    """

    kind: str
    status: int | None = None

    def __str__(self) -> str:
        said = KINDS[self.kind]
        return said if self.status is None else f"{said} (status {self.status})"


def failure_of(error: BaseException) -> Failure:
    """The class of an error, by what a backend marked it or what it came from with.

    A mark is an attribute `kind`, one of `KINDS`, beside which `status` may stand.
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
