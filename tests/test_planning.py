"""Plans: the passes of the run to the last one, and its tokens."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import backends
from backends.api.request_format import COMPLETIONS, NEXT_WORD, RequestFormat
from backends.api.token_estimate import TokenEstimate
from blackbox import PromptBoostingClassifier
from blackbox.backend import estimate_tokens
from blackbox.lm.prices import price_of, undated
from blackbox.protocol import Message, RenderedPrompt
from blackbox.spending import Rate
from blackbox.tables import read_examples
from tests.endpoint_server import (
    LISTED,
    EndpointServer,
    chat,
    completion,
    distribution,
    error,
)
from tests.fakes import CountingBackend
from tests.test_budgets import Uncounted

TEXTS = [f"text {number} is {'lovely' if number % 2 else 'dull'}" for number in range(60)]
LABELS = [number % 2 for number in range(60)]
PROMPTS = ["{text} It was {mask}", "{text} A {mask}"]
PROBED = 32


def asked(backend, model):
    """Passes that the plan itself made, which are those of the probe."""
    before = len(backend.asked)
    plan = model.plan(TEXTS, LABELS)
    return plan, len(backend.asked) - before


@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.parametrize("texts", [TEXTS, [*TEXTS[:30], *TEXTS[:30]]], ids=["distinct", "twice"])
@pytest.mark.parametrize(
    "parameters",
    [{"prompts": PROMPTS}, {"n_prompts": 3}, {"n_prompts": 3, "n_screening_rows": 10}],
    ids=["given", "chosen", "chosen on few rows"],
)
def test_the_passes_of_a_plan_are_those_of_the_run(tmp_path, has_store, texts, parameters):
    backend = CountingBackend()
    store = tmp_path / "s" if has_store else False
    model = PromptBoostingClassifier(backend, store=store, random_state=0, **parameters)
    plan = model.plan(texts, LABELS)
    assert len(backend.asked) <= PROBED
    backend.calls.clear()
    model.fit(texts, LABELS)
    assert plan.passes_to_make == model.usage_.passes_made == len(backend.asked)
    assert plan.passes == model.usage_.passes_made + model.usage_.passes_from_store
    low, expected, worst = plan.tokens
    assert low <= model.usage_.tokens <= worst
    if "prompts" in parameters:
        assert low == expected == worst


def test_what_the_store_has_is_not_planned_again(tmp_path):
    backend = CountingBackend()
    model = PromptBoostingClassifier(backend, n_prompts=3, store=tmp_path / "s", random_state=0)
    model.fit(TEXTS, LABELS)
    plan = model.plan(TEXTS, LABELS)
    assert plan.passes_to_make == plan.tokens[2] == 0
    assert plan.passes == plan.passes_from_store == model.usage_.passes_made
    more = PromptBoostingClassifier(
        backend, prompts=[*model.prompts_, "{text} So {mask}"], store=tmp_path / "s"
    )
    assert more.plan(TEXTS, LABELS).passes_to_make == len(TEXTS)


def test_a_plan_stores_nothing_and_learns_nothing(tmp_path):
    model = PromptBoostingClassifier(CountingBackend(), store=tmp_path / "s", prompts=PROMPTS)
    first, second = model.plan(TEXTS, LABELS), model.plan(TEXTS, LABELS)
    assert first.passes_to_make == second.passes_to_make == 120
    assert not hasattr(model, "ensemble_")


def test_tokens_without_a_tokenizer_are_called_an_estimate():
    backend = Uncounted(CountingBackend())
    plan = PromptBoostingClassifier(backend, prompts=PROMPTS).plan(TEXTS, LABELS)
    assert not plan.tokens_counted
    low, expected, worst = plan.tokens
    assert 0 < low < 0.9 * expected < expected < 0.9 * worst
    assert plan.example_token_ids is None
    assert plan.example == f"{TEXTS[0]} It was"


def test_words_of_other_languages_are_more_tokens_than_english_ones():
    """The bounds are the counts of OpenAI's o200k_base and of DeepSeek's tokenizer."""
    german = (
        "Wo bleibt eigentlich meine Bestellung? Die Sendungsverfolgung zeigt nichts an. "
        "Ich möchte mein Geld zurück, denn das Gerät ist schon wieder kaputtgegangen. "
        "Die Rechnung ist falsch, ich wurde doppelt belastet. "
        "Mein Passwort funktioniert nicht mehr, seit heute morgen komme ich nicht in mein Konto."
    )
    assert 60 < estimate_tokens(german) < 75
    english = "Where on earth is my parcel? It should have been here on Monday."
    assert estimate_tokens(english) == 15


def test_an_lm_of_unknown_price_is_not_probed_and_its_cost_is_unknown():
    backend = CountingBackend()
    backend.identity = replace(backend.identity, provider="unheard-of", endpoint="http")
    plan, probed = asked(backend, PromptBoostingClassifier(backend, prompts=PROMPTS))
    assert probed == 0
    assert plan.cost is plan.seconds is plan.price_source is None


def test_a_free_lm_is_probed_for_its_time():
    backend = CountingBackend()
    plan, probed = asked(backend, PromptBoostingClassifier(backend, prompts=PROMPTS))
    assert 0 < probed <= PROBED
    assert plan.cost == (0, 0, 0)
    assert 0 < plan.seconds[0] <= plan.seconds[2]
    assert json.loads(json.dumps(plan.as_dict()))["passes"] == 120


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["trec", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sst2", "agnews"))]
)
def test_plans_hold_on_real_texts(benchmark_data, tmp_path, name):
    examples = read_examples(benchmark_data / name / "train.csv")
    texts, labels = examples.texts[:150], examples.labels[:150]
    for parameters in ({"prompts": PROMPTS}, {}):
        model = PromptBoostingClassifier(
            CountingBackend(), store=tmp_path / f"{len(parameters)}", random_state=0, **parameters
        )
        plan = model.plan(texts, labels)
        model.fit(texts, labels)
        assert plan.passes_to_make == model.usage_.passes_made
        assert plan.tokens[0] <= model.usage_.tokens <= plan.tokens[2]
        if parameters:
            assert plan.tokens[1] == pytest.approx(model.usage_.tokens, rel=0.02)


@pytest.mark.lm
def test_plans_count_as_the_embedded_lm_does(lm, tmp_path):
    model = PromptBoostingClassifier(lm, prompts=PROMPTS, store=tmp_path / "s", random_state=0)
    plan = model.plan(TEXTS[:12], LABELS[:12])
    model.fit(TEXTS[:12], LABELS[:12])
    # two prompts, and sentence embeddings
    assert plan.passes_to_make == model.usage_.passes_made == 3 * 12
    assert plan.tokens[1] == model.usage_.tokens
    assert plan.example.endswith(f"{TEXTS[0]} It was")
    assert plan.example_token_ids


class CountedEndpoint(EndpointServer):
    """An endpoint that reports the tokens of an LM's own tokenizer and chat template."""

    def __init__(self, lm, path):
        super().__init__(self._answer)
        self._lm, self._path = lm, path

    def _answer(self, method, path, body):
        if path.endswith("/models"):
            return 200, LISTED
        if not path.endswith(self._path):
            return 404, error("no such path")
        if "messages" in body:
            turns = tuple(Message(turn["role"], turn["content"]) for turn in body["messages"])
            prompt, k = RenderedPrompt(messages=turns), body.get("top_logprobs") or 1
            if turns[-1].role == "assistant":
                return 400, error("the last message must be of the user", param="messages")
            answer = chat(distribution(body, min(k, 20)))
        else:
            prompt, k = RenderedPrompt(text=body["prompt"]), body.get("logprobs") or 1
            answer = completion(distribution(body, min(k, 20)))
        answer["usage"]["prompt_tokens"] = self._lm.count_tokens([prompt])[0]
        return 200, answer


