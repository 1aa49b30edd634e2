"""Traces by OpenTelemetry's SDK, and the logs of a service."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="the service needs the `serve` extra")

from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.trace import SpanKind, StatusCode
from test_serve_command import process

from backends import load
from backends.api import retries
from blackbox import PromptBoostingClassifier
from blackbox.cli import main
from blackbox.errors import BackendError
from blackbox.protocol import RenderedPrompt
from tests.fault_server import FaultServer
from tests.serving import LABELS, TEXTS, Checked, running, served, train

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
SECRET_TEXT = "match of the zebra"
CONVENTIONS = {
    value
    for module in (
        *(gen_ai_attributes, error_attributes, http_attributes),
        *(server_attributes, url_attributes),
    )
    for value in vars(module).values()
    if isinstance(value, str)
}


@pytest.fixture(scope="module")
def exporter():
    """The spans of this process; a provider is set once and for all."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    exporter.shutdown()  # it keeps nothing of later tests; the provider stays for good


@pytest.fixture
def spans(exporter):
    """The spans of a test, as they end; none holds a text, a prompt or a key."""
    exporter.clear()
    yield exporter.get_finished_spans
    for span in exporter.get_finished_spans():
        written = span.to_json()
        assert "zebra" not in written
        assert "It was" not in written
        assert "sentinel" not in written
        assert not span.events  # an exception as an event would hold its message
        known = {name for name in span.attributes if not name.startswith("promptboosting.")}
        assert known <= CONVENTIONS


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retries, "_BACKOFF", (0.0, 0.01))
    with FaultServer(largest=20) as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        yield server


@pytest.fixture
def lm(server):
    return load("openai", model="lm", base_url=server.url, max_concurrency=2)


@pytest.fixture
def api_model(server, tmp_path):
    return train_over(server, tmp_path / "m")


def train_over(server, path):
    options = {"prompts": ["{text} It was {mask}", "{text} I felt {mask}"], "store": False}
    reached = {"model": "lm", "backend_options": {"base_url": server.url}}
    PromptBoostingClassifier("openai", random_state=0, **reached, **options).fit(
        TEXTS, LABELS
    ).save(path)
    return path


def of_kind(spans, kind):
    return [span for span in spans if span.kind is kind]


class TestRequestsToAnLM:
    def test_a_request_is_a_span_by_the_conventions(self, lm, server, spans):
        lm.limits  # noqa: B018 - connects, and probes
        before = len(spans())
        lm.next_token([RenderedPrompt(f"{SECRET_TEXT} It was")], 5)
        (span,) = spans()[before:]
        assert (span.name, span.kind) == ("chat lm", SpanKind.CLIENT)
        assert span.status.status_code is StatusCode.UNSET
        assert dict(span.attributes) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai-compatible",
            "gen_ai.request.model": "lm",
            "gen_ai.usage.input_tokens": server.ledger[-1].tokens,
            "gen_ai.usage.output_tokens": 1,
            "server.address": "127.0.0.1",
            "server.port": int(server.url.split(":")[2].split("/")[0]),
        }

    def test_each_retry_is_a_span_that_counts_the_tries_before(self, lm, server, spans):
        lm.limits  # noqa: B018
        before = len(spans())
        repeated = {"message": f"can't read {SECRET_TEXT}"}
        faults = iter([(429, repeated), (500, repeated), "malformed", "reset", None])
        server.fault = lambda: next(faults)
        lm.next_token([RenderedPrompt(f"{SECRET_TEXT} It was")], 5)
        tries = spans()[before:]
        assert [span.attributes.get("http.request.resend_count") for span in tries] == [
            *(None, 1, 2, 3, 4)
        ]
        assert [span.attributes.get("error.type") for span in tries] == [
            *("rate_limit", "500", "JSONDecodeError", "connection", None)
        ]
        assert [span.attributes.get("http.response.status_code") for span in tries] == [
            *(429, 500, None, None, None)
        ]
        assert [span.status.status_code for span in tries[:4]] == [StatusCode.ERROR] * 4
        assert not any(span.status.description for span in tries)

    def test_a_server_that_traces_is_told_the_span(self, lm, server, spans):
        lm.limits  # noqa: B018
        heard = []
        real = server._server.RequestHandlerClass._allowed

        def noting(handler):
            heard.append(handler.headers["traceparent"])
            return real(handler)

        server._server.RequestHandlerClass._allowed = noting
        lm.next_token([RenderedPrompt("a b")], 5)
        context = spans()[-1].get_span_context()
        (told,) = heard
        assert told.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


