"""The Open Inference Protocol (V2) over the same models."""

from __future__ import annotations

import math
from typing import Any

from fastapi import FastAPI, Request, Response

from blackbox.service import v2_schemas as schemas
from blackbox.service.core import RETRY_AFTER, Service, any_failed
from blackbox.service.models import LoadedModel, Query, Reply
from blackbox.service.problems import Problem
from blackbox.service.wire import body_of, json_answer, parse, problems

__all__ = ["add_v2_routes"]


def add_v2_routes(app: FastAPI, service: Service) -> None:
    """Add the routes under /v2."""
    told = problems(401, 404)

    @app.get("/v2", response_model=schemas.V2Metadata, responses=problems(401), tags=["v2"])
    async def metadata() -> Response:
        """What the service is."""
        return json_answer({"name": "promptboosting", "version": app.version, "extensions": []})

    @app.get("/v2/health/live", response_model=schemas.V2Live, responses=problems(401), tags=["v2"])
    async def live() -> Response:
        """Whether the service runs."""
        return json_answer({"live": True})

    @app.get(
        "/v2/health/ready",
        response_model=schemas.V2Ready,
        responses=problems(401, 503),
        tags=["v2"],
    )
    async def ready() -> Response:
        """Whether every model's language model answers."""
        if any(model.failure is not None for model in service.models.values()):
            raise Problem(503, "a language model fails", RETRY_AFTER)
        return json_answer({"ready": True})

    @app.get("/v2/models/{name}", response_model=schemas.V2Model, responses=told, tags=["v2"])
    async def v2_model(name: str) -> Response:
        """What a model takes and gives."""
        model = service.model(name)
        return json_answer(
            {"name": model.name, "platform": "promptboosting", **_tensors(model.loaded)}
        )

    @app.get(
        "/v2/models/{name}/ready",
        response_model=schemas.V2ModelReady,
        responses={**told, **problems(503)},
        tags=["v2"],
    )
    async def v2_ready(name: str) -> Response:
        """Whether a model's language model answers."""
        model = service.model(name)
        if model.failure is not None:
            raise any_failed(model.failure)
        return json_answer({"name": model.name, "ready": True})

    @app.post(
        "/v2/models/{name}/infer",
        response_model=schemas.InferResponse,
        responses=problems(401, 404, 415, 422, 429, 503, 504),
        openapi_extra=body_of(schemas.InferRequest),
        tags=["v2"],
    )
    async def infer(name: str, request: Request) -> Response:
        """The class of each text."""
        asked = parse(schemas.InferRequest, await request.body())
        model = service.model(name)
        loaded = model.loaded
        outputs = _wanted(asked, loaded)
        answers = await service.answer(model, loaded, _questions(asked, service))
        reasons = {
            f"reason_{place}": answer.reason
            for place, answer in enumerate(answers)
            if answer.reason is not None
        }
        return json_answer(
            {
                "model_name": model.name,
                **({} if asked.id is None else {"id": asked.id}),
                **({"parameters": reasons} if reasons else {}),
                "outputs": [_output(one, answers, loaded) for one in outputs],
            }
        )


def _tensors(loaded: LoadedModel) -> dict[str, Any]:
    inputs = ["text", "text_pair"] if loaded.takes_pair else ["text"]
    n_classes = len(loaded.classifier.classes_)
    outputs: list[dict[str, Any]] = [{"name": "label", "datatype": "BYTES", "shape": [-1]}]
    if loaded.classifier.early_stop is None:
        outputs.append({"name": "probabilities", "datatype": "FP64", "shape": [-1, n_classes]})
    return {
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in inputs],
        "outputs": outputs,
    }


def _wanted(asked: schemas.InferRequest, loaded: LoadedModel) -> list[str]:
    """The outputs to give; by default all."""
    given = [output["name"] for output in _tensors(loaded)["outputs"]]
    wanted: list[str] = list(dict.fromkeys(one.name for one in asked.outputs or ()))
    if set(wanted) - set(given):
        raise Problem(400, "outputs: the service stops early and gives no probabilities")
    return wanted or given


def _questions(asked: schemas.InferRequest, service: Service) -> list[Query]:
    tensors = {one.name: one for one in asked.inputs}
    if len(tensors) != len(asked.inputs) or "text" not in tensors:
        raise Problem(422, "inputs: give one tensor text, and text_pair for a model of pairs")
    flat = {name: _flat(one) for name, one in tensors.items()}
    texts = flat["text"]
    service.check_number(len(texts))
    pairs: list[str | None] = [None] * len(texts)
    if "text_pair" in flat:
        pairs = list(flat["text_pair"])
        if len(pairs) != len(texts):
            raise Problem(422, "inputs: text and text_pair are of different lengths")
    return [Query(text, pair) for text, pair in zip(texts, pairs, strict=True)]


def _flat(tensor: Any) -> list[str]:
    """The texts of a tensor, whose data may be nested as its shape is."""
    shape, data = tensor.shape, tensor.data
    texts = [one for row in data for one in ([row] if isinstance(row, str) else row)]
    is_nested = len(texts) != len(data) or not all(isinstance(row, str) for row in data)
    rows_fit = not is_nested or (
        len(shape) == 2
        and len(data) == shape[0]
        and all(isinstance(row, list) and len(row) == shape[1] for row in data)
    )
    if min(shape) < 0 or math.prod(shape) != len(texts) or not rows_fit:
        raise Problem(422, f"inputs: {tensor.name} has another number of texts than its shape")
    return texts


def _output(name: str, answers: list[Reply], loaded: LoadedModel) -> dict[str, Any]:
    if name == "label":
        labels = ["" if one.label is None else str(one.label) for one in answers]
        return {"name": name, "datatype": "BYTES", "shape": [len(labels)], "data": labels}
    classes = [str(label) for label in loaded.classifier.classes_.tolist()]
    data = [
        # a number has no null: where there is no answer, no class has a probability
        0.0 if one.probabilities is None else one.probabilities[label]
        for one in answers
        for label in classes
    ]
    return {
        "name": name,
        "datatype": "FP64",
        "shape": [len(answers), len(classes)],
        "data": data,
    }
