"""The routes of the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from blackbox.errors import BackendError, BudgetError
from blackbox.service import messages
from blackbox.service.batching import Batcher
from blackbox.service.guard import Guard
from blackbox.service.limiting import PassesPerMinute
from blackbox.service.metrics import Metrics
from blackbox.service.models import Answer, Question, ServedModel
from blackbox.service.problems import TITLES, Problem, problem_body
from blackbox.service.settings import Settings

__all__ = ["Service", "create_app"]

_log = logging.getLogger(__name__)

_CHECK_EVERY = 1.0  # seconds between looks at an LM that is in trouble, or takes long
_RETRY_AFTER = 5.0
_EMPTY = Answer(None, reason="empty text")


class Service:
    """The models of a service, and what waits for them.

    Parameters
    ----------
    models : sequence of ServedModel
        The first is the default.
    settings : Settings
        How the service behaves.
    """

    def __init__(self, models: Sequence[ServedModel], settings: Settings) -> None:
        self.models = {model.name: model for model in models}
        self.default = models[0]
        self.settings = settings
        self.metrics = Metrics()
        self._passes = PassesPerMinute(settings.passes_per_minute)
        self._batchers = {model.name: self._batcher(model) for model in models}

    def model(self, name: str | None) -> ServedModel:
        """A model by its name.

        Raises
        ------
        Problem
            If there is none of that name.
        """
        if name is None:
            return self.default
        if name not in self.models:
            raise Problem(404, "no model of that name; GET /v1/models names them")
        return self.models[name]

    async def answer(self, model: ServedModel, questions: list[Question]) -> list[Answer]:
        """What a model says of some texts.

        Raises
        ------
        Problem
            If they can't be answered.
        """
        if model.trouble is not None:
            raise _in_trouble(model.trouble)
        self._refuse_unfit(model, questions)
        asked = [question for question in questions if _is_text(question)]
        found: list[Answer] = []
        if asked:
            reserved = len(asked) * model.n_prompts
            self._passes.reserve(reserved)
            try:
                async with asyncio.timeout(self.settings.timeout):
                    found = await self._batchers[model.name].submit(asked)
            except TimeoutError:
                seconds = self.settings.timeout
                raise Problem(
                    504, f"no answer in {seconds:g} s; send fewer texts at a time", _RETRY_AFTER
                ) from None
            except BudgetError:
                raise Problem(429, "the budget that this service was given is spent") from None
            except BackendError as error:
                raise _in_trouble(str(error)) from error
        answers = iter(found)
        return [next(answers) if _is_text(question) else _EMPTY for question in questions]

    async def watch(self) -> None:
        """Look after LMs that are in trouble or take long, for as long as the service runs."""
        while True:
            await asyncio.sleep(_CHECK_EVERY)
            for model in self.models.values():
                batcher = self._batchers[model.name]
                if model.trouble is not None or batcher.seconds_at_work > _CHECK_EVERY:
                    well = await asyncio.to_thread(model.check)
                    if not well and model.trouble is not None:
                        batcher.fail(_in_trouble(model.trouble))

    def reload(self) -> None:
        """Read the files of all models again; one that can't be read stays as it is."""
        for model in self.models.values():
            try:
                model.reload()
                _log.warning("model %s: read again, now %s", model.name, model.digest)
            except Exception as error:
                _log.warning("model %s: stays as it is: %s", model.name, error)

    def close(self) -> None:
        """Wait for what is worked on."""
        for batcher in self._batchers.values():
            batcher.close()

    def measured(self) -> bytes:
        """The page of metrics."""
        for name, model in self.models.items():
            waiting = self._batchers[name].n_waiting
            self.metrics.state(name, waiting=waiting, ready=model.trouble is None)
        return self.metrics.page()

    def _batcher(self, model: ServedModel) -> Batcher[Question, Answer]:
        def work(questions: list[Question]) -> list[Answer]:
            try:
                answers, usage = model.answer(questions)
            except Exception as error:
                self.metrics.failed(model.name, error)
                raise
            self._passes.give_back(len(questions) * model.n_prompts - usage.passes_made)
            refused = sum(answer.label is None for answer in answers)
            self.metrics.batch(model.name, len(questions), usage, refused)
            return answers

        return Batcher(
            work,
            size=self.settings.batch_texts,
            window=self.settings.window,
            capacity=self.settings.queue_texts,
            at_once=self.settings.batches_at_once,
        )

    def _refuse_unfit(self, model: ServedModel, questions: list[Question]) -> None:
        settings = self.settings
        if len(questions) > settings.max_texts:
            raise Problem(422, f"a request has at most {settings.max_texts} texts")
        for place, question in enumerate(questions):
            longest = max(len(question.text), len(question.text_pair or ""))
            if longest > settings.max_characters:
                raise Problem(
                    422, f"text {place}: a text has at most {settings.max_characters} characters"
                )
            if (question.text_pair is None) == model.takes_pair:
                need = "pairs: give text_pair" if model.takes_pair else "single texts: no text_pair"
                raise Problem(422, f"text {place}: the model takes {need}")


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
    )
    app.add_exception_handler(Problem, _refused)
    app.add_exception_handler(HTTPException, _http_refused)
    app.add_exception_handler(Exception, _defect)
    _add_routes(app, service)
    _add_v2_routes(app, service)
    described = _described(app)
    described_bytes = json.dumps(described).encode()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(described_bytes, media_type="application/json")

    return Guard(app, service.settings, service.metrics)


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", response_model=messages.PredictResponse,
              responses=_problems(400, 401, 404, 408, 413, 415, 421, 422, 429, 503, 504),
              openapi_extra=_body(messages.PredictRequest), tags=["predict"])  # fmt: skip
    async def predict(request: Request) -> Response:
        """The class of each text."""
        asked = _parse(messages.PredictRequest, await request.body())
        model = service.model(asked.model)
        texts = asked.texts if asked.texts is not None else [asked.text]
        questions = [
            Question(text, None, asked.explain)
            if isinstance(text, str)
            else Question(text.text, text.text_pair, asked.explain)
            for text in texts
            if text is not None
        ]
        answers = await service.answer(model, questions)
        return _json({"model": model.name, "predictions": [_prediction(one) for one in answers]})

    @app.get("/v1/model", response_model=messages.Model, responses=_problems(401, 404, 421, 422),
             tags=["models"])  # fmt: skip
    async def model(name: str | None = None) -> Response:
        """What a model is; by default the first."""
        return _json(_model(service.model(name)))

    @app.get("/v1/models", response_model=messages.ModelList, responses=_problems(401, 421),
             tags=["models"])  # fmt: skip
    async def models() -> Response:
        """The names of the models."""
        return _json({"models": list(service.models)})

    @app.get("/healthz", responses=_problems(421), tags=["operation"])
    async def healthz() -> Response:
        """Whether the service runs."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    @app.get("/readyz", responses=_problems(421, 503), tags=["operation"])
    async def readyz() -> Response:
        """Whether every model's language model answers."""
        troubled = [model.name for model in service.models.values() if model.trouble is not None]
        if troubled:
            raise Problem(503, f"the language model of {', '.join(troubled)} fails", _RETRY_AFTER)
        return Response(b'{"status":"ready"}', media_type="application/json")

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **_problems(401, 421)},
             response_class=Response, tags=["operation"])  # fmt: skip
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(service.measured(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, file in _PAGE.items():
        content = (files("blackbox.service") / "page" / file.name).read_bytes()

        async def page(content: bytes = content, file: _File = file) -> Response:
            return Response(content, media_type=file.media_type)

        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)


def _add_v2_routes(app: FastAPI, service: Service) -> None:
    """The Open Inference Protocol (V2) over the same models."""
    told = _problems(401, 404, 421)

    @app.get("/v2", response_model=messages.V2Metadata, responses=_problems(401, 421), tags=["v2"])
    async def metadata() -> Response:
        """What the service is."""
        return _json({"name": "promptboosting", "version": app.version, "extensions": []})

    @app.get("/v2/health/live", responses=_problems(401, 421), tags=["v2"])
    async def live() -> Response:
        """Whether the service runs."""
        return _json({"live": True})

    @app.get("/v2/health/ready", responses=_problems(401, 421, 503), tags=["v2"])
    async def ready() -> Response:
        """Whether every model's language model answers."""
        if any(model.trouble is not None for model in service.models.values()):
            raise Problem(503, "a language model fails", _RETRY_AFTER)
        return _json({"ready": True})

    @app.get("/v2/models/{name}", response_model=messages.V2Model, responses=told, tags=["v2"])
    async def v2_model(name: str) -> Response:
        """What a model takes and gives."""
        model = service.model(name)
        inputs = ["text", "text_pair"] if model.takes_pair else ["text"]
        n_classes = len(model.classifier.classes_)
        return _json(
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

    @app.get("/v2/models/{name}/ready", responses={**told, **_problems(503)}, tags=["v2"])
    async def v2_ready(name: str) -> Response:
        """Whether a model's language model answers."""
        model = service.model(name)
        if model.trouble is not None:
            raise _in_trouble(model.trouble)
        return _json({"name": model.name, "ready": True})

    @app.post("/v2/models/{name}/infer", response_model=messages.InferResponse,
              responses=_problems(400, 401, 404, 408, 413, 415, 421, 422, 429, 503, 504),
              openapi_extra=_body(messages.InferRequest), tags=["v2"])  # fmt: skip
    async def infer(name: str, request: Request) -> Response:
        """The class of each text."""
        asked = _parse(messages.InferRequest, await request.body())
        model = service.model(name)
        answers = await service.answer(model, _questions(asked))
        wanted = [one.name for one in asked.outputs or ()] or ["label", "probabilities"]
        outputs = [_output(one, answers, model) for one in dict.fromkeys(wanted)]
        return _json(
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


def _prediction(answer: Answer) -> dict[str, Any]:
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
    classifier = model.classifier
    return {
        "name": model.name,
        "digest": model.digest,
        "classes": classifier.classes_.tolist(),
        "takes_pair": model.takes_pair,
        "algorithm": classifier.ensemble_.algorithm,
        "prompts": [prompt.template for prompt in classifier.prompts_],
        "top_k": classifier.top_k_,
        "early_stop": classifier.early_stop,
        "language_model": classifier.lm_identity_.as_dict(),
        "training": classifier.training_summary_,
    }


def _parse(kind: type[Any], body: bytes) -> Any:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise Problem(400, f"the body is no JSON: {first['msg'].partition(': ')[2]}") from None
        # of the place only the names that we know, and numbers: others are the client's words
        known = {"text", "texts", "text_pair", "model", "explain", "inputs", "outputs", "data",
                 "shape", "name", "datatype", "id", "parameters"}  # fmt: skip
        place = ".".join(
            str(part) for part in first["loc"] if isinstance(part, int) or part in known
        )
        raise Problem(422, f"{place or 'body'}: {first['msg']}") from None


def _is_text(question: Question) -> bool:
    return bool(
        question.text.strip() and (question.text_pair is None or question.text_pair.strip())
    )


def _in_trouble(why: str) -> Problem:
    return Problem(503, f"the language model fails: {why}", _RETRY_AFTER)


def _json(body: dict[str, Any], status: int = 200) -> Response:
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(data.encode("utf-8", "backslashreplace"), status, media_type="application/json")


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


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        status: {
            "description": TITLES[status],
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in statuses
    }


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the messages that routes read by themselves."""
    described = get_openapi(
        title="promptboosting",
        version=app.version,
        summary="Text classifiers out of a language model that can only be called.",
        routes=app.routes,
    )
    schemas = described.setdefault("components", {}).setdefault("schemas", {})
    for kind in (messages.PredictRequest, messages.InferRequest, messages.ProblemDetails):
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
            unprocessable = operation["responses"].get("422", {})
            if "application/json" in unprocessable.get("content", {}):
                operation["responses"]["422"] = _problems(422)[422]
    return described
