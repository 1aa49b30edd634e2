"""OpenAI-compatible APIs: the real client over real sockets, against servers that work and fail."""

from __future__ import annotations

import asyncio
import copy
import email.utils
import itertools
import json
import os
import pickle
import threading
import time

import numpy as np
import pytest
from endpoint_server import EndpointServer, error
from fault_server import FAULTS, FaultServer, seeded_faults
from sklearn.base import clone

pytest.importorskip("openai", reason="needs the `openai` extra")

import openai

from backends.api import retries, waits
from backends.api.billing import Billing
from backends.api.responses import BadAnswerError, id_of_bytes, read_answer, text_of
from backends.openai import OpenAIBackend
from blackbox import PromptBoostingClassifier
from blackbox.errors import BackendError, ModelNotFoundError, RowError
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.protocol import NO_TOKEN, Message, RenderedPrompt
from blackbox.spending import Rate

KEY = "sk-sentinel-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(retries, "_BACKOFF", (0.001, 0.01))


def chats(n):
    return [RenderedPrompt(messages=(Message("user", f"text number {i}"),)) for i in range(n)]


def expected(server, prompts, top_k):
    """Return what the server must answer, by bytes."""
    answers = server.lm.next_token(prompts, top_k)
    return [
        [(server.lm.token_bytes[token], value) for token, value in zip(ids, values, strict=True)]
        for ids, values in zip(answers.token_ids.tolist(), answers.log_probs.tolist(), strict=True)
    ]


def given(answers):
    return [
        [(answers.token_bytes[token], value) for token, value in zip(ids, values, strict=True)]
        for ids, values in zip(answers.token_ids.tolist(), answers.log_probs.tolist(), strict=True)
    ]


def collect(stream, rows):
    for where, _ in stream:
        rows += where


@pytest.mark.slow
def test_a_thousand_requests_over_every_fault_lose_double_and_swap_nothing():
    prompts = chats(1000)
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_attempts=20, max_concurrency=12)
        backend.probe()
        server.fault, server.answered = seeded_faults(1, 0.3), server.answered.__class__()
        answers = backend.next_token(prompts, 20)
    assert not answers.row_errors
    for got, wanted in zip(given(answers), expected(server, prompts, 20), strict=True):
        assert [name for name, _ in got] == [name for name, _ in wanted]
        assert np.allclose([v for _, v in got], [v for _, v in wanted], atol=1e-6)
    assert len(server.answered) == 1000
    assert set(server.answered.values()) == {1}
    assert set(server.faults) == set(FAULTS)
    failed = sum(count for fault, count in server.faults.items() if fault != "slow")
    assert answers.usage.retries == failed
    assert 1000 < answers.usage.passes_made < 1000 + failed  # broken answers are billed too


def test_retry_after_holds_back_all_requests():
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=4)
        backend.probe()
        faults = iter(["429 with a wait"])
        server.fault, server.seen_at = lambda: next(faults, None), []
        api_calls_hold = []
        hold = backend._server._pace.hold
        backend._server._pace.hold = lambda seconds: (api_calls_hold.append(seconds), hold(seconds))
        backend.next_token(chats(8), 5)
    assert api_calls_hold == [0.01]


def test_a_pace_spreads_requests_and_tokens_over_time():
    stop = threading.Event()
    for pace in (
        retries.Pace(requests_per_minute=1200),
        retries.Pace(tokens_per_minute=60_000),
    ):
        started = time.monotonic()
        for _ in range(5):
            pace.wait(50, stop)
        assert time.monotonic() - started >= 4 * 0.05


def test_a_date_in_retry_after_is_read():
    assert waits.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert waits.retry_after({"retry-after": "2"}) == 2.0
    assert waits.retry_after({"retry-after-ms": "250"}) == 0.25
    assert waits.retry_after({"retry-after": "soon"}) is None
    assert waits.retry_after({}) is None


