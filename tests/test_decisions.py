"""Decision endpoints in both forms, through the real `openai` client over loopback."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import random

import numpy as np
import pytest
from decision_server import FAULTS, KEY, USAGE_FAULTS, DecisionServer

pytest.importorskip("openai", reason="needs the `openai` extra")

import openai

import backends
from backends.api import retries
from backends.api.decision_calls import FORMS, grid_of, read_answers
from backends.api.responses import BadAnswerError
from backends.decisions import DecisionsBackend
from blackbox import PromptBoostingClassifier
from blackbox.errors import BackendError, BudgetError, UnservedPromptError
from blackbox.lm import prices
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.planning import DryRunBackend
from blackbox.prompts.question import parse_prompt
from blackbox.protocol import ClosedQuestion, RenderedPrompt, TooLong, id_of_option

LINES = [
    "<predicate>The writer is pleased.",
    "<choice>Which?<option>positive<option>negative<option>unsure",
    "<scale>How good?<option>negative<option>so so<option>positive",
]
TEXTS = [
    f"parcel {n} was {word}"
    for n, word in itertools.product(range(8), ["lovely", "great", "awful", "dull"])
]
LABELS = ["good", "good", "bad", "bad"] * 8


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(retries, "_BACKOFF", (0.0005, 0.002))


def asked(lm, texts, lines=LINES):
    """The requests of questions about texts."""
    questions = [parse_prompt(line) for line in lines]
    return [question.render_for(lm.limits, text) for text in texts for question in questions]


def shares(part, row):
    """The probability of each option in a row."""
    found = zip(part.token_ids[row].tolist(), part.log_probs[row].tolist(), strict=True)
    return {part.token_bytes[t].decode(): np.exp(v) for t, v in found if t >= 0}


@pytest.mark.parametrize("form", ["decisions", "systemone"])
def test_all_questions_of_a_text_are_one_request_and_answers_have_all_options(form):
    with DecisionServer(form) as server:
        lm = DecisionsBackend(base_url=server.url)
        assert (lm.identity.endpoint, lm.identity.model) == (form, "decider")
        server.bodies.clear()
        part = lm.next_token(asked(lm, TEXTS[:4]), 50)
        assert len(server.bodies) == 4
        assert [len(body["questions"]) for body in server.bodies] == [3] * 4
    assert part.usage.passes_made == 12
    assert part.usage.tokens == sum(bill.tokens for bill in server.ledger[-4:])
    pleased = shares(part, 0)
    assert pleased.keys() == {"yes", "no"}
    assert sum(pleased.values()) == pytest.approx(1, abs=1e-5)
    assert pleased["yes"] > 0.8 > 0.2 > shares(part, 6)["yes"]
    assert shares(part, 1).keys() == {"positive", "negative", "unsure"}
    assert shares(part, 2)["positive"] == max(shares(part, 2).values())


def test_the_official_client_reads_what_the_test_server_says():
    body = FORMS["decisions"].body(
        "lovely", [parse_prompt(line).render_for(ASKED, "").question for line in LINES]
    )
    with DecisionServer() as server, openai.OpenAI(base_url=server.url, api_key=KEY) as client:
        decision = client.decisions.create(model="decider", **body)
    assert [answer.type for answer in decision.answers] == ["predicate", "choice", "score"]
    assert decision.usage.input_tokens == server.bill.tokens


ASKED = type("Limits", (), {"questions": True})()


@pytest.mark.parametrize("first", [0, 1])
def test_levels_of_a_scale_keep_their_places_where_one_is_left_out(first):
    question = ClosedQuestion("scale", "How?", ("bad", "so so", "good"))
    told = [{"value": first + 1, "probability": 0.2}, {"value": first + 2, "probability": 0.8}]
    answer = {"answers": [{"type": "score", "probabilities": told}]}
    (shares,) = read_answers(FORMS["decisions"], answer, [question])
    assert shares == pytest.approx([0.005, 0.2, 0.8], abs=0.006)


@pytest.mark.parametrize("form", ["decisions", "systemone"])
@pytest.mark.parametrize("digits", [2, 4, None])
def test_rounded_zeros_are_half_a_step_and_the_probe_says_so(form, digits):
    with DecisionServer(form, digits=digits) as server:
        lm = DecisionsBackend(base_url=server.url)
        part = lm.next_token(asked(lm, ["lovely great"] * 2), 50)
        told = lm.describe()
    assert np.isfinite(part.log_probs[part.token_ids >= 0]).all()
    assert told["same_answer_twice"] is True
    step = {2: "0.01", 4: "0.0001"}.get(digits)
    assert told["probabilities"] == (f"rounded to {step}" if step else "not rounded")


def test_the_step_of_rounding_belongs_to_each_answer():
    questions = [ClosedQuestion("predicate", "?", ("yes", "no"))]
    read = [
        read_answers(FORMS["systemone"], {"answers": {"q0": {"noul": p}}}, questions)[0]
        for p in (1.0, 0.97, 0.123456789, 0)
    ]
    assert read[0] == pytest.approx([1 / 1.005, 0.005 / 1.005])
    assert read[1] == pytest.approx([0.97, 0.03])
    assert read[2] == pytest.approx([0.123456789, 1 - 0.123456789])
    assert read[3] == pytest.approx([0.005 / 1.005, 1 / 1.005])
    assert (grid_of([0.5, 0.25]), grid_of([0.125]), grid_of([0.12345])) == (0.01, 0.001, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"answers": []},
        {"answers": {"q0": {"noul": "high"}}},
        {"answers": {"q0": {"noul": None}}},
        {"answers": {"q0": {"noul": 1.5}}},
        {"answers": {"q0": {"noul": float("nan")}}},
        {"answers": {"q0": 0.5}},
        {"answers": {"q0": {"choice": "yes"}}},
    ],
)
def test_answers_that_are_no_probabilities_are_bad_answers(answer):
    questions = [ClosedQuestion("predicate", "?", ("yes", "no"))]
    with pytest.raises(BadAnswerError):
        read_answers(FORMS["systemone"], answer, questions)
    choice = [ClosedQuestion("choice", "?", ("a", "b"))]
    half = {"answers": {"q0": {"probabilities": {"a": 0.4, "b": 0.2}}}}
    with pytest.raises(BadAnswerError, match=r"sum to 0\.6"):
        read_answers(FORMS["systemone"], half, choice)


@pytest.mark.parametrize("form", ["decisions", "systemone"])
def test_a_declined_question_is_missing_and_the_others_are_there(form):
    lines = [LINES[0], "<predicate>It has a secret.", LINES[1]]
    with DecisionServer(form) as server:
        lm = DecisionsBackend(base_url=server.url)
        part = lm.next_token(asked(lm, ["a shy lovely text", "a lovely text"], lines), 50)
    assert part.row_errors == {1: "the LM declined to answer this question"}
    assert shares(part, 1) == {}
    assert all(shares(part, row) for row in (0, 2, 3, 4, 5))


def test_more_questions_than_a_request_takes_are_several_requests():
    lines = [f"<predicate>Is it number {n}?" for n in range(23)]
    with DecisionServer("systemone", most=10) as server:
        lm = DecisionsBackend(base_url=server.url)
        part = lm.next_token(asked(lm, ["one", "two", "three"], lines), 2)
        assert not part.row_errors
        assert lm.describe()["questions_per_request"] <= 10
        server.bodies.clear()
        lm.next_token(asked(lm, ["four"], lines), 2)
        assert all(len(body["questions"]) <= 10 for body in server.bodies)


def test_answers_of_a_text_are_handed_over_though_a_later_request_about_it_fails():
    lines = [f"<predicate>Is it number {n}?" for n in range(12)]
    faults = itertools.chain([None, None, None], itertools.repeat("hang up"))  # two of the probe
    with DecisionServer("systemone", fault=lambda: next(faults)) as server:
        lm = DecisionsBackend(
            base_url=server.url, form="systemone", max_attempts=1, max_questions=10
        )
        answered = []

        def read_all():
            for where, part in lm.iter_next_token(asked(lm, ["one"], lines), 2):
                assert not part.row_errors
                answered.extend(where)

        with pytest.raises(BackendError):
            read_all()
    assert answered == list(range(10))


def test_a_question_that_a_server_does_not_take_costs_the_others_nothing():
    many = "<choice>Which?" + "".join(f"<option>number {n}" for n in range(30))
    with DecisionServer("systemone", options=26) as server:
        lm = DecisionsBackend(base_url=server.url, max_concurrency=1)
        first = lm.next_token(asked(lm, ["one"], [LINES[0], many, LINES[1]]), 50)
        server.bodies.clear()
        more = lm.next_token(asked(lm, ["two", "three"], [LINES[0], many, LINES[1]]), 50)
        assert len(server.bodies) == 2
    assert list(first.row_errors) == [1]
    assert "at most 26 options" in first.row_errors[1]
    assert list(more.row_errors) == [1, 4]


def test_a_text_that_is_not_taken_turns_no_question_off():
    with DecisionServer() as server:
        real = server.answer
        server.answer = lambda path, body: (
            (400, {"error": {"message": "Content Exists Risk"}})
            if "spam" in str(body)
            else real(path, body)
        )
        lm = DecisionsBackend(base_url=server.url)
        part = lm.next_token(asked(lm, ["spam", "one", "two"]), 50)
        assert sorted(part.row_errors) == [0, 1, 2]
        assert not lm.next_token(asked(lm, ["three"]), 50).row_errors


def test_a_refused_text_and_a_long_one_cost_one_request_each():
    with DecisionServer() as server:
        lm = DecisionsBackend(base_url=server.url)
        requests = asked(lm, ["forbidden", "fine"])
        server.bodies.clear()
        part = lm.next_token(requests, 50)
        assert len(server.bodies) == 2
        assert sorted(part.row_errors) == [0, 1, 2]
        assert "content_filter" in part.row_errors[0]
        long = lm.next_token(asked(lm, ["word " * 4000], LINES[:1]), 50)
    assert isinstance(long.row_errors[0], TooLong)


def test_a_pool_of_questions_becomes_a_classifier_that_is_saved_and_pickled(tmp_path):
    with DecisionServer(digits=2) as server:
        lm = backends.load("decisions", base_url=server.url)
        classifier = PromptBoostingClassifier(backend=lm, prompts=LINES, store=tmp_path / "s.db")
        classifier.fit(TEXTS, LABELS)
        n_requests = len(server.bodies)
        assert n_requests == 2 + len(TEXTS)  # two of the probe
        assert classifier.predict(["it was great", "it was awful"]).tolist() == ["good", "bad"]
        assert classifier.predict(TEXTS).tolist() == LABELS  # out of the store
        assert len(server.bodies) == n_requests + 2
        assert pickle.loads(pickle.dumps(lm)).identity == lm.identity
        with pytest.raises(UnservedPromptError, match="only questions"):
            lm.next_token([RenderedPrompt("a text")], 5)
        classifier = PromptBoostingClassifier(backend=lm).fit(TEXTS, LABELS)
        assert classifier.predict(["it was great", "it was awful"]).tolist() == ["good", "bad"]


def test_a_long_text_is_cut_and_asked_again():
    with DecisionServer() as server:
        lm = backends.load("decisions", base_url=server.url, context_length=20_000)
        classifier = PromptBoostingClassifier(backend=lm, prompts=LINES[:2]).fit(TEXTS, LABELS)
        assert classifier.predict(["it was great " * 2000]).tolist() == ["good"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no decision endpoint at /v1/decisions or /v1/systemone"),
        ({"form": "systemone"}, "no decision endpoint at /v1/systemone"),
    ],
)
def test_a_server_without_a_decision_endpoint_is_one_line(options, said):
    with DecisionServer("none") as server, pytest.raises(BackendError) as caught:
        _ = DecisionsBackend(base_url=server.url, **options).limits
    assert said in str(caught.value)
    assert "--backend openai" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_plan_counts_a_text_once_for_its_questions():
    with DecisionServer() as server:
        lm = DecisionsBackend(base_url=server.url)
        text = "long " * 200
        sizes = DryRunBackend(lm).tokens_of(asked(lm, [text, "short"]))
    assert sizes[0] > 200 > 80 > max(sizes[1:])


LIMITS = {"max_forward_passes": 90, "max_tokens": 6000, "max_cost": 2.0}
PRICE = 1000.0  # US dollars a million tokens


@pytest.mark.parametrize("fault", ["none", *USAGE_FAULTS, "all of them"])
@pytest.mark.parametrize(("limit", "threads"), list(itertools.product(LIMITS, (1, 8))))
def test_what_the_server_bills_is_never_more_than_the_budget(monkeypatch, fault, limit, threads):
    entry = {"provider": "openai-compatible", "model": "decider", "input": PRICE, "output": 10**6}
    monkeypatch.setattr(prices, "_own_table", lambda path: [entry | {"source": "test"}])
    rng = random.Random(3)
    drawn = [*FAULTS, *USAGE_FAULTS, None, None, None]
    steps = itertools.count()

    def next_fault():
        if next(steps) < 2:
            return None  # the probe works
        return rng.choice(drawn) if fault == "all of them" else fault

    meter = Meter(Budget(**{limit: LIMITS[limit]}))
    with DecisionServer("systemone", per_question=True, fault=next_fault) as server:
        with contextlib.suppress(BudgetError, BackendError), meter.charging():
            lm = DecisionsBackend("decider", base_url=server.url, max_concurrency=threads)
            lm = with_store_and_budget(lm, False, meter.budget, meter)
            lm.next_token(asked(lm, TEXTS * 3), 5)
        bill = server.bill
    assert bill.questions > 6
    assert bill.questions <= (meter.budget.max_forward_passes or bill.questions)
    assert bill.tokens <= (meter.budget.max_tokens or bill.tokens)
    assert bill.tokens * PRICE / 1e6 <= (meter.budget.max_cost or float("inf"))


def test_a_request_costs_its_tokens_and_not_those_of_each_question(monkeypatch):
    entry = {"provider": "openai-compatible", "model": "decider", "input": PRICE, "output": 10**6}
    monkeypatch.setattr(prices, "_own_table", lambda path: [entry | {"source": "test"}])
    with DecisionServer() as server:
        lm = DecisionsBackend("decider", base_url=server.url)
        kept = with_store_and_budget(lm, False, Budget(max_cost=5), Meter(Budget(max_cost=5)))
        _ = lm.limits
        server.ledger.clear()
        usage = kept.next_token(asked(lm, TEXTS[:5]), 5).usage
    assert usage.tokens == server.bill.tokens
    assert usage.cost == pytest.approx(server.bill.tokens * PRICE / 1e6)


def test_a_service_reserves_all_of_a_call_beforehand():
    budget = Budget(max_tokens=12_000)
    meter = Meter(budget, whole=True)
    with DecisionServer("systemone", per_question=True) as server:
        lm = DecisionsBackend("decider", base_url=server.url)
        kept = with_store_and_budget(lm, False, budget, meter)
        part = kept.next_token(asked(lm, TEXTS[:2]), 5)
        assert not part.row_errors
        n_requests = len(server.bodies)
        with pytest.raises(BudgetError):
            kept.next_token(asked(lm, TEXTS), 5)
        assert len(server.bodies) == n_requests


def test_ids_are_those_of_options():
    with DecisionServer() as server:
        lm = DecisionsBackend(base_url=server.url)
        part = lm.next_token(asked(lm, ["lovely"], LINES[:1]), 5)
    assert set(part.token_ids[0].tolist()) - {-1} == {id_of_option("yes"), id_of_option("no")}
