"""The application: the service's own routes, the page, and what is added to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from blackbox.service import schemas
from blackbox.service.core import RETRY_AFTER, Service
from blackbox.service.middleware import Guard
from blackbox.service.models import Query, Reply, ServedModel
from blackbox.service.problems import Problem
from blackbox.service.v2 import add_v2_routes
from blackbox.service.wire import (
    add_problems,
    answer_of,
    body_of,
    described,
    json_answer,
    json_bytes,
    parse,
    problems,
)

__all__ = ["create_app"]

_LARGE = 2000  # probabilities of an answer, from which on it is written off the loop


@dataclass(frozen=True)
class _File:
    name: str
    media_type: str


_PAGE = {
    "/": _File("index.html", "text/html; charset=utf-8"),
    "/page.js": _File("page.js", "text/javascript; charset=utf-8"),
    "/page.css": _File("page.css", "text/css; charset=utf-8"),
}


def create_app(service: Service) -> Guard:
    """The ASGI application of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        # only the main thread gets signals, and not every system has this one
        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(
                signal.SIGHUP, lambda: loop.run_in_executor(None, service.reload)
            )
        await service.look()
        watching = asyncio.create_task(service.watch())
        yield
        watching.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="promptboosting",
        version=version("promptboosting"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    add_problems(app)
    predict = _predictor(service)
    _add_routes(app, service, predict)
    add_v2_routes(app, service)
    description = json.dumps(described(app)).encode()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(description, media_type="application/json")

    # the framework's own way to a route takes longer than all else about a small request
    direct = {("POST", "/v1/predict"): predict}
    posts = [
        route.path_regex
        for route in app.routes
        if isinstance(route, APIRoute) and "POST" in (route.methods or ())
    ]

    def takes_json(path: str) -> bool:
        return any(regex.match(path) for regex in posts)

    return Guard(app, service.settings, service.metrics, direct, takes_json)


def _predictor(service: Service) -> Callable[[bytes], Awaitable[Response]]:
    async def predict(body: bytes) -> Response:
        asked = parse(schemas.PredictRequest, body)
        model = service.model(asked.model)
        loaded = model.loaded
        texts = asked.texts if asked.texts is not None else [asked.text]
        service.check_number(len(texts), explain=asked.explain)
        queries = [
            Query(text, None, asked.explain)
            if isinstance(text, str)
            else Query(text.text, text.text_pair, asked.explain)
            for text in texts
        ]
        answers = await service.answer(model, loaded, queries)
        n_classes = len(loaded.classifier.classes_)
        if asked.explain or len(answers) * n_classes > _LARGE:
            return answer_of(await asyncio.to_thread(_written, model.name, answers))
        return answer_of(_written(model.name, answers))

    return predict


def _written(name: str, answers: list[Reply]) -> bytes:
    """The body of an answer; one text after the other, so that threads take turns."""
    predictions = b",".join(json_bytes(_prediction(one)) for one in answers)
    return b'{"model":%b,"predictions":[%b]}' % (json_bytes(name), predictions)


def _add_routes(
    app: FastAPI, service: Service, predict: Callable[[bytes], Awaitable[Response]]
) -> None:
    @app.post(
        "/v1/predict",
        response_model=schemas.PredictResponse,
        responses=problems(401, 404, 415, 422, 429, 503, 504),
        openapi_extra=body_of(schemas.PredictRequest),
        tags=["predict"],
    )
    async def labels(request: Request) -> Response:
        """The class of each text."""
        return await predict(await request.body())

    @app.get(
        "/v1/model",
        response_model=schemas.Model,
        responses=problems(401, 404, 422),
        tags=["models"],
    )
    async def model(name: str | None = None) -> Response:
        """What a model is; by default the first."""
        return json_answer(_model(service.model(name)))

    @app.get(
        "/v1/models", response_model=schemas.ModelList, responses=problems(401), tags=["models"]
    )
    async def models() -> Response:
        """The names of the models."""
        return json_answer({"models": list(service.models)})

    @app.head("/healthz", response_class=Response, tags=["operation"])
    @app.get("/healthz", response_model=schemas.Health, tags=["operation"])
    async def healthz() -> Response:
        """Whether the service runs."""
        return answer_of(b'{"status":"ok"}')

    @app.get("/readyz", response_model=schemas.Health, responses=problems(503), tags=["operation"])
    async def readyz() -> Response:
        """Whether every model's language model answers."""
        troubled = [model.name for model in service.models.values() if model.failure is not None]
        if troubled:
            raise Problem(503, f"the language model of {', '.join(troubled)} fails", RETRY_AFTER)
        return answer_of(b'{"status":"ready"}')

    @app.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {}}}, **problems(401)},
        response_class=Response,
        tags=["operation"],
    )
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(service.measured(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, file in _PAGE.items():
        content = (files("blackbox.service") / "page" / file.name).read_bytes()

        async def page(content: bytes = content, file: _File = file) -> Response:
            return Response(content, media_type=file.media_type)

        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)


def _prediction(answer: Reply) -> dict[str, Any]:
    said: dict[str, Any] = {
        "label": answer.label,
        "probabilities": answer.probabilities,
        "abstained": answer.label is None,
        "reason": answer.reason,
        "truncated": answer.truncated,
        "prompts_asked": answer.n_asked,
    }
    if answer.explanation is not None:
        said["explanation"] = {name: answer.explanation[name] for name in ("prompts", "learners")}
    return said


def _model(model: ServedModel) -> dict[str, Any]:
    loaded = model.loaded
    classifier = loaded.classifier
    return {
        "name": model.name,
        "digest": loaded.digest,
        "classes": classifier.classes_.tolist(),
        "takes_pair": loaded.takes_pair,
        "algorithm": classifier.ensemble_.algorithm.name,
        "prompts": [prompt.template for prompt in classifier.prompts_],
        "top_k": classifier.top_k_,
        "early_stop": classifier.early_stop,
        "language_model": classifier.lm_identity_.as_dict(),
        "training": classifier.training_summary_,
    }