@pytest.mark.posix
def test_a_date_without_a_zone_is_the_time_of_greenwich(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        soon = email.utils.formatdate(time.time() + 30)  # ends in -0000
        assert waits.retry_after({"retry-after": soon}) == pytest.approx(30, abs=2)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_wait_beyond_reason_ends_the_work():
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        backend.probe()
        pace = retries.Pace()

        def send():
            raise retries.RetryLaterError("busy", 86_400)

        with pytest.raises(BackendError, match="asks to wait 86400 s"):
            retries.send_with_retries(
                send, attempts=3, pace=pace, tokens=1, stop=threading.Event(), on_retry=int
            )


@pytest.mark.parametrize(
    ("fault", "error", "said", "sent"),
    [
        (
            (429, {"message": "x", "code": "insufficient_quota"}),
            BackendError,
            "insufficient_quota",
            1,
        ),
        # a firewall may refuse one text so: a known request tells
        ((403, {"message": "not yours"}), BackendError, "check the key", 2),
        ((404, {"message": "gone", "code": "model_not_found"}), ModelNotFoundError, "gone", 1),
    ],
)
def test_what_no_second_try_mends_stops_at_once(fault, error, said, sent):
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=1)
        backend.probe()
        server.fault, server.bodies = lambda: fault, []
        with pytest.raises(error, match=said):
            backend.next_token(chats(5), 5)
    assert len(server.bodies) == sent


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        ("429", "rate_limit", 429),
        ("502", "other", 502),
        ("reset", "connection", None),
        ("no choices", None, None),
        ((401, {"message": "x"}), "refused", 401),
        ((404, {"message": "x"}), "refused", 404),
        ((429, {"message": "x", "code": "insufficient_quota"}), "refused", 429),
    ],
)
def test_an_error_has_a_class_for_those_who_may_not_repeat_the_provider_s_words(
    fault, kind, status
):
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_attempts=2)
        backend.probe()
        server.fault = lambda: fault
        with pytest.raises(BackendError) as caught:
            backend.next_token(chats(1), 5)
    causes = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    marked = [(one.kind, one.status) for one in causes if hasattr(one, "kind")]
    assert marked == ([] if kind is None else [(kind, status)])


def test_a_fault_that_lasts_is_an_error_that_names_the_model_and_the_tries():
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_attempts=3)
        backend.probe()
        server.fault = lambda: "502"
        with pytest.raises(BackendError, match=r"'lm' says \(502\).*in 3 tries"):
            backend.next_token(chats(2), 5)


@pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded", ""])
def test_a_text_that_is_refused_is_one_row_and_never_a_label(code):
    refused = (400, {"message": "not this one", "code": code})
    texts = ["lovely day", "dull day", "forbidden words", "a lovely film", "a dull film"] * 3
    labels = ["good", "bad", "good", "good", "bad"] * 3
    with FaultServer() as server:
        real = server.refusal
        server.refusal = lambda path, body: (
            refused if "forbidden" in json.dumps(body) else real(path, body)
        )
        backend = OpenAIBackend("lm", base_url=server.url)
        prompts = ["{text} It was {mask}"]
        classifier = PromptBoostingClassifier(backend, prompts=prompts, random_state=0)
        with pytest.raises(RowError, match=r"row 2: .*not this one"):
            classifier.fit(texts, labels)
        classifier.set_params(on_row_error="abstain").fit(texts, labels)
        assert sorted(classifier.row_errors_) == [2, 7, 12]
        assert np.isnan(classifier.predict_proba(["forbidden", "lovely"])[0]).all()


def test_answers_before_a_failure_are_handed_over():
    answered = iter([None] * 30)
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=2)
        backend.probe()
        quota = (429, {"message": "x", "code": "insufficient_quota"})
        server.fault, server.answered = lambda: next(answered, quota), server.answered.__class__()
        rows = []
        with pytest.raises(BackendError):
            collect(backend.iter_next_token(chats(100), 5), rows)
    assert len(rows) == len(set(rows)) == 30 == sum(server.answered.values())


def test_a_run_that_is_told_to_finish_hands_over_what_is_under_way_and_sends_no_more():
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=3)
        backend.probe()
        server.answered = server.answered.__class__()
        rows = []
        for where, _ in backend.iter_next_token(chats(200), 5):
            rows += where
            backend.finish()
    assert 0 < len(rows) < 200
    assert len(rows) == sum(server.answered.values())


