"""Bodies in and out: JSON, problems, and the description of both (OpenAPI)."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from blackbox.service.problems import DETAILS, TITLES, Problem, problem_body
from blackbox.service.schemas import PredictRequest, ProblemDetails
from blackbox.service.v2_schemas import InferRequest

__all__ = [
    "add_problems",
    "answer_of",
    "body_of",
    "described",
    "json_answer",
    "json_bytes",
    "parse",
    "problems",
]

_MOST_MISTAKES = 20  # in a body, of which the first is told: all of them are made to find it
_EVERYWHERE = (400, 405, 408, 413, 421, 431, 500)  # what any route may refuse with


def parse(kind: type[Any], body: bytes) -> Any:
    """A message out of a request's body.

    Raises
    ------
    Problem
        If it is no JSON (400), or another message (422).
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > _MOST_MISTAKES:
            raise Problem(
                422, f"body: {error.error_count()} mistakes; GET /openapi.json says what is taken"
            ) from None
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise Problem(400, f"the body is no JSON: {first['msg'].partition(': ')[2]}") from None
        # of the place only the names that we know, and numbers: others are the client's words
        known = {
            "text",
            "texts",
            "text_pair",
            "model",
            "explain",
            "inputs",
            "outputs",
            "data",
            "shape",
            "name",
            "datatype",
            "id",
            "parameters",
        }
        place = ".".join(
            str(part) for part in first["loc"] if isinstance(part, int) or part in known
        )
        raise Problem(422, f"{place or 'body'}: {first['msg']}") from None


def json_bytes(value: Any) -> bytes:
    """JSON without spaces."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return data.encode("utf-8", "backslashreplace")


def answer_of(data: bytes) -> Response:
    """An answer of JSON that is written already."""
    return Response(data, media_type="application/json")


def json_answer(body: dict[str, Any]) -> Response:
    """An answer of JSON."""
    return answer_of(json_bytes(body))


def add_problems(app: FastAPI) -> None:
    """Whatever goes wrong is told as a problem (RFC 9457)."""
    app.add_exception_handler(Problem, _refused)
    app.add_exception_handler(HTTPException, _http_refused)
    app.add_exception_handler(Exception, _defect)


async def _refused(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    body = problem_body(problem.status, problem.detail, request.state.request_id)
    return Response(body, problem.status, problem.headers, "application/problem+json")


async def _http_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = TITLES.get(error.status_code, "Refused").lower()
    body = problem_body(error.status_code, detail, request.state.request_id)
    headers = dict(error.headers or {})
    return Response(body, error.status_code, headers, "application/problem+json")


async def _defect(request: Request, error: Exception) -> Response:
    body = problem_body(500, "a defect of the service; its log says more", request.state.request_id)
    return Response(body, 500, media_type="application/problem+json")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of what a route may refuse with."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    examples = {
        status: json.loads(problem_body(status, DETAILS[status], "4f0c9d2b7a61e835"))
        for status in statuses
    }
    return {
        status: {
            "description": TITLES[status],
            "content": {
                "application/problem+json": {"schema": schema, "example": examples[status]},
            },
        }
        for status in statuses
    }


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The description of a body that the route reads by itself."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the messages that routes read by themselves."""
    described = get_openapi(
        title="promptboosting",
        version=app.version,
        summary="Text classifiers out of a language model that can only be called.",
        routes=app.routes,
    )
    schemas = described.setdefault("components", {}).setdefault("schemas", {})
    for kind in (PredictRequest, InferRequest, ProblemDetails):
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in described["paths"].items():
        for operation in operations.values():
            if path not in ("/healthz", "/readyz"):
                operation["security"] = [{}, {"token": []}]
            operation["responses"] |= {
                str(status): told for status, told in problems(*_EVERYWHERE).items()
            }
            unprocessable = operation["responses"].get("422", {})
            if "application/json" in unprocessable.get("content", {}):
                operation["responses"]["422"] = problems(422)[422]
    return described
