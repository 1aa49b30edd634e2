"""An OpenAI-compatible server on loopback that fails as real ones do, on a seeded schedule.

Its answers are those of the deterministic backend, so a test knows what each prompt must get. Its
ledger holds what it evaluated, and would bill, whatever it then answered.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from backends.deterministic import DeterministicBackend
from blackbox.images import Image
from blackbox.protocol import Message, RenderedPrompt

__all__ = ["FAULTS", "USAGE_FAULTS", "Bill", "FaultServer", "read_content", "seeded_faults"]

Fault = str | tuple[int, Mapping[str, Any]]
"""The name of one of `FAULTS`, or a status and the `error` object of an answer."""

FAULTS = (
    "429 with a wait",
    "429",
    "500",
    "502",
    "half a body",
    "malformed",
    "no choices",
    "two choices",
    "no log-probabilities",
    "positive",
    "slow",
    "reset",
)


USAGE_FAULTS: Mapping[str, Any] = {
    "usage is missing": ...,
    "usage is null": None,
    "usage is zero": {"prompt_tokens": 0, "completion_tokens": 0},
    "usage is negative": {"prompt_tokens": -500, "completion_tokens": -500},
    "usage is too small": {"prompt_tokens": 1, "completion_tokens": 1},
    "usage is too large": {"prompt_tokens": 10**30, "completion_tokens": 1},
    "usage is text": {"prompt_tokens": "five", "completion_tokens": "1"},
    "usage is infinite": {"prompt_tokens": float("inf"), "completion_tokens": float("nan")},
    "usage is a list": [1, 2],
}
"""Reports of an answer on its tokens in the place of the truth."""

THINKING = 500  # tokens that "thinks" writes, and bills, for each answer


class Bill(NamedTuple):
    """The bill of one request."""

    passes: int
    tokens: int
    written: int


def seeded_faults(seed: int, share: float, names: tuple[str, ...] = FAULTS) -> Callable[[], Any]:
    """Draws a fault for a share of requests, in a fixed order."""
    rng = random.Random(seed)
    return lambda: rng.choice(names) if rng.random() < share else None


def plain(part: Any) -> Any:
    """A part of a prompt as JSON data; an image as its digest."""
    return part.digest if isinstance(part, Image) else vars(part)


def read_content(content: Any) -> tuple[str, Image | None, int]:
    """The text of a message's content, its image, and the characters before that."""
    text, image, at = "", None, 0
    for part in [{"text": content}] if isinstance(content, str) else content:
        url = part.get("image_url")
        if url is None:
            text += part["text"]
        else:
            image, at = Image.of_data_url(url if isinstance(url, str) else url["url"]), len(text)
    return text, image, at