def test_an_interrupt_hands_over_what_is_under_way_and_then_interrupts():
    started = threading.Barrier(3)

    def job(number, stop):
        started.wait()
        return number

    answered = retries.queue.SimpleQueue()

    class Interrupted:
        """A queue whose first reading is interrupted, as by Ctrl-C."""

        def __init__(self):
            self.calls = 0

        def get(self, timeout):
            self.calls += 1
            if self.calls == 1:
                raise KeyboardInterrupt
            return answered.get(timeout=timeout)

        def empty(self):
            return answered.empty()

    answered.put((0, "paid"))
    answered.put(None)
    stop = threading.Event()
    parts = retries._drain(Interrupted(), 1, stop, threading.Event())
    assert next(parts) == [(0, "paid")]
    assert stop.is_set()
    with pytest.raises(KeyboardInterrupt):
        next(parts)


def test_it_works_inside_a_running_loop():
    async def notebook(backend):
        return backend.next_token(chats(3), 5)

    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        assert len(asyncio.run(notebook(backend))) == 3


def test_requests_run_many_at_a_time():
    together = threading.Barrier(6, timeout=20)
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=6)
        backend.probe()

        real = server.answer

        def answer(path, body):
            together.wait()  # breaks unless six are under way
            return real(path, body)

        server.answer = answer
        assert len(backend.next_token(chats(12), 5)) == 12


def test_the_probe_finds_the_largest_top_k_and_how_requests_are_taken():
    rejects = {
        "max_tokens": "Unsupported parameter: use 'max_completion_tokens' instead.",
        "temperature": "temperature does not support 1.0",
    }
    with FaultServer(largest=5, rejects=rejects) as server:
        found = OpenAIBackend("lm", base_url=server.url).describe()
    assert found["max_top_k"] == 5
    assert found["length_field"] == "max_completion_tokens"
    assert not found["temperature_taken"]
    assert found["endpoints"] == ["chat"]
    assert not found["answer_prefill"]
    assert found["raw_text_sent_as"] == "instruction"
    assert found["tokens"] == "bytes"


def test_the_probe_counts_what_it_spends_and_sees_raw_and_repeatable_answers():
    with FaultServer(endpoints=("chat", "completions"), begun=True) as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        found = backend.describe()
        good = [
            body for body in server.bodies if server.refusal("/v1/chat/completions", body) is None
        ]
    assert found["endpoints"] == ["chat", "completions"]
    assert found["log_probs"] == "raw"
    assert found["repeats_differ_by"] == 0.0
    assert found["tokens"] == "text"  # as completions tell no bytes
    assert found["requests"] == len(good) == sum(server.answered.values())


def test_an_endpoint_without_log_probabilities_is_one_clear_line_before_anything_is_spent():
    with FaultServer(lambda: "no log-probabilities") as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        with pytest.raises(BackendError, match=r"'lm' was asked for 'top_logprobs'.*sampling"):
            PromptBoostingClassifier(backend).fit(["a", "b"] * 4, ["x", "y"] * 4)
        assert len(server.bodies) <= 3


def test_an_unknown_model_a_bad_key_and_a_server_that_is_down_are_one_line_each(monkeypatch):
    with FaultServer() as server:
        with pytest.raises(ModelNotFoundError, match=r"no model 'ln'.*check the model's name"):
            OpenAIBackend("ln", base_url=server.url).probe()
        assert OpenAIBackend(base_url=server.url).identity.model == "lm"
        monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
        with pytest.raises(BackendError, match="check the key") as caught:
            OpenAIBackend("lm", base_url=server.url).probe()
        assert "sk-other" not in str(caught.value)
    with pytest.raises(BackendError, match=r"can't be reached.*start the server"):
        OpenAIBackend("lm", base_url=server.url, max_attempts=1).probe()
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(BackendError, match="set OPENAI_API_KEY"):
        OpenAIBackend("lm")


