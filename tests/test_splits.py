"""Distributions out of draws: what words an LM writes, how often, and what that costs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from fakes import PlainBackend
from fault_server import FaultServer

import backends
from backends.deterministic import DeterministicBackend
from backends.sampling import SamplingBackend, _first_word
from blackbox import PromptBoostingClassifier
from blackbox.errors import BackendError, BudgetError
from blackbox.protocol import NO_TOKEN, RenderedPrompt

TEXTS = ["a lovely film", "a dull film", "lovely, truly", "dull and long"] * 4
LABELS = ["good", "bad", "good", "bad"] * 4
PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}"]


@pytest.mark.parametrize(
    ("text", "word"),
    [(" Lovely day", "lovely"), ("\n\n- so", "-"), ("été!", "été"), ("   ", "∅"), ("", "∅")],
)
def test_the_first_word_of_a_continuation_counts(text, word):
    assert _first_word(text) == word


def test_frequencies_come_close_to_the_distribution_as_draws_grow():
    lm = DeterministicBackend(vocabulary_size=64)
    prompt = RenderedPrompt(text="what a lovely day")
    exact = lm.next_token([prompt], 64)
    known = {
        lm.token_bytes[token]: np.exp(value)
        for token, value in zip(exact.token_ids[0].tolist(), exact.log_probs[0], strict=True)
    }

    def distance(n):
        drawn = SamplingBackend(lm, n_draws=n, max_tokens=1).next_token([prompt], n)
        found = {
            drawn.token_bytes[token]: np.exp(value)
            for token, value in zip(drawn.token_ids[0].tolist(), drawn.log_probs[0], strict=True)
            if token != NO_TOKEN
        }
        return sum(abs(found.get(name, 0) - share) for name, share in known.items())

    assert distance(2000) < 0.15 < distance(20)


def test_it_trains_and_its_cost_is_shown_as_what_it_is():
    lm = SamplingBackend(DeterministicBackend(), n_draws=10, max_tokens=2)
    classifier = PromptBoostingClassifier(lm, prompts=PROMPTS, random_state=0)
    plan = classifier.plan(TEXTS, LABELS)
    classifier.fit(TEXTS, LABELS)
    assert classifier.top_k_ == 10
    # four different texts, two prompts, ten draws of two tokens
    assert plan.passes_to_make == classifier.usage_.passes_made == 4 * 2 * 10 * 2
    assert classifier.score(TEXTS, LABELS) > 0.5


def test_draws_are_kept_and_more_of_them_are_added_to_those_that_are_there(tmp_path):
    def trained(n):
        lm = SamplingBackend(DeterministicBackend(), n_draws=n, max_tokens=2)
        classifier = PromptBoostingClassifier(
            lm, prompts=PROMPTS, random_state=0, store=tmp_path / "p.sqlite"
        )
        plan = classifier.plan(TEXTS, LABELS)
        return classifier.fit(TEXTS, LABELS), plan

    first, plan = trained(10)
    assert first.usage_.passes_made == plan.passes_to_make == 4 * 2 * 10 * 2
    again, plan = trained(10)
    assert again.usage_.passes_made == plan.passes_to_make == 0
    more, _ = trained(15)
    assert more.usage_.passes_made == 4 * 2 * 5 * 2
    assert trained(5)[0].usage_.passes_made == 0


def test_a_budget_counts_every_draw():
    lm = SamplingBackend(DeterministicBackend(), n_draws=10, max_tokens=2)
    classifier = PromptBoostingClassifier(
        lm, prompts=PROMPTS, random_state=0, max_forward_passes=100
    )
    with pytest.raises(BudgetError, match="100 forward passes"):
        classifier.fit(TEXTS, LABELS)
    assert classifier.usage_.passes_made <= 100


def test_an_endpoint_that_only_writes_is_enough(monkeypatch, tmp_path):
    pytest.importorskip("openai", reason="needs the `openai` extra")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    rejects = {"top_logprobs": "no logprobs here", "logprobs": "no logprobs here"}
    with FaultServer(rejects=rejects) as server:
        lm = backends.load("sampling", model="lm", base_url=server.url, n_draws=8)
        classifier = PromptBoostingClassifier(lm, prompts=PROMPTS, random_state=0)
        classifier.fit(TEXTS, LABELS).save(tmp_path / "m.blackbox")
        assert "8" in classifier.lm_identity_.extra["draws"]
        assert len(server.bodies) < 50  # one request for all draws of a prompt, and the probe's
        assert all("top_logprobs" not in body for body in server.bodies)


def test_a_text_that_the_lm_refuses_is_refused_here_too():
    lm = SamplingBackend(DeterministicBackend(context_length=8), n_draws=5)
    prompts = [RenderedPrompt(text="word " * 20), RenderedPrompt(text="a lovely day")]
    answer = lm.next_token([*prompts, prompts[0]], 5)
    assert sorted(answer.row_errors) == [0, 2]
    assert (answer.token_ids[1] != NO_TOKEN).any()


def test_what_cannot_write_and_what_makes_no_sense_is_refused():
    with pytest.raises(BackendError, match="can't write"):
        _ = SamplingBackend(PlainBackend()).limits
    with pytest.raises(ValueError, match="n_draws"):
        SamplingBackend(DeterministicBackend(), n_draws=0)
    with pytest.raises(TypeError, match="unexpected"):
        SamplingBackend(DeterministicBackend(), model="x")


def test_a_pickle_draws_alike():
    lm = SamplingBackend(DeterministicBackend(), n_draws=5)
    again = pickle.loads(pickle.dumps(lm))
    prompt = [RenderedPrompt(text="a lovely day")]
    assert (again.next_token(prompt, 5).token_ids == lm.next_token(prompt, 5).token_ids).all()
    assert again.identity == lm.identity
