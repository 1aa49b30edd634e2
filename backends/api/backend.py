"""Base class of backends over an OpenAI-compatible API: connection, stopping, pickling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from backends.api.client import make_client
from backends.api.connection import Connection
from backends.api.credentials import in_address, in_fields
from backends.api.retries import Pace
from blackbox.backend import BaseBackend

__all__ = ["ApiBackend"]


class ApiBackend(BaseBackend):
    """A backend over an OpenAI-compatible API.

    Parameters
    ----------
    options : dict
        The arguments of the subclass that make the same backend again: ``model``, ``base_url``,
        ``requests_per_minute``, ``tokens_per_minute``, ``max_attempts``, ``timeout``,
        ``extra_body`` and its own.
    client : openai.OpenAI or None
        The user's own client.
    key_variable : str, default="OPENAI_API_KEY"
        The environment variable with the key.
    """

    _load: str
    """The function of `backends` that makes the backend of this class called ``"openai"``."""

    def __init__(
        self, options: dict[str, Any], client: Any, key_variable: str = "OPENAI_API_KEY"
    ) -> None:
        self._options = options
        self._own_client = client is not None
        self._server = Connection(
            make_client(client, options["base_url"], options["timeout"], key_variable),
            options["model"],
            Pace(options["requests_per_minute"], options["tokens_per_minute"]),
            options["max_attempts"],
            owned=client is None,
            timeout=options["timeout"],
            secrets=in_fields(options["extra_body"]),
        )
        self._lock = threading.RLock()
        self._stops: set[threading.Event] = set()

    def check(self) -> bool:
        """Return that the API answers, found out for nothing.

        Raises
        ------
        BackendError
            If it doesn't.
        """
        self._server.check()
        return True

    def finish(self) -> bool:
        """Begin no more requests: calls under way end with the answers that are under way."""
        for stop in list(self._stops):
            stop.set()
        return True

    @contextmanager
    def _stoppable(self) -> Iterator[threading.Event]:
        """An event that `finish` sets while the work inside goes on."""
        stop = threading.Event()
        self._stops.add(stop)
        try:
            yield stop
        finally:
            self._stops.discard(stop)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, Any]]]:
        if self._own_client:
            raise TypeError(
                "a backend that was given its client can't be pickled: pickle the name and options "
                "and let it make its client, or save the model with save()"
            )
        if in_address(self._options["base_url"] or "") or in_fields(self._options["extra_body"]):
            raise TypeError(
                "a backend with a password in base_url or a credential in extra_body can't be "
                "pickled: give the address by OPENAI_BASE_URL, or save the model with save()"
            )
        return _reload, (self._load, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options['model']!r})"


def _reload(load: str, options: dict[str, Any]) -> Any:
    import backends

    given = {key: value for key, value in options.items() if value is not None}
    return getattr(backends, load)("openai", **given)