def test_the_key_stands_nowhere_that_is_written(tmp_path, caplog):
    texts, labels = ["lovely", "dull", "a lovely day", "so dull"] * 3, ["g", "b", "g", "b"] * 3
    caplog.set_level("DEBUG", logger="backends")
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        classifier = PromptBoostingClassifier(
            backend, prompts=["{text} It was {mask}"], store=tmp_path / "passes.sqlite"
        ).fit(texts, labels)
        classifier.save(tmp_path / "m.blackbox")
        written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        shown = [repr(backend), repr(classifier), str(backend.identity), caplog.text]
        written += pickle.dumps(backend) + "".join(shown).encode()
    assert KEY.encode() not in written
    assert b"127.0.0.1" not in (tmp_path / "m.blackbox").read_bytes()


def test_copies_clones_and_pickles(monkeypatch):
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        assert copy.copy(backend) is copy.deepcopy(backend) is clone(backend) is backend
        again = pickle.loads(pickle.dumps(backend))
        assert again.identity == backend.identity
        client = openai.OpenAI(base_url=server.url)
        own = OpenAIBackend("lm", client=client)
        assert len(own.next_token(chats(2), 5)) == 2
        client.close()
        with pytest.raises(TypeError, match="given its client"):
            pickle.dumps(own)
    with pytest.raises(TypeError, match=r"must be an openai\.OpenAI"):
        OpenAIBackend("lm", client=object())


def test_extra_fields_are_sent_and_are_part_of_the_identity():
    with FaultServer() as server:
        plain = OpenAIBackend("lm", base_url=server.url)
        other = OpenAIBackend("lm", base_url=server.url, extra_body={"top_p": 1.0})
        other.next_token(chats(1), 5)
        assert server.bodies[-1]["top_p"] == 1.0
        assert plain.identity != other.identity


def test_texts_are_written_in_one_request_a_prompt():
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        backend.probe()
        server.bodies = []
        draws = backend.generate(chats(2), 5, max_tokens=3)
        assert [len(texts) for texts in draws.texts] == [5, 5]
        assert len(server.bodies) == 2
        assert draws.usage.passes_made == 2 * 5 * 3


def test_a_reservation_that_waits_lets_others_be_settled():
    given_back = threading.Event()

    class Full:
        """Has room for one try at a time, and waits for it."""

        n_tries = 0

        def reserve_try(self, rate, worst):
            self.n_tries += 1
            assert self.n_tries == 1 or given_back.wait(10)

        def settle_try(self, rate, worst, real):
            given_back.set()

    billing, account = Billing(), Full()
    asked = Rate("p", "m"), {"prompt": "a", "max_tokens": 1}, account
    first = billing.begin(*asked)
    waiting = threading.Thread(target=billing.begin, args=asked)
    waiting.start()
    while account.n_tries < 2:
        time.sleep(0.01)
    first.cancel()
    waiting.join(5)
    assert not waiting.is_alive()


@pytest.mark.parametrize("ending", [KeyboardInterrupt, BackendError])
def test_draws_that_were_paid_for_are_kept_whatever_ends_the_rest(tmp_path, ending):
    class Ended(OpenAIBackend):
        """Ends after a few answers."""

        def _in_threads(self, jobs, ask):
            for number, part in enumerate(super()._in_threads(jobs, ask)):
                yield part
                if number == 2:
                    raise ending("enough")

    with FaultServer() as server:
        lm = Ended("lm", base_url=server.url, max_concurrency=1)
        meter = Meter(Budget(max_forward_passes=10_000))
        stored = with_store_and_budget(lm, tmp_path / "passes", meter.budget, meter)
        with pytest.raises(ending):
            stored.generate(chats(30), 2, max_tokens=1)
        kept = stored.usage.passes_made
        assert kept >= 3 * 2
        server.answered.clear()
        again = OpenAIBackend("lm", base_url=server.url)
        found = with_store_and_budget(again, tmp_path / "passes", Budget()).generate(
            chats(30), 2, max_tokens=1
        )
        assert all(len(texts) == 2 for texts in found.texts)
        assert found.usage.passes_from_store == kept
        assert found.usage.passes_made == 60 - kept


