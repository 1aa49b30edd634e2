"""Embeddings of an OpenAI-compatible server, through the real `openai` client over loopback."""

from __future__ import annotations

import base64
import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

pytest.importorskip("openai", reason="needs the `openai` extra")

import backends
from backends.api.embedding_calls import read_vectors
from backends.api.responses import BadAnswerError
from backends.deterministic import DeterministicBackend
from backends.openai_embeddings import OpenAIEmbeddings
from blackbox.errors import BackendError, BudgetError
from blackbox.lm.budgets import Budget
from blackbox.lm.client import with_store_and_budget

KEY = "sk-sentinel-0123456789"
TEXTS = [f"text number {number} is {'lovely' if number % 2 else 'dull'}" for number in range(150)]
LM = DeterministicBackend()


class Server:
    """A server of one embedding model; `fault` changes what it answers to a request's texts."""

    def __init__(self, *, takes_base64=True, largest=2048, context=10**6, fault=None):
        self.bodies, self.passes, self.tokens = [], 0, 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                """Say nothing."""

            def do_GET(self):
                self.reply(200, {"object": "list", "data": [{"id": "lm", "object": "model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    given = self.headers["Authorization"]
                    self.reply(401, {"error": {"message": f"bad key: {given}"}})
                    return
                texts = body["input"]
                with owner.lock:
                    owner.bodies.append(body)
                if body.get("encoding_format") == "base64" and not takes_base64:
                    error = {"message": "no base64", "param": "encoding_format"}
                    self.reply(400, {"error": error})
                elif len(texts) > largest or "" in texts:
                    self.reply(400, {"error": {"message": "too many, or empty"}})
                elif any(len(text.encode()) > context for text in texts):
                    error = {"message": f"this model's maximum context length is {context}"}
                    self.reply(400, {"error": error | {"code": "context_length_exceeded"}})
                elif any("forbidden" in text for text in texts):
                    error = {"message": "not this", "code": "content_filter"}
                    self.reply(400, {"error": error})
                else:
                    answer = owner.answer(body)
                    with owner.lock:
                        owner.passes += len(texts)
                        owner.tokens += answer["usage"]["prompt_tokens"]
                    changed = fault(owner, body, answer) if fault else answer
                    self.reply(200 if isinstance(changed, dict) else 500, changed)

            def reply(self, status, answer):
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @staticmethod
    def answer(body):
        vectors = 3 * LM.embed(body["input"]).vectors  # of another norm than 1
        size = body.get("dimensions", vectors.shape[1])
        data = [
            {
                "index": index,
                "embedding": base64.b64encode(vector[:size].astype("<f4").tobytes()).decode()
                if body.get("encoding_format") == "base64"
                else vector[:size].tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        tokens = sum(len(text.split()) for text in body["input"])
        # in another order than it was asked
        return {"data": data[::-1], "model": "lm", "usage": {"prompt_tokens": tokens}}

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.mark.parametrize("takes_base64", [True, False])
def test_vectors_come_in_order_in_batches_and_are_counted(takes_base64):
    with Server(takes_base64=takes_base64) as server:
        lm = OpenAIEmbeddings("lm", base_url=server.url)
        assert lm.limits.embedding_size == LM.limits.embedding_size
        made = lm.embed([*TEXTS, " "])
    assert made.row_errors == {150: "empty text"}
    assert made.vectors[:150] == pytest.approx(LM.embed(TEXTS).vectors, abs=1e-6)
    sizes = sorted(len(body["input"]) for body in server.bodies)
    assert sizes == [*([1] * (1 if takes_base64 else 2)), 22, 64, 64]
    formats = {body["encoding_format"] for body in server.bodies[-3:]}
    assert formats == {"base64" if takes_base64 else "float"}
    assert (made.usage.passes_made, made.usage.tokens) == (150, server.tokens - 1)


def test_a_text_of_more_tokens_than_estimated_is_cut_until_the_server_takes_it():
    texts = ["7" * 3000, "short", "\N{CYRILLIC SMALL LETTER ZHE}" * 900]
    with Server(context=400) as server:
        lm = OpenAIEmbeddings("lm", base_url=server.url, context_length=2000)
        made = lm.embed(texts)
    assert made.row_errors == {}
    sent = [text for body in server.bodies for text in body["input"]]
    taken = [text for text in sent if len(text.encode()) <= 400]
    assert all(any(text.startswith(one) for text in texts) for one in taken if one != "a")
    longest = {one[0]: len(one.encode()) for one in taken}
    assert min(longest["7"], longest["\N{CYRILLIC SMALL LETTER ZHE}"]) > 250  # no more was cut


def test_a_refusal_leaves_one_row_out_and_the_others_are_sent_without_it():
    texts = [*TEXTS[:20], "a forbidden text", *TEXTS[20:40]]
    with Server() as server:
        made = OpenAIEmbeddings("lm", base_url=server.url).embed(texts)
    assert list(made.row_errors) == [20]
    assert "not this" in made.row_errors[20]
    assert not np.isnan(np.delete(made.vectors, 20, axis=0)).any()


def test_vectors_of_a_half_are_handed_over_though_the_other_half_fails():
    handed, halves = [], iter([True])

    def fault(server, body, answer):
        return answer if len(body["input"]) == 1 or next(halves, False) else None

    with Server(largest=10, fault=fault) as server:
        lm = OpenAIEmbeddings("lm", base_url=server.url, max_attempts=1)

        def read_all():
            for where, part in lm.iter_embed(TEXTS[:20]):
                handed.extend(zip(where, part.vectors, strict=True))

        with pytest.raises(BackendError):
            read_all()
    assert len(handed) == 10
    for row, vector in handed:
        assert vector == pytest.approx(LM.embed([TEXTS[row]]).vectors[0], abs=1e-6)


def test_vectors_of_another_model_of_one_name_are_never_taken_from_the_store(tmp_path):
    def model(seed, size=64, noise=0.0):
        rng = np.random.default_rng(0)

        def fault(server, body, answer):
            for entry in answer["data"]:
                values = np.random.default_rng(seed).standard_normal(size)
                entry["embedding"] = (values + noise * rng.standard_normal(size)).tolist()
            return answer

        return fault

    def embed(fault, **options):
        with Server(fault=fault, takes_base64=False) as server:
            lm = OpenAIEmbeddings("default", base_url=server.url, **options)
            return with_store_and_budget(lm, tmp_path / "store", Budget()).embed(["hello"])

    first = embed(model(0))
    assert embed(model(0, noise=0.01)).usage.passes_made == 0  # numbers of another format
    for another in (model(1), model(0, size=32)):
        with pytest.raises(BackendError, match="another model that was called 'default'"):
            embed(another)
    other = embed(model(1), revision="second")
    assert abs(float(first.vectors[0] @ other.vectors[0])) < 0.5


def test_a_server_that_takes_few_texts_gets_few():
    with Server(largest=10) as server:
        made = OpenAIEmbeddings("lm", base_url=server.url).embed(TEXTS[:40])
    assert made.row_errors == {}
    assert made.vectors == pytest.approx(LM.embed(TEXTS[:40]).vectors, abs=1e-6)


def test_a_long_text_is_cut_and_extra_fields_and_dimensions_are_sent():
    with Server() as server:
        lm = OpenAIEmbeddings(
            "lm", base_url=server.url, context_length=10, dimensions=7, extra_body={"user": "me"}
        )
        assert lm.embed(["é" * 500]).vectors.shape == (1, 7)
    assert server.bodies[-1]["input"] == ["é" * 10]
    assert server.bodies[-1]["user"] == "me"
    assert "dimensions" in lm.identity.extra["fields"]
    assert OpenAIEmbeddings("lm", base_url=server.url)  # another identity, without dimensions


def test_a_zero_vector_is_a_row_error_and_a_wrong_answer_is_asked_for_again(monkeypatch):
    monkeypatch.setattr("backends.api.retries._BACKOFF", (0.001, 0.001))
    wrong = ["a server error", "too few", "twice", "another length", "no numbers"]

    def fault(server, body, answer):
        entries = answer["data"]
        if len(body["input"]) == 1:
            return answer
        kind = wrong.pop() if wrong else ""
        if kind == "a server error":
            return "gone"
        if kind == "too few":
            entries.pop()
        elif kind == "twice":
            entries[0]["index"] = entries[1]["index"]
        elif kind == "another length":
            entries[0]["embedding"] = entries[0]["embedding"][:20]
        elif kind == "no numbers":
            entries[0]["embedding"] = "###"
        else:
            entries[-1]["embedding"] = base64.b64encode(bytes(256)).decode()
        return answer

    with Server(fault=fault) as server:
        made = OpenAIEmbeddings("lm", base_url=server.url).embed(TEXTS[:40])
    assert wrong == []
    assert list(made.row_errors.values()) == ["the vector is zero or not finite"]
    assert made.usage.retries == 5
    # what was billed counts, used or not
    assert made.usage.passes_made == server.passes - 1
    assert made.usage.tokens >= server.tokens - 1


def test_a_server_without_embeddings_and_a_bad_key_are_errors_without_the_key(monkeypatch):
    with Server(largest=0) as server:
        lm = OpenAIEmbeddings("lm", base_url=server.url)
        with pytest.raises(BackendError, match="does this model make embeddings"):
            lm.embed(TEXTS)
        monkeypatch.setenv("OTHER_KEY", "sk-another-9876543210")
        lm = OpenAIEmbeddings("lm", base_url=server.url, api_key_env="OTHER_KEY")
        with pytest.raises(BackendError, match="check the key") as error:
            lm.embed(TEXTS)
    assert "9876543210" not in str(error.value)
    monkeypatch.delenv("OTHER_KEY")
    with pytest.raises(BackendError, match="set OTHER_KEY"):
        OpenAIEmbeddings("lm", api_key_env="OTHER_KEY")


def test_each_try_is_charged_and_none_is_sent_beyond_the_budget():
    with Server() as server:
        lm = OpenAIEmbeddings("lm", base_url=server.url, max_concurrency=1)
        lm.probe()
        budgeted = with_store_and_budget(lm, False, Budget(max_forward_passes=100))
        with pytest.raises(BudgetError):
            budgeted.embed(TEXTS)
        assert server.passes - 1 == budgeted.usage.passes_made == 64
        free = with_store_and_budget(lm, False, Budget(max_tokens=10**6))
        assert free.embed(TEXTS).usage.tokens == sum(len(text.split()) for text in TEXTS)


def test_it_is_loaded_by_name_and_pickled_without_a_key():
    with Server() as server:
        lm = backends.load_embeddings("openai", model="lm", base_url=server.url)
        data = pickle.dumps(lm)
        assert KEY.encode() not in data
        assert pickle.loads(data).embed(TEXTS[:2]).vectors.shape == (2, 64)
        assert lm.identity.endpoint == "embeddings"
        assert lm.check()


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": {"a": 1}}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": ["a"]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AAA"}],
        [{"index": 0, "embedding": [1.0]}, 5],
    ],
)
def test_an_answer_of_another_shape_is_of_no_use(data):
    with pytest.raises(BadAnswerError):
        read_vectors({"data": data}, 2)


def test_numbers_that_are_none_cost_one_row():
    huge, nan = [1e39, 1.0], [float("nan"), 1.0]
    made = read_vectors({"data": [{"embedding": v} for v in (huge, nan, [0, 0], [1, 2])]}, 4)
    assert [isinstance(vector, str) for vector in made] == [True, True, True, False]
