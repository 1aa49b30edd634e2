"""Limits on one HTTP exchange: a deadline for all of it, and a size for its response.

A client's own time-outs are for each read of a socket, so a server that sends a byte now and then
holds a thread for ever; and a compressed response may be a thousand times its size. `install` puts
limits into a client's transports, for exchanges inside `limited` only.
"""

from __future__ import annotations

import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore2
import httpx2

__all__ = ["ResponseTooLargeError", "install", "limited"]

_SLICE = 0.25  # seconds between two looks at the deadline and at whether work was stopped
_WRITTEN = 65_536  # bytes that are written between two looks at the deadline
_UNDER_WAY = 10.0  # seconds that an exchange gets when work is stopped
_ENCODINGS = "gzip, deflate"


class ResponseTooLargeError(Exception):
    """A response is larger than the limit; the rest of it was not read."""


class _Exchange:
    """The deadline and the size limit of one exchange."""

    def __init__(self, seconds: float, max_bytes: int, stop: threading.Event | None) -> None:
        self._until = time.monotonic() + seconds
        self.max_bytes = max_bytes
        self._stop = stop

    def seconds_left(self) -> float:
        """Seconds to the deadline, which comes earlier when work is stopped."""
        now = time.monotonic()
        if self._stop is not None and self._stop.is_set():
            self._until, self._stop = min(self._until, now + _UNDER_WAY), None
        return self._until - now


_exchange: ContextVar[_Exchange | None] = ContextVar("exchange", default=None)


@contextmanager
def limited(seconds: float, max_bytes: int, stop: threading.Event | None = None) -> Iterator[None]:
    """Limit each exchange inside to so many seconds from now, and its response to so many bytes.

    Parameters
    ----------
    seconds : float
        From connecting to the last byte.
    max_bytes : int
        Of the body, decompressed.
    stop : threading.Event, optional
        When it is set, what is under way gets a few seconds more at most.
    """
    token = _exchange.set(_Exchange(seconds, max_bytes, stop))
    try:
        yield
    finally:
        _exchange.reset(token)


def install(client: Any) -> None:
    """Put the limits into the transports of an `httpx2.Client`, once.

    httpx2 has no public way to do so for a client that exists, or that takes its proxies from the
    environment; `tests/test_transport.py` notices when its private names change.
    """
    if not isinstance(client, httpx2.Client):
        return
    client._transport = _limiting(client._transport)
    for pattern, transport in client._mounts.items():
        if transport is not None:
            client._mounts[pattern] = _limiting(transport)


def _limiting(transport: httpx2.BaseTransport) -> httpx2.BaseTransport:
    if isinstance(transport, _LimitedTransport):
        return transport
    pool = getattr(transport, "_pool", None)
    if pool is not None:
        pool._network_backend = _Network(pool._network_backend)
    return _LimitedTransport(transport)


