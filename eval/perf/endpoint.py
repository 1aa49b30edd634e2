"""An OpenAI-compatible API on loopback whose answers take a while: for measurements, no LM.

    python -m eval.perf.endpoint [--seconds 0.3]

It serves chats and completions, prints its address, and runs until its standard input ends. The
time of an answer is drawn from a log-normal distribution with the given median; half as long and
twice as long are two standard deviations away. Answers are made up: words with log-probabilities
that depend on the words of the prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import PIPE, Popen
from typing import Any

import click

__all__ = ["running_endpoint"]

_SPREAD = math.log(2) / 2
_WORDS = [f" {word}" for word in ("good", "bad", "late", "lost", "wrong", "paid", "none", "yes")]
_BYTES_A_TOKEN = 4


@contextmanager
def running_endpoint(seconds: float) -> Iterator[str]:
    """Run the server in a process of its own; yields its base URL."""
    command = [sys.executable, "-m", "eval.perf.endpoint", "--seconds", str(seconds)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def _answer(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    is_chat = path.endswith("/chat/completions")
    asked = json.dumps(body["messages"] if is_chat else body["prompt"])
    drawn = random.Random(hashlib.md5(asked.encode()).digest())
    known = set(asked.lower().split())
    scores = {word: drawn.random() + 2 * (word.strip() in known) for word in _WORDS}
    total = math.log(sum(map(math.exp, scores.values()))) + 0.05
    ranked = sorted(((word, score - total) for word, score in scores.items()), key=lambda x: -x[1])
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if is_chat:
        tokens = [{"token": w, "logprob": v, "bytes": list(w.encode())} for w, v in ranked]
        choice["message"] = {"role": "assistant", "content": ranked[0][0]}
        choice["logprobs"] = {"content": [tokens[0] | {"top_logprobs": tokens}]}
    else:
        choice |= {"text": ranked[0][0], "logprobs": {"top_logprobs": [dict(ranked)]}}
    tokens_read = len(asked) // _BYTES_A_TOKEN
    return {
        "choices": [choice],
        "usage": {"prompt_tokens": tokens_read, "completion_tokens": 1},
    }


def _handler(seconds: float) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a head and a body in two packets cost 40 ms

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

        def do_GET(self) -> None:
            self._send({"object": "list", "data": [{"id": "made-up", "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(random.lognormvariate(math.log(seconds), _SPREAD))
            self._send(_answer(self.path, body))

        def _send(self, answer: Any) -> None:
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@click.command()
@click.option("--seconds", default=0.3, show_default=True, help="Median time of an answer.")
def main(seconds: float) -> None:
    """Serve until standard input ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(seconds))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
