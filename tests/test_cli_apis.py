"""The command over an API: probing, errors in one line, Ctrl-C, budgets."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from endpoint_server import EndpointServer, chat, distribution, error
from fault_server import FaultServer

pytest.importorskip("openai", reason="needs the `openai` extra")

from blackbox import PromptBoostingClassifier
from blackbox.cli import main
from blackbox.errors import BudgetError

KEY = "sk-sentinel-0123456789"
TEXTS = [f"{text} number {i}" for i in range(20) for text in ("a lovely film", "a dull film")]
LABELS = ["good", "bad"] * 20


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "data.csv"
    rows = [f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


def run(*arguments, **environment):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


def test_probe_shows_what_an_endpoint_gives_for_people_and_programs():
    with FaultServer() as server:
        shown = run("probe", "--backend", "openai", OPENAI_BASE_URL=server.url)
        told = run("probe", "--backend", "openai", "--json", OPENAI_BASE_URL=server.url)
    assert shown.exit_code == 0, shown.output
    assert "max top k          20" in shown.stdout
    assert "price              unknown" in shown.stdout
    found = json.loads(told.stdout)
    assert found["max_top_k"] == 20
    assert found["price"] is None
    assert found["log_probs"] == "raw"


def test_probe_works_for_every_backend():
    found = json.loads(run("probe", "--backend", "deterministic", "--json").stdout)
    assert found["repeats_differ_by"] == 0.0
    assert found["price"]["input"] == 0


def test_probe_takes_an_answer_of_fewer_tokens_as_it_is():
    shown = run(
        "probe", "--backend", "sampling", "--json", "--backend-option", "inner=deterministic"
    )
    assert json.loads(shown.stdout)["repeats_differ_by"] == 0.0


def test_train_compares_itself_with_chance_and_warns_where_it_is_no_better(table, tmp_path, caplog):
    mixed = tmp_path / "mixed.csv"
    labels = random.Random(0).choices(["good", "bad"], k=60)
    rows = [f"some text number {i},{label}" for i, label in enumerate(labels)]
    mixed.write_text("text,label\n" + "\n".join(rows) + "\n")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        "<user>{text}\\n\\nHow is it?<assistant>{mask}\n<user>Judge: {text}<assistant>{mask}\n"
    )

    def reasons(method, path, body):
        if not path.endswith("/chat/completions"):
            return EndpointServer.plain(method, path, body)
        noise = zlib.crc32(json.dumps(body["messages"]).encode()) % 8 / 50
        return 200, chat([("So", -0.55 - noise), ("Got", -1.4 + noise), ("Okay", -9.0)])

    for data, chance in ((table, False), (mixed, True)):
        with EndpointServer(reasons if chance else EndpointServer.plain) as server:
            done = run(
                *("train", data, "--backend", "openai", "--model", "m", "--no-label-words"),
                *("--prompts", prompts, "--out", tmp_path / "m.blackbox"),
                OPENAI_BASE_URL=server.url,
            )
        assert done.exit_code == 0, done.output
        assert "log-loss of the class shares 0.6" in done.stderr
        assert ("can't be told from chance" in caplog.text) == chance
        caplog.clear()


def test_a_table_of_prices_of_one_s_own_is_used_and_a_bad_one_is_one_line(tmp_path):
    entry = {"provider": "openai-compatible", "model": "lm", "input": 1, "output": 2.5}
    with FaultServer() as server:
        for number, (content, said) in enumerate(
            [
                ({"prices": [entry]}, '"output": 2.5'),
                ({"prices": [entry | {"input": -1}]}, "a price must be a number of at least 0"),
                ({}, "is not a table of prices"),
            ]
        ):
            prices = tmp_path / f"prices-{number}.json"
            prices.write_text(json.dumps(content))
            done = run(
                "probe",
                "--backend",
                "openai",
                "--json",
                OPENAI_BASE_URL=server.url,
                PROMPTBOOSTING_PRICES=str(prices),
            )
            assert said in done.output
            assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--model", "other"], {}, "no model 'other'"),
        ([], {"OPENAI_API_KEY": "sk-wrong-key"}, "check the key (OPENAI_API_KEY, or"),
        ([], {"OPENAI_API_KEY": ""}, "set OPENAI_API_KEY"),
        (
            ["--backend-option", "max_attempts=1"],
            {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"},
            "can't be reached",
        ),
        (["--backend-option", "max_attempts=0"], {}, "max_attempts must be"),
        (["--backend-option", "colour=red"], {}, "can't be made with these options"),
    ],
)
def test_what_is_wrong_with_an_api_is_one_line(table, tmp_path, arguments, environment, said):
    with FaultServer() as server:
        done = run(
            "train",
            table,
            "--backend",
            "openai",
            "--out",
            tmp_path / "m.blackbox",
            *arguments,
            **{"OPENAI_BASE_URL": server.url, **environment},
        )
    assert done.exit_code == 1
    assert said in done.stderr
    lines = [one for one in done.stderr.splitlines() if not one.startswith("training on ")]
    assert len(lines) == 1
    assert "sk-wrong-key" not in done.output


def test_batches_are_for_apis(table):
    done = run("plan", table, "--batch-api")
    assert done.exit_code == 2


def test_a_missing_sdk_is_one_line(monkeypatch, table, tmp_path):
    monkeypatch.setitem(sys.modules, "openai", None)
    done = run("train", table, "--backend", "openai", "--out", tmp_path / "m.blackbox")
    assert "pip install 'promptboosting[openai]'" in done.stderr


def slowly(server, seconds):
    """Let every answer take its time."""
    real = server.answer

    def answer(path, body):
        time.sleep(seconds)
        return real(path, body)

    server.answer = answer


@pytest.mark.posix
def test_ctrl_c_ends_cleanly_and_keeps_every_answer_that_was_paid_for(table, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("{text} It was {mask}\n{text}\\nTopic: {mask}\n")
    with FaultServer() as server:
        slowly(server, 0.1)
        arguments = [
            sys.executable,
            "-m",
            "blackbox",
            "train",
            str(table),
            "--backend",
            "openai",
            "--prompts",
            str(prompts),
            "--store",
            str(tmp_path / "passes.sqlite"),
            "--backend-option",
            "max_concurrency=4",
            "--out",
            str(tmp_path / "m.blackbox"),
        ]
        environment = {**os.environ, "OPENAI_BASE_URL": server.url}
        running = subprocess.Popen(
            arguments,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            # a shell's background job, as this test may be, ignores Ctrl-C and so do its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 100
        while sum(server.answered.values()) < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=60)[1]
        assert running.returncode == 130, said
        assert "blackbox: interrupted; the answers so far are in the store" in said
        assert "Traceback" not in said
        before = server.answered.copy()
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    texts = Counter({prompt: n for prompt, n in server.answered.items() if "number" in prompt})
    assert len(texts) == 80
    assert 20 <= sum("number" in prompt for prompt in before) < 80
    assert set(texts.values()) == {1}


def test_a_budget_of_time_keeps_what_is_under_way(tmp_path):
    import backends

    with FaultServer() as server:
        slowly(server, 0.2)
        lm = backends.load("openai", model="lm", base_url=server.url, max_concurrency=4)
        classifier = PromptBoostingClassifier(
            lm, prompts=["{text} It was {mask}"], store=tmp_path / "p.sqlite", random_state=0
        )
        lm.probe()
        with pytest.raises(BudgetError, match=r"0\.8 seconds"):
            classifier.set_params(max_seconds=0.8).fit(TEXTS, LABELS)
        classifier.set_params(max_seconds=None).fit(TEXTS, LABELS)
    texts = {prompt: n for prompt, n in server.answered.items() if "number" in prompt}
    assert len(texts) == 40
    assert set(texts.values()) == {1}
    assert 0 < classifier.usage_.passes_from_store < 40


PAGE = Path(__file__).parents[1] / "docs" / "choose-lm.md"
LINES = re.findall(r"^\| .+ \| `(blackbox probe --backend openai .+)` \|$", PAGE.read_text(), re.M)


def as_provider(base_url):
    """Return the answers of the server behind an address of the docs, and the paths below it."""
    root = urlsplit(base_url).path.rstrip("/")
    most = {"/v1beta/openai": [{"error": {"code": 400, "message": "logprobs: at most 20"}}]}

    def answer(method, path, body):
        if path == f"{root}/models" or path == "/openai/models":
            return 200, {"data": [{"id": "m"}]}
        root_of_chats = "/openai/deployments/DEPLOYMENT" if "azure" in base_url else root
        if path != f"{root_of_chats}/chat/completions":
            return 404, error("no such path")
        if "deepseek" in base_url and body.get("thinking") != {"type": "disabled"}:
            return 200, chat([("<think>", -0.001)])
        if body.get("top_logprobs", 0) > 20:
            return 400, most.get(root, error("at most 20", param="top_logprobs"))
        return 200, chat(distribution(body, body.get("top_logprobs") or 1))

    return answer


def test_the_documentation_has_a_line_for_each_provider():
    assert len(LINES) == 6


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[5])
def test_a_line_of_the_documentation_probes_a_server_of_that_form(line, monkeypatch):
    arguments = shlex.split(line)[1:]
    options = dict(one.split("=", 1) for one in arguments if "=" in one)
    base_url = options.get("base_url", "https://api.openai.com/v1")
    keys = []
    with EndpointServer(as_provider(base_url)) as server:
        server.on_headers = lambda h: keys.append(h["api-key"] or h["Authorization"])
        here = urlsplit(server.url)._replace(path=urlsplit(base_url).path).geturl()
        arguments = [one.replace(base_url, here) for one in arguments]
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        monkeypatch.setenv(options.get("api_key_env", "OPENAI_API_KEY"), KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", here)
        done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert "max top k          20" in done.stdout
    assert set(keys) <= {KEY, f"Bearer {KEY}"}