class _LimitedTransport(httpx2.BaseTransport):
    """Reads and decompresses the whole body, within the limits."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self._inner = inner

    def __enter__(self) -> _LimitedTransport:
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)

    def close(self) -> None:
        self._inner.close()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = _exchange.get()
        if exchange is None:
            return self._inner.handle_request(request)
        request.headers["Accept-Encoding"] = _ENCODINGS
        response = self._inner.handle_request(request)
        try:
            body = _read(response, exchange, request)
        finally:
            response.close()
        headers = [
            (name, value)
            for name, value in response.headers.raw
            if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
        ]
        return httpx2.Response(
            response.status_code, headers=headers, content=body, extensions=response.extensions
        )


def _read(response: httpx2.Response, exchange: _Exchange, request: httpx2.Request) -> bytes:
    if response.is_stream_consumed:  # by a transport of the user's, such as one that caches
        if len(response.content) > exchange.max_bytes:
            raise ResponseTooLargeError(_too_large(exchange))
        return response.content
    decode = _decoder(response.headers.get("Content-Encoding", ""))
    parts, room = [], exchange.max_bytes
    for chunk in response.iter_raw():
        if exchange.seconds_left() <= 0:
            raise httpx2.ReadTimeout("the body was not complete in time", request=request)
        try:
            part = decode(chunk, room + 1)
        except zlib.error as error:
            raise httpx2.DecodingError(str(error), request=request) from error
        room -= len(part)
        if room < 0:
            raise ResponseTooLargeError(_too_large(exchange))
        parts.append(part)
    return b"".join(parts)


def _too_large(exchange: _Exchange) -> str:
    return f"the response is larger than {exchange.max_bytes // 2**20} MiB"


def _decoder(encoding: str) -> Callable[[bytes, int], bytes]:
    """A function that decompresses a chunk to so many bytes at most."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return lambda chunk, _: chunk
    if name not in ("gzip", "x-gzip", "deflate"):
        raise httpx2.DecodingError(f"unknown content encoding {name[:40]!r}")
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    raw = False

    def decode(chunk: bytes, at_most: int) -> bytes:
        nonlocal decompressor, raw
        try:
            return decompressor.decompress(chunk, at_most)
        except zlib.error:
            if raw or name != "deflate":
                raise
            # some servers send deflate without its header
            decompressor, raw = zlib.decompressobj(wbits=-zlib.MAX_WBITS), True
            return decompressor.decompress(chunk, at_most)

    return decode


class _Network(httpcore2.NetworkBackend):
    """Connects within the deadline, with the look-up of a name and whatever addresses it has."""

    def __init__(self, inner: httpcore2.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore2.NetworkStream:
        cut = _cut(timeout, httpcore2.ConnectTimeout)
        return _Stream(_in_time(lambda: self._inner.connect_tcp(host, port, cut, *args, **kwargs)))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore2.NetworkStream:
        cut = _cut(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.connect_unix_socket(path, cut, *args, **kwargs))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    """Reads and writes within the deadline, however many reads a response takes."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if _exchange.get() is None:
            return self._inner.read(max_bytes, timeout)
        silent_until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            left = min(silent_until - time.monotonic(), _left())
            if left <= 0:
                raise httpcore2.ReadTimeout("no answer in time")
            try:
                return self._inner.read(max_bytes, min(left, _SLICE))
            except httpcore2.ReadTimeout:
                continue

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITTEN):
            part = buffer[start : start + _WRITTEN]
            self._inner.write(part, _cut(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        cut = _cut(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, cut))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _in_time(connect: Callable[[], httpcore2.NetworkStream]) -> httpcore2.NetworkStream:
    """Return what `connect` does, or raise at the deadline; what comes too late is closed.

    Its own time-out is for each address of a name, and not for finding them.
    """
    if _exchange.get() is None:
        return connect()
    outcome: queue.SimpleQueue[httpcore2.NetworkStream | Exception] = queue.SimpleQueue()
    late = threading.Event()

    def work() -> None:
        try:
            found: httpcore2.NetworkStream | Exception = connect()
        except Exception as error:
            found = error
        outcome.put(found)
        if late.is_set() and not isinstance(found, Exception):
            found.close()

    threading.Thread(target=work, name="connecting", daemon=True).start()
    while True:
        left = _left()
        try:
            found = outcome.get(timeout=max(0.0, min(left, _SLICE)))
        except queue.Empty:
            if left > 0:
                continue
            late.set()
            raise httpcore2.ConnectTimeout("no connection in time") from None
        if isinstance(found, Exception):
            raise found
        return found


def _left() -> float:
    exchange = _exchange.get()
    return float("inf") if exchange is None else exchange.seconds_left()


def _cut(timeout: float | None, error: type[Exception]) -> float | None:
    """A time-out that ends with the deadline."""
    left = _left()
    if left <= 0:
        raise error("no answer in time")
    if left == float("inf"):
        return timeout
    return left if timeout is None else min(timeout, left)
