"""What stands before every route: hosts, tokens, sizes, slow bodies, headers, and the clock.

Plain ASGI, so that it costs little and sees a body before anything parses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from blackbox.service.metrics import Metrics
from blackbox.service.problems import Problem, problem_body
from blackbox.service.settings import Settings

__all__ = ["OPEN_ROUTES", "Guard"]

OPEN_ROUTES = frozenset({"/", "/page.js", "/page.css", "/healthz", "/readyz"})
"""Routes that need no token: they tell nothing of models and ask no LM."""

Scope = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[dict[str, Any]], Any]

_log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_JSON = re.compile(rb"application/([a-z0-9.+-]+\+)?json\s*(;.*)?", re.IGNORECASE)
_LINGER = 1.0  # seconds for which a body that was refused is still taken
_MOST_DRAINED = 1 << 20
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """Lets a request through to an ASGI application, or answers with a problem.

    Parameters
    ----------
    app : ASGI application
        What answers.
    settings : Settings
        What is refused.
    metrics : Metrics
        Where requests are counted.
    direct : mapping of (method, path) to coroutine function
        What takes a body and gives a response without the application.
    takes_json : callable
        Whether there is a route at a path that takes a body.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        metrics: Metrics,
        direct: Mapping[tuple[str, str], Callable[[bytes], Any]],
        takes_json: Callable[[str], bool],
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._direct, self._takes_json = direct, takes_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # there is no WebSocket here
            await send({"type": "websocket.close", "code": 1000})
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        status = 500
        begun = False
        unread = _has_body(headers)
        route = ""

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                extra = [*_HEADERS, (b"x-request-id", request_id)]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            try:
                self._check(scope, headers)
                body = await self._body(headers, receive) if unread else b""
                unread = False
                handler = self._direct.get((scope["method"], scope["path"]))
                if handler is None:
                    await self._app(scope, _replay(body, receive), answer)
                else:
                    route = scope["path"]
                    response = await handler(body)
                    await response(scope, receive, answer)
            except Problem as problem:
                await _refuse(answer, problem, request_id.decode(), receive if unread else None)
            except Exception as error:
                # neither the message nor a value: a text may stand in both
                frames = "".join(traceback.format_tb(error.__traceback__))
                _log.error(
                    "defect: %s in request %s\n%s",
                    type(error).__name__,
                    request_id.decode(),
                    frames,
                )
                if not begun:
                    defect = Problem(500, "a defect of the service; its log says more")
                    await _refuse(answer, defect, request_id.decode())
        finally:
            route = route or getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, time.perf_counter() - started)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        # which of two another server in between went by can't be known
        if len(headers) < len(scope["headers"]) and _n_hosts(scope) > 1:
            raise Problem(400, "a request has one Host header")
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _without_port(host) not in self._settings.allowed_hosts:
            raise Problem(421, "this service doesn't go by that host name (--allowed-host)")
        tokens = self._settings.tokens
        if (
            tokens
            and scope["path"] not in OPEN_ROUTES
            and not tokens.accept(headers.get(b"authorization", b""))
        ):
            raise Problem(401, "send a token: Authorization: Bearer TOKEN")
        if (
            scope["method"] == "POST"
            and not _JSON.fullmatch(headers.get(b"content-type", b""))
            and self._takes_json(scope["path"])
        ):
            raise Problem(415, "send JSON: Content-Type: application/json")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most = self._settings.max_body
        claimed = headers.get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > most:
            raise Problem(413, f"a body has at most {most} bytes; send fewer texts at a time")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "the body broke off")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise Problem(
                            413, f"a body has at most {most} bytes; send fewer texts at a time"
                        )
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Problem(408, "the body didn't arrive in time") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which was read already."""
    given = False

    async def replayed() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(
    send: Send, problem: Problem, request_id: str, rest: Receive | None = None
) -> None:
    """Answer with a problem; where a body wasn't read the connection ends."""
    body = problem_body(problem.status, problem.detail, request_id)
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    headers += [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if rest is not None:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": rest is not None})
    if rest is not None:
        await _drain(rest)
        await send({"type": "http.response.body", "body": b""})


async def _drain(receive: Receive) -> None:
    """Read on for a moment: a connection that ends before may take the answer with it."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while size < _MOST_DRAINED:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _n_hosts(scope: Scope) -> int:
    return sum(name == b"host" for name, _ in scope["headers"])


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and not name.endswith(":") else host
