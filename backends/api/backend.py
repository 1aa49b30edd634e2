"""Base class of backends over an OpenAI-compatible API: connection, stopping, pickling."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from backends.api.client import ADDRESS_OPTIONS, make_client
from backends.api.connection import Connection
from backends.api.credentials import in_address, in_fields
from backends.api.retries import Pace
from blackbox.backend import BaseBackend
from blackbox.images import checked_side
from blackbox.protocol import RenderedPrompt, TimeEstimate

__all__ = ["ApiBackend"]


class ApiBackend(BaseBackend):
    """A backend over an OpenAI-compatible API.

    Parameters
    ----------
    options : dict
        The arguments of the subclass that make the same backend again: ``model``, ``base_url``,
        ``api_key_env``, ``api_version``, ``default_headers``, ``max_concurrency``,
        ``requests_per_minute``, ``tokens_per_minute``, ``max_attempts``, ``timeout``,
        ``extra_body`` and its own.
    client : openai.OpenAI or None
        The user's own client.

    Raises
    ------
    ValueError
        If options contradict the client, or one has a value that can't be used.
    """

    _load: str = "load"
    """The function of `backends` that makes the backend of this class."""

    _name: str = "openai"
    """The name by which it does."""

    def __init__(self, options: dict[str, Any], client: Any) -> None:
        self._options = options
        self._own_client = client is not None
        reached = {name: options[name] for name in ADDRESS_OPTIONS}
        renew = partial(make_client, None, options["timeout"], **reached)
        self._server = Connection(
            make_client(client, options["timeout"], **reached),
            options["model"],
            Pace(options["requests_per_minute"], options["tokens_per_minute"]),
            options["max_attempts"],
            renew=renew if client is None else None,
            timeout=options["timeout"],
            secrets=[*in_fields(options["extra_body"]), *in_fields(options["default_headers"])],
        )
        self._server.max_image_side = checked_side(options.get("max_image_side"))
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

    def estimate_seconds(
        self, calls: Sequence[Sequence[RenderedPrompt]], n_tokens: float
    ) -> TimeEstimate:
        """Return about how long calls take, by the requests that were answered so far."""
        return self._server.times.estimate(
            [self._n_requests(some) for some in calls],
            n_tokens,
            at_a_time=self._options["max_concurrency"],
            a_minute={
                "requests": self._options["requests_per_minute"],
                "tokens": self._options["tokens_per_minute"],
            },
        )

    def _n_requests(self, prompts: Sequence[RenderedPrompt]) -> int:
        """Return the number of requests of one call."""
        return len(prompts)

    @contextmanager
    def _stoppable(self) -> Iterator[threading.Event]:
        """An event that `finish` sets while the work inside goes on."""
        stop = threading.Event()
        self._stops.add(stop)
        try:
            yield stop
        finally:
            self._stops.discard(stop)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str, dict[str, Any]]]:
        if self._own_client:
            raise TypeError(
                "a backend that was given its client can't be pickled: pickle the name and options "
                "and let it make its client, or save the model with save()"
            )
        fields = self._options["extra_body"], self._options["default_headers"]
        if in_address(self._options["base_url"] or "") or any(map(in_fields, fields)):
            raise TypeError(
                "a backend with a password in base_url or a credential in extra_body or "
                "default_headers can't be pickled: give the address by OPENAI_BASE_URL, or save "
                "the model with save()"
            )
        return _reload, (self._load, self._name, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options['model']!r})"


def _reload(load: str, name: str, options: dict[str, Any]) -> Any:
    import backends

    given = {key: value for key, value in options.items() if value is not None}
    return getattr(backends, load)(name, **given)
