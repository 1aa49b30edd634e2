"""Mutated bodies of responses: each is read, or ends in one line of ours."""

from __future__ import annotations

import copy
import json
import math
import random
import re

import pytest
from endpoint_server import LISTED, EndpointServer, chat, completion, error

pytest.importorskip("openai", reason="needs the `openai` extra")

import httpx2
import openai

from backends.api import retries
from backends.openai import OpenAIBackend
from blackbox.errors import BackendError
from blackbox.protocol import Message, RenderedPrompt

ODD = (None, True, 0, -1, 1, 0.5, 10**30, 1e308, math.inf, math.nan, "", "x", "9" * 5000, "\ud800")
ODD += ("1", [], {}, [[]], {"a": 1}, [None], [1, 2, 3], ["x"], {"error": "no"}, "a\nb\x1b[31m")
PAIRS = [(" good", -0.2), (" bad", -2.0), (" fine", -3.5)]
PYTHON_S_OWN = re.compile(
    r"Traceback|object has no|NoneType|unhashable|indices|out of range|not subscriptable|KeyError"
    r"|TypeError|ValueError|invalid literal|could not convert|must be str|codec can't|Errno|\n|\x1b"
)
CHAT = RenderedPrompt(messages=(Message("user", "a text"),))
RAW = RenderedPrompt(text="a text")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(retries, "_BACKOFF", (0.0, 0.0))


class Bodies:
    """An HTTP transport without a network that answers as `body` says, once it is set."""

    def __init__(self):
        self.status, self.body = 200, None
        client = httpx2.Client(transport=httpx2.MockTransport(self._answer))
        self.client = openai.OpenAI(
            api_key="sk-sentinel-0123456789", base_url="http://127.0.0.1:9/v1", http_client=client
        )

    def _answer(self, request):
        if self.body is not None:
            return httpx2.Response(self.status, content=self.body)
        asked = json.loads(request.content) if request.content else None
        path = request.url.path
        if path.endswith("/v1/completions"):
            status, found = 200, completion(PAIRS)
        else:
            status, found = EndpointServer.plain(request.method, path, asked)[:2]
        return httpx2.Response(status, content=json.dumps(found).encode())

    def backend(self, **options):
        return OpenAIBackend("m", client=self.client, max_attempts=1, **options)


def places(data, path=()):
    """Every place in JSON data."""
    yield path
    if isinstance(data, dict | list):
        inner = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in inner:
            yield from places(value, (*path, key))


def mutated(data, rng):
    """The bytes of JSON data with one thing changed, or two."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(list(places(data)))
        if not path:
            data = copy.deepcopy(rng.choice(ODD)) if rng.random() < 0.1 else data
            continue
        holder = data
        for key in path[:-1]:
            holder = holder[key]
        match rng.randrange(4):
            case 0:
                del holder[path[-1]]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[path[-1]]))
            case _:
                holder[path[-1]] = copy.deepcopy(rng.choice(ODD))
    text = json.dumps(data).encode()
    if rng.random() < 0.1:
        cut = rng.randrange(len(text) + 1)
        text = text[:cut] + bytes([rng.randrange(256)]) + text[cut + rng.randrange(3) :]
    return text or b" "


def check(work):
    """Run, and look at the words of what it ends with."""
    try:
        found = work()
    except BackendError as ended:
        said = str(ended)
    else:
        said = " ".join(getattr(found, "row_errors", {}).values())
    assert not PYTHON_S_OWN.search(said), said


STREAM = {"choices": [{"index": 0, "delta": {"content": "x"}, **chat(PAIRS)["choices"][0]}]}
REFUSED = error("too long: maximum context length is 10 tokens", code="context_length_exceeded")
REFUSED["error"] |= {"param": "x", "metadata": {"raw": '{"message": "no"}'}, "details": [{}]}


@pytest.mark.parametrize("what", ["chat", "completion", "stream", "error", "draws"])
@pytest.mark.parametrize(
    ("seed", "n"), [(0, 120), *(pytest.param(n, 1000, marks=pytest.mark.slow) for n in (1, 2, 3))]
)
def test_an_answer_of_any_shape_is_read_or_is_one_line(what, seed, n):
    rng, bodies = random.Random(f"{what} {seed}"), Bodies()
    source = {
        "chat": chat(PAIRS) | {"model": "m", "system_fingerprint": "f"},
        "completion": completion(PAIRS),
        "stream": STREAM,
        "error": REFUSED,
        "draws": {**chat(PAIRS), "choices": [{"message": {"content": "x"}}, {"text": "y"}]},
    }[what]
    backend = bodies.backend()
    backend.probe()
    for _ in range(n):
        bodies.status = rng.choice((400, 404, 413, 429, 500, 200)) if what == "error" else 200
        body = mutated(source, rng)
        bodies.body = b"data: " + body + b"\n\ndata: [DONE]\n" if what == "stream" else body
        if what == "draws":
            check(lambda: backend.generate([CHAT, RAW], 2, max_tokens=2))
        else:
            check(lambda: backend.next_token([RAW if what == "completion" else CHAT], 3))


@pytest.mark.parametrize("n", [10, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["list", "answer", "error"])
def test_a_probe_that_is_answered_by_anything_is_one_line(what, n):
    rng, bodies = random.Random(what), Bodies()
    listed = copy.deepcopy(LISTED)
    listed["data"][0] |= {
        "owned_by": "vllm",
        "max_model_len": 9,
        "meta": {"n_ctx": 9},
        "root": "/x",
    }
    source = {"list": listed, "answer": chat(PAIRS), "error": REFUSED}[what]
    for _ in range(n):
        bodies.status = rng.choice((400, 403, 422, 500)) if what == "error" else 200
        bodies.body = mutated(source, rng)
        check(lambda: bodies.backend().describe() and None)
        bodies.status = 200
