"""llama.cpp's server in this process: its start, its loopback port, and completion requests."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import threading
import weakref
from pathlib import Path
from typing import Any

from blackbox.errors import BackendError, ModelNotFoundError

__all__ = ["AHEAD", "LlamaCppServer"]

AHEAD = 3
"""Requests of a slot that the engine has at a time."""


class LlamaCppServer:
    """A running `xllamacpp.Server`.

    Parameters
    ----------
    xllamacpp : module
        The library.
    path : Path
        The model's GGUF file.
    mmproj : Path or None
        The GGUF file that turns images into what the model reads.
    context_length, n_slots, n_threads : int
        As `LlamaCppBackend`.

    Attributes
    ----------
    address, key : str
        Where its port is, and what it asks for.
    """

    def __init__(
        self,
        xllamacpp: Any,
        path: Path,
        mmproj: Path | None,
        *,
        context_length: int,
        n_slots: int,
        n_threads: int,
    ) -> None:
        self.key = secrets.token_urlsafe(32)
        params = _parameters(xllamacpp, path, context_length, n_slots, n_threads)
        params.api_keys = [self.key]
        if mmproj is not None:
            params.mmproj.path = str(mmproj)
            # a connection that is kept open has a thread to itself
            params.n_threads_http = AHEAD * n_slots + 2
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            what = path.name if mmproj is None else f"{path.name} with {mmproj.name}"
            raise ModelNotFoundError(f"llama.cpp can't load {what}: {error}") from error
        self.address: str = self._server.listening_address
        self._through_port = mmproj is not None
        self._port = _Port(self)
        self._own = threading.local()
        self._process = os.getpid()

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON of a path."""
        self._check_process()
        return self._port.send("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON with which a path answers JSON."""
        self._check_process()
        return self._port.send("POST", path, body)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a completion request, in the form of llama.cpp's own endpoint.

        In memory where no image can be in it: that form of request takes texts alone. Through the
        port each thread has a connection of its own.

        Raises
        ------
        BackendError
            If the request is refused, or this process was forked.
        """
        self._check_process()
        if self._through_port:
            if not hasattr(self._own, "port"):
                self._own.port = _Port(self)
            answer: dict[str, Any] = self._own.port.send("POST", "/completion", body)
            return answer
        answer = self._server.handle_completions(body)
        if not isinstance(answer, dict) or "choices" not in answer:
            raise BackendError(f"llama.cpp refused a request: {str(answer)[:200]}")
        choice = answer["choices"][0]
        told = choice.get("logprobs") or {}
        return {
            "content": choice["text"],
            "completion_probabilities": told.get("content"),
            "timings": answer["timings"],
        }

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise BackendError(
                "llama.cpp was loaded before this process was forked, and its threads are in the "
                "other one: load it in this one, or start processes by 'spawn'"
            )


class _Port:
    """The engine's loopback port: one connection that is kept open."""

    def __init__(self, server: LlamaCppServer) -> None:
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {server.key}",
        }
        self._connection = http.client.HTTPConnection(server.address.removeprefix("http://"))
        self._lock = threading.Lock()
        weakref.finalize(self, self._connection.close)

    def send(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        with self._lock:
            for attempt in (1, 2):
                try:
                    self._connection.request(method, path, data, self._headers)
                    response = self._connection.getresponse()
                    answer = json.loads(response.read())
                    break
                except (OSError, http.client.HTTPException):
                    # a kept connection that the server has closed meanwhile
                    self._connection.close()
                    if attempt == 2:
                        raise
        if response.status != 200 or not isinstance(answer, dict):
            raise BackendError(f"llama.cpp refused {path}: {str(answer)[:200]}")
        return answer


def _parameters(
    xllamacpp: Any, path: Path, context_length: int, n_slots: int, n_threads: int
) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = n_slots
    params.n_ctx = context_length * n_slots
    params.cpuparams.n_threads = n_threads
    params.cpuparams_batch.n_threads = n_threads
    # of builds without OpenMP: waiting threads must not take the processor from others
    params.cpuparams.poll = 0
    params.cpuparams_batch.poll = 0
    # the whole cache of a sliding-window model: else none of a prefix is reused
    params.swa_full = True
    # the port is for this object alone: loopback, a key of its own, nothing else open
    params.hostnames = ["127.0.0.1"]
    params.ui = False
    params.endpoint_slots = False
    # host memory for old sequences would copy them around for nothing: the order makes them useless
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.verbosity = -1
    return params