@pytest.mark.parametrize("ends", [False, True])
def test_draws_that_a_server_gives_one_by_one_are_kept_where_a_later_one_fails(tmp_path, ends):
    with FaultServer() as server:
        lm = OpenAIBackend("lm", base_url=server.url, max_concurrency=1)
        stored = with_store_and_budget(lm, tmp_path / "passes", Budget())
        lm.probe()
        real, n = server.refusal, itertools.count()

        def refusal(path, body):
            if body.get("n", 1) > 1:
                return 400, {"message": "n must be 1", "param": "n"}
            if next(n) == 5:
                lm.finish() if ends else None
                return None if ends else (400, {"message": "Content Exists Risk"})
            return real(path, body)

        server.refusal = refusal
        drawn = stored.generate(chats(1), 8, max_tokens=1)
        n_kept = 6 if ends else 5
        assert len(drawn.texts[0]) == n_kept
        assert bool(drawn.row_errors) is not ends
        known = stored.known_draws(chats(1), n_kept, max_tokens=1, temperature=1.0, seed=0)
        assert known == [0]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"message": {"content": None}, "finish_reason": "content_filter"}, "content filter"),
        ({"text": "", "finish_reason": "content_filter: PROHIBITED_CONTENT"}, "content filter"),
        ({"text": "", "finish_reason": "content_filter"}, "content filter"),
        ({"message": {"content": None, "refusal": "I can't sk-sentinel"}}, "the LM refuses: I can"),
    ],
)
def test_a_draw_that_is_refused_is_a_row_without_any(choice, said):
    with FaultServer() as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        backend.probe()
        real, n = server.answer, itertools.count()

        def answer(path, body):
            found = real(path, body)
            if next(n) == 3:
                found["choices"][1] = choice
            return found

        server.answer = answer
        draws = backend.generate(chats(20), 2, max_tokens=1)
    ((row, why),) = draws.row_errors.items()
    assert said in why
    assert draws.texts[row] == []
    assert all(len(texts) == 2 for place, texts in enumerate(draws.texts) if place != row)


def entry(token, value, **more):
    return {"token": token, "logprob": value, **more}


def chat_answer(*tokens):
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": list(tokens)}]}}]}


def test_tokens_are_their_bytes_and_those_that_look_alike_share_their_chance():
    answer = chat_answer(
        entry("�", -1.0, bytes=[0xF0, 0x9F]),
        entry("�", -2.0, bytes=[0xE2]),
        entry("a", -3.0),
        entry("never", -9999.0),
    )
    read = read_answer(answer)
    assert [name for _, name, _ in read.tokens] == [b"\xf0\x9f", b"\xe2", b"a"]
    assert read.tokens[0][0] == id_of_bytes(b"\xf0\x9f")
    legacy = {"choices": [{"logprobs": {"top_logprobs": [{"�": -1.0, "a": -2.0}]}}]}
    assert [name for _, name, _ in read_answer(legacy).tokens] == ["�".encode(), b"a"]
    twice = read_answer(chat_answer(entry("�", -1.0), entry("�", -2.0)))
    assert twice.tokens[0][2] == pytest.approx(np.logaddexp(-1, -2))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {"choices": []},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": []}}]},
        chat_answer(entry("a", 0.5)),
        chat_answer(entry("a", float("nan"))),
        chat_answer(entry("a", -0.1), entry("b", -0.1)),
        chat_answer({"token": "a"}),
    ],
)
def test_an_answer_that_is_no_distribution_is_bad(answer):
    with pytest.raises(BadAnswerError):
        read_answer(answer)


@pytest.fixture(scope="module")
def lm(llamacpp_lm):
    """The engine of this file."""
    return llamacpp_lm


@pytest.fixture(scope="module")
def llama_server(lm):
    """llama.cpp's own server, with the embedded LM."""
    server = lm._server
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=server.key) as client:
        yield client


