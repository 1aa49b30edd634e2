"""Routes of the Open Inference Protocol (V2) for the same models."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import FastAPI, Request, Response

from blackbox.service import v2_schemas as schemas
from blackbox.service.core import Service, failure_problem
from blackbox.service.json_bodies import json_response, parse_body
from blackbox.service.models import LoadedModel, Query, Reply
from blackbox.service.openapi import problem_responses, request_body
from blackbox.service.problems import RETRY_AFTER, Problem

__all__ = ["add_v2_routes"]


def add_v2_routes(app: FastAPI, service: Service) -> None:
    """Add the routes under /v2."""
    refusals = problem_responses(401, 404)

    @app.get(
        "/v2", response_model=schemas.V2Metadata, responses=problem_responses(401), tags=["v2"]
    )
    async def metadata() -> Response:
        """Describe the service."""
        return json_response({"name": "promptboosting", "version": app.version, "extensions": []})

    @app.get(
        "/v2/health/live",
        response_model=schemas.V2Live,
        responses=problem_responses(401),
        tags=["v2"],
    )
    async def live() -> Response:
        """Answer as long as the service runs."""
        return json_response({"live": True})

    @app.get(
        "/v2/health/ready",
        response_model=schemas.V2Ready,
        responses=problem_responses(401, 503),
        tags=["v2"],
    )
    async def ready() -> Response:
        """Tell whether the language model of every model answers."""
        if any(model.failure is not None for model in service.models.values()):
            raise Problem(503, "a language model fails", RETRY_AFTER)
        return json_response({"ready": True})

    @app.get("/v2/models/{name}", response_model=schemas.V2Model, responses=refusals, tags=["v2"])
    async def v2_model(name: str) -> Response:
        """Describe the inputs and outputs of a model."""
        model = service.model(name)
        return json_response(
            {"name": model.name, "platform": "promptboosting", **_describe_tensors(model.loaded)}
        )

    @app.get(
        "/v2/models/{name}/ready",
        response_model=schemas.V2ModelReady,
        responses={**refusals, **problem_responses(503)},
        tags=["v2"],
    )
    async def v2_ready(name: str) -> Response:
        """Tell whether the language model of a model answers."""
        model = service.model(name)
        if model.failure is not None:
            raise failure_problem(model.failure)
        return json_response({"name": model.name, "ready": True})

    @app.post(
        "/v2/models/{name}/infer",
        response_model=schemas.InferResponse,
        responses=problem_responses(401, 404, 415, 422, 429, 503, 504),
        openapi_extra=request_body(schemas.InferRequest),
        tags=["v2"],
    )
    async def infer(name: str, request: Request) -> Response:
        """Predict the class of each text."""
        inference = parse_body(schemas.InferRequest, await request.body())
        model = service.model(name)
        loaded = model.loaded
        outputs = _requested_outputs(inference, loaded)
        replies = await service.answer(model, loaded, _queries(inference, service))
        reasons = {
            f"reason_{row}": reply.reason
            for row, reply in enumerate(replies)
            if reply.reason is not None
        }
        return json_response(
            {
                "model_name": model.name,
                **({} if inference.id is None else {"id": inference.id}),
                **({"parameters": reasons} if reasons else {}),
                "outputs": [_output_tensor(name, replies, loaded) for name in outputs],
            }
        )


def _describe_tensors(loaded: LoadedModel) -> dict[str, Any]:
    inputs = ["text", "text_pair"] if loaded.takes_pair else ["text"]
    n_classes = len(loaded.model.classes)
    outputs: list[dict[str, Any]] = [{"name": "label", "datatype": "BYTES", "shape": [-1]}]
    if loaded.early_stop is None:
        outputs.append({"name": "probabilities", "datatype": "FP64", "shape": [-1, n_classes]})
    return {
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in inputs],
        "outputs": outputs,
    }


def _requested_outputs(inference: schemas.InferRequest, loaded: LoadedModel) -> list[str]:
    """Return the names of the outputs that a request asks for; by default all."""
    available = [output["name"] for output in _describe_tensors(loaded)["outputs"]]
    requested: list[str] = list(dict.fromkeys(output.name for output in inference.outputs or ()))
    if set(requested) - set(available):
        raise Problem(400, "outputs: the service stops early and gives no probabilities")
    return requested or available


def _queries(inference: schemas.InferRequest, service: Service) -> list[Query]:
    tensors = {tensor.name: tensor for tensor in inference.inputs}
    if len(tensors) != len(inference.inputs) or "text" not in tensors:
        raise Problem(422, "inputs: give one tensor text, and text_pair for a model of pairs")
    flat = {name: _flatten(tensor) for name, tensor in tensors.items()}
    texts = flat["text"]
    service.check_n_texts(len(texts))
    pairs: list[str | None] = [None] * len(texts)
    if "text_pair" in flat:
        pairs = list(flat["text_pair"])
        if len(pairs) != len(texts):
            raise Problem(422, "inputs: text and text_pair are of different lengths")
    return [Query(text, pair) for text, pair in zip(texts, pairs, strict=True)]


def _flatten(tensor: Any) -> list[str]:
    """Return the texts of a tensor, whose data may be flat or nested by its shape."""
    shape, data = tensor.shape, tensor.data
    texts = [text for row in data for text in ([row] if isinstance(row, str) else row)]
    is_nested = len(texts) != len(data) or not all(isinstance(row, str) for row in data)
    rows_fit = not is_nested or (
        len(shape) == 2
        and len(data) == shape[0]
        and all(isinstance(row, list) and len(row) == shape[1] for row in data)
    )
    if min(shape) < 0 or math.prod(shape) != len(texts) or not rows_fit:
        raise Problem(422, f"inputs: {tensor.name} has another number of texts than its shape")
    return texts


def _label_text(label: Any) -> str:
    """Return a label as the text in a tensor; of several labels per text, their JSON list."""
    if isinstance(label, list):
        return json.dumps(label, ensure_ascii=False)
    return "" if label is None else str(label)


def _output_tensor(name: str, replies: list[Reply], loaded: LoadedModel) -> dict[str, Any]:
    if name == "label":
        labels = [_label_text(reply.label) for reply in replies]
        return {"name": name, "datatype": "BYTES", "shape": [len(labels)], "data": labels}
    classes = [str(label) for label in loaded.model.classes.tolist()]
    data = [
        # a tensor of numbers has no null: without an answer, no class has a probability
        0.0 if reply.probabilities is None else reply.probabilities[label]
        for reply in replies
        for label in classes
    ]
    return {
        "name": name,
        "datatype": "FP64",
        "shape": [len(replies), len(classes)],
        "data": data,
    }
