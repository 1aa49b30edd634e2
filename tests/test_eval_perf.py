"""The performance scripts run and say what they should; what they measure is for people."""

from __future__ import annotations

import csv
import json
import re
import shutil
import urllib.request
from pathlib import Path

import click
import pytest

pytest.importorskip("yaml", reason="the evaluation needs the `eval` extra")
pytest.importorskip("matplotlib", reason="the evaluation needs the `eval` extra")
from click.testing import CliRunner

from eval.perf import (
    around_lm,
    boosting,
    busy,
    early_stop,
    engines,
    gpu,
    growth,
    profile,
    service,
    startup,
    streaming,
    tokens,
    users_picks,
)

WORDS = {"a": ["match", "goal", "team"], "b": ["bank", "market", "loan"]}


def said(command, *arguments):
    result = CliRunner().invoke(command.main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(table):
    """Cells of the lines of a Markdown table, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def data(tmp_path):
    for name in ("trec", "agnews", "sst2"):
        (tmp_path / name).mkdir()
        for part, n in (("train", 40), ("test", 12)):
            with (tmp_path / name / f"{part}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                for number in range(n):
                    label = "ab"[number % 2]
                    words = WORDS[label]
                    text = f"{words[number % 3]} {words[number // 3 % 3]} {part} {number}"
                    writer.writerow([text, label])
    return tmp_path


@pytest.mark.posix
@pytest.mark.slow
def test_around_lm(tmp_path):
    here = Path(__file__).parents[1]
    other = tmp_path / "other"  # a second checkout
    other.mkdir()
    for name in ("blackbox", "backends", "eval"):
        (other / name).symlink_to(here / name)
    told = said(
        around_lm,
        *("--code", here, "--code", other, "--rows", 8, "--texts", 4),
        *("--prompts", 1, "--rounds", 1, "--boosted-rows", 60),
    )
    assert [row[:2] for row in rows_of(told)] == [
        [name, str(code)] for name in around_lm.MEASUREMENTS for code in (here, other)
    ]
    first = json.loads(told[told.index("{") :].splitlines()[0])["times"][0]
    assert first["training"][0]["wall"] > 0
    assert "the same to the bit" in told


def test_around_lm_reports_a_checkout_that_fails(tmp_path):
    broken = tmp_path / "blackbox"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('no such thing')")
    with pytest.raises(click.ClickException, match="no such thing"):
        around_lm.run_python(tmp_path, ("-c", "import blackbox"))


@pytest.mark.slow
def test_boosting(monkeypatch):
    monkeypatch.setattr(boosting, "CASES", ((16, 2, 300),))
    told = said(boosting, "--rows", 32, "--repeats", 1, "--rounds", 2)
    assert rows_of(told)[0][-1] == "2 of 2"
    assert "MB in all" in told


@pytest.mark.slow
def test_busy():
    told = said(busy, "--engine", "deterministic", "--model", "", "--texts", 2, "--rounds", 1)
    assert [row[:2] for row in rows_of(told)] == [
        ["deterministic", "sleep"],
        ["deterministic", "spin"],
    ]
    assert "2 neighbours, 1 rounds" in told


@pytest.mark.slow
def test_early_stop(data, monkeypatch, tmp_path):
    monkeypatch.setattr(early_stop, "SEEDS", (13,))
    told = said(
        early_stop,
        "--data-dir",
        data,
        "--store",
        tmp_path / "p.sqlite",
        "--shots",
        12,
        "--n-test",
        10,
        "--fresh-rows",
        5,
        "--backend",
        "deterministic",
    )
    exact = [row for row in rows_of(told) if row[1] == "exact" and len(row) == 6]
    assert len(exact) == 3
    assert all(row[3] == "0.00%" for row in exact)


@pytest.mark.transformers
def test_gpu(tmp_path):
    printed = said(gpu, "--tiny", "--out", tmp_path / "gpu.json")
    told = json.loads(printed[printed.index("{") :])
    assert json.loads((tmp_path / "gpu.json").read_text()) == told
    assert [record["texts"] for record in told["records"]] == [2, 4]
    for record in told["records"]:
        assert record["evaluated_to_least"] == pytest.approx(1, abs=0.2)
        assert record["passes_per_second"] > 0
        assert list(record["split"]) == [
            "tokenising",
            "tree and launch",
            "waiting for the device",
            "everything else",
        ]


@pytest.mark.slow
def test_growth(monkeypatch):
    monkeypatch.setattr(growth, "BASE", {"rows": 24, "classes": 2, "prompts": 2, "words": 6})
    monkeypatch.setattr(growth, "STEPS", {"rows": (24, 48), "prompts": (1, 3)})
    rows = rows_of(said(growth, "--repeats", 1))
    assert [row[2] for row in rows] == ["48", "96", "24", "72"]


@pytest.mark.slow
def test_profile(tmp_path):
    told = said(profile, "--out", tmp_path, "--backend", "deterministic")
    assert [row[0] for row in rows_of(told)] == [
        "training, empty store",
        "prediction, empty store",
        "training, full store",
        "prediction, full store",
    ]
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_service(monkeypatch):
    if shutil.which("wrk") is None:
        monkeypatch.setattr(service.shutil, "which", lambda name: name)
        monkeypatch.setattr(service, "run_wrk", three_requests)
    told = said(service, "--seconds", 1, "--rounds", 1, "--connections", 2)
    assert re.search(r"predict \d+/s, 99% within \d+ ms, 0 errors; healthz \d+/s; ratio", told)


@pytest.mark.slow
def test_service_beside_one_call(tmp_path):
    model = service.train_model(tmp_path, 2)
    told = said(
        service,
        *("--model", model, "--lm-backend", "deterministic"),
        *("--clients", 4, "--texts", 12, "--rounds", 1),
    )
    assert re.search(r"first request [\d.]+ s, others alone", told)
    for name in ("rate / one call", "99th percentile / ideal"):
        assert float(re.search(rf"{name}: ([\d.]+) \(", told)[1]) > 0


def three_requests(url, seconds, connections, script=None):
    """Send what `wrk` would, where there is none."""
    body = None if script is None else json.dumps({"text": "match goal"}).encode()
    target = url if script is None else f"{url}/v1/predict"
    request = urllib.request.Request(target, body, {"Content-Type": "application/json"})
    for _ in range(3):
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
    return {"rate": 3.0, "p99": 1.0, "errors": 0}


def test_what_wrk_says_is_read():
    latency = "  Latency Distribution\n     50%    1.20ms\n     99%  {}\n"
    good = latency.format("12.50ms") + "  1830 requests in 1.00s\nRequests/sec:   1826.35\n"
    assert service.parse_wrk_output(good) == {"rate": 1826.35, "p99": 12.5, "errors": 0}
    bad = latency.format("1.50s") + (
        "  Socket errors: connect 1, read 2, write 0, timeout 4\n"
        "  Non-2xx or 3xx responses: 30\nRequests/sec:     10.00\n"
    )
    assert service.parse_wrk_output(bad) == {"rate": 10.0, "p99": 1500.0, "errors": 37}


@pytest.mark.slow
def test_streaming():
    told = said(streaming, "--rows", 12_000, "--prompts", 1)
    assert "12,000 rows" in told
    assert re.search(r"\d+ rows/s", told)


@pytest.mark.slow
def test_startup():
    told = said(startup, "--rounds", 1)
    assert [line.partition(": ")[0] for line in told.splitlines()[:-1]] == [
        *startup.COMMANDS,
        "the classifier, beyond scikit-learn",
    ]


def test_how_close_answers_are_by_hand():
    one = {"ids": [[1, 2], [1, 2]], "values": [[-1.0, -2.0], [-1.0, -2.0]]}
    other = {"ids": [[1, 3], [2, 1]], "values": [[-1.5, -2.0], [-1.0, -1.25]]}
    difference, same = engines.agreement(other, one)
    # tokens 1; then 1 and 2: those that both tell
    assert difference == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    assert same == 0.5


def test_an_engine_whose_process_ends_says_how():
    engine = engines.Engine("no such way")
    with pytest.raises(engines.EngineEndedError, match=r"status 1$"):
        engine.ask(texts=[], prompts=[])
    engine.close()


@pytest.mark.slow
def test_tokens(data):
    told = said(
        tokens,
        "--data-dir",
        data,
        "--backend",
        "deterministic",
        "--rows",
        6,
        "--top-k",
        20,
        "--naive-rows",
        2,
    )
    assert [row[0] for row in rows_of(told)][:3] == ["sst2", "agnews", "trec"]


def test_tokens_in_blocks_by_hand():
    sequences = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 4], [1, 2, 9]]
    assert tokens.least_in_blocks(sequences, 1) == 4 + 1 + 1 + 1  # the shortest comes first
    assert tokens.least_in_blocks(sequences, 2) == 4 + 1 + 1 + 1
    assert tokens.least_in_blocks(sequences, 3) == 4 + 2 + 2 + 3
    assert tokens.least_in_blocks(sequences, 4) == 4 + 1 + 1 + 3
    # the answer at the last token is wanted, so its block is evaluated again
    assert tokens.least_in_blocks([[1, 2], [1, 2]], 2) == 4


@pytest.mark.slow
def test_users_picks(data):
    pytest.importorskip("onnxruntime", reason="needs the `local` extra")
    told = said(
        users_picks,
        *("--data-dir", data, "--data", "sst2", "--shots", 4, "--n-test", 4),
        *("--way", users_picks.OURS),
    )
    [row] = rows_of(told)
    assert row[:2] == ["sst2", users_picks.OURS]
    assert all(float(cell) > 0 for cell in row[2:7])


@pytest.mark.transformers
def test_a_users_script_scores_class_names(data):
    told = said(
        users_picks,
        *("--data-dir", data, "--data", "sst2", "--shots", 2, "--n-test", 4),
        *("--way", "transformers script, one prompt"),
    )
    assert [row[1] for row in rows_of(told)] == ["transformers script, one prompt"]


def test_users_picks_that_are_not_installed_are_skipped_by_name(data, monkeypatch):
    monkeypatch.setattr(users_picks, "find_spec", lambda package: None)
    told = said(users_picks, "--data-dir", data, "--data", "sst2", "--way", "SetFit")
    assert "SetFit: skipped, not all of setfit are installed" in told
    assert rows_of(told) == []


def test_pairs_of_setfit_by_hand():
    assert users_picks.n_pairs("aabb") == 2 * 6  # aa, ab, bb and each text with itself; 4 unlike
    assert users_picks.n_pairs("abc") == 2 * 3
    assert users_picks.n_pairs("abcd") == 2 * 6
