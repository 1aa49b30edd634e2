"""The service over real HTTP on loopback: answers, refusals, limits, batches, metrics."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service needs the `serve` extra")
pytest.importorskip("prometheus_client", reason="the service needs the `serve` extra")

from backends.api import errors as api_errors
from blackbox import load_model
from blackbox.errors import BackendError
from blackbox.lm.budgets import Budget
from blackbox.service.batching import Batcher
from blackbox.service.middleware import ACCESS_LOG
from blackbox.service.models import LoadedModel
from blackbox.service.problems import Problem
from blackbox.service.rate_limit import PassesPerMinute
from blackbox.service.settings import Tokens, is_loopback
from blackbox.store.file import open_store
from tests.serving import (
    LABELS,
    Checked,
    Slow,
    as_problem,
    running,
    served,
    train,
    wait_for,
)

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def client(model):
    with running(served(model), max_texts=50, max_characters=100) as one:
        yield one


class TestPredicting:
    def test_answers_are_those_of_the_model(self, client, model):
        classifier = load_model(model, backend="deterministic").set_params(store=False)
        texts = ["match goal team", "bank", "a goal", "the loan market"]
        status, _, body = client.predict({"texts": texts})
        assert status == 200
        assert body["model"] == "m"
        expected = classifier.predict_proba(texts)
        for prediction, row, label in zip(
            body["predictions"], expected, classifier.predict(texts), strict=True
        ):
            assert prediction["label"] == label
            assert list(prediction["probabilities"]) == ["money", "sport"]
            assert list(prediction["probabilities"].values()) == pytest.approx(row, abs=0)
            assert prediction["abstained"] is False
            assert prediction["prompts_asked"] == len(classifier.prompts_)
            assert "explanation" not in prediction

    def test_one_text_is_a_list_of_one(self, client):
        for text in ("match", {"text": "match"}):
            status, _, body = client.predict({"text": text})
            assert status == 200
            assert [one["label"] for one in body["predictions"]] == ["sport"]

    def test_empty_texts_abstain_and_cost_nothing(self, client):
        status, _, body = client.predict({"texts": ["", "match", "  "]})
        assert status == 200
        assert [one["abstained"] for one in body["predictions"]] == [True, False, True]
        assert body["predictions"][0]["reason"] == "empty text"
        assert body["predictions"][0]["label"] is None
        assert client.predict({"texts": []})[2]["predictions"] == []

    def test_explaining_gives_the_votes(self, client, model):
        _, _, body = client.predict({"texts": ["match goal", "bank"], "explain": True})
        classifier = load_model(model, backend="deterministic").set_params(store=False)
        for text, prediction in zip(["match goal", "bank"], body["predictions"], strict=True):
            total = np.zeros(2)
            for prompt in prediction["explanation"]["prompts"]:
                total += list(prompt["votes"].values())
            total += classifier.ensemble_.initial
            decision = classifier.decision_function([text])[0]
            assert total[1] - total[0] == pytest.approx(decision)
            assert prediction["explanation"]["learners"][0]["tokens"]

    def test_labels_keep_their_type(self, tmp_path):
        path = train(tmp_path / "m", labels=[int(label == "sport") for label in LABELS])
        with running(served(path)) as client:
            assert client.predict({"text": "match"})[2]["predictions"][0]["label"] == 1
            assert client.get("/v1/model")[2]["classes"] == [0, 1]

    def test_pairs(self, tmp_path):
        pairs = [(a, b) for a in ("wet", "dry") for b in ("wet", "dry")] * 4
        path = train(
            tmp_path / "m",
            pairs,
            [str(a == b) for a, b in pairs],
            prompts=["{text} / {text_pair}: {mask}"],
        )
        with running(served(path)) as client:
            assert client.predict({"text": {"text": "wet", "text_pair": "dry"}})[0] == 200
            assert "text_pair" in as_problem(client.predict({"text": "wet"}), 422)
            body = {
                "inputs": [
                    {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["wet"]},
                    {"name": "text_pair", "shape": [1], "datatype": "BYTES", "data": ["dry"]},
                ]
            }
            assert client.ask("POST", "/v2/models/m/infer", body)[0] == 200

    def test_stopping_early_gives_no_probabilities(self, model):
        with running(served(model, early_stop="exact")) as client:
            _, _, body = client.predict({"texts": ["match goal", "bank"]})
            assert [one["label"] for one in body["predictions"]] == ["sport", "money"]
            assert body["predictions"][0]["probabilities"] is None
            assert client.get("/v1/model")[2]["early_stop"] == "exact"
            _, _, told = client.predict({"text": "match goal", "explain": True})
            assert told["predictions"][0]["probabilities"]["sport"] > 0.5
            infer = {
                "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["bank"]}]
            }
            _, _, body = client.ask("POST", "/v2/models/m/infer", infer)
            assert [one["name"] for one in body["outputs"]] == ["label"]
            described = client.get("/v2/models/m")[2]
            assert [one["name"] for one in described["outputs"]] == ["label"]
            infer["outputs"] = [{"name": "probabilities"}]
            detail = as_problem(client.ask("POST", "/v2/models/m/infer", infer), 400)
            assert "stops early" in detail


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "status", "part"),
        [
            (b"", 400, "JSON"),
            (b'{"text": "match', 400, "JSON"),
            (b"\xff\xfe", 400, "JSON"),
            (b'{"text": "\xff"}', 400, "JSON"),
            (b"[" * 100_000, 400, "JSON"),
            (b'{"text": "\\ud800"}', 400, "JSON"),
            (b"9" * 10_000, 400, "JSON"),
            (b"null", 422, "object"),
            (b"{}", 422, "text or texts"),
            (b'{"text": "a", "texts": ["b"]}', 422, "text or texts"),
            (b'{"text": 5}', 422, "string"),
            (b'{"text": null}', 422, "string"),
            (b'{"text": null, "texts": ["a"]}', 422, "string"),
            (b'{"texts": "match"}', 422, "texts"),
            (b'{"texts": [null]}', 422, "texts.0"),
            (b'{"text": "a", "secret-word": 1}', 422, "it takes text, "),
            (b'{"text": "a", "explain": "yes"}', 422, "explain"),
            (b'{"text": {"text": "a", "text_pair": "b"}}', 422, "no text_pair"),
        ],
    )
    def test_a_body_that_can_t_be_used(self, client, body, status, part):
        detail = as_problem(client.predict(body), status)
        assert part in detail
        assert "secret-word" not in detail

    def test_too_many_and_too_long(self, client):
        assert "50 texts" in as_problem(client.predict({"texts": ["a"] * 51}), 422)
        assert "100 characters" in as_problem(client.predict({"texts": ["a", "b" * 101]}), 422)

    def test_a_request_with_explain_has_few_texts(self, client):
        detail = as_problem(client.predict({"texts": ["a"] * 17, "explain": True}), 422)
        assert detail == "a request with explain has at most 16 texts"
        assert client.predict({"texts": ["a"] * 16, "explain": True})[0] == 200

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/predict", b'{"texts":[' + b",".join([b"0"] * 400_000) + b"]}"),
            ("/v1/predict", b'{"texts":[' + b",".join([b'""'] * 300_000) + b"]}"),
            ("/v1/predict", b"{" + b",".join(b'"%d":0' % n for n in range(90_000)) + b"}"),
            (
                "/v2/models/m/infer",
                b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES",'
                b'"data":[' + b",".join([b"0"] * 400_000) + b"]}]}",
            ),
            (
                "/v2/models/m/infer",
                b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES",'
                b'"data":[[' + b",".join([b"0"] * 400_000) + b"]]}]}",
            ),
        ],
        ids=["numbers", "many texts", "unknown names", "v2", "v2 nested"],
    )
    def test_a_body_full_of_mistakes_is_refused_as_fast_as_another(self, client, path, body):
        started = time.monotonic()
        as_problem(client.ask("POST", path, body), 422)
        assert time.monotonic() - started < 1.5

    def test_an_unknown_model_or_route_or_method(self, client):
        as_problem(client.predict({"text": "a", "model": "other"}), 404)
        as_problem(client.get("/v1/model?name=other"), 404)
        as_problem(client.get("/v2/models/other"), 404)
        for path in ("/nothing", "/v1/predict/", "/v2/", "/readyz/"):
            as_problem(client.get(path), 404)
        assert "POST" in client.get("/v1/predict")[1]["allow"]
        as_problem(client.get("/v1/predict"), 405)
        as_problem(client.ask("POST", "/metrics", b"", {"Content-Type": "text/plain"}), 405)

    def test_what_is_no_json_by_its_type(self, client):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            for path in ("/v1/predict", "/v2/models/m/infer"):
                as_problem(client.ask("POST", path, b"{}", {"Content-Type": kind}), 415)
        packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        problem = as_problem(client.ask("POST", "/v1/predict", b"{}", packed), 415)
        assert "without Content-Encoding" in problem
        typed = {"Content-Type": "application/json; charset=utf-8"}
        assert client.ask("POST", "/v1/predict", {"text": "a"}, typed)[0] == 200

    def test_another_host(self, client):
        for path in ("/", "/v1/model", "/openapi.json"):
            as_problem(client.get(path, Host="example.org"), 421)
            as_problem(client.get(path, Host=""), 421)
        for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:9", "[::1]"):
            assert client.get("/v1/model", Host=host)[0] == 200

    def test_probes_and_metrics_are_answered_by_any_host_name(self, client):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path, Host="10.1.2.3:8000")[0] == 200

    def test_a_star_stands_for_any_host(self, model):
        with running(served(model), allowed_hosts=frozenset({"*"})) as client:
            assert client.get("/v1/model", Host="example.org")[0] == 200

    def test_health_is_told_without_a_body_too(self, client):
        status, headers, body = client.ask("HEAD", "/healthz")
        assert (status, headers["content-length"], body) == (200, "15", "")

    def test_a_body_that_is_too_large(self, model):
        with running(served(model), max_body=1000) as client:
            as_problem(client.predict(b" " * 1001), 413)
            with socket.create_connection(("127.0.0.1", client.port)) as chunked:
                chunked.sendall(
                    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
                    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                    + b"258\r\n"
                    + b" " * 600
                    + b"\r\n"
                    + b"258\r\n"
                    + b" " * 600
                    + b"\r\n"
                )
                assert b" 413 " in chunked.recv(4096).split(b"\r\n")[0]
            assert client.predict({"text": "match"})[0] == 200

    def test_an_ordinary_client_sees_the_refusal_of_a_body_of_10_mb(self, client):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(
                urllib.request.Request(
                    f"http://127.0.0.1:{client.port}/v1/predict",
                    b" " * 10_000_000,
                    {"Content-Type": "application/json"},
                )
            )
        assert refused.value.code == 413
        assert "a body has at most 1048576 bytes" in json.loads(refused.value.read())["detail"]

    def test_no_answer_lets_other_sites_in(self, client):
        status, headers, _ = client.ask(
            "OPTIONS",
            "/v1/predict",
            headers={"Origin": "https://example.org", "Access-Control-Request-Method": "POST"},
        )
        assert status == 405
        assert not [name for name in headers if name.startswith("access-control")]


class TestHeaders:
    def test_each_answer_has_its_policy_and_its_id(self, client):
        for answer in (client.get("/"), client.get("/nothing"), client.predict({"text": "a"})):
            policy = answer[1]["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer[1]["x-content-type-options"] == "nosniff"
            assert len(answer[1]["x-request-id"]) == 16

    def test_a_sound_request_id_is_taken_over(self, client):
        assert client.get("/healthz", **{"X-Request-Id": "job-7.a_b"})[1]["x-request-id"] == (
            "job-7.a_b"
        )
        for bad in ("a b", "x" * 65, "é"):
            given = client.get("/healthz", **{"X-Request-Id": bad})[1]["x-request-id"]
            assert given != bad


class TestAccessLog:
    def test_it_has_a_line_per_request_and_no_text_of_a_client(self, client, caplog):
        caplog.set_level(logging.INFO, ACCESS_LOG)
        client.predict({"text": "hidden words"}, **{"X-Request-Id": "job-7"})
        client.get("/v1/model?name=hidden")
        client.get("/hidden/words")
        wait_for(lambda: len(caplog.records) == 3)  # the last is written after its answer
        lines = [re.sub(r"\d+\.\d+ s,", "N s,", record.message) for record in caplog.records]
        assert lines[0] == (
            "127.0.0.1 POST /v1/predict 200 in N s, rows=1 passes=3 request_id=job-7"
        )
        assert [line.rpartition(" request_id=")[0] for line in lines[1:]] == [
            "127.0.0.1 GET /v1/model 404 in N s, rows=0 passes=0",
            "127.0.0.1 GET other 404 in N s, rows=0 passes=0",
        ]


class TestReport:
    def test_it_is_a_page_of_its_own_about_the_model(self, client):
        status, headers, page = client.get("/v1/report")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "style-src 'unsafe-inline'" in headers["content-security-policy"]
        assert "script-src" not in headers["content-security-policy"]
        assert "sport" in page
        assert "weak learners over 3 prompts" in page
        as_problem(client.get("/v1/report?name=other"), 404)


class TestExamples:
    def test_a_model_that_keeps_its_texts_has_one_of_each_class_to_try(self, tmp_path):
        kept = train(tmp_path / "m", embeddings="deterministic", keep_examples=True, n_estimators=1)
        with running(served(kept)) as client:
            examples = client.get("/v1/model")[2]["examples"]
        assert examples == [{"text": "match goal"}, {"text": "bank loan"}]

    def test_any_other_has_none(self, client):
        assert client.get("/v1/model")[2]["examples"] == []


class TestTokens:
    def test_only_those_with_a_token_get_through(self, model):
        with running(served(model), tokens=Tokens(["one-token", "two"])) as client:
            for path in ("/v1/model", "/v1/report", "/metrics", "/v2", "/nothing"):
                answer = client.get(path)
                as_problem(answer, 401)
                assert answer[1]["www-authenticate"] == "Bearer"
            as_problem(client.predict({"text": "a"}), 401)
            for bad in ("Bearer", "Bearer three", "Basic two", "two", "Bearer one-toke"):
                as_problem(client.predict({"text": "a"}, Authorization=bad), 401)
            for good in ("Bearer two", "bearer one-token"):
                assert client.predict({"text": "a"}, Authorization=good)[0] == 200
            for path in (
                *("/", "/page.js", "/page.css", "/favicon.svg", "/openapi.json"),
                *("/healthz", "/readyz"),
            ):
                assert client.get(path)[0] == 200

    def test_tokens_are_nowhere_to_be_read(self):
        tokens = Tokens(["one-token"])
        assert "one-token" not in repr(vars(tokens))
        assert tokens
        assert not Tokens()

    def test_loopback(self):
        assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"]))
        assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.0.1", "example.org", ""]))


def together(client, bodies):
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(client.predict, bodies))


class TestBatches:
    def test_clients_share_a_call_and_each_gets_its_own_answer(self, model):
        lm = Slow(0.05)
        words = ["match", "bank", "goal", "loan"] * 8
        with running(served(model, lm=lm), window=0.05) as client:
            answers = together(client, [{"text": f"{word} {n}"} for n, word in enumerate(words)])
            assert lm.calls < 32 * 3 / 4
            alone = [client.predict({"text": f"{word} {n}"})[2] for n, word in enumerate(words)]
        assert [body for _, _, body in answers] == alone

    def test_when_too_many_wait_the_rest_is_refused(self, model):
        with running(served(model, lm=Slow(0.5)), queue_texts=4, batch_texts=2) as client:
            answers = together(client, [{"texts": ["match", "bank"]}] * 12)
            statuses = sorted(status for status, _, _ in answers)
            assert statuses[0] == 200
            assert statuses[-1] == 503
            assert all(int(h["retry-after"]) >= 1 for s, h, _ in answers if s == 503)
            assert client.predict({"text": "match"})[0] == 200

    def test_a_request_that_takes_too_long_is_given_up(self, model):
        with running(served(model, lm=Slow(1.0)), timeout=0.3) as client:
            detail = as_problem(client.predict({"text": "match"}), 504)
            assert "0.3 s" in detail

    def test_batcher(self):
        batches = []

        def work(pieces):
            batches.append([list(items) for items in pieces])
            return [[item * 2 for item in items] for items in pieces]

        async def run():
            batcher = Batcher(work, size=4, window=0.02, capacity=10)
            asked = [[1, 2], [3], [4, 5], [6, 7, 8, 9, 10]]
            found = await asyncio.gather(*map(batcher.submit, asked))
            assert found == [[2, 4], [6], [8, 10], [12, 14, 16, 18, 20]]
            assert batches == [[[1, 2], [3], [4]], [[5], [6, 7, 8]], [[9, 10]]]
            with pytest.raises(Problem, match="too many"):
                await batcher.submit([0] * 11)
            assert batcher.n_waiting == 0
            assert batcher.close(5)

        asyncio.run(run())

    def test_requests_are_whole_where_they_may_not_be_cut(self):
        batches = []

        def work(pieces):
            batches.append([list(items) for items in pieces])
            return pieces

        async def run():
            batcher = Batcher(work, size=4, window=0.02, capacity=10, cuts=False)
            asked = [[1, 2], [3], [4, 5], [6, 7, 8, 9, 10]]
            assert await asyncio.gather(*map(batcher.submit, asked)) == asked
            assert batches == [[[1, 2], [3]], [[4, 5]], [[6, 7, 8, 9, 10]]]
            assert batcher.close(5)

        asyncio.run(run())

    def test_a_large_request_and_small_ones_take_turns(self):
        ended = []

        async def run():
            batcher = Batcher(lambda pieces: pieces, size=4, window=0.02, capacity=200)

            async def ask(name, n):
                await batcher.submit([name] * n)
                ended.append(name)

            await asyncio.gather(ask("large", 100), *(ask(f"small {n}", 1) for n in range(20)))
            assert ended[-1] == "large"
            assert batcher.close(5)

        asyncio.run(run())

    def test_one_request_s_error_is_not_its_neighbour_s(self):
        dropped = []

        async def run():
            batcher = Batcher(
                lambda pieces: [ValueError() if "bad" in items else items for items in pieces],
                size=4,
                window=0.02,
                capacity=20,
                dropped=dropped.extend,
            )
            found = await asyncio.gather(
                *(batcher.submit(items) for items in (["good"], ["bad", *range(9)])),
                return_exceptions=True,
            )
            assert found[0] == ["good"]
            assert isinstance(found[1], ValueError)
            assert dropped == list(range(2, 9)), "what is left of a request that failed"
            assert batcher.n_waiting == 0
            batcher.close(5)

        asyncio.run(run())

    def test_what_nobody_waits_for_is_not_begun(self):
        begun, dropped = [], []

        def work(pieces):
            begun.extend(item for items in pieces for item in items)
            return pieces

        async def run():
            batcher = Batcher(work, size=4, window=0.1, capacity=10, dropped=dropped.append)
            task = asyncio.create_task(batcher.submit(["first"]))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert batcher.n_waiting == 0
            assert await batcher.submit(["second"]) == ["second"]
            assert begun == ["second"]
            assert dropped == [["first"]]
            batcher.close(5)

        asyncio.run(run())

    def test_the_rest_of_a_large_request_that_nobody_waits_for_is_not_begun(self):
        begun, dropped, go_on = [], [], threading.Event()

        def work(pieces):
            begun.extend(item for items in pieces for item in items)
            go_on.wait(10)
            return pieces

        async def run():
            batcher = Batcher(work, size=4, window=0, capacity=10, dropped=dropped.extend)
            task = asyncio.create_task(batcher.submit(list(range(10))))
            while not begun:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            go_on.set()
            assert await batcher.submit(["next"]) == ["next"]
            assert begun == [0, 1, 2, 3, "next"]
            assert dropped == [4, 5, 6, 7, 8, 9]
            batcher.close(5)

        asyncio.run(run())

    def test_closing_does_not_wait_for_work_that_never_ends(self):
        never = threading.Event()

        async def run():
            batcher = Batcher(lambda pieces: never.wait(), size=1, window=0, capacity=10)
            task = asyncio.create_task(batcher.submit(["a"]))
            await asyncio.sleep(0.05)
            assert not batcher.close(0.1)
            task.cancel()

        asyncio.run(run())
        never.set()


class TestSpending:
    def test_passes_a_minute(self, model):
        n = len(load_model(model, backend="deterministic").prompts_)
        with running(served(model), passes_per_minute=2 * n) as client:
            assert client.predict({"texts": ["match", "bank"]})[0] == 200
            answer = client.predict({"text": "goal"})
            as_problem(answer, 429)
            assert 1 <= int(answer[1]["retry-after"]) <= 61
            never = client.predict({"texts": ["a"] * 3})
            assert "send fewer texts at a time" in as_problem(never, 429)
            assert "retry-after" not in never[1]  # or an obedient client would retry for ever

    def test_passes_out_of_the_store_are_given_back(self, model, tmp_path):
        n = len(load_model(model, backend="deterministic").prompts_)
        store = tmp_path / "passes.sqlite"
        with running(served(model, store=store), passes_per_minute=2 * n) as client:
            for _ in range(4):
                assert client.predict({"text": "match"})[0] == 200
            assert client.predict({"text": "bank"})[0] == 200
            as_problem(client.predict({"text": "goal"}), 429)
            _, _, page = client.get("/metrics")
            assert f'blackbox_forward_passes_total{{model="m",source="store"}} {3 * n}.0' in page

    def test_passes_of_others_are_not_those_of_a_batch_that_fails(self, model, monkeypatch):
        n = len(load_model(model, backend="deterministic").prompts_)
        lm, made = Slow(), itertools.count(0, 10**6)
        monkeypatch.setattr(LoadedModel, "passes_made", property(lambda _: next(made)))
        monkeypatch.setattr("blackbox.service.models._HALF_OPEN", 0.1)
        with running(served(model, lm=lm), passes_per_minute=3 * n) as client:
            lm.broken = "gone away"
            as_problem(client.predict({"text": "match"}), 503)
            lm.broken = None
            wait_for(lambda: client.get("/readyz")[0] == 200, seconds=10)
            assert client.predict({"texts": ["match", "bank"]})[0] == 200

    def test_no_minute_has_more_passes_than_the_limit(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("blackbox.service.rate_limit.time.monotonic", lambda: now[0])
        limit = PassesPerMinute(60)
        made = []
        while now[0] < 400:
            try:
                limit.reserve(7)
            except Problem as refused:
                now[0] += max(1.0, min(refused.retry_after, 5.0))
                continue
            now[0] += 1.5  # as long as the passes take
            limit.settle(7, 7)
            made += [now[0]] * 7
        assert len(made) > 200
        for start in made:
            assert sum(start <= one < start + 60 for one in made) <= 60
        PassesPerMinute(None).reserve(10**9)

    def test_what_was_reserved_counts_until_it_is_settled(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("blackbox.service.rate_limit.time.monotonic", lambda: now[0])
        limit = PassesPerMinute(60)
        limit.reserve(60)
        now[0] += 1000
        with pytest.raises(Problem):
            limit.reserve(1)
        limit.settle(60, 50)
        limit.reserve(10)
        with pytest.raises(Problem) as refused:
            limit.reserve(30)
        assert refused.value.retry_after == pytest.approx(60)
        now[0] += 60
        limit.reserve(30)

    def test_passes_that_were_not_made_come_back_whatever_happened(self, model):
        n = len(load_model(model, backend="deterministic").prompts_)
        lm = Slow(0.4)
        most = {"queue_texts": 2, "batch_texts": 1, "timeout": 0.6}
        with running(served(model, lm=lm), passes_per_minute=1000 * n, **most) as client:
            limit = client.service._passes
            # one is worked on, two wait and the last of them in vain, and the queue holds no more
            answers = together(client, [{"text": f"match {number}"} for number in range(8)])
            statuses = [status for status, _, _ in answers]
            assert {200, 503, 504} == set(statuses)
            wait_for(lambda: limit._reserved == 0)
            assert limit._n_made == lm.calls * n
            made = limit._n_made
            lm.broken = "gone"
            as_problem(client.predict({"text": "match"}), 503)
            assert (limit._reserved, limit._n_made) == (0, made)

    def test_passes_made_before_a_failure_count(self, model):
        n = len(load_model(model, backend="deterministic").prompts_)
        lm = Slow()
        with running(served(model, lm=lm), passes_per_minute=1000 * n) as client:
            real = lm.next_token

            def fails_later(prompts, top_k):
                if lm.calls:
                    lm.broken = "gone"
                return real(prompts, top_k)

            lm.next_token = fails_later
            texts = [f"match {number}" for number in range(100)]  # more than go into one batch
            as_problem(client.predict({"texts": texts}), 503)
            assert client.service._passes._n_made == 8 * n  # of the first batch

    def test_passes_of_a_batch_that_fails_midway_are_in_the_metrics(self, model):
        lm = Slow()
        real = lm.next_token

        def fails_later(prompts, top_k):
            if lm.calls:
                lm.broken = "gone"
            return real(prompts, top_k)

        lm.next_token = fails_later
        # stopping early asks prompt after prompt, each in a call of its own
        one = served(model, lm=lm, early_stop="exact")
        with running(one, passes_per_minute=1000) as client:
            as_problem(client.predict({"texts": ["word", "another"]}), 503)
            made = client.service._passes._n_made
            assert made > 0
            page = client.get("/metrics")[2]
        assert f'blackbox_forward_passes_total{{model="m",source="made"}} {made}.0' in page

    def test_a_budget_holds_for_the_whole_service(self, model):
        n = len(load_model(model, backend="deterministic").prompts_)
        budget = Budget(max_forward_passes=2 * n)
        with running(served(model, budget=budget)) as client:
            assert client.predict({"texts": ["match", "bank"]})[0] == 200
            assert "budget" in as_problem(client.predict({"text": "goal"}), 429)
            page = client.get("/metrics")[2]
            assert "blackbox_upstream_errors_total{" not in page
            assert "blackbox_defects_total{" not in page

    def test_a_request_that_the_budget_does_not_hold_fails_alone(self, model):
        n = len(load_model(model, backend="deterministic").prompts_)
        budget = Budget(max_forward_passes=3 * n)
        lm = Slow()
        with running(served(model, lm=lm, budget=budget)) as client:
            # first, while the whole budget is there: nothing of it may be spent on a part of this
            large = client.predict({"texts": [f"bank {number}" for number in range(4)]})
            assert as_problem(large, 429) == (
                "this request may need more than is left of the budget that this service was "
                "given; send fewer texts"
            )
            assert lm.calls == 0
            assert client.predict({"texts": ["match", "bank", "goal"]})[0] == 200
            for texts in (["loan"], ["loan", "goal"]):  # when not even one text fits
                detail = as_problem(client.predict({"texts": texts}), 429)
                assert detail == "the budget that this service was given is spent"

    def test_a_budget_of_tokens_that_is_too_small_for_a_request_is_not_called_spent(self, model):
        with running(served(model, budget=Budget(max_tokens=300))) as client:
            large = client.predict({"texts": [f"bank {number}" for number in range(50)]})
            assert "send fewer texts" in as_problem(large, 429)
            assert client.predict({"text": "match"})[0] == 200

    def test_a_budget_of_seconds_is_spent_when_they_are_over(self, model):
        with running(served(model, budget=Budget(max_seconds=0.01))) as client:
            assert "spent" in as_problem(client.predict({"texts": ["match", "bank"]}), 429)

    def test_so_does_one_of_many_at_the_same_time(self, model):
        n = len(load_model(model, backend="deterministic").prompts_)
        budget = Budget(max_forward_passes=3 * n)
        with running(served(model, budget=budget), window=0.3) as client:
            large = {"texts": [f"bank {number}" for number in range(10)]}
            answers = together(client, [{"text": "match"}, large, {"text": "goal"}])
        assert [status for status, _, _ in answers] == [200, 429, 200]


class TestTrouble:
    @pytest.mark.parametrize("kind", [Slow, Checked])
    def test_it_says_so_and_recovers_by_itself(self, model, kind, monkeypatch):
        monkeypatch.setattr("blackbox.service.models._HALF_OPEN", 1.0)
        lm = kind()
        with running(served(model, lm=lm)) as client:
            assert client.get("/readyz")[0] == 200
            lm.broken = "gone away"
            answer = client.predict({"text": "match"})
            assert "the language model fails" in as_problem(answer, 503)
            assert int(answer[1]["retry-after"]) >= 1
            calls = lm.calls
            as_problem(client.get("/readyz"), 503)
            as_problem(client.get("/v2/health/ready"), 503)
            as_problem(client.get("/v2/models/m/ready"), 503)
            assert client.get("/healthz")[0] == 200
            as_problem(client.predict({"text": "match"}), 503)
            assert lm.calls == calls, "an LM in trouble is left alone"
            lm.broken = None
            wait_for(lambda: client.get("/readyz")[0] == 200, seconds=10)
            assert client.predict({"text": "match"})[0] == 200

    def test_whoever_has_no_token_learns_no_name_of_a_model(self, model):
        lm = Slow()
        models = served(model, name="secret", lm=lm), served(model, name="hidden")
        with running(*models, tokens=Tokens(["t"])) as client:
            lm.broken = "gone away"
            client.ask("POST", "/v1/predict", {"text": "match"}, {"authorization": "Bearer t"})
            said = as_problem(client.get("/readyz"), 503)
            assert said == "the language model of 1 of 2 models fails"

    def test_a_store_that_cannot_keep_answers_is_reported_and_answers_nonetheless(
        self, model, tmp_path, monkeypatch
    ):
        store = open_store(tmp_path / "passes.sqlite")
        with running(served(model, store=store)) as client:
            assert client.get("/readyz")[2] == {"status": "ready", "uncached": 0}
            monkeypatch.setattr(store, "trouble", "a full disk at a path of this machine")
            assert client.predict({"text": "match"})[0] == 200
            monkeypatch.setattr(store, "trouble", "a full disk at a path of this machine")
            assert client.get("/readyz")[2] == {"status": "ready", "uncached": 1}
            assert 'blackbox_store_writable{model="m"} 0.0' in client.get("/metrics")[2]

    def test_its_own_words_which_may_repeat_a_text_reach_nobody(self, model, caplog):
        lm = Slow()
        error = BackendError("'lm' says (400): bad input: 'my secret diagnosis'")
        cause = api_errors._marked(RuntimeError("my secret diagnosis"), "connection", 502)
        error.__cause__ = cause
        with caplog.at_level(logging.DEBUG), running(served(model, lm=lm)) as client:
            lm.broken = error
            answers = [client.predict({"text": text}) for text in ("my secret diagnosis", "a")]
            answers += [client.get(path) for path in ("/readyz", "/v2/models/m/ready", "/metrics")]
        assert "it can't be reached (status 502)" in as_problem(answers[1], 503)
        assert "secret" not in json.dumps([body for _, _, body in answers])
        assert "it can't be reached (status 502)" in caplog.text
        assert "blackbox probe" in caplog.text
        assert "secret" not in caplog.text

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (api_errors._marked(BackendError("x"), "timeout"), "timeout"),
            (api_errors._marked(BackendError("x"), "rate_limit", 429), "rate_limit"),
            (api_errors._marked(BackendError("x"), "refused", 401), "refused"),
            (BackendError("x"), "other"),
            (api_errors._marked(BackendError("x"), "secret kind"), "other"),
        ],
    )
    def test_errors_are_counted_by_class(self, model, error, kind):
        lm = Slow()
        with running(served(model, lm=lm)) as client:
            lm.broken = error
            as_problem(client.predict({"text": "match"}), 503)
            page = client.get("/metrics")[2]
        assert f'blackbox_upstream_errors_total{{kind="{kind}",model="m"}} 1.0' in page

    def test_it_shows_before_the_first_request_and_without_any(self, model):
        lm = Checked()
        lm.broken = "gone"
        with running(served(model, lm=lm)) as client:
            as_problem(client.get("/readyz"), 503)
            lm.broken = None
            wait_for(lambda: client.get("/readyz")[0] == 200, seconds=10)
            lm.broken = "gone again"
            wait_for(lambda: client.get("/readyz")[0] == 503, seconds=15)

    def test_a_defect_of_a_check_does_not_end_the_looking(self, model, monkeypatch, caplog):
        monkeypatch.setattr("blackbox.service.models._HALF_OPEN", 1000.0)
        lm = Checked()

        def check():
            if lm.broken:
                raise RuntimeError("a secret of the check")
            return True

        lm.check = check
        with caplog.at_level(logging.WARNING), running(served(model, lm=lm)) as client:
            lm.broken = "gone"
            as_problem(client.predict({"text": "match"}), 503)
            wait_for(lambda: "defect: RuntimeError" in caplog.text, seconds=10)
            lm.broken = None
            wait_for(lambda: client.get("/readyz")[0] == 200, seconds=10)
        assert "secret" not in caplog.text

    def test_a_defect_is_a_500_that_tells_nothing(self, model, caplog):
        lm = Slow()
        lm.next_token = lambda prompts, top_k: 1 / 0
        with caplog.at_level(logging.WARNING), running(served(model, lm=lm)) as client:
            detail = as_problem(client.predict({"text": "a very private text"}), 500)
            assert "log" in detail
            assert client.get("/healthz")[0] == 200
            page = client.get("/metrics")[2]
        assert 'blackbox_defects_total{model="m"} 1.0' in page
        assert "blackbox_upstream_errors_total{" not in page
        assert "ZeroDivisionError" in caplog.text
        assert "private" not in caplog.text

    def test_stopping_waits_for_an_lm_no_longer_than_for_a_request(self, model, caplog):
        lm = Slow(30)
        started = time.monotonic()
        with caplog.at_level(logging.WARNING), running(served(model, lm=lm), timeout=0.5) as client:
            as_problem(client.predict({"text": "match"}), 504)
        assert time.monotonic() - started < 15
        assert "left alone" in caplog.text

    def test_an_engine_is_warmed_up_where_passes_are_free(self, model):
        lm = Slow()
        served(model, lm=lm).warm_up()
        assert lm.calls == 1
        served(model, lm=lm, budget=Budget(max_forward_passes=9)).warm_up()
        paid = Slow()
        paid.identity = replace(paid.identity, endpoint="chat", provider="somebody")
        served(model, lm=paid).warm_up()
        assert (lm.calls, paid.calls) == (1, 0)
        lm.broken = "gone"
        broken = served(model, lm=lm)
        broken.warm_up()
        assert broken.failure is not None

    def test_a_model_with_embeddings_is_warmed_up_and_explains_itself(self, tmp_path):
        path = train(tmp_path / "m", embeddings="deterministic", keep_examples=True, n_estimators=1)
        one = served(path)
        assert one.loaded.embedder is not None
        one.warm_up()
        assert one.failure is None
        with running(one) as client:
            _, _, body = client.predict({"texts": ["match goal"], "explain": True})
        explanation = body["predictions"][0]["explanation"]
        (expert,) = explanation["experts"]
        assert set(expert["votes"]) == set(LABELS)
        assert {one["label"] for one in explanation["nearest"]} <= set(LABELS)
        assert all("text" in one for one in explanation["nearest"])

    def test_engines_are_let_go_of_once_each(self, model):
        lm = Slow()
        closed = []
        lm.close = lambda: closed.append(True)
        with running(served(model, lm=lm), served(model, "second", lm=lm)):
            pass
        assert closed == [True]


class TestModels:
    def test_several_by_name(self, model, tmp_path):
        other = train(tmp_path / "other", labels=["b", "a"] * 12)
        with running(served(model), served(other, "second")) as client:
            assert client.get("/v1/models")[2] == {"models": ["m", "second"]}
            assert client.predict({"text": "match"})[2]["predictions"][0]["label"] == "sport"
            answer = client.predict({"text": "match", "model": "second"})[2]
            assert answer["model"] == "second"
            assert answer["predictions"][0]["label"] == "b"
            assert client.get("/v1/model?name=second")[2]["classes"] == ["a", "b"]

    def test_reading_them_again(self, tmp_path, caplog):
        path = train(tmp_path / "m")
        with running(served(path)) as client:
            first = client.get("/v1/model")[2]
            train(path, labels=["b", "a"] * 12)
            client.service.reload()
            second = client.get("/v1/model")[2]
            assert second["digest"] != first["digest"]
            assert client.predict({"text": "match"})[2]["predictions"][0]["label"] == "b"
            path.write_bytes(b"broken")
            with caplog.at_level(logging.WARNING):
                client.service.reload()
            assert "stays as it is" in caplog.text
            assert client.get("/v1/model")[2] == second
            assert client.predict({"text": "match"})[0] == 200

    def test_a_request_is_answered_by_the_model_that_it_was_checked_against(self, tmp_path):
        path = train(tmp_path / "m")
        lm = Slow(0.5)
        pairs = [(a, b) for a in ("wet", "dry") for b in ("wet", "dry")] * 4
        infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["match"]}]}
        with running(served(path, lm=lm)) as client, ThreadPoolExecutor(3) as pool:
            first = pool.submit(client.predict, {"text": "match"})
            wait_for(lambda: lm.calls == 1)
            behind = [
                pool.submit(client.predict, {"text": "bank"}),
                pool.submit(client.ask, "POST", "/v2/models/m/infer", infer),
            ]
            wait_for(lambda: client.service._batchers["m"].n_waiting == 2)
            train(
                path,
                pairs,
                [str(a == b) for a, b in pairs],
                prompts=["{text} / {text_pair}: {mask}"],
            )
            client.service.reload()
            assert first.result()[2]["predictions"][0]["label"] == "sport"
            assert behind[0].result()[2]["predictions"][0]["label"] == "money"
            assert behind[1].result()[2]["outputs"][0]["data"] == ["sport"]
            assert "text_pair" in as_problem(client.predict({"text": "match"}), 422)

    def test_a_file_that_changes_while_it_is_read_leaves_the_model_as_it_is(self, tmp_path, caplog):
        path = train(tmp_path / "m")
        one = served(path)
        before = one.loaded
        real = one._load

        def load(file):
            classifier = real(file)
            train(path, labels=["b", "a"] * 12)
            return classifier

        one._load = load
        with caplog.at_level(logging.WARNING), running(one) as client:
            client.service.reload()
            assert "changed while it was read" in caplog.text
            assert one.loaded is before

    def test_reloads_come_one_after_the_other(self, model):
        one = served(model)
        real, inside, most = one._load, [], []

        def load(file):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()
            return real(file)

        one._load = load
        with running(one) as client, ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(client.service.reload) for _ in range(4)]:
                done.result()
        assert most == [1] * 4


class TestOpenInference:
    def test_a_round(self, client):
        assert client.get("/v2")[2]["name"] == "promptboosting"
        assert client.get("/v2/health/live")[2] == {"live": True}
        assert client.get("/v2/health/ready")[2] == {"ready": True}
        assert client.get("/v2/models/m/ready")[2]["ready"] is True
        described = client.get("/v2/models/m")[2]
        assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert "versions" not in described  # there are no routes of versions
        body = {
            "id": "7",
            "inputs": [
                {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["match", "bank"]}
            ],
        }
        status, _, told = client.ask("POST", "/v2/models/m/infer", body)
        assert status == 200
        assert told["id"] == "7"
        labels, probabilities = told["outputs"]
        assert labels == {
            "name": "label",
            "datatype": "BYTES",
            "shape": [2],
            "data": ["sport", "money"],
        }
        assert probabilities["shape"] == [2, 2]
        assert np.reshape(probabilities["data"], (2, 2)).sum(axis=1) == pytest.approx(1)
        body["outputs"] = [{"name": "label"}]
        assert len(client.ask("POST", "/v2/models/m/infer", body)[2]["outputs"]) == 1

    def test_data_may_be_nested_as_its_shape_is(self, client):
        tensor = {
            "name": "text",
            "shape": [2, 1],
            "datatype": "BYTES",
            "data": [["match"], ["bank"]],
        }
        told = client.ask("POST", "/v2/models/m/infer", {"inputs": [tensor]})[2]
        assert told["outputs"][0]["data"] == ["sport", "money"]

    def test_a_text_without_an_answer_has_zeros_and_a_reason(self, client):
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["match", ""]}
        told = client.ask("POST", "/v2/models/m/infer", {"inputs": [tensor]})[2]
        assert told["parameters"] == {"reason_1": "empty text"}
        labels, probabilities = (one["data"] for one in told["outputs"])
        assert labels == ["sport", ""]
        assert probabilities[2:] == [0.0, 0.0]

    @pytest.mark.parametrize(
        "tensor",
        [
            {"name": "text", "shape": [3], "datatype": "BYTES", "data": ["a"]},
            {"name": "text", "shape": [-1], "datatype": "BYTES", "data": ["a"]},
            {"name": "text", "shape": [1], "datatype": "FP32", "data": ["a"]},
            {"name": "words", "shape": [1], "datatype": "BYTES", "data": ["a"]},
            {"name": "text_pair", "shape": [1], "datatype": "BYTES", "data": ["a"]},
            {"name": "text", "shape": [10**30], "datatype": "BYTES", "data": ["a"]},
            {"name": "text", "shape": [], "datatype": "BYTES", "data": ["a"]},
            {"name": "text", "shape": [2], "datatype": "BYTES", "data": [["a"], ["b"]]},
            {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [["a", "b"]]},
            {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["a", ["b"]]},
        ],
    )
    def test_tensors_that_make_no_sense(self, client, tensor):
        answer = client.ask("POST", "/v2/models/m/infer", {"inputs": [tensor]})
        as_problem(answer, 422)
        assert answer[2]["error"]


class TestMetrics:
    def test_they_count_and_have_no_value_of_a_client_s(self, model):
        with running(served(model)) as client:
            client.predict({"texts": ["match one", "bank two", ""]})
            client.get("/some/secret-path?x=secret-query")
            client.predict({"text": "a", "model": "secret-model"})
            _, headers, page = client.get("/metrics")
        assert headers["content-type"].startswith("text/plain")
        n = len(load_model(model, backend="deterministic").prompts_)
        for line in (
            f'blackbox_forward_passes_total{{model="m",source="made"}} {2 * n}.0',
            'blackbox_batch_texts_count{model="m"} 1.0',
            'blackbox_refused_rows_total{model="m"} 1.0',
            'blackbox_requests_total{route="/v1/predict",status="200"} 1.0',
            'blackbox_requests_total{route="/v1/predict",status="404"} 1.0',
            'blackbox_requests_total{route="other",status="404"} 1.0',
            'blackbox_model_ready{model="m"} 1.0',
            'blackbox_request_seconds_count{route="/v1/predict"} 2.0',
        ):
            assert line in page
        assert "secret" not in page

    def test_refusals_before_the_routes_count_as_those_of_their_route(self, model, caplog):
        caplog.set_level(logging.INFO, ACCESS_LOG)
        with running(served(model), tokens=Tokens(["one"]), max_body=100) as client:
            one = {"Authorization": "Bearer one"}
            client.predict({"text": "a"})
            client.get("/secret-path")
            client.predict(b" " * 101, **one)
            client.ask("POST", "/v2/models/secret/infer", b"{}", one | {"Content-Type": "a/b"})
            client.get("/v1/model", Host="example.org")
            page = client.get("/metrics", **one)[2]
        for route, status in (
            ("/v1/predict", 401),
            ("other", 401),
            ("/v1/predict", 413),
            ("/v2/models/{name}/infer", 415),
            ("/v1/model", 421),
        ):
            line = f'blackbox_requests_total{{route="{route}",status="{status}"}} 1.0'
            assert line in page
            assert f" {route} {status} in " in caplog.text
        assert "secret" not in page + caplog.text

    def test_no_text_and_no_token_is_logged(self, model, caplog):
        with (
            caplog.at_level(logging.DEBUG),
            running(served(model), tokens=Tokens(["hush-token"])) as client,
        ):
            client.predict({"text": "a private text"}, Authorization="Bearer hush-token")
            client.predict({"text": "a private text"}, Authorization="Bearer hush-tokem")
        ours = [r for r in caplog.records if not r.name.startswith(("asyncio", "httpx", "faker"))]
        assert all("private" not in r.getMessage() and "hush" not in r.getMessage() for r in ours)


class TestPage:
    def test_it_has_no_outside_resource_and_no_inline_script(self, client):
        status, headers, page = client.get("/")
        assert status == 200
        assert headers["content-type"] == "text/html; charset=utf-8"
        for name in ("/", "/page.js", "/page.css"):
            content = client.get(name)[2]
            assert "http://" not in content
            assert "https://" not in content
            assert "innerHTML" not in content
        assert " style=" not in page
        assert "<script src=" in page
        assert "onclick" not in page

    def test_no_query_string_changes_it(self, client):
        for path in ("/", "/page.js", "/page.css"):
            changed = client.get(f"{path}?content=alert(1)&file=x&media_type=text/html")
            assert changed[2] == client.get(path)[2]
            assert changed[1]["content-type"] == client.get(path)[1]["content-type"]

    def test_the_description_is_complete(self, client):
        described = client.get("/openapi.json")[2]
        assert set(described["paths"]["/v1/predict"]["post"]["responses"]) == {
            "200",
            "400",
            "401",
            "404",
            "405",
            "408",
            "413",
            "415",
            "421",
            "422",
            "429",
            "431",
            "500",
            "503",
            "504",
        }
        text = json.dumps(described)
        schemas = described["components"]["schemas"]
        for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
            assert reference in schemas
        assert "HTTPValidationError" not in text
        for path, operations in described["paths"].items():
            for method, operation in operations.items():
                for status, answer in operation["responses"].items():
                    for kind, content in answer.get("content", {}).items():
                        if kind == "application/problem+json":
                            assert content["example"]["status"] == int(status)
                        elif kind == "application/json":
                            name = content["schema"]["$ref"].rpartition("/")[2]
                            assert schemas[name]["examples"], (path, method, name)