@pytest.mark.slow
@pytest.mark.lm
def test_llamacpp_answers_over_http_as_it_does_in_process(lm, llama_server):
    backend = OpenAIBackend(client=llama_server)
    prompts = [
        RenderedPrompt(text="The capital of France is"),
        RenderedPrompt(text="I love it 😀"),
        RenderedPrompt(text=""),
        RenderedPrompt(text="half \ud83d, <|im_end|>"),
        RenderedPrompt(messages=(Message("user", "What is it?"),), answer_prefix="It is a"),
        RenderedPrompt(messages=(Message("user", "Say yes."),), answer_prefix="Yes."),
        RenderedPrompt(messages=(Message("system", "Be brief."), Message("user", "Hello"))),
        RenderedPrompt(text="word " * 3000),
    ]
    there, here = backend.next_token(prompts, 20), lm.next_token(prompts, 20)
    assert list(there.row_errors) == list(here.row_errors) == [7]
    assert np.abs(there.log_probs[:7, 0] - here.log_probs[:7, 0]).max() < 0.05
    assert (there.token_ids[:7, :5] == here.token_ids[:7, :5]).mean() > 0.9
    for prompt in prompts[:7]:
        assert backend.show(prompt)[1] == lm.show(prompt)[1]
    assert backend.count_tokens(prompts) == lm.count_tokens(prompts)
    assert (here.token_ids[7] == NO_TOKEN).all()


@pytest.mark.slow
@pytest.mark.lm
def test_llamacpp_over_http_makes_the_same_classifier_as_in_process(lm, llama_server):
    texts = ["a lovely film", "a dull film", "lovely, truly", "dull and long"] * 3
    labels = ["good", "bad", "good", "bad"] * 3
    prompts = ["{text} It was {mask}", "<user>{text}\n\nHow is it?<assistant>It is {mask}"]
    new = ["what a lovely day", "how dull", "an awful, dull mess", "great and lovely"]
    found = []
    for backend in (lm, OpenAIBackend(client=llama_server)):
        classifier = PromptBoostingClassifier(
            backend, prompts=prompts, top_k=20, random_state=0, embeddings=None
        )
        found.append(classifier.fit(texts, labels).predict_proba(new))
    assert np.abs(found[0] - found[1]).max() < 0.05


@pytest.mark.slow
@pytest.mark.lm
def test_llamacpp_chat_alone_serves_raw_text_as_a_begun_answer(llama_server):
    backend = OpenAIBackend(client=llama_server, endpoint="chat")
    assert backend.probe().wire.raw_text_by == "begun answer"
    answer = backend.next_token([RenderedPrompt(text="The capital of France is")], 20)
    assert b" Paris" in answer.token_bytes.values()


def test_a_server_whose_tokenizer_is_gone_is_one_clear_error(monkeypatch):
    from backends.api.connection import Connection, ListedModel

    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)
    connection = Connection(client, "m", retries.Pace(None, None), 1, renew=lambda: client)
    really = connection.post
    answers = iter([{"tokens": [1]}])

    def post(path, body):
        return next(answers, None) or really(path, body)

    monkeypatch.setattr(connection, "post", post)
    tokenizer = connection.find_tokenizer(ListedModel("m", "vllm", None, {}))
    with pytest.raises(BackendError, match="can't be reached"):
        tokenizer.name_of(7)


def test_the_variable_of_the_key_and_headers_of_a_gateway_are_options(monkeypatch):
    seen = []
    with EndpointServer(EndpointServer.plain) as server:
        server.on_headers = seen.append
        monkeypatch.setenv("GATEWAY_KEY", "sk-of-the-gateway-0123456789")
        monkeypatch.delenv("OPENAI_API_KEY")
        backend = OpenAIBackend(
            "m",
            base_url=server.url,
            api_key_env="GATEWAY_KEY",
            default_headers={"X-Title": "tickets", "X-Api-Key": "hidden-hidden-hidden"},
        )
        backend.next_token(chats(2), 5)
        assert "hidden" not in str(backend.identity.as_dict())
    assert {headers["Authorization"] for headers in seen} == {"Bearer sk-of-the-gateway-0123456789"}
    assert {headers["X-Title"] for headers in seen} == {"tickets"}
    assert {headers["X-Api-Key"] for headers in seen} == {"hidden-hidden-hidden"}
    assert "hidden-hidden-hidden" in backend._server.secrets  # removed from every message
    with pytest.raises(TypeError, match="default_headers can't be pickled"):
        pickle.dumps(backend)
    with pytest.raises(BackendError, match="set NO_SUCH_KEY"):
        OpenAIBackend("m", api_key_env="NO_SUCH_KEY")


