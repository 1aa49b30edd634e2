"""A server on loopback that speaks both forms of decision endpoints, with a ledger and faults.

Its "LM" counts words: an option is the likelier the more of its letters stand in the text's words.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np
from fault_server import read_content

__all__ = ["KEY", "Bill", "DecisionServer", "probability"]

KEY = "sk-sentinel-0123456789"
FAULTS = ("429", "500", "half a body", "hang up", "no answers", "sum of 2", "a word")
USAGE_FAULTS: Mapping[str, Any] = {
    "usage is missing": ...,
    "usage is zero": {"input_tokens": 0, "output_tokens": 0},
    "usage is negative": {"input_tokens": -5},
    "usage is too large": {"input_tokens": 10**30},
}


class Bill(NamedTuple):
    """The bill of one request."""

    questions: int
    tokens: int


def probability(text: str, question: str, option: str, n_options: int) -> float:
    """Return the share of an option before scaling: known words of the text decide."""
    mood = sum(w in text for w in ("lovely", "great")) - sum(w in text for w in ("awful", "dull"))
    lean = {"yes": 1, "positive": 1, "no": -1, "negative": -1}.get(option, 0)
    noise = (hash_of(text + question + option) % 100) / 250
    return math.exp(1.5 * lean * mood + noise)


def hash_of(text: str) -> int:
    """Return the same number in every process."""
    return sum(place * byte for place, byte in enumerate(text.encode(), 1))


class DecisionServer:
    """A server of one decision model.

    Parameters
    ----------
    paths : tuple of str
        Which of ``"decisions"`` and ``"systemone"`` there are.
    most : int
        Questions of a request, at most.
    options : int
        Options of a question, at most.
    digits : int or None
        Digits that probabilities are rounded to.
    per_question : bool
        Whether the text is read, and billed, once for each question.
    fault : callable, optional
        Called before each answer; gives the name of a fault or None.
    """

    def __init__(
        self,
        *paths: str,
        most: int = 400,
        options: int = 255,
        digits: int | None = None,
        per_question: bool = False,
        fault: Callable[[], str | None] | None = None,
    ) -> None:
        self.paths = paths or ("decisions",)
        self.most, self.options, self.digits, self.per_question = (
            most,
            options,
            digits,
            per_question,
        )
        self.fault = fault or (lambda: None)
        self.bodies: list[dict[str, Any]] = []
        self.ledger: list[Bill] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The client's `base_url`."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def bill(self) -> Bill:
        """The bill of all requests."""
        return Bill(sum(b.questions for b in self.ledger), sum(b.tokens for b in self.ledger))

    def __enter__(self) -> DecisionServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and JSON for a request."""
        name = path.rpartition("/")[2]
        if name not in self.paths:
            return 404, {"error": {"message": f"no such path: {path}"}}
        fault = self.fault()
        if fault in ("429", "500"):
            return int(fault), {"error": {"message": "later"}}
        by_name = body["questions"] if name == "systemone" else dict(enumerate(body["questions"]))
        state = body["state" if name == "systemone" else "input"]
        text, image, _ = read_content(state if isinstance(state, str) else state[0]["content"])
        if not 1 <= len(by_name) <= self.most:
            return 400, {"error": {"message": f"questions: at most {self.most}"}}
        asked = {key: self._asked(question) for key, question in by_name.items()}
        if any(len(options) > self.options for _, _, options in asked.values()):
            return 400, {"error": {"message": f"at most {self.options} options for this model"}}
        if "forbidden" in text:
            return 400, {"error": {"message": "not this", "code": "content_filter"}}
        if len(text.split()) > 3000:
            said = "maximum context length is 3000 tokens"
            return 400, {"error": {"message": said, "code": "context_length_exceeded"}}
        seen = [] if image is None else np.asarray(image.pixels().resize((2, 2))).ravel().tolist()
        words = len(text.split()) * (len(asked) if self.per_question else 1)
        words += sum(len(json.dumps(question).split()) for question in by_name.values())
        with self.lock:
            self.ledger.append(Bill(len(asked), words))
        answers = {key: self._decide(name, text, seen, *one) for key, one in asked.items()}
        if fault == "sum of 2":
            answers = {key: self._doubled(one) for key, one in answers.items()}
        if fault == "a word":
            answers = {key: {"type": "predicate", "probability": "high"} for key in answers}
        if name == "systemone":
            told: Any = {key: one for key, one in answers.items() if one["type"] != "refusal"}
        else:
            told = list(answers.values())
        usage = {
            "input_tokens": words,
            "output_tokens": len(asked),
            "total_tokens": words + len(asked),
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        made = {"model": "decider-1", "answers": told, "usage": usage}
        if fault == "no answers":
            del made["answers"]
        if fault in USAGE_FAULTS:
            del made["usage"]
            if USAGE_FAULTS[fault] is not ...:
                made["usage"] = USAGE_FAULTS[fault]
        return (0 if fault in ("half a body", "hang up") else 200), made

    @staticmethod
    def _asked(question: dict[str, Any]) -> tuple[str, str, list[str]]:
        kind = question["type"]
        if kind in ("predicate", "noul"):
            options = ["yes", "no"]
        elif kind == "choice":
            found = question.get("choices")
            options = [one["value"] for one in found] if found else list(question["criteria"])
        else:
            found = question.get("levels")
            options = [one["label"] for one in found] if found else list(question["criteria"])
        return kind, question["instructions"], options

    def _decide(
        self,
        form: str,
        text: str,
        seen: list[int],
        kind: str,
        instructions: str,
        options: list[str],
    ) -> dict[str, Any]:
        if "secret" in instructions and "shy" in text:
            return {"type": "refusal", "name": None}
        raw = [probability(text, instructions, option, len(options)) for option in options]
        if seen:  # an image: each option has a part of its colours
            raw = [v * (1 + n + seen[n % len(seen)] / 64) for n, v in enumerate(raw)]
        shares = [value / sum(raw) for value in raw]
        if self.digits is not None:
            shares = [round(share, self.digits) for share in shares]
        if kind == "predicate":
            return {"type": kind, "name": None, "probability": shares[0]}
        if kind == "noul":
            return {"type": kind, "noul": shares[0]}
        best = max(range(len(shares)), key=shares.__getitem__)
        if form == "systemone":
            names = options if kind == "choice" else map(str, range(len(options)))
            found = {"type": kind, "probabilities": dict(zip(names, shares, strict=True))}
            return found | ({"choice": options[best]} if kind == "choice" else {"score": best})
        if kind == "choice":
            listed = [{"value": o, "probability": s} for o, s in zip(options, shares, strict=True)]
            found = {"type": kind, "name": None, "choice": options[best], "confidence": 0.5}
            return found | {"probabilities": listed}
        listed = [
            {"label": o, "value": place, "probability": s}
            for place, (o, s) in enumerate(zip(options, shares, strict=True))
        ]
        found = {"type": kind, "name": None, "score": float(best), "confidence": 0.5}
        return found | {"probabilities": listed}

    @staticmethod
    def _doubled(answer: dict[str, Any]) -> dict[str, Any]:
        return {
            key: 2.0 if key in ("probability", "noul") else value for key, value in answer.items()
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                data = [{"id": "decider", "object": "model"}]
                self._reply(200, {"object": "list", "data": data})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    self._reply(401, {"error": {"message": "bad key"}})
                    return
                with owner.lock:
                    owner.bodies.append(body)
                self._reply(*owner.answer(self.path, body))

            def _reply(self, status: int, answer: Any) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status or 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data if status else data[: len(data) // 2])
                if not status:
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.close()

        return Handler
