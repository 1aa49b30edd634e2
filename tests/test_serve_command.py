"""`blackbox serve` as a process: what it refuses, signals, an API behind it, hostile clients."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="the service needs the `serve` extra")

from blackbox import PromptBoostingClassifier
from blackbox.cli import main
from blackbox.cli.serve import _listen, _tokens
from tests.fault_server import FaultServer, seeded_faults, serve
from tests.serving import LABELS, TEXTS, Client, as_problem, train, wait_for

EXCLUDED = "positive_data_acceptance"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("models") / "m")


@contextmanager
def process(*arguments, address="127.0.0.1", **environment):
    """The command, once it listens; gives a client with its process and what it says."""
    command = [
        sys.executable,
        "-c",
        "from blackbox.cli import main; main()",
        "serve",
        "--port",
        "0",
        *map(str, arguments),
    ]
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    try:
        line = running.stderr.readline()
        port = re.search(r':(\d+)(, without tokens)?("}|)$', line)
        assert port, line + running.stderr.read()
        client = Client(int(port[1]), address)
        client.process, client.said = running, line
        deadline = time.monotonic() + 20
        while True:
            try:
                client.get("/healthz")
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield client
    finally:
        running.terminate()
        running.communicate(timeout=30)


def refused(*arguments):
    result = CliRunner().invoke(main, ["serve", *map(str, arguments)])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    return result.output


class TestStarting:
    def test_answers_do_not_wait_for_acknowledgements(self):
        with (
            _listen("127.0.0.1", 0) as listening,
            socket.create_connection(listening.getsockname()),
            listening.accept()[0] as there,
        ):
            assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_an_address_beyond_this_machine_needs_tokens(self, model, tmp_path):
        assert "--token-file" in refused(model, "--host", "192.0.2.1")
        tokens = tmp_path / "tokens"
        tokens.write_text("one\n")
        anyone = ("--host", "0.0.0.0", "--allow-anonymous")
        assert "--allowed-host '*' for any" in refused(model, *anyone)
        tokens.write_text("\n")
        assert "holds no token" in refused(model, "--token-file", tokens)
        assert "can't be read" in refused(model, "--token-file", tmp_path / "none")

    def test_a_token_file_holds_one_a_line_and_nothing_else(self, model, tmp_path, monkeypatch):
        tokens = tmp_path / "tokens"
        tokens.write_text("one\n\n  two \r\n")
        assert _tokens(tokens) == ["one", "two"]
        for wrong in ("# of the build", "alice s3cret"):
            tokens.write_text(f"one\n{wrong}\n")
            told = refused(model, "--token-file", tokens)
            assert "line 2" in told
            assert wrong not in told
        monkeypatch.setenv("PROMPTBOOSTING_TOKENS", "  \n")
        assert "PROMPTBOOSTING_TOKENS holds no token" in refused(model)
        monkeypatch.setenv("PROMPTBOOSTING_TOKENS", "one two")
        assert _tokens(None) == ["one", "two"]

    def test_two_models_of_one_name_and_a_port_in_use(self, model):
        assert "NAME=FILE" in refused(model, model)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            assert "in use" in refused(model, "--port", taken.getsockname()[1])

    def test_a_model_that_isn_t_there(self, tmp_path):
        result = CliRunner().invoke(main, ["serve", str(tmp_path / "none"), "--port", "0"])
        assert result.exit_code == 1
        assert "no such file" in result.output


class TestRunning:
    @pytest.mark.posix
    def test_it_serves_reads_again_and_ends(self, tmp_path):
        path = train(tmp_path / "m")
        with process(f"first={path}", "--backend", "deterministic", "--no-store") as client:
            assert "serving first on http://127.0.0.1:" in client.said
            assert client.predict({"text": "match"})[2]["predictions"][0]["label"] == "sport"
            train(path, labels=["b", "a"] * 12)
            client.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while client.predict({"text": "match"})[2]["predictions"][0]["label"] != "b":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            client.process.send_signal(signal.SIGTERM)
            assert client.process.wait(20) in (0, -signal.SIGTERM)

    def test_all_addresses_need_nothing_but_tokens_and_the_access_log_is_printed(self, model):
        with process(
            *(model, "--backend", "deterministic", "--no-store", "--host", "0.0.0.0"),
            "--access-log",
            PROMPTBOOSTING_TOKENS="one",
        ) as client:
            assert client.get("/v1/model", Host="example.org")[0] == 401
            named = {"Host": "tickets.example.org:8000", "Authorization": "Bearer one"}
            assert client.get("/v1/model", **named)[0] == 200
            client.process.terminate()
            said = client.process.stderr.read()
        line = (
            r"[-\d]+ [:\d,]+ INFO blackbox\.service\.access: 127\.0\.0\.1 GET /v1/model 200 "
            r"in \d+\.\d+ s, rows=0 passes=0 request_id=\w{16}"
        )
        assert re.search(f"^{line}$", said, re.MULTILINE)

    def test_an_address_of_ipv6_is_reached_by_its_name(self, model):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
        with process(
            model, "--backend", "deterministic", "--no-store", "--host", "::1", address="::1"
        ) as client:
            assert "on http://[::1]:" in client.said
            for name in (f"[::1]:{client.port}", "[::1]", "localhost"):
                assert client.get("/healthz", Host=name)[0] == 200
            assert client.get("/v1/model", Host="[2001:db8::1]")[0] == 421

    @pytest.mark.posix
    def test_reading_again_under_load_loses_nothing_and_mixes_nothing(self, tmp_path):
        path = train(tmp_path / "m")
        infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["match"]}]}
        with process(f"m={path}", "--backend", "deterministic", "--no-store") as client:
            answers, done = [], threading.Event()

            def keep_asking(ask):
                while not done.is_set():
                    answers.append(ask())

            asks = [
                lambda: client.predict({"text": "match"}),
                lambda: client.ask("POST", "/v2/models/m/infer", infer),
            ] * 2
            threads = [threading.Thread(target=keep_asking, args=(ask,)) for ask in asks]
            for thread in threads:
                thread.start()
            for labels in (["b", "a"] * 12, LABELS, ["yes", "no", "maybe"] * 8, ["b", "a"] * 12):
                train(path, labels=labels)
                client.process.send_signal(signal.SIGHUP)
                client.process.send_signal(signal.SIGHUP)
                time.sleep(0.3)
            wait_for(lambda: client.get("/v1/model")[2]["classes"] == ["a", "b"])
            done.set()
            for thread in threads:
                thread.join()
        assert {status for status, _, _ in answers} == {200}
        seen = set()
        for _, _, body in answers:
            if "predictions" in body:
                (one,) = body["predictions"]
                assert one["label"] in one["probabilities"]
                seen.add(one["label"])
            else:
                label, probabilities = body["outputs"]
                assert len(probabilities["data"]) == probabilities["shape"][1]
                seen.add(label["data"][0])
        assert {"sport", "b"} <= seen

    def test_a_text_that_the_api_refuses_is_its_own_and_no_trouble(self, tmp_path, monkeypatch):
        with FaultServer(largest=20) as server:
            monkeypatch.setenv("OPENAI_API_KEY", server.key)
            PromptBoostingClassifier(
                "openai",
                model="lm",
                backend_options={"base_url": server.url},
                n_prompts=2,
                random_state=0,
                store=False,
            ).fit(TEXTS, LABELS).save(tmp_path / "m")
            real = server.refusal
            error = {"message": "invalid input", "code": "some_code_of_this_provider"}
            server.refusal = lambda path, body: (
                (400, error) if "forbidden" in json.dumps(body) else real(path, body)
            )
            with (
                process(
                    tmp_path / "m",
                    "--backend",
                    "openai",
                    "--model",
                    "lm",
                    "--no-store",
                    "--batch-window",
                    "200",
                    "--backend-option",
                    f"base_url={server.url}",
                ) as client,
                ThreadPoolExecutor(2) as pool,
            ):
                bad = pool.submit(client.predict, {"texts": ["forbidden words", "bank"]})
                good = pool.submit(client.predict, {"text": "match"})
                first, second = bad.result()[2]["predictions"]
                assert first["abstained"]
                assert "400" in first["reason"]
                assert second["label"] is not None
                assert good.result()[0] == 200
                assert client.get("/readyz")[0] == 200

    @pytest.mark.slow
    @pytest.mark.parametrize(("limit", "most"), [("max-tokens", 4000), ("max-forward-passes", 60)])
    def test_what_an_api_bills_a_service_is_never_more_than_its_budget(
        self, tmp_path, monkeypatch, limit, most
    ):
        faults = ("usage is negative", "usage is missing", "500", "half a body", "no choices")
        with FaultServer(largest=20) as server:
            monkeypatch.setenv("OPENAI_API_KEY", server.key)
            PromptBoostingClassifier(
                "openai",
                model="lm",
                backend_options={"base_url": server.url},
                prompts=["{text} It was {mask}"],
                random_state=0,
                store=False,
            ).fit(TEXTS, LABELS).save(tmp_path / "m")
            drawn = seeded_faults(3, 0.6, faults)
            probe = iter([None] * 8)
            server.fault = lambda: next(probe, ...) and drawn()
            server.ledger.clear()
            with (
                process(
                    *(tmp_path / "m", "--backend", "openai", "--model", "lm", "--no-store"),
                    *("--backend-option", f"base_url={server.url}", f"--{limit}", most),
                ) as client,
                ThreadPoolExecutor(8) as pool,
            ):
                bodies = [{"text": f"match {number}"} for number in range(90)]
                seen = {answer[0] for answer in pool.map(client.predict, bodies)}
                assert 200 in seen
                assert client.predict({"text": "one more"})[0] in (429, 503)
                assert client.get("/healthz")[0] == 200
            billed = server.bill
        assert 0 < (billed.tokens if limit == "max-tokens" else billed.passes) <= most

    def test_a_request_that_is_none_is_counted_and_says_nothing(self, model):
        with process(model, "--backend", "deterministic", "--no-store") as client:
            for data in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G\r\n" * 3) * 5:
                with socket.create_connection(("127.0.0.1", client.port)) as hostile:
                    hostile.sendall(data)
                    assert b" 400 " in hostile.recv(4096)
            metrics = client.get("/metrics")[2]
            assert 'blackbox_requests_total{route="unreadable",status="400"} 15.0' in metrics
            client.process.terminate()
            assert client.process.stderr.read() == ""

    @pytest.mark.posix
    def test_what_was_accepted_is_finished(self, model):
        with process(
            model,
            "--backend",
            "tests.slow_backend:SlowBackend",
            "--allow-other-lm",
            "--no-store",
            PYTHONPATH=str(Path.cwd()),
        ) as client:
            answers = []
            asking = threading.Thread(target=lambda: answers.append(client.predict({"text": "a"})))
            asking.start()
            time.sleep(0.5)
            client.process.send_signal(signal.SIGTERM)
            asking.join(20)
            assert answers[0][0] == 200
            assert client.process.wait(20) in (0, -signal.SIGTERM)

    def test_tokens_out_of_the_environment(self, model):
        with process(
            model, "--backend", "deterministic", "--no-store", PROMPTBOOSTING_TOKENS="one two"
        ) as client:
            assert client.predict({"text": "match"})[0] == 401
            assert client.predict({"text": "match"}, Authorization="Bearer two")[0] == 200
            assert "one" not in client.said.replace("without", "")

    @pytest.mark.slow
    def test_an_api_that_goes_away_and_comes_back(self, tmp_path, monkeypatch):
        with FaultServer(largest=20) as server:
            monkeypatch.setenv("OPENAI_API_KEY", server.key)
            PromptBoostingClassifier(
                "openai",
                model="lm",
                backend_options={"base_url": server.url},
                n_prompts=2,
                random_state=0,
                store=False,
            ).fit(TEXTS, LABELS).save(tmp_path / "m")
            port, url, key = int(server.url.split(":")[2].split("/")[0]), server.url, server.key
        spawn = multiprocessing.get_context("spawn")
        api = spawn.Process(target=serve, args=(port,), daemon=True)
        api.start()
        wait_for(lambda: socket.create_connection(("127.0.0.1", port)).close() or True)
        try:
            with process(
                tmp_path / "m",
                "--backend",
                "openai",
                "--model",
                "lm",
                "--no-store",
                "--timeout",
                "10",
                "--backend-option",
                f"base_url={url}",
            ) as client:
                assert client.predict({"text": "match"})[0] == 200
                seen, done = [], threading.Event()

                def keep_asking(number):
                    while not done.is_set():
                        text = f"match {number} {len(seen)}"
                        seen.append(client.predict({"text": text})[0])

                threads = [threading.Thread(target=keep_asking, args=(n,)) for n in range(8)]
                for thread in threads:
                    thread.start()
                wait_for(lambda: seen.count(200) > 20)
                api.kill()
                api.join()
                wait_for(lambda: client.get("/readyz")[0] == 503)
                n_seen = len(seen)
                wait_for(lambda: len(seen) > n_seen + 20)
                assert set(seen) == {200, 503}
                assert set(seen[n_seen + 8 :]) == {503}
                status, headers, body = client.predict({"text": "match"})
                assert status == 503
                assert "can't be reached" in as_problem((status, headers, body), 503)
                assert key not in json.dumps(body)
                assert int(headers["retry-after"]) >= 1
                api = spawn.Process(target=serve, args=(port,), daemon=True)
                api.start()
                wait_for(lambda: client.get("/readyz")[0] == 200)
                n_seen = len(seen)
                wait_for(lambda: 200 in seen[n_seen:])
                done.set()
                for thread in threads:
                    thread.join()
                assert set(seen) == {200, 503}
                assert client.predict({"text": "match"})[0] == 200
        finally:
            api.kill()


def hostile_bodies(n, seed=0):
    """Malformed bodies: cut, changed, nested, huge, of other encodings."""
    rng = random.Random(seed)
    good = [
        json.dumps({"texts": ["match goal", {"text": "bank"}], "explain": True}).encode(),
        json.dumps({"text": "match"}).encode(),
        json.dumps(
            {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}
        ).encode(),
    ]
    parts = [
        b"\x00",
        b"\xff",
        b"\\ud800",
        b"1e999",
        b"-" * 50,
        b"[" * 5000,
        b'{"a":' * 2000,
        b"9" * 6000,
        b"null",
        b"NaN",
        b'"',
        b"\\",
        b",,",
        b"\xf0\x9f",
        b"\\u0000",
    ]
    for _ in range(n):
        body = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(body) + 1)
            match rng.randrange(4):
                case 0:
                    body = body[:place]
                case 1:
                    body[place:place] = rng.choice(parts)
                case 2 if body:
                    body[place % len(body)] = rng.randrange(256)
                case _:
                    body[place : place + rng.randint(1, 9)] = b""
            if not body:
                body = bytearray(b" ")
        yield bytes(body)


@pytest.mark.slow
def test_ten_thousand_hostile_bodies(model):
    with process(model, "--backend", "deterministic", "--no-store") as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        seen = set()
        for number, body in enumerate(hostile_bodies(10_000)):
            path = ("/v1/predict", "/v2/models/m/infer")[number % 2]
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            seen.add(answer.status)
            assert answer.status < 500, body
        connection.close()
        assert {400, 422} <= seen
        for number in range(300):
            with socket.create_connection(("127.0.0.1", client.port)) as dropped:
                dropped.sendall(
                    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
                    b"Content-Type: application/json\r\n\r\n" + b"{" * (number % 7)
                )
            with socket.create_connection(("127.0.0.1", client.port)) as nonsense:
                nonsense.sendall(os.urandom(50) + b"\r\n\r\n")
        assert client.predict({"text": "match"})[0] == 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("token", [None, "the-token"])
def test_the_whole_api_behaves_as_it_is_described(model, token, tmp_path):
    schemathesis = pytest.importorskip("schemathesis")
    assert schemathesis
    environment = {} if token is None else {"PROMPTBOOSTING_TOKENS": token}
    with process(model, "--backend", "deterministic", "--no-store", **environment) as client:
        described = tmp_path / "openapi.json"
        bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
        described.write_text(json.dumps(client.get("/openapi.json", **bearer)[2]))
        found = subprocess.run(
            [
                str(Path(sys.executable).parent / "schemathesis"),
                "run",
                str(described),
                "--url",
                f"http://127.0.0.1:{client.port}",
                *(["-H", f"Authorization: Bearer {token}"] if token else []),
                # a text that a schema allows may still be too long, or come in a batch too large
                "--exclude-checks",
                EXCLUDED,
                "--max-examples",
                "60",
                "--seed",
                "1",
                "--no-color",
                "--generation-deterministic",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
