"""An HTTP protocol for uvicorn with timeouts for slow clients and a limit on the size of headers.

uvicorn has no timeout for the first request of a connection, for the rest of a head, or for a
client that doesn't read its response, and any byte ends its keep-alive timeout. A client with many
such connections could use up all that a process may open. Here only a whole head ends the timeout,
and a head has a size limit. (The head of a request is its first line and its headers.) Trailers,
the headers after a chunked body, are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from blackbox.service.logs import UNREADABLE_LOG
from blackbox.service.problems import Problem, problem_body
from blackbox.service.request_heads import HEAD_TOO_LARGE, MAX_HEAD_BYTES, check_head

__all__ = ["timeout_protocol"]

_MAX_TRAILER_BYTES = 1 << 19  # more than one read, which may contain chunks of the body as well


# a line per hostile request would fill a disk: they are counted
_log = logging.getLogger(UNREADABLE_LOG)
_log.setLevel(logging.ERROR)


def _ignore(status: int) -> None:
    """Count nothing."""


class _TimeoutProtocol(HttpToolsProtocol):
    """Closes a connection whose client sends or reads too slowly."""

    timeout = 0.0
    on_unreadable = staticmethod(_ignore)
    _is_head_open = _is_trailer_open = False
    _head_bytes = 0
    _problem: Problem | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.logger = _log
        self._start_head_timer(self.timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        self._cancel_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_open = self._is_head_open
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_head_open:
            self._continue_head(data, was_open)
        elif self._is_trailer_open:
            # trailers after a chunked body aren't part of it, so no limit on the body applies
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_TRAILER_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        self._is_head_open, self._head_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # a trailer would join the headers, where it could stand for a Host or an Authorization
        if self._is_head_open:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        upgrades = self.parser.should_upgrade()
        try:
            check_head(self.url, self.headers, self.parser.get_http_version(), upgrades=upgrades)
        except Problem as problem:
            self._problem = problem
            raise
        self._is_head_open = False
        self._cancel_head_timer()
        super().on_headers_complete()
        if upgrades:
            # the parser skips what comes next, so the rest of this connection can't be read
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif not self._is_busy:
            # uvicorn's own timeout closes an idle connection, but ends with any byte
            idle = 0.0 if self._is_head_open else self.timeout_keep_alive
            self._start_head_timer(max(self.timeout, idle))

    def on_chunk_header(self) -> None:
        self._is_trailer_open, self._head_bytes = True, 0

    def on_body(self, body: bytes) -> None:
        self._is_trailer_open = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_trailer_open = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._check_read_progress()

    def resume_writing(self) -> None:
        self._cancel_read_timer()
        super().resume_writing()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that can't be read, unless the response to one is under way."""
        if self._is_busy and not self._is_reading_body:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        problem = self._problem or Problem(400, "this is no HTTP request that can be read")
        self.on_unreadable(problem.status)
        self.transport.write(_encode_problem(problem))
        self.transport.close()
        self._abort_later()

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_reading_body(self) -> bool:
        """Whether the body of the only request isn't complete and its response hasn't begun."""
        return (
            self.cycle.more_body
            and not self.cycle.response_started
            and not self.pipeline
            and not self._is_head_open
        )

    def _continue_head(self, data: bytes, was_open: bool) -> None:
        """Handle a part of a head that isn't the last."""
        if self._is_busy:
            # the next request, and its timeout, wait until this one is answered
            self.flow.pause_reading()
        elif not was_open:
            self._start_head_timer(self.timeout)
        else:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._problem = Problem(431, HEAD_TOO_LARGE)
                self.send_400_response("")

    def _start_head_timer(self, seconds: float) -> None:
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _check_read_progress(self, previous: float = float("inf")) -> None:
        """Abort the connection unless half of the waiting data was read since the last check."""
        waiting = self.transport.get_write_buffer_size()
        if waiting > previous / 2:
            self.transport.abort()
        else:
            self._read_timer = self.loop.call_later(
                self.timeout, self._check_read_progress, waiting
            )

    def _cancel_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _abort_later(self) -> None:
        """Abort after the timeout, as closing would wait forever for the client to read."""
        if self._read_timer is None and self.transport.get_write_buffer_size():
            self._read_timer = self.loop.call_later(self.timeout, self.transport.abort)


def _encode_problem(problem: Problem) -> bytes:
    """Encode a whole response where there is no request that the application could answer."""
    request_id = secrets.token_hex(8)
    body = problem_body(problem.status, problem.detail, request_id)
    head = (
        b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
        b"x-request-id: %s\r\nconnection: close\r\n\r\n"
    )
    reason = HTTPStatus(problem.status).phrase.encode()
    return head % (problem.status, reason, len(body), request_id.encode()) + body


def timeout_protocol(
    timeout: float, on_unreadable: Callable[[int], None] = _ignore
) -> type[HttpToolsProtocol]:
    """Create a protocol class for `uvicorn.Config(http=...)`.

    Parameters
    ----------
    timeout : float
        Seconds within which the head of a request must arrive, and within which a client must read
        half of the response data that waits for it.
    on_unreadable : callable, optional
        Called with the status of each request that is refused before the application sees it.
    """
    own = {"timeout": timeout, "on_unreadable": staticmethod(on_unreadable)}
    return type("TimeoutProtocol", (_TimeoutProtocol,), own)