def test_azure_s_deployments_are_reached_with_the_version_of_its_api():
    seen = []
    with EndpointServer(azure) as server:
        server.on_headers = seen.append
        address = server.url.removesuffix("/v1")
        backend = OpenAIBackend("my-deployment", base_url=address, api_version="2024-10-21")
        answers = backend.next_token(chats(3), 5)
        texts = [path for _, path, _ in server.requests if "deployments" in path]
    assert not answers.row_errors
    assert set(texts) >= {"/openai/deployments/my-deployment/chat/completions"}
    assert {headers["api-key"] for headers in seen} == {KEY}
    again = pickle.loads(pickle.dumps(backend))
    assert type(again._server.client) is openai.AzureOpenAI
    with pytest.raises(BackendError, match="has no address by default: give base_url"):
        OpenAIBackend("my-deployment", api_version="2024-10-21")


def azure(method, path, body):
    """Answer as a resource of Azure does: below /openai, a deployment in the path."""
    if path == "/openai/models":
        return 200, {"object": "list", "data": [{"id": "gpt-4.1-mini-2025-04-14"}]}
    if path != "/openai/deployments/my-deployment/chat/completions":
        return 404, error("Resource not found", code="404")
    return EndpointServer.plain(method, path, body)


@pytest.mark.parametrize("option", ["default_headers", "api_version", "base_url"])
def test_an_option_of_the_address_beside_a_client_is_refused(option):
    given = {"default_headers": {"a": "b"}, "api_version": "1", "base_url": "http://x"}[option]
    with pytest.raises(ValueError, match="a client has its own"):
        OpenAIBackend("m", client=openai.OpenAI(api_key=KEY), **{option: given})


@pytest.mark.parametrize(
    "headers", [{"a b": "hidden"}, {"a": 1}, {"é": "hidden"}, {"a": "hidden é"}]
)
def test_headers_that_no_request_can_carry_are_refused_without_their_values(headers):
    with pytest.raises(BackendError, match="header") as refused:
        OpenAIBackend("m", base_url="http://127.0.0.1:9/v1", default_headers=headers)
    assert "hidden" not in str(refused.value)


def test_a_token_that_is_listed_twice_under_its_own_id_counts_once():
    listed = [{"id": 5, "token": " good", "logprob": -1.3}] * 2
    listed.append({"id": 7, "token": " bad", "logprob": -1.4})
    told = {"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}
    assert read_answer(told).tokens == [(5, b" good", -1.3), (7, b" bad", -1.4)]


def test_a_message_in_parts_is_its_texts():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
        {"type": "text", "text": "B"},
        {"type": "text", "text": "."},
    ]
    assert text_of({"message": {"content": parts}}) == "B."


@pytest.mark.posix
@pytest.mark.parametrize("is_given", [False, True])
def test_a_process_that_is_forked_shares_no_connection(is_given):
    with FaultServer() as server, openai.OpenAI(base_url=server.url, api_key=KEY) as client:
        lm = OpenAIBackend("lm", **({"client": client} if is_given else {"base_url": server.url}))
        expected = lm.next_token(chats(40), 5)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            found = b""
            try:
                found = lm.next_token(chats(40), 5).log_probs.tobytes()
            except BackendError as error:
                found = str(error).encode()
            finally:
                os.write(write, found)
                os._exit(0)
        own = lm.next_token(chats(40), 5)
        os.close(write)
        with os.fdopen(read, "rb") as answered:
            told = answered.read()
        os.waitpid(child, 0)
    assert own.log_probs.tobytes() == expected.log_probs.tobytes()
    if is_given:
        assert b"before this process was forked" in told
    else:
        assert told == expected.log_probs.tobytes()