class TestRequestsToTheService:
    def test_a_trace_goes_from_the_client_through_to_the_lm(self, api_model, lm, spans):
        with running(served(api_model, lm=lm)) as client:
            before = len(spans())
            body = {"texts": [SECRET_TEXT, "bank loan"]}
            assert client.predict(body, traceparent=TRACEPARENT)[0] == 200
        (request,) = of_kind(spans()[before:], SpanKind.SERVER)
        (batch,) = of_kind(spans()[before:], SpanKind.INTERNAL)
        calls = of_kind(spans()[before:], SpanKind.CLIENT)
        assert {span.context.trace_id for span in (request, batch, *calls)} == {int(TRACE, 16)}
        assert request.parent.span_id == int(PARENT, 16)
        assert batch.parent.span_id == request.context.span_id
        assert {span.parent.span_id for span in calls} == {batch.context.span_id}
        assert len(calls) == batch.attributes["promptboosting.passes_made"] == 4
        assert batch.attributes["promptboosting.texts"] == 2
        assert request.name == "POST /v1/predict"
        assert dict(request.attributes) == {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "http.route": "/v1/predict",
            "url.scheme": "http",
        }

    def test_requests_that_share_a_batch_are_linked(self, tmp_path, spans):
        lm = Checked(0.2)
        with (
            running(served(train(tmp_path / "m"), lm=lm), window=0.2, batch_texts=8) as client,
            ThreadPoolExecutor(4) as pool,
        ):
            list(pool.map(client.predict, [{"text": f"match {n}"} for n in range(4)]))
        requests = of_kind(spans(), SpanKind.SERVER)
        batches = [s for s in of_kind(spans(), SpanKind.INTERNAL) if s.name == "batch m"]
        led = [s.parent.span_id for s in batches]
        led += [link.context.span_id for s in batches for link in s.links]
        assert sorted(led) == sorted(s.context.span_id for s in requests)
        assert len(batches) < len(requests)

    def test_failures_are_errors_of_their_kind_and_probes_are_no_spans(self, tmp_path, spans):
        lm = Checked()
        with running(served(train(tmp_path / "m"), lm=lm)) as client:
            assert client.get("/healthz")[0] == client.get("/metrics")[0] == 200
            assert client.get(f"/{SECRET_TEXT.replace(' ', '%20')}?q=zebra")[0] == 404
            lm.broken = BackendError(f"fails at {SECRET_TEXT}")
            assert client.predict({"text": SECRET_TEXT})[0] == 503
        unknown, failed = of_kind(spans(), SpanKind.SERVER)
        (batch,) = of_kind(spans(), SpanKind.INTERNAL)
        assert (unknown.name, unknown.status.status_code) == ("GET", StatusCode.UNSET)
        assert failed.attributes["error.type"] == "503"
        assert batch.attributes["error.type"] == "other"
        assert failed.status.status_code is batch.status.status_code is StatusCode.ERROR


class Collector:
    """An OTLP collector on loopback: keeps the spans that are exported to it."""

    def __enter__(self):
        self.resources, self.spans = [], []

        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                """Say nothing."""

            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    owner.keep(ExportTraceServiceRequest.FromString(data))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def keep(self, request):
        for one in request.resource_spans:
            self.resources.append({a.key: a.value.string_value for a in one.resource.attributes})
            self.spans += [span for scope in one.scope_spans for span in scope.spans]

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class TestServe:
    def test_it_exports_its_traces_and_logs_their_ids(self, server, api_model):
        arguments = (
            *(api_model, "--backend", "openai", "--model", "lm", "--no-store"),
            *("--backend-option", f"base_url={server.url}"),
            *("--traces", "--access-log", "--log-format", "json", "--log-level", "info"),
        )
        with (
            Collector() as collector,
            process(
                *arguments, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="desk"
            ) as client,
        ):
            body = {"texts": [SECRET_TEXT, ""]}
            sent = {"traceparent": TRACEPARENT, "X-Request-Id": "r1"}
            assert client.predict(body, **sent)[0] == 200
            client.process.terminate()
            said = client.process.stderr.read()
        assert {one["service.name"] for one in collector.resources} == {"desk"}
        ours = [span for span in collector.spans if span.trace_id.hex() == TRACE]
        assert {span.name for span in ours} == {"POST /v1/predict", "batch m", "chat lm"}
        assert "zebra" not in str(collector.spans)
        assert "zebra" not in said
        lines = [json.loads(line) for line in [client.said, *said.splitlines()]]
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        assert "uvicorn.error" in {line["logger"] for line in lines}
        (access,) = [line for line in lines if line.get("request_id") == "r1"]
        (request,) = [span for span in ours if span.name == "POST /v1/predict"]
        assert access["trace_id"] == TRACE
        assert access["span_id"] == request.span_id.hex()
        assert (access["method"], access["route"], access["status"]) == ("POST", "/v1/predict", 200)
        assert (access["rows"], access["passes"]) == (2, 2)
        assert 0 < access["seconds"] < 30

    def test_without_its_extra_it_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
        path = train(tmp_path / "m")
        result = CliRunner().invoke(main, ["serve", str(path), "--port", "0", "--traces"])
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert "pip install 'promptboosting[otel]'" in line

    def test_a_failed_request_is_sent_again_without_the_words_of_the_api(self, server, api_model):
        arguments = (
            *(api_model, "--backend", "openai", "--model", "lm", "--no-store"),
            *("--backend-option", f"base_url={server.url}", "--log-level", "debug"),
        )
        with process(*arguments) as client:
            waits = {"message": f"can't read {SECRET_TEXT}", "retry_after": 6}
            faults = iter([(500, waits)] * 2)
            server.fault = lambda: next(faults, None)
            assert client.predict({"text": SECRET_TEXT})[0] == 200
            client.process.terminate()
            said = client.process.stderr.read()
        assert "zebra" not in said
        assert "uvicorn.error" in said


def test_without_opentelemetry_there_are_no_spans_and_no_ids():
    script = """
import sys
sys.modules["opentelemetry"] = None
from blackbox.telemetry import *
with span("a", "SERVER", {}, [incoming_context({"traceparent": "x"}), current_context()]) as made:
    set_attributes(made, {"a": 1})
    fail(made, "b")
    assert made is None and trace_ids() == outgoing_headers() == {}
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_warnings_go_to_standard_error_until_an_application_configures_logging():
    script = """
import logging, blackbox, backends
for name in ("blackbox.store.file", "backends.api.retries"):
    logging.getLogger(name).warning("plain")
    logging.getLogger(name).info("hidden")
logging.basicConfig()
logging.getLogger("blackbox.store.file").warning("shown")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stderr.splitlines() == ["plain", "plain", "WARNING:blackbox.store.file:shown"]
