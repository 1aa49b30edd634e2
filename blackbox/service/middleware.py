"""ASGI middleware around the routes: metrics, traces, ids, headers, defects, clients that leave.

Each class does one job around the application inside it. `with_middleware` puts them in order,
together with those of `request_checks`, which refuse requests.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import traceback
from collections.abc import Sequence

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blackbox.service.logs import ACCESS_LOG, RequestWork, request_work
from blackbox.service.metrics import Metrics
from blackbox.service.problems import DEFECT, Problem, problem_response
from blackbox.service.request_checks import (
    PROBED_PATHS,
    BearerToken,
    BodyLimit,
    JsonContentType,
    TrustedHost,
)
from blackbox.service.settings import ServiceSettings
from blackbox.telemetry import fail, incoming_context, set_attributes, span

__all__ = ["with_middleware"]

_log = logging.getLogger(__name__)
_access_log = logging.getLogger(ACCESS_LOG)

_ACCESS_LINE = (
    "%(client)s %(method)s %(route)s %(status)d in %(seconds)f s, rows=%(rows)d "
    "passes=%(passes)d request_id=%(request_id)s"
)
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def with_middleware(
    app: ASGIApp, settings: ServiceSettings, metrics: Metrics, routes: Sequence[APIRoute]
) -> ASGIApp:
    """Wrap an application in all the middleware of the service.

    Parameters
    ----------
    app : ASGI application
        The routes.
    settings : ServiceSettings
        Hosts, tokens and limits.
    metrics : Metrics
        Counts each request.
    routes : sequence of APIRoute
        Those of the application; the ones that accept POST take JSON.
    """
    json_paths = [route.path_regex for route in routes if "POST" in (route.methods or ())]
    # from the innermost to the outermost, which sees a request first and its response last
    http: ASGIApp = ClientGone(app)
    http = BodyLimit(http, settings.max_body, settings.read_timeout)
    http = JsonContentType(http, json_paths)
    http = BearerToken(http, settings.tokens)
    http = TrustedHost(http, settings.allowed_hosts)
    http = DefectHandler(http)
    http = SecurityHeaders(http)
    http = RequestMetrics(http, metrics, routes)
    http = RequestTraces(http, routes)
    http = RequestId(http)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await app(scope, receive, send)
        else:
            # there are no WebSockets here
            await send({"type": "websocket.close", "code": 1000})

    return application


class RequestMetrics:
    """Counts, times and logs each request, by its route and status.

    Paths, queries and headers may hold a client's text and are not logged; a path without a route
    is "other".
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[APIRoute]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 500
        work = RequestWork()
        request_work.set(work)

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            route = _route_of(scope, self._routes) or "other"
            seconds = time.perf_counter() - started
            self._metrics.count_request(route, status, seconds)
            if _access_log.isEnabledFor(logging.INFO):
                fields = {
                    "client": (scope.get("client") or ("-",))[0],
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "rows": work.rows,
                    "passes": work.passes,
                    "request_id": scope["state"]["request_id"],
                }
                _access_log.info(_ACCESS_LINE, fields)


class RequestTraces:
    """Records each request as a span, by its route and status, inside the trace of its client.

    Paths, queries and headers may hold a client's text and are in no attribute. Health checks and
    requests for metrics come every few seconds and are not recorded.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[APIRoute]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBED_PATHS:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        known = {"http.request.method": method, "url.scheme": scope["scheme"]}
        sender = incoming_context(Headers(scope=scope))
        with span(method, "SERVER", known, [sender]) as request:

            async def send_and_note_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    set_attributes(request, {"http.response.status_code": status})
                    if status >= 500:
                        fail(request, str(status))
                await send(message)

            try:
                await self._app(scope, receive, send_and_note_status)
            finally:
                route = _route_of(scope, self._routes)
                if route and request is not None:
                    request.update_name(f"{method} {route}")
                    set_attributes(request, {"http.route": route})


class RequestId:
    """Gives each request an id, the client's own if it is well formed, and returns it in a header.

    Inside, it is `scope["state"]["request_id"]`, which is `request.state.request_id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = dict(scope["headers"]).get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        await self._app(scope, receive, _adding_headers(send, [(b"x-request-id", request_id)]))


class SecurityHeaders:
    """Adds to each response the headers that tell browsers what not to do with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, _adding_headers(send, _SECURITY_HEADERS))


class DefectHandler:
    """Logs an unexpected exception, and answers with status 500 if no response has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_and_note_start(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_start)
        except Exception as error:
            # neither the message nor a value: either may contain a client's text
            frames = "".join(traceback.format_tb(error.__traceback__))
            request_id = scope["state"]["request_id"]
            _log.error("defect: %s in request %s\n%s", type(error).__name__, request_id, frames)
            if not begun:
                response = problem_response(Problem(500, DEFECT), request_id)
                await response(scope, receive, send)


class ClientGone:
    """Gives up a request whose client has hung up, and counts it with status 499.

    Otherwise its texts would wait in the queue, where others are refused for want of room, and the
    language model would work for nobody. Whether a client is there can be told only once the whole
    body has been read; a response that has begun ends by itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = gone = False
        watching: asyncio.Task[None] | None = None
        request = asyncio.current_task()
        assert request is not None

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            if not begun:
                gone = True
                request.cancel()

        async def receive_and_watch() -> Message:
            nonlocal watching
            message = await receive()
            if watching is None and not message.get("more_body"):
                watching = asyncio.create_task(watch())
            return message

        async def send_and_note_start(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive_and_watch, send_and_note_start)
        except asyncio.CancelledError:
            if not gone or request.uncancel():  # by the server, which ends
                raise
            problem = Problem(499, "the client has hung up")  # which nobody reads
            await problem_response(problem, scope["state"]["request_id"])(scope, receive, send)
        finally:
            if watching is not None:
                watching.cancel()


def _route_of(scope: Scope, routes: Sequence[APIRoute]) -> str | None:
    """Return the route of a request, also of one that was refused before the router saw it."""
    found = scope.get("route")
    if found is None:
        found = next((route for route in routes if route.path_regex.match(scope["path"])), None)
    return getattr(found, "path", None)


def _adding_headers(send: Send, extra: Sequence[tuple[bytes, bytes]]) -> Send:
    """Return a `send` that adds headers to the response, unless it has its own of that name."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = message.get("headers", [])
            names = {name.lower() for name, _ in own}
            added = [(name, value) for name, value in extra if name not in names]
            message = {**message, "headers": [*own, *added]}
        await send(message)

    return send_with_headers
