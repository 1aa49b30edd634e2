"""Connections that end when a request's head doesn't arrive in time.

uvicorn ends connections that stay silent between requests, but would wait for ever for the first
request, or for the rest of a head; whoever opens many of those would hold all that a process may
open.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["protocol_with"]


class _Impatient(HttpToolsProtocol):
    """HTTP that closes a connection whose head takes too long."""

    head_timeout = 0.0
    _timer: asyncio.TimerHandle | None = None
    _is_head_open = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # a head that came whole needs no timer
        if not self._is_head_open:
            self._stop()
        elif self._timer is None:
            self._wait()

    def on_message_begin(self) -> None:
        self._is_head_open = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_head_open = False
        super().on_headers_complete()

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def protocol_with(head_timeout: float) -> type[HttpToolsProtocol]:
    """The protocol for `uvicorn.Config`, with the seconds that a request's head may take."""
    return type("Impatient", (_Impatient,), {"head_timeout": head_timeout})
