"""Texts that are longer than an API's context: cut where it is known or refused, and never lost."""

from __future__ import annotations

import json
import re

import pytest
from endpoint_server import EndpointServer, error
from fault_server import FaultServer

pytest.importorskip("openai", reason="needs the `openai` extra")

from backends.api import retries
from backends.api.context import ContextWindow
from backends.openai import OpenAIBackend
from backends.sampling import SamplingBackend
from blackbox import PromptBoostingClassifier
from blackbox.answers.passes import next_tokens
from blackbox.lm.budgets import Budget
from blackbox.lm.client import with_store_and_budget
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import RenderedPrompt, TooLong

POOL = PromptPool(["{text} It was {mask}"])
LONG = "some plain words here " * 1000 + "lovely"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    monkeypatch.setattr(retries, "_BACKOFF", (0.001, 0.01))


class LongTextServer(EndpointServer):
    """Counts a prompt's tokens by its bytes, and refuses or cuts what is longer than its context.

    Parameters
    ----------
    context : int
        Tokens.
    bytes_a_token : float
        Bytes of its tokens.
    refusal : callable or None
        From the tokens of a prompt to a status and an error; None cuts in silence.
    """

    def __init__(self, context, bytes_a_token=3.5, refusal=None):
        super().__init__(self._answer_or_refuse)
        self.context, self.bytes_a_token, self.refusal = context, bytes_a_token, refusal
        self.answered = []

    def _answer_or_refuse(self, method, path, body):
        status, answer = self.plain(method, path, body)
        if status != 200 or not body:
            return status, answer
        text = "".join(turn["content"] for turn in body["messages"])
        tokens = 10 + int(len(text.encode()) / self.bytes_a_token)
        if tokens > self.context and self.refusal:
            return self.refusal(tokens, self.context)
        self.answered.append(text)
        usage = {"prompt_tokens": min(tokens, self.context), "completion_tokens": 1}
        return 200, answer | {"usage": usage}

    def backend(self, **options):
        return OpenAIBackend("m", base_url=self.url, **options)


def by_code(tokens, context):
    return 400, error("too long", code="context_length_exceeded")


def by_size(tokens, context):
    return 413, "<html><title>413 Payload Too Large</title></html>"


def openai_words(tokens, context):
    said = f"This model's maximum context length is {context} tokens. However, your messages "
    return 400, error(said + f"resulted in {tokens} tokens. Request 2025112.", type="BadRequest")


def mistral_words(tokens, context):
    said = f"Prompt contains {tokens} tokens, too large for model with {context} maximum context "
    return 422, {"message": said + "length"}


def anthropic_words(tokens, context):
    return 400, error(f"prompt is too long: {tokens} tokens > {context} maximum")


def llama_fields(tokens, context):
    more = {"n_prompt_tokens": tokens, "n_ctx": context, "type": "exceed_context_size_error"}
    return 400, error("the request exceeds it") | {"error": more}


REFUSALS = [by_code, by_size, openai_words, mistral_words, anthropic_words, llama_fields]


@pytest.mark.parametrize(
    ("refusal", "context", "bytes_a_token"),
    [(one, 1000, 3.5) for one in REFUSALS]
    + [(by_code, 2000, 1.3), (openai_words, 2000, 1.3), (by_code, 4000, 4.5)],
)
def test_a_text_is_cut_after_a_refusal_and_sent_again(refusal, context, bytes_a_token):
    with LongTextServer(context, bytes_a_token, refusal) as server:
        backend = server.backend()
        backend.probe()
        server.answered.clear()
        texts = [(f"{n} {LONG}", None) for n in range(6)] + [("short", None)]
        answers = next_tokens(backend, POOL, texts, 5)
        assert not answers.row_errors
        assert answers.truncated == set(range(6))
        assert len(server.answered) == 7
        longest = [text for text in server.answered if "short" not in text]
        assert all(text.endswith(" It was") for text in longest)
        tokens = [len(text.encode()) / bytes_a_token for text in longest]
        assert min(tokens) > 0.55 * context  # at most one step more than was needed
        # others learn from the first ones
        for word in ("more", "others"):
            sent = len(server.posts("chat"))
            next_tokens(backend, POOL, [(f"{n} {word} {LONG}", None) for n in range(6)], 5)
        assert len(server.posts("chat")) - sent == 6


def test_a_text_that_fits_is_sent_whole():
    text = "some words " * 1000 + "a lovely end"  # 11 kB, which are about 2,000 tokens
    with LongTextServer(8192, 5.0, by_code) as server:
        answers = next_tokens(server.backend(), POOL, [(text, None)], 5)
        assert not answers.truncated
        assert server.answered[-1].endswith("a lovely end It was")


def test_a_template_that_fits_no_context_is_the_server_s_refusal():
    pool = PromptPool([f"{'fixed words ' * 300} {{text}} It was {{mask}}"])
    with LongTextServer(100, 3.5, by_code) as server:
        answers = next_tokens(server.backend(), pool, [("a text", None), ("b", None)], 5)
        assert "too long" in answers.row_errors[0]
        assert len(server.posts()) < 60


