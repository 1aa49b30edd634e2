"""The ASGI application: the service's own routes, the page, and the middleware around them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from blackbox.errors import ImageError, MissingDependencyError
from blackbox.images import Image
from blackbox.model.model import Model
from blackbox.model.multilabel import MultilabelModel
from blackbox.report import collect_report_data, render_html
from blackbox.service import schemas
from blackbox.service.core import NEEDS, Service
from blackbox.service.decisions import add_decision_routes
from blackbox.service.json_bodies import (
    add_problem_handlers,
    encode_json,
    encoded_json_response,
    json_response,
    parse_body,
)
from blackbox.service.middleware import with_middleware
from blackbox.service.models import Query, Reply, ServedModel
from blackbox.service.openapi import openapi_description, problem_responses, request_body
from blackbox.service.problems import RETRY_AFTER, Problem
from blackbox.service.promises import check_promises, keep_promises
from blackbox.service.v2 import add_v2_routes
from blackbox.telemetry import flush

__all__ = ["create_app"]

_EXPLAINED = ("none_of_these", "experts", "nearest", "prompts", "learners")  # of an explanation
_FLUSH_SECONDS = 5.0  # for the last spans
_MAX_PIXELS = 16_000_000  # of an image of a client
_MAX_PIXELS_TOGETHER = 64_000_000  # of the images of a request: about a second of work
_MAX_ENCODED_IN_LOOP = 2000  # probabilities of a response; with more, a thread encodes it

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
"""File and media type by path."""

_REPORT_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}


def create_app(service: Service) -> ASGIApp:
    """Create the ASGI application of a service."""
    app = FastAPI(
        title="promptboosting",
        version=version("promptboosting"),
        lifespan=lambda _: _lifespan(service),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # its own would export paths, queries and messages of exceptions, which may repeat a text
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    add_problem_handlers(app)
    _add_prediction_routes(app, service)
    _add_operation_routes(app, service)
    _add_page(app)
    add_v2_routes(app, service)
    add_decision_routes(app, service)
    description = json.dumps(openapi_description(app)).encode()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return encoded_json_response(description)

    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    return with_middleware(app, service.settings, service.metrics, routes)


@contextlib.asynccontextmanager
async def _lifespan(service: Service) -> AsyncIterator[None]:
    """Reload the models on SIGHUP, watch the language models, and export the last spans."""
    loop = asyncio.get_running_loop()
    # only the main thread gets signals, and not every system has this one
    with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, service.reload))
    await service.check_all()
    watching = asyncio.create_task(service.watch())
    yield
    watching.cancel()
    await asyncio.to_thread(service.close)
    # uvicorn ends the process by the signal that it got, so that nothing runs at exit
    await asyncio.to_thread(flush, _FLUSH_SECONDS)


def _add_prediction_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predict",
        response_model=schemas.PredictResponse,
        responses=problem_responses(401, 404, 415, 422, 429, 503, 504),
        openapi_extra=request_body(schemas.PredictRequest),
        tags=["predict"],
    )
    async def labels(request: Request) -> Response:
        """Predict the class of each text."""
        return await _predict(service, await request.body())

    @app.get(
        "/v1/model",
        response_model=schemas.ModelDescription,
        responses=problem_responses(401, 404, 422),
        tags=["models"],
    )
    async def model(name: str | None = None) -> Response:
        """Describe a model; by default the first."""
        return json_response(_describe_model(service.model(name)))

    @app.get(
        "/v1/report",
        responses={200: {"content": {"text/html": {}}}, **problem_responses(401, 404, 422)},
        response_class=Response,
        tags=["models"],
    )
    async def report(name: str | None = None) -> Response:
        """Return a report on a model as a page: its prompts, tokens and training."""
        served = service.model(name)
        page = await service.threads.run(lambda: _render_report(served))
        return Response(page, headers=_REPORT_HEADERS, media_type="text/html; charset=utf-8")

    @app.get(
        "/v1/models",
        response_model=schemas.ModelList,
        responses=problem_responses(401),
        tags=["models"],
    )
    async def models() -> Response:
        """List the names of the models."""
        return json_response({"models": list(service.models)})


def _add_operation_routes(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", response_class=Response, tags=["operation"])
    @app.get("/healthz", response_model=schemas.Health, tags=["operation"])
    async def healthz() -> Response:
        """Answer as long as the service runs."""
        return encoded_json_response(b'{"status":"ok"}')

    @app.get(
        "/readyz",
        response_model=schemas.Health,
        responses=problem_responses(503),
        tags=["operation"],
    )
    async def readyz() -> Response:
        """Tell whether the language model of every model answers."""
        models = list(service.models.values())  # no names: anyone may ask
        n_failed = sum(model.failure is not None for model in models)
        if n_failed:
            which = f" of {n_failed} of {len(models)} models" if len(models) > 1 else ""
            raise Problem(503, f"the language model{which} fails", RETRY_AFTER)
        n_uncached = sum(not model.loaded.client.caches_answers() for model in models)
        return json_response({"status": "ready", "uncached": n_uncached})

    @app.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {}}}, **problem_responses(401)},
        response_class=Response,
        tags=["operation"],
    )
    async def metrics() -> Response:
        """Return counters and histograms for Prometheus."""
        media_type = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.render_metrics(), media_type=media_type)


def _add_page(app: FastAPI) -> None:
    for path, (name, media_type) in _PAGE.items():
        content = (files("blackbox.service") / "page" / name).read_bytes()
        app.add_api_route(path, _file_endpoint(content, media_type), include_in_schema=False)


def _file_endpoint(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    """Return an endpoint without parameters, which FastAPI would read from the query string."""

    async def file() -> Response:
        return Response(content, media_type=media_type)

    return file


async def _predict(service: Service, body: bytes) -> Response:
    request = parse_body(schemas.PredictRequest, body)
    model = service.model(request.model)
    loaded = model.loaded
    texts = request.texts if request.texts is not None else [request.text]
    service.check_n_texts(len(texts), explain=request.explain)
    kind, seconds = loaded.model.input_kind, service.settings.timeout
    if any(isinstance(text, schemas.Input) and text.image is not None for text in texts):
        ends = time.monotonic() + seconds
        queries = await service.threads.run(
            lambda: _queries(texts, kind, explain=request.explain, ends=ends)
        )
    else:
        queries = _queries(texts, kind, explain=request.explain)
    promise = check_promises(loaded, request.max_error, request.set_coverage)
    replies = await service.answer(model, loaded, queries)
    replies = keep_promises(loaded.model, replies, promise, request.set_coverage)
    n_classes = len(loaded.model.classes)
    if request.explain or len(replies) * n_classes > _MAX_ENCODED_IN_LOOP:
        data = await asyncio.to_thread(_encode_predictions, model.name, replies)
    else:
        data = _encode_predictions(model.name, replies)
    return encoded_json_response(data)


def _queries(
    texts: Sequence[str | schemas.Input], kind: str, *, explain: bool, ends: float = math.inf
) -> list[Query]:
    """Return texts as queries; images are decoded, one after the other, so that memory is bounded.

    Raises
    ------
    Problem
        If an image can't be used, or the model takes none; if they are too much work together, or
        not decoded before the time `ends`.
    """
    queries = []
    n_pixels = 0
    for row, text in enumerate(texts):
        if isinstance(text, str):
            queries.append(Query(text, None, explain))
            continue
        image = None
        if text.image is not None:
            if kind != "image":
                raise Problem(422, f"text {row}: the model takes {NEEDS[kind]}")
            if time.monotonic() > ends:
                raise Problem(504, "the images took too long; send fewer at a time", RETRY_AFTER)
            try:
                image = Image.of_data_url(text.image, _MAX_PIXELS)
            except ImageError as error:
                raise Problem(422, f"text {row}: {error}") from error
            except MissingDependencyError as error:
                raise Problem(503, "this service can't read images: Pillow is missing") from error
            n_pixels += image.n_pixels
            if n_pixels > _MAX_PIXELS_TOGETHER:
                raise Problem(
                    422,
                    f"the images of a request have at most {_MAX_PIXELS_TOGETHER // 10**6} million "
                    "pixels together; send fewer at a time, or smaller ones",
                )
        queries.append(Query(text.text, text.text_pair, explain, image))
    return queries


def _encode_predictions(name: str, replies: list[Reply]) -> bytes:
    """Encode the body of a response, one text after the other, so that threads take turns."""
    predictions = b",".join(encode_json(_describe_prediction(reply)) for reply in replies)
    return b'{"model":%b,"predictions":[%b]}' % (encode_json(name), predictions)


def _describe_prediction(reply: Reply) -> dict[str, Any]:
    prediction: dict[str, Any] = {
        "label": reply.label,
        "probabilities": reply.probabilities,
        "abstained": reply.label is None,
        "reason": reply.reason,
        "truncated": reply.truncated,
        "prompts_asked": reply.n_asked,
    }
    if reply.p_known is not None:
        prediction["p_known"] = reply.p_known
    if reply.prediction_set is not None:
        prediction["prediction_set"] = reply.prediction_set
    if reply.explanation is not None:
        prediction["explanation"] = {
            name: reply.explanation[name] for name in _EXPLAINED if name in reply.explanation
        }
    return prediction


def _render_report(model: ServedModel) -> bytes:
    page = render_html(collect_report_data(model.loaded.model, model.name))
    return page.encode("utf-8", "backslashreplace")


def _describe_model(model: ServedModel) -> dict[str, Any]:
    loaded = model.loaded
    trained = loaded.model
    return {
        "name": model.name,
        "digest": loaded.digest,
        "classes": trained.classes.tolist(),
        "takes_pair": loaded.takes_pair,
        "input_kind": trained.input_kind,
        "several_labels": trained.several_labels,
        "none_of_these": None if trained.out_of_scope is None else trained.out_of_scope.label,
        "order": None if trained.order is None else trained.classes[trained.order].tolist(),
        **_thresholds(trained),
        "algorithm": trained.ensemble.algorithm.name,
        "prompts": [prompt.template for prompt in trained.prompts],
        "top_k": trained.top_k,
        "early_stop": loaded.early_stop,
        # versions of what runs here are no client's business
        "language_model": json.loads(trained.identity.canonical()),
        "training": trained.summary,
        "examples": _examples(trained),
    }


def _thresholds(model: Model) -> dict[str, list[float]]:
    """Return above which probability each label is given, of a model that gives several."""
    if not isinstance(model, MultilabelModel):
        return {}
    return {"thresholds": model.thresholds.tolist()}


def _examples(model: Model) -> list[dict[str, str]]:
    """Return a text to try for each class, where the model keeps texts of its training."""
    if model.examples is None:
        return []
    first = {code: row for row, code in reversed(list(enumerate(model.examples.codes.tolist())))}
    texts = [model.examples.texts[row] for row in sorted(first.values())]
    return [
        {"text": text} if other is None else {"text": text, "text_pair": other}
        for text, other in texts
    ]