class CachingEndpoint(EndpointServer):
    """An endpoint that bills the first characters of a long prompt as cached, once it saw them."""

    def __init__(self, length):
        super().__init__(self._answer)
        self._length, self._seen = length, set()

    def _answer(self, method, path, body):
        if not path.endswith("/completions") or "messages" in body:
            return (200, LISTED) if path.endswith("/models") else (404, error("no such path"))
        prompt = body["prompt"]
        answer = completion(distribution(body, min(body.get("logprobs") or 1, 20)))
        tokens, beginning = estimate_tokens(prompt), prompt[: self._length]
        cached = estimate_tokens(beginning) if beginning in self._seen else 0
        cached *= len(beginning) == self._length
        self._seen.add(beginning)
        answer["usage"]["prompt_tokens"] = tokens
        details = {
            "cached_tokens": cached,
            "cache_write_tokens": (tokens - cached) * (tokens > 1024),
        }
        answer["usage"]["prompt_tokens_details"] = details
        return 200, answer


def test_a_long_preamble_is_planned_and_paid_at_the_price_of_a_cache(tmp_path, monkeypatch):
    entry = {"provider": "openai-compatible", "model": "m", "input": 8.0, "output": 0.0}
    entry |= {"cached_input": 0.8, "cache_write": 10.0}
    (tmp_path / "prices.json").write_text(json.dumps({"prices": [entry]}))
    monkeypatch.setenv("PROMPTBOOSTING_PRICES", str(tmp_path / "prices.json"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    preamble = " ".join(f"Example {n} of a text." for n in range(300))
    given = {"embeddings": None, "store": False, "random_state": 0, "cv": None}
    with CachingEndpoint(len(preamble)) as server:
        lm = backends.load("openai", model="m", base_url=server.url, max_concurrency=1)
        model = PromptBoostingClassifier(
            lm, prompts=[preamble + " {text} It was {mask}", "{text} A {mask}"], **given
        )
        plan = model.plan(TEXTS[:20], LABELS[:20])
        model.fit(TEXTS[:20], LABELS[:20])
    assert plan.tokens_cached > 0.9 * plan.tokens[1]
    assert plan.cost[1] == pytest.approx(model.usage_.cost, rel=0.05)
    assert plan.cost[0] <= plan.cost[1] < plan.cost[2] / 5
    in_full = plan.tokens[1] * 8e-6
    assert model.usage_.cost < 0.2 * in_full < plan.cost[2]


@pytest.mark.lm
@pytest.mark.parametrize("half", [False, True], ids=["empty store", "half full"])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", ""])
def test_planned_tokens_and_money_are_those_that_are_used(lm, tmp_path, monkeypatch, path, half):
    sample = Path("blackbox/samples/train.csv")
    examples = read_examples(Path(__file__).parents[1] / sample)
    texts, labels = examples.texts[::8], examples.labels[::8]
    given = {"prompts": PROMPTS, "store": tmp_path / "s", "embeddings": None, "random_state": 0}
    entry = {"provider": "openai-compatible", "model": "m", "input": 2.0, "output": 8.0}
    (tmp_path / "prices.json").write_text(json.dumps({"prices": [entry]}))
    monkeypatch.setenv("PROMPTBOOSTING_PRICES", str(tmp_path / "prices.json"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with CountedEndpoint(lm, path or "/none") as server:
        backend = lm
        if path:
            backend = backends.load("openai", model="m", base_url=server.url)
        model = PromptBoostingClassifier(backend, **given)
        if half:
            places = np.random.default_rng(0).permutation(len(texts))[: len(texts) // 2]
            some = [texts[place] for place in places]
            PromptBoostingClassifier(backend, **given).fit(some, [labels[p] for p in places])
        plan = model.plan(texts, labels)
        model.fit(texts, labels)
    assert plan.passes_to_make == model.usage_.passes_made > 0
    assert plan.tokens[1] == pytest.approx(model.usage_.tokens, rel=0.05)
    assert plan.cost[1] == pytest.approx(model.usage_.cost, rel=0.05)
    assert (plan.cost[1] > 0) == bool(path)


def writing(takes):
    """A server without log-probabilities; `takes` says what becomes of `n`."""

    def answer(method, path, body):
        if path.endswith("/models"):
            return 200, LISTED
        if not path.endswith("/chat/completions") or body["messages"][-1]["role"] == "assistant":
            return 404, error("no such path")
        if body["n"] > 1 and takes == "refused":
            return 400, error("n must be 1", param="n")
        n = 1 if takes == "ignored" else body["n"]
        words = sum(estimate_tokens(turn["content"]) for turn in body["messages"])
        word = "good" if "lovely" in body["messages"][-1]["content"] else "bad"
        one = {"message": {"content": f"{word} enough"}, "finish_reason": "length"}
        usage = {"prompt_tokens": round(words) + 7, "completion_tokens": 2 * n}
        return 200, {"choices": [one] * n, "usage": usage}

    return answer


@pytest.mark.parametrize("takes", ["taken", "refused", "ignored"])
def test_a_prompt_is_planned_as_often_as_its_draws_are_billed(monkeypatch, takes):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with EndpointServer(writing(takes)) as server:
        options = {"model": "m", "base_url": server.url, "n_draws": 4, "max_tokens": 2}
        lm = backends.load("sampling", **options)
        model = PromptBoostingClassifier(lm, prompts=PROMPTS[:1], store=False, random_state=0)
        plan = model.plan(TEXTS[:12], LABELS[:12])
        n_probed = len(server.posts())
        model.fit(TEXTS[:12], LABELS[:12])
        assert len(server.posts()) - n_probed == 12 * (1 if takes == "taken" else 4)
    assert plan.tokens[1] == pytest.approx(model.usage_.tokens, rel=0.05)
    assert plan.passes_to_make == model.usage_.passes_made
    assert plan.example_token_ids is None


@pytest.mark.parametrize(
    ("model", "listed"),
    [
        ("gpt-4o-mini-2031-01-31", "gpt-4o-mini"),
        ("models/gemini-2.5-flash-001", "gemini-2.5-flash"),
        ("gpt-4o-mini-latest", "gpt-4o-mini"),
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("mistral-small-2506", "mistral-small"),
    ],
)
def test_a_dated_name_has_the_price_of_the_undated_one(monkeypatch, tmp_path, model, listed):
    assert undated(model) == listed
    (tmp_path / "p.json").write_text(
        json.dumps({"prices": [{"provider": "p", "model": listed, "input": 1, "output": 2}]})
    )
    monkeypatch.setenv("PROMPTBOOSTING_PRICES", str(tmp_path / "p.json"))
    assert price_of(Rate("p", model)).input == 1


def test_list_prices_are_found_by_dated_names():
    pytest.importorskip("genai_prices", reason="the `openai` extra")
    known = price_of(Rate("openai", "gpt-4o-mini", host="api.openai.com"))
    dated = price_of(Rate("openai", "gpt-4o-mini-2031-01-31", host="api.openai.com"))
    assert (known.input, known.output) == (dated.input, dated.output)
    assert "list price of gpt-4o-mini" in dated.source
    assert price_of(Rate("openai", "no-such-model-2031-01-31", host="api.openai.com")) is None


def test_loading_the_engine_is_part_of_the_time(monkeypatch):
    model = PromptBoostingClassifier("deterministic", prompts=PROMPTS, store=False, random_state=0)
    seconds = itertools.count(0, 700)
    clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr("blackbox.estimator.time", clock)
    low, _, worst = model.plan(TEXTS, LABELS).seconds
    assert 700 <= low <= worst < 1400


def test_the_frame_of_a_chat_is_what_the_probe_was_billed_beyond_its_words():
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    wire = RequestFormat("m")
    prompt = RenderedPrompt(text="a lovely day")
    words = sum(map(estimate_tokens, (NEXT_WORD, "a lovely day")))
    assert TokenEstimate([(body, 37)]).count(prompt, wire) == pytest.approx(words + 30, abs=1)
    assert TokenEstimate([]).count(prompt, wire) == pytest.approx(words + 7, abs=1)
    completions = replace(wire, endpoints=frozenset({COMPLETIONS}))
    raw = {"prompt": "The capital of France is"}
    assert TokenEstimate([(raw, 6)]).count(prompt, completions) == 4
