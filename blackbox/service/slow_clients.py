"""Connections that end when a client sends its request, or reads its answer, too slowly.

uvicorn waits for ever for the first request, for the rest of a head, and for whoever doesn't read;
and any byte ends its wait for the next request. Whoever opens many such connections would hold all
that a process may open. Here only a whole head ends a wait, and a head has a limit.
"""

from __future__ import annotations

import asyncio
import secrets

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from blackbox.service.problems import Problem, problem_body

__all__ = ["MOST_HEAD", "protocol_with"]

MOST_HEAD = 1 << 14
"""Bytes of a request's head."""

_MOST_TRAILER = 1 << 19  # more than comes at a time, which may hold other chunks too
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class _LargeHeadError(Exception):
    """A head over the limit."""


class _TimeoutProtocol(HttpToolsProtocol):
    """HTTP that closes a connection whose client is too slow."""

    patience = 0.0
    _is_head_open = _is_trailer_open = False
    _head_bytes = 0
    _is_too_large = False
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self._end_reading()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_open = self._is_head_open
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_head_open:
            self._go_on_with_head(data, was_open)
        elif self._is_trailer_open:
            # headers after a body in chunks, which no reading of the body sees
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_TRAILER:
                self.transport.abort()

    def on_message_begin(self) -> None:
        self._is_head_open, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD:
            self._is_too_large = True
            raise _LargeHeadError
        self._is_head_open = False
        self._end_wait()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()
        elif self._is_head_open and not self._is_busy:
            self._wait()

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
        self._watch_reader()

    def resume_writing(self) -> None:
        self._end_reading()
        super().resume_writing()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has too large a head; after what is being answered."""
        if self._is_busy:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        problem = Problem(400, "this is no HTTP request that can be read")
        if self._is_too_large:
            problem = Problem(431, f"the head of a request has at most {MOST_HEAD} bytes")
        self.transport.write(_written(problem))
        self.transport.close()
        self._abort_later()

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _go_on_with_head(self, data: bytes, was_open: bool) -> None:
        """After a part of a head that isn't the last."""
        if self._is_busy:
            # the next request waits until this one is answered, and so does its clock
            self.flow.pause_reading()
        elif not was_open:
            self._wait()
        else:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD:
                self._is_too_large = True
                self.send_400_response("")

    def _wait(self) -> None:
        self._end_wait()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.patience, self.timeout_keep_alive_handler
        )

    def _end_wait(self) -> None:
        super()._unset_keepalive_if_required()

    def _unset_keepalive_if_required(self) -> None:
        """Called for every byte that comes, which is not yet a request."""

    def _watch_reader(self, before: float = float("inf")) -> None:
        """What waits to be read must become half as long, time after time."""
        left = self.transport.get_write_buffer_size()
        if left > before / 2:
            self.transport.abort()
        else:
            self._reader = self.loop.call_later(self.patience, self._watch_reader, left)

    def _end_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _abort_later(self) -> None:
        """Closing waits until all is read: not for ever."""
        if self._reader is None and self.transport.get_write_buffer_size():
            self._reader = self.loop.call_later(self.patience, self.transport.abort)


def _written(problem: Problem) -> bytes:
    """A refusal as it goes out where there is no request to answer."""
    request_id = secrets.token_hex(8)
    body = problem_body(problem.status, problem.detail, request_id)
    head = (
        b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
        b"x-request-id: %s\r\nconnection: close\r\n\r\n"
    )
    reason = _REASONS[problem.status]
    return head % (problem.status, reason, len(body), request_id.encode()) + body


def protocol_with(patience: float) -> type[HttpToolsProtocol]:
    """The protocol for `uvicorn.Config`.

    Parameters
    ----------
    patience : float
        Seconds in which a request's head must arrive, and half of an answer be read.
    """
    return type("Impatient", (_TimeoutProtocol,), {"patience": patience})