def test_a_store_never_gives_the_answer_of_a_cut_text_for_the_whole_and_saves_what_was_paid(
    tmp_path,
):
    texts = [(f"{n} {LONG}", None) for n in range(3)]
    with LongTextServer(2000, 3.5, by_code) as server:

        def ask(**options):
            server.answered.clear()
            lm = with_store_and_budget(server.backend(**options), tmp_path / "s", Budget())
            lm.limits  # noqa: B018
            probed = len(server.answered)
            answers = next_tokens(lm, POOL, texts, 5)
            assert not answers.row_errors
            return len(server.answered) - probed, answers

        paid, first = ask()
        again, second = ask()
        assert (paid, again) == (3, 0)  # another process finds the same cut
        assert (first.log_probs == second.log_probs).all()
        server.context = 20_000
        paid, whole = ask(context_length=20_000)
        assert paid == 3
        assert not whole.truncated
        assert server.answered[-1].endswith("lovely It was")


@pytest.mark.parametrize("context", [2050])
def test_a_server_that_cuts_prompts_in_silence_is_noticed_and_said(context, caplog):
    with LongTextServer(context, 4.4) as server:
        backend = server.backend()
        texts = [(f"{n} {LONG[: 12000 + 500 * n]}", None) for n in range(8)]
        next_tokens(backend, POOL, [(f"{n} words", None) for n in range(10)], 5)
        next_tokens(backend, POOL, texts[:1], 5)  # one is not enough to see it
        server.answered.clear()
        answers = next_tokens(backend, POOL, texts[1:], 5)
        assert not answers.row_errors
        assert answers.truncated == set(range(7))
        assert caplog.text.count("cuts longer ones in silence") == 1
        assert "num_ctx" in caplog.text
        assert f"{context} tokens (as the server cuts prompts)" in backend.describe_context()
        whole = [text for text in server.answered if len(text) / 4.4 + 10 < context]
        assert len(whole) == 7


@pytest.mark.parametrize("usage", [20, 9000])
def test_reports_that_say_nothing_cut_nothing(usage, caplog):
    def answer(method, path, body):
        status, given = EndpointServer.plain(method, path, body)
        more = {"usage": {"prompt_tokens": usage}} if "choices" in given else {}
        return status, given | more

    with EndpointServer(answer) as server:
        backend = OpenAIBackend("m", base_url=server.url)
        texts = [(LONG[: 9000 + 100 * n], None) for n in range(20)]
        assert not next_tokens(backend, POOL, texts, 5).truncated
    assert "silence" not in caplog.text


def test_runs_of_one_character_are_no_sign_of_a_cut():
    window = ContextWindow("m", None, None)
    for n in range(20):
        assert window.answered(RenderedPrompt(text="x" * (9000 + n)), 600) is None


def test_a_report_above_the_limit_shows_that_it_was_none():
    window = ContextWindow("m", None, None)
    assert window.answered(RenderedPrompt(text="ab" * 4000), 1000) is None
    assert isinstance(window.answered(RenderedPrompt(text="ab" * 4100), 1000), TooLong)
    assert isinstance(window.answered(RenderedPrompt(text="ab" * 2000), 1000), TooLong)
    assert window.answered(RenderedPrompt(text="ab" * 2000), 1100) is None
    assert window.answered(RenderedPrompt(text="ab" * 2000), 1000) is None


def test_a_refused_length_costs_a_budget_what_every_refused_try_does():
    with LongTextServer(1000, 3.5, by_code) as server:
        lm = with_store_and_budget(server.backend(), False, Budget(max_forward_passes=40))
        answers = next_tokens(lm, POOL, [(LONG, None)], 5)
        refused = len(server.posts()) - len(server.answered)
        assert refused > 0
        assert answers.usage.passes_made >= 1 + refused - 8  # less those of the probe


def test_training_says_how_long_texts_may_be_and_how_that_is_changed():
    labels = ["good", "bad"] * 8
    texts = [f"{'lovely' if n % 2 == 0 else 'awful'} {n} {LONG}" for n in range(16)]
    with LongTextServer(1500, 3.5, openai_words) as server:
        model = PromptBoostingClassifier(server.backend(), prompts=POOL, random_state=0)
        model.fit(texts, labels)
    assert model.truncated_rows_ == set(range(16))
    said = model.training_summary_["context"]
    assert re.fullmatch(r"1500 tokens \(as the server says\); --backend-option context_.*", said)
    assert "1500" in json.dumps(model.training_summary_)


def test_a_line_of_a_batch_that_is_too_long_is_sent_again_in_the_next_batch(tmp_path):
    with FaultServer(largest=20) as server:
        options = {"batch": True, "batch_folder": tmp_path, "poll_seconds": 0.01}
        backend = OpenAIBackend("lm", base_url=server.url, **options)
        backend.probe()
        faults = iter([(400, {"message": "no", "code": "context_length_exceeded"})] * 3)
        server.fault = lambda: next(faults, None)
        texts = [(f"{n} {LONG}", None) for n in range(4)]
        answers = next_tokens(backend, POOL, texts, 5)
        assert len(answers.truncated) == 3
        assert not answers.row_errors
        assert len(server.batches) == 2


def test_draws_of_a_text_that_is_too_long_are_those_of_a_shorter_one():
    with LongTextServer(1000, 3.5, by_code) as server:
        drawn = SamplingBackend(server.backend(log_probs=False), n_draws=2)
        answers = next_tokens(drawn, POOL, [(LONG, None), ("short", None)], 2)
        assert answers.truncated == {0}
        assert not answers.row_errors
