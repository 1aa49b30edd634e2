"""The Open Inference Protocol (V2) over the same models."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response

from blackbox.service import messages
from blackbox.service.core import RETRY_AFTER, Service, in_trouble
from blackbox.service.models import Answer, Question, ServedModel
from blackbox.service.problems import Problem
from blackbox.service.wire import body_of, json_answer, parse, problems

__all__ = ["add_v2_routes"]


def add_v2_routes(app: FastAPI, service: Service) -> None:
    """Add the routes under /v2."""
    told = problems(401, 404, 421)

    @app.get("/v2", response_model=messages.V2Metadata, responses=problems(401, 421), tags=["v2"])
    async def metadata() -> Response:
        """What the service is."""
        return json_answer({"name": "promptboosting", "version": app.version, "extensions": []})

    @app.get("/v2/health/live", responses=problems(401, 421), tags=["v2"])
    async def live() -> Response:
        """Whether the service runs."""
        return json_answer({"live": True})

    @app.get("/v2/health/ready", responses=problems(401, 421, 503), tags=["v2"])
    async def ready() -> Response:
        """Whether every model's language model answers."""
        if any(model.trouble is not None for model in service.models.values()):
            raise Problem(503, "a language model fails", RETRY_AFTER)
        return json_answer({"ready": True})

    @app.get("/v2/models/{name}", response_model=messages.V2Model, responses=told, tags=["v2"])
    async def v2_model(name: str) -> Response:
        """What a model takes and gives."""
        model = service.model(name)
        inputs = ["text", "text_pair"] if model.takes_pair else ["text"]
        n_classes = len(model.classifier.classes_)
        return json_answer(
            {
                "name": model.name,
                "versions": [model.digest],
                "platform": "promptboosting",
                "inputs": [{"name": n, "datatype": "BYTES", "shape": [-1]} for n in inputs],
                "outputs": [
                    {"name": "label", "datatype": "BYTES", "shape": [-1]},
                    {"name": "probabilities", "datatype": "FP64", "shape": [-1, n_classes]},
                ],
            }
        )

    @app.get("/v2/models/{name}/ready", responses={**told, **problems(503)}, tags=["v2"])
    async def v2_ready(name: str) -> Response:
        """Whether a model's language model answers."""
        model = service.model(name)
        if model.trouble is not None:
            raise in_trouble(model.trouble)
        return json_answer({"name": model.name, "ready": True})

    @app.post("/v2/models/{name}/infer", response_model=messages.InferResponse,
              responses=problems(400, 401, 404, 408, 413, 415, 421, 422, 429, 503, 504),
              openapi_extra=body_of(messages.InferRequest), tags=["v2"])  # fmt: skip
    async def infer(name: str, request: Request) -> Response:
        """The class of each text."""
        asked = parse(messages.InferRequest, await request.body())
        model = service.model(name)
        answers = await service.answer(model, _questions(asked))
        wanted = [one.name for one in asked.outputs or ()] or ["label", "probabilities"]
        outputs = [_output(one, answers, model) for one in dict.fromkeys(wanted)]
        return json_answer(
            {
                "model_name": model.name,
                **({} if asked.id is None else {"id": asked.id}),
                "outputs": [output for output in outputs if output is not None],
            }
        )


def _questions(asked: messages.InferRequest) -> list[Question]:
    tensors = {one.name: one for one in asked.inputs}
    if len(tensors) != len(asked.inputs) or "text" not in tensors:
        raise Problem(422, "inputs: give one tensor text, and text_pair for a model of pairs")
    for one in asked.inputs:
        n = 1
        for size in one.shape:
            n *= size
        if n != len(one.data) or min(one.shape) < 0:
            raise Problem(422, f"inputs: {one.name} has another number of texts than its shape")
    texts = tensors["text"].data
    pairs: list[str | None] = [None] * len(texts)
    if "text_pair" in tensors:
        pairs = list(tensors["text_pair"].data)
        if len(pairs) != len(texts):
            raise Problem(422, "inputs: text and text_pair are of different lengths")
    return [Question(text, pair) for text, pair in zip(texts, pairs, strict=True)]


def _output(name: str, answers: list[Answer], model: ServedModel) -> dict[str, Any] | None:
    if name == "label":
        labels = ["" if one.label is None else str(one.label) for one in answers]
        return {"name": name, "datatype": "BYTES", "shape": [len(labels)], "data": labels}
    if model.classifier.early_stop is not None:
        return None
    classes = [str(label) for label in model.classifier.classes_.tolist()]
    data = [
        None if one.probabilities is None else one.probabilities[label]
        for one in answers
        for label in classes
    ]
    return {
        "name": name, "datatype": "FP64", "shape": [len(answers), len(classes)], "data": data,
    }  # fmt: skip
