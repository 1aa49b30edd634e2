"""Passes: every text under every prompt, in order, each asked for once, and counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import RefusingBackend

from backends.deterministic import DeterministicBackend
from blackbox.answers.passes import next_tokens, scores
from blackbox.backend import BaseBackend
from blackbox.errors import BackendResponseError, UnservedPromptError
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import NO_TOKEN, Limits, RenderedPrompt, TokenLogProbs, Usage
from blackbox.spending import stopping_at_refusals

POOL = PromptPool(["{text} It was {mask}", "{text}\nTopic: {mask}"])
TEXTS = [("red wine", None), ("blue sky", None), ("green tea", None)]


class Wrapped(BaseBackend):
    """The deterministic backend with one thing changed."""

    def __init__(self):
        self.inner = DeterministicBackend()
        self.identity, self.limits = self.inner.identity, self.inner.limits
        self.asked = []

    def next_token(self, prompts, top_k):
        self.asked += prompts
        return self.inner.next_token(prompts, top_k)


def test_answers_stand_by_prompt_and_text():
    backend = Wrapped()
    answers = next_tokens(backend, POOL, TEXTS, 7)
    assert answers.token_ids.shape == (2, 3, 7)
    direct = backend.inner.next_token([RenderedPrompt(text="blue sky\nTopic:")], 7)
    assert answers.token_ids[1, 1].tolist() == direct.token_ids[0].tolist()
    assert answers.usage.passes_made == 6


def test_taking_rows_and_prompts_keeps_what_belongs_together():
    answers = next_tokens(Wrapped(), POOL, TEXTS, 7)
    part = answers.take_rows(np.array([2, 0])).take_prompts([1])
    assert part.token_ids[0, 0].tolist() == answers.token_ids[1, 2].tolist()


def test_a_backend_that_streams_is_heard_in_any_order():
    class Streaming(Wrapped):
        def iter_next_token(self, prompts, top_k):
            for row in reversed(range(len(prompts))):
                yield [row], self.inner.next_token([prompts[row]], top_k)

    seen = []
    streamed = next_tokens(Streaming(), POOL, TEXTS, 7, seen.append)
    assert (streamed.token_ids == next_tokens(Wrapped(), POOL, TEXTS, 7).token_ids).all()
    assert seen == [1] * 6


def test_an_lm_that_evaluates_far_more_tokens_than_it_needs_to_is_logged_once(caplog):
    class Counting(Wrapped):
        evaluated, least = 0, 0

        def next_token(self, prompts, top_k):
            answer = super().next_token(prompts, top_k)
            usage = Usage(tokens_evaluated=self.evaluated, tokens_least=self.least)
            return answer.with_usage(usage)

    def logged(name, evaluated, least):
        backend = Counting()
        backend.identity = replace(backend.identity, model=name)
        backend.evaluated, backend.least = evaluated, least
        caplog.clear()
        next_tokens(backend, POOL, TEXTS, 7)
        next_tokens(backend, POOL, TEXTS, 7)
        return [record.getMessage() for record in caplog.records]

    (said,) = logged("wasteful", 10_000, 2_000)
    assert said.startswith("wasteful evaluated 10000 tokens where 2000 would do")
    assert "5.0 times" in said
    assert logged("thrifty", 10_000, 4_000) == []
    assert logged("small", 100, 2) == []
    assert logged("uncounted", 10_000, 0) == []


def test_a_wrong_number_of_answers_is_an_error():
    class Forgetful(Wrapped):
        def next_token(self, prompts, top_k):
            return super().next_token(prompts[:-1], top_k)

    with pytest.raises(BackendResponseError, match="5 answers to 6 requests"):
        next_tokens(Forgetful(), POOL, TEXTS, 7)


def test_a_stream_that_ends_early_is_an_error():
    class EarlyStopping(Wrapped):
        def iter_next_token(self, prompts, top_k):
            yield [0], self.inner.next_token(prompts[:1], top_k)

    with pytest.raises(BackendResponseError, match="1 answer to 6"):
        next_tokens(EarlyStopping(), POOL, TEXTS, 7)


def test_a_stream_that_answers_twice_is_an_error():
    class Repeating(Wrapped):
        def iter_next_token(self, prompts, top_k):
            for _ in range(2):
                yield [0], self.inner.next_token(prompts[:1], top_k)

    with pytest.raises(BackendResponseError, match="twice"):
        next_tokens(Repeating(), POOL, TEXTS, 7)


def test_a_refused_row_is_named_by_its_text_not_its_request():
    class Choosy(Wrapped):
        def next_token(self, prompts, top_k):
            good = self.inner.next_token(prompts, top_k)
            ids, values = good.token_ids.copy(), good.log_probs.copy()
            bad = [row for row, prompt in enumerate(prompts) if "blue" in prompt.text]
            ids[bad], values[bad] = NO_TOKEN, -np.inf
            return TokenLogProbs(ids, values, good.token_bytes, dict.fromkeys(bad, "no blue"))

    assert next_tokens(Choosy(), POOL, TEXTS, 7).row_errors == {1: "no blue"}


def test_nothing_is_asked_when_a_prompt_can_not_be_served():
    backend = Wrapped()
    backend.limits = Limits(max_top_k=9, max_score_ids=0, context_length=99, deterministic=True)
    pool = PromptPool(["{text} {mask}", "<user>{text}<assistant>{mask}"])
    with pytest.raises(UnservedPromptError):
        next_tokens(backend, pool, TEXTS, 7)
    with pytest.raises(UnservedPromptError):
        next_tokens(backend, POOL, TEXTS, 10)
    assert not backend.asked


def test_scores_are_asked_for_in_parts_that_the_backend_takes():
    calls = []

    class Scoring(DeterministicBackend):
        def score(self, prompts, token_ids):
            calls.append(len(token_ids))
            return super().score(prompts, token_ids)

    backend = Scoring()
    backend.limits = Limits(max_top_k=9, max_score_ids=3, context_length=99, deterministic=True)
    scored, cut = scores(backend, POOL[0], TEXTS, list(range(8)))
    assert calls == [3, 3, 2]
    assert scored.log_probs.shape == (3, 8)
    assert not cut


def test_a_refused_row_ends_scores_where_that_is_an_error():
    lm = RefusingBackend("number 70 ")
    texts = [(f"number {row} is here", None) for row in range(300)]
    with stopping_at_refusals("raise"):
        found, _ = scores(lm, POOL[0], texts, [1, 2])
    assert list(found.row_errors) == [70]
    assert sum(len(requests) for _, requests in lm.calls) == 128
    with stopping_at_refusals("abstain"):
        found, _ = scores(lm, POOL[0], texts, [1, 2])
    assert np.isfinite(found.log_probs).all(axis=1).sum() == 299
