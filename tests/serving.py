"""A service on loopback for tests, and a plain client of it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.backend import BaseBackend
from blackbox.errors import BackendError
from blackbox.lm.budgets import Budget
from blackbox.lm.connect import connect, connect_embeddings
from blackbox.model.file import read_model
from blackbox.model.model import Model
from blackbox.service.app import create_app
from blackbox.service.core import Service
from blackbox.service.models import ServedModel
from blackbox.service.settings import ServiceSettings
from blackbox.service.slow_clients import timeout_protocol

TEXTS = ["match goal", "bank loan", "goal team", "loan market", "team match", "market bank"] * 4
LABELS = ["sport", "money"] * 12


def train(path: Path, texts=TEXTS, labels=LABELS, **options: Any) -> Path:
    """Train a small model and save it."""
    options = {"n_prompts": 3, "random_state": 0, "store": False} | options
    PromptBoostingClassifier("deterministic", **options).fit(texts, labels).save(path)
    return path


def served(path: Path, name: str = "m", *, lm: Any = "deterministic", budget=None, **options: Any):
    """A saved model, ready to serve."""

    def load(file: Path) -> tuple[Model, BaseBackend, BaseBackend | None]:
        model = read_model(file)
        return model, connect(lm), model.embedder_identity and connect_embeddings("deterministic")

    return ServedModel(name, path, load, budget or Budget(), **{"store": False} | options)


class Slow(DeterministicBackend):
    """Takes its time, and fails when told to."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds, self.broken, self.calls = seconds, None, 0

    def next_token(self, prompts, top_k):
        self.calls += 1
        time.sleep(self.seconds)
        if self.broken:
            raise self.broken if isinstance(self.broken, Exception) else BackendError(self.broken)
        return super().next_token(prompts, top_k)


class Checked(Slow):
    """One that can be asked how it is."""

    def check(self):
        if self.broken:
            raise BackendError(self.broken)
        return True


def as_problem(answer, status):
    """The line of a refusal."""
    found, headers, body = answer
    assert found == status, body
    assert headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["request_id"] == headers["x-request-id"]
    assert "\n" not in body["detail"]
    return body["detail"]


def wait_for(happens, seconds=30):
    """Until something is true, which may raise OSError before."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if happens():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Client:
    """Asks one service."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.port, self.address = port, address

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers, and the body: JSON where it is some."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=30)
        sent = {"Content-Type": "application/json"} if method == "POST" else {}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, sent | (headers or {}))
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        told = {name.lower(): value for name, value in answer.getheaders()}
        if "json" in told.get("content-type", "") and content:
            return answer.status, told, json.loads(content)
        return answer.status, told, content.decode()

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
        """GET."""
        return self.ask("GET", path, headers=headers)

    def predict(self, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        """POST to /v1/predict."""
        return self.ask("POST", "/v1/predict", body, headers)


@contextmanager
def running(*models: ServedModel, **settings: Any):
    """Serve models; gives a client, whose `service` is theirs."""
    service = Service(models, ServiceSettings(**settings))
    config = uvicorn.Config(
        create_app(service),
        "127.0.0.1",
        0,
        log_config=None,
        log_level="warning",
        ws="none",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=5,
        http=timeout_protocol(service.settings.read_timeout, service.metrics.count_unreadable),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        assert time.monotonic() < deadline, "the service did not start in time"
        time.sleep(0.01)
    client = Client(server.servers[0].sockets[0].getsockname()[1])
    client.service, client.server = service, server
    try:
        yield client
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the service did not stop"
