"""JSON bodies of requests and responses, and problems as responses."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from blackbox.service.problems import DEFECT, TITLES, Problem, problem_response

__all__ = [
    "add_problem_handlers",
    "encode_json",
    "encoded_json_response",
    "json_response",
    "parse_body",
]

_MAX_ERRORS = 20  # of a body, up to which the first is described: describing one makes them all
_KNOWN_FIELDS = frozenset(
    {
        "text",
        "texts",
        "text_pair",
        "model",
        "explain",
        "max_error",
        "set_coverage",
        "inputs",
        "outputs",
        "data",
        "shape",
        "name",
        "datatype",
        "id",
        "parameters",
        "input",
        "state",
        "questions",
        "type",
        "instructions",
        "choices",
        "criteria",
        "value",
    }
)


def parse_body(schema: type[Any], body: bytes) -> Any:
    """Parse the body of a request as an instance of a pydantic model.

    Raises
    ------
    Problem
        If it isn't JSON (400), or doesn't fit the schema (422).
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _body_problem(error, schema) from None


def _body_problem(error: ValidationError, schema: type[Any]) -> Problem:
    if error.error_count() > _MAX_ERRORS:
        return Problem(
            422, f"body: {error.error_count()} mistakes; GET /openapi.json says what is taken"
        )
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is no JSON: {first['msg'].partition(': ')[2]}")
    # of the location only indices and the fields that we know: other names are the client's words
    location = ".".join(
        str(part) for part in first["loc"] if isinstance(part, int) or part in _KNOWN_FIELDS
    )
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        known = ", ".join(field.alias or name for name, field in schema.model_fields.items())
        return Problem(422, f"body: a field that isn't known; it takes {known}")
    return Problem(422, f"{location or 'body'}: {first['msg']}")


def encode_json(value: Any) -> bytes:
    """Encode a value as JSON without spaces."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return data.encode("utf-8", "backslashreplace")


def json_response(body: dict[str, Any]) -> Response:
    """Return a response with a JSON body."""
    return encoded_json_response(encode_json(body))


def encoded_json_response(data: bytes) -> Response:
    """Return a response whose JSON body is already encoded."""
    return Response(data, media_type="application/json")


def add_problem_handlers(app: FastAPI) -> None:
    """Make an application answer each exception with a problem (RFC 9457)."""
    app.add_exception_handler(Problem, _handle_problem)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(Exception, _handle_defect)


async def _handle_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem_response(problem, request.state.request_id)


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = TITLES.get(error.status_code, "Refused").lower()
    response = problem_response(Problem(error.status_code, detail), request.state.request_id)
    response.headers.update(error.headers or {})
    return response


async def _handle_defect(request: Request, error: Exception) -> Response:
    return problem_response(Problem(500, DEFECT), request.state.request_id)
