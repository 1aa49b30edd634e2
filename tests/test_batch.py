"""The batch endpoint, over a local server that speaks it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from fault_server import FaultServer

pytest.importorskip("openai", reason="needs the `openai` extra")

from backends.api import batch
from backends.openai import OpenAIBackend
from blackbox import PromptBoostingClassifier
from blackbox.errors import BackendError, BudgetError, RowError
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.protocol import Message, RenderedPrompt

TEXTS = [f"{text} number {i}" for i in range(6) for text in ("a lovely film", "a dull film")]
LABELS = ["good", "bad"] * 6
PROMPTS = ["{text} It was {mask}", "<user>{text}\n\nHow is it?<assistant>{mask}"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")


def batched(server, folder, **options):
    return OpenAIBackend(
        "lm", base_url=server.url, batch=True, batch_folder=folder, poll_seconds=0.01, **options
    )


def collect(stream, rows):
    for where, _ in stream:
        rows += where


def chats(n):
    return [RenderedPrompt(messages=(Message("user", f"text number {i}"),)) for i in range(n)]


def test_a_batch_gives_what_single_requests_give(tmp_path):
    prompts = chats(30)
    with FaultServer() as server:
        online = OpenAIBackend("lm", base_url=server.url)
        one, other = (b.next_token(prompts, 20) for b in (online, batched(server, tmp_path)))
        assert len(server.batches) == 1
        assert batched(server, tmp_path).identity == online.identity  # one store for both
    assert (one.token_ids == other.token_ids).all()
    assert (one.log_probs == other.log_probs).all()
    assert other.usage.passes_made == 30
    assert list(tmp_path.iterdir()) == []


def test_lines_carry_the_digest_and_results_are_read_in_any_order(tmp_path):
    with FaultServer() as server:
        batched(server, tmp_path).next_token(chats(20), 20)
        lines = [json.loads(line) for line in server.files["file-0"].splitlines()]
    assert len({line["custom_id"] for line in lines}) == 20
    assert all(len(line["custom_id"]) == 64 for line in lines)
    assert {line["url"] for line in lines} == {"/v1/chat/completions"}


def test_what_fails_or_expires_is_submitted_again_and_nothing_else(tmp_path):
    faults = iter(["expired", (500, {"message": "x"}), None, "expired"])
    with FaultServer() as server:
        backend = batched(server, tmp_path)
        backend.probe()
        server.fault, server.answered = lambda: next(faults, None), Counter()
        answers = backend.next_token(chats(12), 20)
        sizes = [
            len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()
        ]
    assert not answers.row_errors
    assert sizes == [12, 3]
    assert set(server.answered.values()) == {1}


def test_what_expired_is_not_charged(tmp_path):
    faults = iter(["expired"] * 12)
    meter = Meter(Budget(max_forward_passes=20))
    with FaultServer() as server:
        backend = batched(server, tmp_path)
        backend.probe()
        server.fault = lambda: next(faults, None)
        with meter.charging():
            answers = backend.next_token(chats(12), 20)
    assert not answers.row_errors


def test_a_refused_line_is_one_row(tmp_path):
    faults = iter([(400, {"message": "not this one", "code": "content_filter"})])
    with FaultServer() as server:
        backend = batched(server, tmp_path)
        backend.probe()
        server.fault = lambda: next(faults, None)
        answers = backend.next_token(chats(5), 20)
    assert len(answers.row_errors) == 1
    assert "not this one" in next(iter(answers.row_errors.values()))


def test_a_batch_that_was_left_is_found_again_with_and_without_its_file(tmp_path):
    with FaultServer() as server:
        server.looks_needed = 10**9
        for lost in (False, True):
            left(server, batched(server, tmp_path))
            (file,) = tmp_path.iterdir()
            assert "text number" not in file.read_text()
            assert "sk-sentinel" not in file.read_text()
            if lost:
                file.unlink()
            assert len(server.batches) == 1
        server.looks_needed = 0
        assert len(batched(server, tmp_path).next_token(chats(8), 20)) == 8
        assert len(server.batches) == 1


def left(server, backend):
    """Begin to wait for a batch, and leave."""

    def leave():
        while not server.batches or not backend._stops:
            time.sleep(0.01)
        backend.finish()

    backend.probe()
    leaving = threading.Thread(target=leave)
    leaving.start()
    assert list(backend.iter_next_token(chats(8), 20)) == []
    leaving.join()


def test_a_batch_that_cannot_be_noted_is_still_read(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with FaultServer() as server:
        answer = batched(server, tmp_path).next_token(chats(2), 5)
    assert not answer.row_errors
    assert "can't be noted there" in caplog.text


def test_a_batch_that_failed_says_why(tmp_path):
    with FaultServer() as server:
        backend = batched(server, tmp_path)
        backend.probe()
        run = server._run_batch
        server._run_batch = lambda batch: batch.update(
            status="failed", errors={"object": "list", "data": [{"message": "no money"}]}
        )
        with pytest.raises(BackendError, match="failed: no money"):
            backend.next_token(chats(3), 20)
        server._run_batch = run
        assert len(batched(server, tmp_path).next_token(chats(3), 20)) == 3


@pytest.mark.parametrize("lost", [1, 3])
def test_a_submission_whose_answer_was_lost_is_found_and_not_made_twice(tmp_path, lost):
    with FaultServer() as server:
        server.loses_submissions = lost
        assert len(batched(server, tmp_path).next_token(chats(5), 20)) == 5
        assert len(server.batches) == 1


def test_a_lost_submission_is_not_made_again_where_batches_cannot_be_listed(tmp_path):
    with FaultServer() as server:
        server._page = lambda path: {"error": {"message": "no list"}, "data": "?"}
        server.loses_submissions = 1
        with pytest.raises(BackendError, match="look for it before you run this again"):
            batched(server, tmp_path).next_token(chats(5), 20)
        assert len(server.batches) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_no_batch_is_submitted_while_batches_cannot_be_listed_for_now(tmp_path, status):
    with FaultServer() as server:
        server.looks_needed = 10**9
        left(server, batched(server, tmp_path))
        for note in tmp_path.iterdir():
            note.unlink()
        real, failing = server.batch_get, True

        def get(handler):
            if failing and "/batches?" in handler.path:
                handler.reply(status, {"error": {"message": "later"}})
            else:
                real(handler)

        server.batch_get = get
        with pytest.raises(BackendError, match="run this again later"):
            batched(server, tmp_path, max_attempts=1).next_token(chats(8), 20)
        failing = False
        server.looks_needed = 0
        assert len(batched(server, tmp_path).next_token(chats(8), 20)) == 8
        assert len(server.batches) == 1


def test_a_part_that_runs_is_found_whatever_else_there_is_to_ask(tmp_path, monkeypatch):
    """Left after the first of two parts, one row of which has failed: parts are cut otherwise."""
    monkeypatch.setattr(batch, "_MAX_REQUESTS", 6)
    faults = iter([(500, {"message": "x"})])
    with FaultServer() as server:
        backend = batched(server, tmp_path)
        backend.probe()
        server.fault = lambda: next(faults, None)
        server.answered.clear()
        run = server._run_batch
        server._run_batch = lambda one: None if one["id"] == "batch-1" else run(one)
        parts = backend.iter_next_token(chats(12), 20)
        where, part = next(parts)
        kept = set(where) - {where[place] for place in part.row_errors}
        assert len(kept) == 5
        threading.Timer(0.3, backend.finish).start()
        assert list(parts) == []
        server._run_batch = run
        rest = [prompt for row, prompt in enumerate(chats(12)) if row not in kept]
        assert not batched(server, tmp_path).next_token(rest, 20).row_errors
        bought = [n for prompt, n in server.answered.items() if "text number" in prompt]
        assert bought == [1] * 12, "nothing is bought twice"
        assert not list(tmp_path.iterdir())


def test_other_ends_of_lines_in_a_text_end_no_line(tmp_path):
    odd = "\u2028 \u2029 \x85 \x0b"
    with FaultServer() as server:
        backend = batched(server, tmp_path)
        backend.probe()
        real = server.answer

        def answer(path, body):
            found = real(path, body)
            found["choices"][0]["message"]["content"] = odd
            return found

        server.answer = answer
        assert not backend.next_token(chats(6), 20).row_errors
        assert len(server.batches) == 1


def test_what_has_no_line_in_a_completed_batch_is_charged(tmp_path):
    with FaultServer() as server:
        lm = batched(server, tmp_path, max_attempts=2)
        lm.probe()
        run = server._run_batch

        def without_lines(one):
            run(one)
            for field in ("output_file_id", "error_file_id"):
                server.files[one[field]] = b"\xff{"

        server._run_batch = without_lines
        meter = Meter(Budget(max_forward_passes=20))
        metered = with_store_and_budget(lm, False, meter.budget, meter)
        with pytest.raises((BackendError, BudgetError)):
            metered.next_token(chats(10), 20)
        assert meter._taken.passes == 20


def test_a_batch_beyond_the_latest_hundred_is_found(tmp_path):
    with FaultServer() as server:
        server.looks_needed = 10**9
        left(server, batched(server, tmp_path))
        next(tmp_path.iterdir()).unlink()
        for number in range(250):
            server.batches[f"other-{number}"] = server.batches["batch-0"] | {
                "id": f"other-{number}",
                "metadata": None,
            }
        server.looks_needed = 0
        assert len(batched(server, tmp_path).next_token(chats(8), 20)) == 8
        assert len(server.batches) == 251


@pytest.mark.parametrize("state", ["expired", "failed", "cancelled", "gone", "file gone"])
def test_a_batch_that_came_to_nothing_is_not_used_again(tmp_path, state):
    with FaultServer() as server:
        server.looks_needed = 10**9
        left(server, batched(server, tmp_path))
        if state == "gone":
            del server.batches["batch-0"]
            server.batches["other"] = {"id": "other", "status": "completed", "metadata": {}}
        elif state == "file gone":
            server.batches["batch-0"] |= {"status": "completed", "output_file_id": "file-gone"}
        else:
            server.batches["batch-0"]["status"] = state
        server.looks_needed = 0
        assert len(batched(server, tmp_path).next_token(chats(8), 20)) == 8
        assert list(tmp_path.iterdir()) == []


def test_answers_of_other_batches_are_handed_over_before_a_failed_one_is_an_error(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(batch, "_MAX_REQUESTS", 4)
    with FaultServer() as server:
        backend = batched(server, tmp_path)
        backend.probe()
        run = server._run_batch

        def run_or_fail(made):
            if made["id"] == "batch-0":
                made.update(status="failed", errors={"object": "list", "data": []})
            else:
                run(made)

        server._run_batch = run_or_fail
        rows = []
        with pytest.raises(BackendError, match="failed"):
            collect(backend.iter_next_token(chats(8), 20), rows)
    assert len(rows) == 4


def test_the_texts_are_in_no_file_that_could_outlive_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    seen = []
    with FaultServer() as server:
        post = server.batch_post

        def batch_post(handler, data):
            seen.append(list((tmp_path / "tmp").iterdir()))
            post(handler, data)

        server.batch_post = batch_post
        batched(server, tmp_path / "batches").next_token(chats(5), 20)
    assert seen == [[], []]


def test_a_batch_is_within_the_budget(tmp_path):
    meter = Meter(Budget(max_forward_passes=20))
    with FaultServer() as server:
        with meter.charging():
            lm = batched(server, tmp_path)
        lm = with_store_and_budget(lm, False, meter.budget, meter)
        rows = []
        with pytest.raises(BudgetError, match="20 forward passes is used up"):
            collect(lm.iter_next_token(chats(40), 20), rows)
        assert 10 < len(rows) < server.bill.passes <= 20


def test_a_training_is_three_batches_at_most_and_half_the_price(tmp_path, monkeypatch):
    prices = {"prices": [{"provider": "openai-compatible", "model": "lm", "input": 1, "output": 1}]}
    (tmp_path / "prices.json").write_text(json.dumps(prices))
    monkeypatch.setenv("PROMPTBOOSTING_PRICES", str(tmp_path / "prices.json"))

    def trained(by_batch):
        backend = OpenAIBackend(
            "lm",
            base_url=server.url,
            batch=by_batch,
            poll_seconds=0.01,
            batch_folder=tmp_path / "batches",
        )
        classifier = PromptBoostingClassifier(
            backend, n_prompts=2, random_state=0, store=tmp_path / f"{by_batch}.sqlite"
        )
        plan = classifier.plan(TEXTS, LABELS)
        return classifier.fit(TEXTS, LABELS), plan

    with FaultServer() as server:
        (online, plan), (cheap, cheap_plan) = trained(False), trained(True)
        assert 1 < len(server.batches) <= 3
    assert online.predict(TEXTS).tolist() == cheap.predict(TEXTS).tolist()
    assert cheap.usage_.cost == pytest.approx(online.usage_.cost / 2)
    assert cheap_plan.cost[1] == pytest.approx(plan.cost[1] / 2)


@pytest.mark.slow
def test_the_command_is_left_and_goes_on(tmp_path):
    table = tmp_path / "data.csv"
    rows = [f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "prompts.txt").write_text("{text} It was {mask}\n")
    with FaultServer() as server:
        server.looks_needed = 10**9
        arguments = [
            sys.executable,
            "-m",
            "blackbox",
            "train",
            str(table),
            "--backend",
            "openai",
            "--model",
            "lm",
            "--backend-option",
            f"base_url={server.url}",
            "--batch-api",
            "--backend-option",
            "poll_seconds=0.05",
            "--prompts",
            str(tmp_path / "prompts.txt"),
            "--backend-option",
            f"batch_folder={tmp_path / 'batches'}",
            "--store",
            str(tmp_path / "passes.sqlite"),
            "--out",
            str(tmp_path / "m.blackbox"),
        ]
        running = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 100
        while not list(Path(tmp_path).glob("batches/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        running.kill()
        assert "batch-0 submitted with 12 requests" in running.communicate()[1]
        server.looks_needed = 0
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert len(server.batches) == 1
    assert (tmp_path / "m.blackbox").exists()


class TestEnds:
    """A batch ends as single requests do, where nothing is to be had."""

    @staticmethod
    def spoilt(server, change):
        real = server.answer
        server.answer = lambda path, body: change(real(path, body))

    def test_log_probabilities_that_are_gone_are_paid_for_once(self, tmp_path):
        with FaultServer() as server:
            backend = batched(server, tmp_path)
            backend.probe()
            server.ledger.clear()
            self.spoilt(server, lambda answer: answer | {"choices": [{"message": {}}]})
            with pytest.raises(BackendError, match=r"of no use.*no log-probabilities"):
                backend.next_token(chats(40), 20)
            assert len(server.ledger) == 40

    def test_what_a_filter_left_nothing_of_is_one_row_and_not_sent_again(self, tmp_path):
        with FaultServer() as server:
            backend = batched(server, tmp_path)
            backend.probe()
            server.ledger.clear()
            empty = {"message": {}, "finish_reason": "content_filter"}
            self.spoilt(
                server,
                lambda answer: answer | ({"choices": [empty]} if len(server.ledger) == 3 else {}),
            )
            assert len(backend.next_token(chats(8), 20).row_errors) == 1
            assert len(server.ledger) == 8

    def test_a_form_that_is_refused_and_an_account_that_is_empty_end_the_run(self, tmp_path):
        with FaultServer() as server:
            backend = batched(server, tmp_path)
            backend.probe()
            server.fault = lambda: (400, {"message": "no such field"})
            with pytest.raises(BackendError, match=r"so it isn't the texts: .*no such field"):
                backend.next_token(chats(20), 20)
            server.fault = lambda: (429, {"message": "pay", "code": "insufficient_quota"})
            with pytest.raises(BackendError, match="pay; nothing more would be answered"):
                backend.next_token(chats(21), 20)
            assert len(server.batches) == 2

    def test_a_refused_row_ends_it_where_that_is_an_error(self, tmp_path):
        with FaultServer() as server:
            backend = batched(server, tmp_path)
            backend.probe()
            classifier = PromptBoostingClassifier(backend, prompts=PROMPTS[1:], random_state=0)
            faults = iter([(400, {"message": "no", "code": "content_filter"}), *["500"] * 5])
            server.fault = lambda: _status(next(faults, None))
            with pytest.raises(RowError, match="no"):
                classifier.fit(TEXTS, LABELS)
            assert len(server.batches) == 1  # the five are not asked for again

    def test_the_words_of_a_failed_batch_hold_no_key(self, tmp_path):
        with FaultServer() as server:
            backend = batched(server, tmp_path)
            backend.probe()
            for errors in ({"data": [{"message": f"bad {server.key}"}]}, f"bad {server.key}", [7]):
                server._run_batch = lambda batch, errors=errors: batch.update(
                    status="failed", errors=errors
                )
                with pytest.raises(BackendError, match="requests failed: ") as caught:
                    backend.next_token(chats(3), 20)
                assert server.key not in str(caught.value)


def _status(fault):
    return (500, {"message": "it broke"}) if fault == "500" else fault