class FaultServer:
    """A server of one model.

    Parameters
    ----------
    fault : callable, optional
        Called before each answer to a completion; gives a `Fault` or None.
    endpoints : tuple of str
        Which of ``"chat"`` and ``"completions"`` there are.
    largest : int
        Most log-probabilities of an answer; asked for more, the request is rejected.
    begun : bool
        Whether a chat's answer can be begun.
    tells_bytes : bool
        Whether tokens have bytes beside their text.
    rejects : mapping of str to str
        Fields that are rejected, with the message.
    images : str
        What is done with images: ``"seen"``, ``"refused"`` or ``"ignored"``.
    key : str
        The key that it wants.
    port : int
        Where it listens; 0 is a free port.
    """

    def __init__(
        self,
        fault: Callable[[], Any] | None = None,
        *,
        endpoints: tuple[str, ...] = ("chat",),
        largest: int = 20,
        begun: bool = False,
        tells_bytes: bool = True,
        rejects: Mapping[str, str] | None = None,
        images: str = "seen",
        key: str = "sk-sentinel-0123456789",
        port: int = 0,
    ) -> None:
        self.lm = DeterministicBackend()
        self.fault = fault or (lambda: None)
        self.endpoints = endpoints
        self.largest = largest
        self.begun = begun
        self.tells_bytes = tells_bytes
        self.rejects = dict(rejects or {})
        self.images = images
        self.key = key
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.seen_at: list[float] = []
        self.ledger: list[Bill] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks = 0
        self.looks_needed = 2
        self.loses_submissions = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def url(self) -> str:
        """The `base_url` of a client."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    @property
    def bill(self) -> Bill:
        """The sum of the ledger."""
        columns = zip(*self.ledger, strict=True) if self.ledger else [(), (), ()]
        return Bill(*map(sum, columns))

    def _evaluate(self, body: dict[str, Any], answer: dict[str, Any], fault: Any) -> None:
        """Write into the ledger what a request is billed."""
        tokens = self.lm.count_tokens([self.prompt_of(body)])[0]
        written = answer["usage"]["completion_tokens"]
        if fault == "thinks":
            written = answer["usage"]["completion_tokens"] = THINKING
        self.ledger.append(Bill(written if "n" in body else 1, tokens, written))

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The right answer to a request's body."""
        chat = path.endswith("/chat/completions")
        prompt = self.prompt_of(body)
        if "n" in body:
            return self._texts(prompt, body, chat)
        top_k = body.get("top_logprobs") if chat else body.get("logprobs")
        result = self.lm.next_token([prompt], int(top_k or 1))
        tokens = [
            {"token": self.lm.token_bytes[token].decode(), "logprob": float(value)}
            for token, value in zip(result.token_ids[0].tolist(), result.log_probs[0], strict=True)
        ]
        if chat and self.tells_bytes:
            for token in tokens:
                token["bytes"] = list(token["token"].encode())
        text = tokens[0]["token"]
        if chat:
            logprobs: dict[str, Any] = {"content": [{**tokens[0], "top_logprobs": tokens}]}
            choice = {"message": {"role": "assistant", "content": text}}
        else:
            logprobs = {"top_logprobs": [{token["token"]: token["logprob"] for token in tokens}]}
            choice = {"text": text}
        choice |= {"index": 0, "finish_reason": "length", "logprobs": logprobs}
        n_tokens = self.lm.count_tokens([prompt])[0]
        usage = {"prompt_tokens": n_tokens, "completion_tokens": 1, "total_tokens": n_tokens + 1}
        return {
            "id": "x",
            "object": "x",
            "created": 0,
            "model": "lm",
            "choices": [choice],
            "usage": usage,
        }

    def prompt_of(self, body: Mapping[str, Any]) -> RenderedPrompt:
        """The prompt in a request's body."""
        if "prompt" in body:
            return RenderedPrompt(text=body["prompt"])
        read = [read_content(turn["content"]) for turn in body["messages"]]
        turns = [
            Message(turn["role"], text)
            for turn, (text, _, _) in zip(body["messages"], read, strict=True)
        ]
        begun = turns.pop().content if turns[-1].role == "assistant" else ""
        image, at = next(((image, at) for _, image, at in read if image), (None, 0))
        if self.images == "ignored":
            image, at = None, 0
        return RenderedPrompt(messages=tuple(turns), answer_prefix=begun, image=image, image_at=at)

    def _texts(self, prompt: RenderedPrompt, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        length = body.get("max_tokens") or body.get("max_completion_tokens") or 1
        draws = self.lm.generate(
            [prompt],
            body["n"],
            max_tokens=length,
            temperature=body["temperature"],
            seed=body["seed"],
        ).texts[0]
        choices: list[dict[str, Any]] = [
            {"message": {"content": text}} if chat else {"text": text} for text in draws
        ]
        usage = {
            "prompt_tokens": self.lm.count_tokens([prompt])[0],
            "completion_tokens": length * body["n"],
        }
        return {"choices": choices, "usage": usage}

    def refusal(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """Why a request is rejected, if it is."""
        if path.split("/v1/")[1].split("/")[0] not in self.endpoints:
            return 404, {"message": "no such endpoint", "code": "not_found"}
        if body.get("model") != "lm":
            return 404, {"message": f"no model {body.get('model')!r}", "code": "model_not_found"}
        for field, message in self.rejects.items():
            if field in body:
                return 400, {"message": message, "param": field, "code": "unsupported_parameter"}
        if self.images == "refused" and "image_url" in json.dumps(body.get("messages")):
            return 400, {"message": "this model reads text only", "code": "invalid_value"}
        asked = body.get("top_logprobs") or int(body.get("logprobs") or 0)
        if asked > self.largest:
            return 400, {"message": f"at most {self.largest}", "param": "top_logprobs"}
        if not self.begun and body.get("messages", [{}])[-1].get("role") == "assistant":
            return 400, {"message": "the last turn must be the user's", "code": "invalid_value"}
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a head and its body would wait for each other

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                with suppress(ConnectionError):
                    self._get()

            def do_POST(self) -> None:
                with suppress(ConnectionError):
                    self._post()

            def _get(self) -> None:
                if not self._allowed():
                    return
                if self.path.endswith("/models"):
                    self.reply(200, {"object": "list", "data": [{"id": "lm", "object": "model"}]})
                else:
                    owner.batch_get(self)

            def _post(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if not self._allowed():
                    return
                if "completions" not in self.path:
                    owner.batch_post(self, data)
                    return
                body = json.loads(data)
                with owner.lock:
                    owner.bodies.append(body)
                    owner.seen_at.append(time.monotonic())
                    refused = owner.refusal(self.path, body)
                    fault = None if refused else owner.fault()
                if refused:
                    self.reply(refused[0], {"error": refused[1]})
                elif isinstance(fault, tuple):
                    if fault[0] not in (401, 403, 404, 429):
                        with owner.lock:
                            owner._evaluate(body, owner.answer(self.path, body), None)
                    self.reply(fault[0], {"error": fault[1]})
                else:
                    self._answer(body, fault)

            def _allowed(self) -> bool:
                given = self.headers.get("Authorization", "")
                if given == f"Bearer {owner.key}":
                    return True
                # some servers repeat the key that they refuse
                error = {"message": f"bad key: {given}", "code": "invalid_api_key"}
                self.reply(401, {"error": error})
                return False

            def reply(
                self, status: int, answer: Any, headers: Mapping[str, str] | None = None
            ) -> None:
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def _answer(self, body: dict[str, Any], fault: str | None) -> None:
                answer = owner.answer(self.path, body)
                with owner.lock:
                    if fault is None or not fault.startswith("429"):
                        owner._evaluate(body, answer, fault)
                    if fault is None or fault == "slow":
                        owner.answered[json.dumps(owner.prompt_of(body), default=plain)] += 1
                    if fault:
                        owner.faults[fault] += 1
                if fault is None or fault == "thinks":
                    self.reply(200, answer)
                    return
                if fault in USAGE_FAULTS:
                    told = USAGE_FAULTS[fault]
                    del answer["usage"]
                    self.reply(200, answer if told is ... else answer | {"usage": told})
                    return
                if fault.startswith("429"):
                    wait = {"Retry-After": "0.01"} if "wait" in fault else {}
                    self.reply(429, {"error": {"message": "slow down", "code": "rate"}}, wait)
                elif fault in ("500", "502"):
                    self.reply(int(fault), b"<html>bad gateway</html>")
                elif fault == "malformed":
                    self.reply(200, json.dumps(answer).encode()[:-7] + b"]")
                elif fault == "reset":
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()
                    self.close_connection = True
                elif fault in ("half a body", "slow"):
                    self._bytes_by_bytes(json.dumps(answer).encode(), fault)
                else:
                    self.reply(200, _spoilt(answer, fault))

            def _bytes_by_bytes(self, data: bytes, fault: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                half = len(data) // 2
                self.wfile.write(data[:half])
                self.wfile.flush()
                if fault == "slow":
                    for start in range(half, len(data), 512):
                        time.sleep(0.002)
                        self.wfile.write(data[start : start + 512])
                        self.wfile.flush()
                else:
                    self.close_connection = True

        return Handler

    def batch_get(self, handler: Any) -> None:
        """The content of a file, the list of batches, or how far one is."""
        parts = handler.path.split("?")[0].split("/v1/")[1].split("/")
        if parts[0] == "files" and parts[-1] == "content" and parts[1] in self.files:
            handler.reply(200, self.files[parts[1]])
        elif parts == ["batches"]:
            handler.reply(200, self._page(handler.path))
        elif parts[0] == "batches" and parts[1] in self.batches:
            with self.lock:
                batch = self.batches[parts[1]]
                self.looks += 1
                if batch["status"] == "in_progress" and self.looks >= self.looks_needed:
                    self._run_batch(batch)
            handler.reply(200, batch)
        else:
            handler.reply(404, {"error": {"message": f"no {handler.path}", "code": "not_found"}})

    def _page(self, path: str) -> dict[str, Any]:
        """A page of the list of batches, the latest first."""
        asked = parse_qs(urlsplit(path).query)
        names = [*reversed(self.batches)]
        after = asked.get("after", [None])[0]
        start = names.index(after) + 1 if after else 0
        stop = start + int(asked.get("limit", ["20"])[0])
        data = [self.batches[name] for name in names[start:stop]]
        return {"object": "list", "data": data, "has_more": stop < len(names)}

    def batch_post(self, handler: Any, data: bytes) -> None:
        """Take a file, or make a batch."""
        if handler.path.endswith("/files"):
            boundary = handler.headers["Content-Type"].split("boundary=")[1].encode()
            parts = [part for part in data.split(b"--" + boundary) if b"filename=" in part]
            content = parts[0].split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            name = f"file-{len(self.files)}"
            self.files[name] = content
            handler.reply(200, {"id": name, "object": "file", "purpose": "batch"})
            return
        asked = json.loads(data)
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "status": "in_progress",
            "errors": None,
            "output_file_id": None,
            "error_file_id": None,
            "created_at": 0,
            **asked,
        }
        if self.loses_submissions:
            self.loses_submissions -= 1
            handler.reply(502, b"<html>bad gateway</html>")
        else:
            handler.reply(200, self.batches[name])

    def _run_batch(self, batch: dict[str, Any]) -> None:
        """Answer a batch's lines in any order; some fail, and some expire."""
        given = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        random.Random(len(given)).shuffle(given)
        good, bad = [], []
        for line in given:
            fault = self.fault()
            if fault == "expired":
                batch["status"] = "expired"
                why = {"code": "batch_expired", "message": "the completion window expired"}
                bad.append({"custom_id": line["custom_id"], "response": None, "error": why})
            elif isinstance(fault, tuple):
                answer = {"status_code": fault[0], "body": {"error": fault[1]}}
                bad.append({"custom_id": line["custom_id"], "response": answer})
            else:
                answer = {"status_code": 200, "body": self.answer(line["url"], line["body"])}
                good.append({"custom_id": line["custom_id"], "response": answer})
                self._evaluate(line["body"], answer["body"], None)
                self.answered[json.dumps(self.prompt_of(line["body"]), default=plain)] += 1
        for field, entries in (("output_file_id", good), ("error_file_id", bad)):
            name = f"{field}-{batch['id']}"
            lines = (json.dumps(entry, ensure_ascii=False) for entry in entries)
            self.files[name] = "\n".join(lines).encode()
            batch[field] = name
        if batch["status"] == "in_progress":
            batch["status"] = "completed"


def _spoilt(answer: dict[str, Any], fault: str) -> dict[str, Any]:
    choice = answer["choices"][0]
    if fault == "no choices":
        return answer | {"choices": []}
    if fault == "two choices":
        return answer | {"choices": [choice, choice]}
    if fault == "no log-probabilities":
        return answer | {"choices": [choice | {"logprobs": None}]}
    content = choice["logprobs"]["content"][0]
    top = [token | {"logprob": 0.5} for token in content["top_logprobs"]]
    return answer | {
        "choices": [choice | {"logprobs": {"content": [content | {"top_logprobs": top}]}}]
    }


def serve(port: int) -> None:
    """Serve until killed; the target of a process."""
    with FaultServer(largest=20, port=port):
        threading.Event().wait()
