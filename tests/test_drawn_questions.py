"""Questions to LMs without log-probabilities: orders of options, letters, and their counts."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest

from backends.sampling import SamplingBackend
from blackbox import PromptBoostingClassifier
from blackbox.backend import BaseBackend
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    ClosedQuestion,
    Draws,
    Limits,
    RenderedPrompt,
    Usage,
)
from tests.endpoint_server import LISTED, EndpointServer, error

TEXTS = [f"{word} place {n}" for n in range(4) for word in ("a lovely", "a great", "an awful")]
LABELS = ["good", "good", "bad"] * 4
CHOICE = ClosedQuestion("choice", "How is it?", ("good", "so so", "bad"))
QUESTIONS = ["<choice>How is it?<option>good<option>bad", "<predicate>The writer complains."]


class Lettering(BaseBackend):
    """An LM that knows the option for a text, and answers `share` of draws by the first letter."""

    identity = BackendIdentity("fake", "http", "letters")
    limits = Limits(0, 0, 4096, False, raw_text=False, chat=True, generates=True)

    def __init__(self, share=0.0, said="{letter}"):
        self.share, self.said, self.asked = share, said, []

    def generate(self, prompts, n=1, *, max_tokens=32, temperature=1.0, seed=0, first=0):
        self.asked += [(prompt, n) for prompt in prompts]
        texts = []
        for prompt in prompts:
            listed = dict(re.findall(r"^(\w+)\. (.+)$", prompt.messages[0].content, re.M))
            true = "bad" if "awful" in prompt.messages[0].content else "good"
            letter = next((k for k, option in listed.items() if option == true), "A")
            drawn = ["A" if number < self.share * n else letter for number in range(n)]
            texts.append([self.said.format(letter=one, option=listed[one]) for one in drawn])
        return Draws(texts, {}, Usage(passes_made=n * max_tokens * len(prompts)))


def shares_of(lm, **options):
    answer = SamplingBackend(lm, **options).next_token(
        [RenderedPrompt("an awful place", question=CHOICE)], options["n_draws"]
    )
    pairs = zip(answer.token_ids[0].tolist(), np.exp(answer.log_probs[0]).tolist(), strict=True)
    return {answer.token_bytes[t].decode(): share for t, share in pairs if t != NO_TOKEN}


def test_draws_are_spread_over_orders_in_which_each_option_stands_first_once():
    lm = Lettering()
    shares_of(lm, n_draws=7)
    assert [n for _, n in sorted(lm.asked, key=lambda one: -one[1])] == [3, 2, 2]
    contents = [prompt.messages[0].content for prompt, _ in lm.asked]
    assert {re.search(r"A\. (.+)", content)[1] for content in contents} == set(CHOICE.options)
    assert all(prompt.choices == ("A", "B", "C") for prompt, _ in lm.asked)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("(C)", "bad"),
        ("**C**", "bad"),
        ("Answer: C", "bad"),
        ("The answer is C.", "bad"),
        ("Option C", "bad"),
        ("C bad", "bad"),
        ("Bad, as it was late", "bad"),
        ("A good one", None),
        ("Badly said", None),
        ("C'est la vie", None),
        ("I can't say", None),
    ],
)
def test_a_draw_names_an_option_by_its_letter_or_by_whole_words(said, named, caplog):
    options = ("good", "so so", "bad")
    lm = Lettering(said=said)
    lm.generate = lambda prompts, n=1, **_: Draws([[said] * n for _ in prompts], {}, Usage())
    sampled = SamplingBackend(lm, n_draws=3)
    sampled.max_orders = 1
    prompt = RenderedPrompt("a place", question=ClosedQuestion("choice", "How is it?", options))
    for _ in range(2):
        answer = sampled.next_token([prompt], 3)
    first = answer.token_bytes[int(answer.token_ids[0, 0])].decode()
    spread = float(np.ptp(answer.log_probs[0]))
    assert (first if spread > 0.1 else None) == named
    told = [record for record in caplog.records if "name none of the options" in record.message]
    assert len(told) == (named is None)


def test_an_option_may_begin_as_a_lead_does():
    options = ("number theory", "letters", "the answer is no")
    for said in options:
        lm = Lettering()
        lm.generate = lambda prompts, n=1, said=said, **_: Draws([[said] * n for _ in prompts])
        prompt = RenderedPrompt("x", question=ClosedQuestion("choice", "?", options))
        answer = SamplingBackend(lm, n_draws=3).next_token([prompt], 3)
        assert answer.token_bytes[int(answer.token_ids[0, 0])].decode() == said


def test_words_of_a_script_without_blanks_end_anywhere():
    lm = Lettering()
    lm.generate = lambda prompts, n=1, **_: Draws([["是的"] * n for _ in prompts], {}, Usage())
    prompt = RenderedPrompt("x", question=ClosedQuestion("choice", "?", ("否", "是")))
    answer = SamplingBackend(lm, n_draws=2).next_token([prompt], 2)
    assert answer.token_bytes[int(answer.token_ids[0, 0])].decode() == "是"


def test_an_lm_that_prefers_the_first_letter_prefers_no_option():
    biased = shares_of(Lettering(share=1.0), n_draws=6)
    assert len({round(share, 6) for share in biased.values()}) == 1
    right = shares_of(Lettering(share=0.5), n_draws=6)
    assert max(right, key=right.get) == "bad"


@pytest.mark.parametrize(
    "said", ["{letter}", "{letter}.", "({letter})", "**{letter}**", "{option}!"]
)
def test_answers_are_read_by_their_letter_or_the_option_s_words(said):
    shares = shares_of(Lettering(said=said), n_draws=3)
    assert shares["bad"] == pytest.approx(3.5 / 4.5)


def test_what_names_no_option_counts_for_nothing():
    shares = shares_of(Lettering(said="A review that I can't tell."), n_draws=6)
    assert len({round(share, 6) for share in shares.values()}) == 1


def test_a_plan_counts_the_draws_of_questions_as_the_run_does(tmp_path):
    lm = SamplingBackend(Lettering(), n_draws=5, max_tokens=2)
    classifier = PromptBoostingClassifier(lm, prompts=QUESTIONS, store=tmp_path / "s", cv=None)
    plan = classifier.plan(TEXTS, LABELS)
    classifier.fit(TEXTS, LABELS)
    assert plan.passes_to_make == classifier.usage_.passes_made == 12 * 2 * 5 * 2
    assert classifier.plan(TEXTS, LABELS).passes_to_make == 0
    assert classifier.fit(TEXTS, LABELS).usage_.passes_made == 0


class Talkative:
    """An API without log-probabilities that answers in sentences unless a schema holds it."""

    def __init__(self, *, takes_schemas=True):
        self.takes_schemas = takes_schemas

    def __call__(self, method, path, body):
        """Answer as the provider does."""
        if path.endswith("/models"):
            return 200, LISTED
        if not path.endswith("/chat/completions"):
            return 404, error("not found")
        if "logprobs" in body:
            return 400, error("logprobs are not supported", param="logprobs")
        schema = body.get("response_format")
        if schema and not self.takes_schemas:
            return 400, error("unknown field", param="response_format")
        asked = body["messages"][-1]["content"]
        mood = "bad" if "awful" in asked else "good"
        mood = {"good": "no", "bad": "yes"}[mood] if "complains" in asked else mood
        listed = {option: k for k, option in re.findall(r"^([A-Z])\. (.+)$", asked, re.M)}
        letter = listed.get(mood, "B")
        said = json.dumps({"answer": letter}) if schema else f"Well, I would say {letter}"
        if schema:
            assert letter in schema["json_schema"]["schema"]["properties"]["answer"]["enum"]
        choice = {"index": 0, "message": {"role": "assistant", "content": said}}
        choice["finish_reason"] = "stop"
        usage = {"prompt_tokens": 30, "completion_tokens": 6 * body.get("n", 1)}
        return 200, {"choices": [choice] * body.get("n", 1), "usage": usage}


def test_a_talkative_api_is_held_to_letters_by_a_schema_and_trains(monkeypatch, caplog):
    pytest.importorskip("openai", reason="needs the `openai` extra")
    from backends.openai import OpenAIBackend

    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    with EndpointServer(Talkative()) as server:
        api = OpenAIBackend("m", base_url=server.url, log_probs=False)
        lm = SamplingBackend(api, n_draws=4)
        classifier = PromptBoostingClassifier(lm, prompts=QUESTIONS, store=False, cv=None)
        classifier.fit(TEXTS, LABELS)
        assert classifier.predict(["a lovely day", "an awful day"]).tolist() == ["good", "bad"]
    assert lm.identity.extra["choices"] == "by a JSON schema"
    assert lm.limits.passes_per_prompt == 4 * 16
    assert Counter("held to letters" in line for line in caplog.messages)[True] == 1


def test_an_api_that_takes_no_schema_is_asked_without_one(monkeypatch):
    pytest.importorskip("openai", reason="needs the `openai` extra")
    from backends.openai import OpenAIBackend

    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-0123456789")
    with EndpointServer(Talkative(takes_schemas=False)) as server:
        api = OpenAIBackend("m", base_url=server.url, log_probs=False)
        drawn = SamplingBackend(api, n_draws=2)
        drawn.next_token([RenderedPrompt("an awful place", question=CHOICE)], 2)
        assert "choices" not in api.identity.extra
        assert sum("response_format" in body for body in server.posts()) == 1


def thinking(switch=None, refuses=False, tokens=200):
    """A server of a model that thinks for so many tokens, unless that is switched off."""

    def answer(method, path, body):
        if path.endswith("/models"):
            return 200, LISTED
        if not path.endswith("/chat/completions") or body["messages"][-1]["role"] == "assistant":
            return 404, error("no such path")
        if "max_tokens" in body:
            return 400, error("use 'max_completion_tokens' instead", param="max_tokens")
        if "reasoning_effort" in body and switch is None:
            return 400, error("none is not supported", param="reasoning_effort")
        if set(body) & {"reasoning", "thinking", "chat_template_kwargs"}:
            return 400, error("unknown field")
        is_off = switch is not None and switch.items() <= body.items()
        room, spent = body["max_completion_tokens"], 0 if is_off else tokens
        if room <= spent and refuses:
            return 400, error("Could not finish the message because max_tokens was reached")
        said = body["messages"][-1]["content"]
        listed = dict(re.findall(r"^(\w+)\. (.+)$", said, re.M))
        true = "a pear" if "a pear" in said else "bad" if "awful" in said else "good"
        letter = next((letter for letter, option in listed.items() if option == true), "Paris")
        told = {"role": "assistant", "content": letter if room > spent else ""}
        one = {"message": told, "finish_reason": "stop" if room > spent else "length"}
        usage = {"prompt_tokens": 20, "completion_tokens": body["n"] * min(room, spent + 1)}
        usage["completion_tokens_details"] = {"reasoning_tokens": body["n"] * min(room, spent)}
        return 200, {"choices": [one] * body["n"], "usage": usage}

    return answer


@pytest.mark.parametrize("refuses", [False, True], ids=["empty answers", "too few are refused"])
@pytest.mark.parametrize(
    ("switch", "tokens", "written", "said"),
    [
        (None, 200, 256, "each draw may write 256 tokens, which are planned and billed"),
        (None, 700, 1024, "each draw may write 1024 tokens, which are planned and billed"),
        ({"reasoning_effort": "none"}, 200, 1, 'switched off by {"reasoning_effort": "none"}'),
    ],
)
def test_a_model_that_thinks_gets_room_for_it_or_is_told_not_to(
    monkeypatch, caplog, switch, tokens, written, said, refuses
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with EndpointServer(thinking(switch, refuses, tokens)) as server:
        lm = SamplingBackend(model="m", base_url=server.url, n_draws=4)
        classifier = PromptBoostingClassifier(lm, prompts=QUESTIONS[:1], store=False, cv=None)
        classifier.fit(TEXTS, LABELS)
        assert classifier.predict(["a great place", "an awful place"]).tolist() == ["good", "bad"]
    assert lm.backend.limits.tokens_written == written
    extra = lm.identity.extra
    assert extra.get("thoughts") == (f"at most {written} tokens" if switch is None else None)
    assert ("fields" in extra) == (switch is not None)
    (line,) = [line for line in caplog.messages if "before it answers" in line]
    assert said in line


def test_a_model_that_thinks_for_too_long_is_said_to(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with EndpointServer(thinking(None, False, 5000)) as server:
        _ = SamplingBackend(model="m", base_url=server.url).limits
    (line,) = [line for line in caplog.messages if "before it answers" in line]
    assert "answered no question within 1024 tokens; leave more with --backend-option" in line
