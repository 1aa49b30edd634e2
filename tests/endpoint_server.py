"""A small OpenAI-compatible server on loopback whose answers a test writes itself."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["EndpointServer", "chat", "completion", "distribution", "error"]

Answer = Callable[[str, str, Any], tuple[Any, ...]]
"""From method, path and JSON body to status, JSON or text, and headers; status 0 hangs up."""

_WORDS = " good, bad, great, terrible, positive, negative, nice, poor, the, a, not, very, so, an"
_WORDS += ", fine, awful, okay, lovely, sad, happy, food, service, place, one, it"
WORDS = _WORDS.split(",")
LISTED = {"object": "list", "data": [{"id": "m", "object": "model"}]}


class EndpointServer:
    """A server that answers with what `answer` returns, and keeps the requests.

    Parameters
    ----------
    answer : callable
        See `Answer`.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[tuple[str, str, Any]] = []
        self.on_headers: Callable[[Mapping[str, str]], Any] = dict  # called with each request's
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The client's `base_url`."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def posts(self, path: str = "") -> list[Any]:
        """Return the bodies posted to paths that end like this."""
        return [body for method, where, body in self.requests if method == "POST" and path in where]

    def __enter__(self) -> EndpointServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def plain(method: str, path: str, body: Any) -> tuple[Any, ...]:
        """Answer as an ordinary endpoint of chats does."""
        if path.endswith("/models"):
            return 200, LISTED
        if path.endswith("/chat/completions"):
            if body.get("top_logprobs", 0) > 20:
                return 400, error("at most 20", param="top_logprobs")
            return 200, chat(distribution(body, body.get("top_logprobs") or 1))
        return 404, error("no such path")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a head and a body in two packets cost 40 ms

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self._go("GET")

            def do_POST(self) -> None:
                self._go("POST")

            def _go(self, method: str) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(data) if data else None
                path = self.path.split("?")[0]
                owner.requests.append((method, path, body))
                owner.on_headers(self.headers)
                status, answer, *more = owner.answer(method, path, body)
                if not status:
                    self.close_connection = True
                    self.connection.close()
                    return
                text = answer if isinstance(answer, str) else json.dumps(answer)
                headers: Mapping[str, str] = more[0] if more else {}
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

        return Handler


def distribution(body: Mapping[str, Any], k: int, words: list[str] = WORDS) -> list[Any]:
    """Return the k likeliest words with log-probabilities that depend on the words of a prompt."""
    text = json.dumps(body.get("messages") or body.get("prompt")).lower()
    found = re.findall(r"[a-z]+", text)
    mood = sum(w in ("lovely", "great") for w in found) - sum(w in ("awful", "dull") for w in found)
    seed = int(hashlib.md5(text.encode()).hexdigest()[:6], 16)
    scores = []
    for place, word in enumerate(words):
        lift = {"g": mood, "n": mood, "b": -mood, "t": -mood}.get(word.strip()[:1], 0)
        scores.append(-0.15 * place + (seed >> place % 20 & 3) * 0.1 + 0.9 * lift)
    total = math.log(sum(map(math.exp, scores))) + 0.05
    pairs = [(word, score - total) for word, score in zip(words, scores, strict=True)]
    return sorted(pairs, key=lambda pair: -pair[1])[:k]


def chat(pairs: list[Any], **more: Any) -> dict[str, Any]:
    """Return a chat completion that holds a distribution; `more` goes into its choice."""
    tokens = [{"token": w, "logprob": v, "bytes": list(w.encode())} for w, v in pairs]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": pairs[0][0]},
        "finish_reason": "length",
        "logprobs": {"content": [tokens[0] | {"top_logprobs": tokens}]},
    }
    return {"choices": [choice | more], "usage": {"prompt_tokens": 20, "completion_tokens": 1}}


def completion(pairs: list[Any], **more: Any) -> dict[str, Any]:
    """Return a legacy completion that holds a distribution."""
    choice = {
        "index": 0,
        "text": pairs[0][0],
        "finish_reason": "length",
        "logprobs": {"top_logprobs": [dict(pairs)]},
    }
    return {"choices": [choice | more], "usage": {"prompt_tokens": 20, "completion_tokens": 1}}


def error(message: str, **more: Any) -> dict[str, Any]:
    """Return the body of an error as OpenAI writes it."""
    return {"error": {"message": message, "type": "invalid_request_error", **more}}
