"""The OpenAPI description of the service."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from blackbox.service.decision_schemas import DecisionRequest, SystemOneRequest
from blackbox.service.problems import EXAMPLE_DETAILS, TITLES, problem_body
from blackbox.service.schemas import PredictRequest, ProblemDetails
from blackbox.service.v2_schemas import InferRequest

__all__ = ["openapi_description", "problem_responses", "request_body"]

_BODIES = (PredictRequest, InferRequest, DecisionRequest, SystemOneRequest)
_ANY_ROUTE = (400, 405, 408, 413, 421, 431, 500)  # statuses of refusals that any route may give


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the refusals of a route, by status."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    examples = {
        status: json.loads(problem_body(status, EXAMPLE_DETAILS[status], "4f0c9d2b7a61e835"))
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


def request_body(schema: type[BaseModel]) -> dict[str, Any]:
    """Describe the body of a route that parses it by itself."""
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    content = {"application/json": {"schema": reference}}
    return {"requestBody": {"required": True, "content": content}}


def openapi_description(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, including the bodies that routes parse by themselves."""
    description = get_openapi(
        title="promptboosting",
        version=app.version,
        summary="Text classifiers out of a language model that can only be called.",
        routes=app.routes,
    )
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    for model in (*_BODIES, ProblemDetails):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in description["paths"].items():
        for operation in operations.values():
            if path not in ("/healthz", "/readyz"):
                operation["security"] = [{}, {"token": []}]
            operation["responses"] |= {
                str(status): response for status, response in problem_responses(*_ANY_ROUTE).items()
            }
            unprocessable = operation["responses"].get("422", {})
            if "application/json" in unprocessable.get("content", {}):
                operation["responses"]["422"] = problem_responses(422)[422]
    return description
