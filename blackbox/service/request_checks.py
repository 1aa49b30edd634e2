"""ASGI middleware that refuses requests: by host name, token, content type, and size or slow body.

A request is refused before its body is read, let alone parsed. A header that matters here occurs
once: see `blackbox.service.request_heads`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Collection, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blackbox.service.problems import Problem, problem_body
from blackbox.service.settings import ANY_HOST, Tokens

__all__ = ["PROBED_PATHS", "BearerToken", "BodyLimit", "JsonContentType", "TrustedHost"]

# these need no token, as they reveal nothing about the models and never call a language model
_OPEN_PATHS = frozenset(
    {"/", "/page.js", "/page.css", "/favicon.svg", "/openapi.json", "/healthz", "/readyz"}
)
PROBED_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that probes and monitors ask for, under any host name."""
_PLAIN = (b"", b"identity")
_JSON = re.compile(rb"application/([a-z0-9.+-]+\+)?json\s*(;.*)?", re.IGNORECASE)
# most clients read no answer before they have sent all, and a closed connection resets them
_DRAIN_SECONDS = 5.0  # time during which the rest of a refused body is still read
_MAX_DRAINED_BYTES = 1 << 27


class TrustedHost:
    """Refuses a request whose Host header names none of the allowed hosts.

    Health checks and metrics are open: a probe asks by an address that nobody gave a name, and what
    they return has no text.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self._app, self._allowed_hosts = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        host = _header(scope, b"host").decode("latin-1").lower()
        if (
            ANY_HOST not in self._allowed_hosts
            and scope["path"] not in PROBED_PATHS
            and _without_port(host) not in self._allowed_hosts
        ):
            problem = Problem(421, "this service doesn't go by that host name (--allowed-host)")
            await _refuse(scope, receive, send, problem)
        else:
            await self._app(scope, receive, send)


class BearerToken:
    """Refuses a request without a valid bearer token, except for the page and the health checks."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app, self._tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if (
            self._tokens
            and scope["path"] not in _OPEN_PATHS
            and not self._tokens.accept(_header(scope, b"authorization"))
        ):
            problem = Problem(401, "send a token: Authorization: Bearer TOKEN")
            await _refuse(scope, receive, send, problem)
        else:
            await self._app(scope, receive, send)


class JsonContentType:
    """Refuses a POST request to one of some paths if its content type isn't JSON."""

    def __init__(self, app: ASGIApp, paths: Sequence[re.Pattern[str]]) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if (
            scope["method"] == "POST"
            and not _JSON.fullmatch(_header(scope, b"content-type"))
            and any(path.match(scope["path"]) for path in self._paths)
        ):
            problem = Problem(415, "send JSON: Content-Type: application/json")
            await _refuse(scope, receive, send, problem)
        elif scope["method"] == "POST" and _header(scope, b"content-encoding") not in _PLAIN:
            problem = Problem(415, "send the body as it is, without Content-Encoding")
            await _refuse(scope, receive, send, problem)
        else:
            await self._app(scope, receive, send)


class BodyLimit:
    """Reads the body of a request, up to a size and within a read timeout, before the app runs."""

    def __init__(self, app: ASGIApp, max_bytes: int, read_timeout: float) -> None:
        self._app, self._max_bytes, self._read_timeout = app, max_bytes, read_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with its whole body."""
        body = b""
        if _has_body(scope):
            try:
                body = await self._read(scope, receive)
            except Problem as problem:
                await _refuse(scope, receive, send, problem)
                return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._max_bytes
        too_large = Problem(413, f"a body has at most {limit} bytes; send fewer texts at a time")
        content_length = _header(scope, b"content-length")
        if content_length.isdigit() and int(content_length) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "the body broke off")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Problem(408, "the body didn't arrive in time") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was already read."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(scope: Scope, receive: Receive, send: Send, problem: Problem) -> None:
    """Answer with a problem before the body was read; if there is a body, close the connection."""
    has_body = _has_body(scope)
    body = problem_body(problem.status, problem.detail, scope["state"]["request_id"])
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    headers += [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if has_body:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": has_body})
    if has_body:
        await _drain(receive)
        await send({"type": "http.response.body", "body": b""})


async def _drain(receive: Receive) -> None:
    """Read the rest of a body and drop it, so that the client sees the response."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while size < _MAX_DRAINED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _header(scope: Scope, name: bytes) -> bytes:
    """Return a header of the request; empty if it is missing."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    return headers.get(name, b"")


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and not name.endswith(":") else host
