"""Refusals and defects as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

__all__ = [
    "DEFECT",
    "EXAMPLE_DETAILS",
    "RETRY_AFTER",
    "TITLES",
    "Problem",
    "problem_body",
    "problem_response",
]

RETRY_AFTER = 5.0
"""Seconds after which a client should try again."""

DEFECT = "a defect of the service; its log says more"
"""The detail of a problem with status 500."""

TITLES = {
    400: "Bad request",
    401: "Not authorised",
    404: "Not found",
    405: "Method not allowed",
    408: "Body came too slowly",
    413: "Too large",
    415: "Not JSON",
    421: "Not this host",
    422: "Not understood",
    429: "Too many requests",
    431: "Head too large",
    499: "Client gone",
    500: "Defect",
    501: "Not implemented",
    503: "Not available",
    504: "Took too long",
    505: "HTTP version not served",
}

EXAMPLE_DETAILS = {
    400: "the body is no JSON: EOF while parsing a string at line 1 column 9",
    401: "send a token: Authorization: Bearer TOKEN",
    404: "no model of that name; GET /v1/models names them",
    405: "method not allowed",
    408: "the body didn't arrive in time",
    413: "a body has at most 1048576 bytes; send fewer texts at a time",
    415: "send JSON: Content-Type: application/json",
    421: "this service doesn't go by that host name (--allowed-host)",
    422: "a request has at most 256 texts",
    429: "the service makes 600 forward passes a minute",
    431: "the head of a request has at most 16384 bytes",
    500: DEFECT,
    501: "the only transfer coding here is chunked: send no other",
    503: "the language model fails: it can't be reached",
    504: "no answer in 30 s; send fewer texts at a time",
    505: "send HTTP/1.1",
}
"""An example of a detail for each status, for the OpenAPI description."""


class Problem(Exception):  # noqa: N818  # the term of RFC 9457
    """A refusal, which becomes the response.

    Parameters
    ----------
    status : int
        The HTTP status.
    detail : str
        One line: what is wrong and what to do. Never a client's text.
    retry_after : float, optional
        Seconds after which the client should try again.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after
        self.members: Mapping[str, Any] = {}  # of the body, beside those of any problem

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def problem_body(
    status: int, detail: str, request_id: str, members: Mapping[str, Any] | None = None
) -> bytes:
    """Return the body of a problem; `error` is the field of the Open Inference Protocol."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(status, "Refused"),
        "status": status,
        "detail": detail,
        "error": detail,
        "request_id": request_id,
        **(members or {}),
    }
    return json.dumps(body).encode()


def problem_response(problem: Problem, request_id: str) -> Response:
    """Return a problem as a response."""
    body = problem_body(problem.status, problem.detail, request_id, problem.members)
    return Response(body, problem.status, problem.headers, "application/problem+json")
