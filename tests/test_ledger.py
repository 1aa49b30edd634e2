"""Budgets against a server's own ledger: faults, limits and threads."""

from __future__ import annotations

import contextlib
import itertools
import time

import pytest
from fault_server import FAULTS, THINKING, USAGE_FAULTS, Bill, FaultServer, seeded_faults

pytest.importorskip("openai", reason="needs the `openai` extra")

import openai

from backends.api import retries
from backends.api.billing import Billing
from backends.openai import OpenAIBackend
from blackbox.errors import BackendError, BudgetError, UnknownPriceError
from blackbox.lm import prices
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.lm.meter import Load
from blackbox.protocol import Message, RenderedPrompt
from blackbox.spending import Rate

KEY = "sk-sentinel-0123456789"
INPUT, OUTPUT = 1000.0, 20.0  # US dollars a million tokens
LIMITS = {
    "max_forward_passes": 30,
    "max_tokens": 3000,
    "max_cost": 1.0,
}
LOST = tuple(fault for fault in FAULTS if fault != "slow")
CHATS = [RenderedPrompt(messages=(Message("user", f"text number {i}"),)) for i in range(60)]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(retries, "_BACKOFF", (0.0005, 0.002))
    entry = {"provider": "openai-compatible", "model": "lm", "input": INPUT, "output": OUTPUT}
    monkeypatch.setattr(prices, "_own_table", lambda path: [entry | {"source": "test"}])


@pytest.fixture(scope="module")
def shared():
    with FaultServer() as server, openai.OpenAI(base_url=server.url, api_key=KEY) as client:
        yield server, client


@pytest.fixture
def server(shared):
    shared[0].fault = lambda: None
    shared[0].ledger.clear()
    return shared[0]


def connected(shared, meter, **options):
    """A backend behind a budget, its probe included."""
    with meter.charging():
        lm = OpenAIBackend("lm", client=shared[1], begin_answers=False, **options)
    return with_store_and_budget(lm, False, meter.budget, meter)


def cost(bill: Bill) -> float:
    return (bill.tokens * INPUT + bill.written * OUTPUT) / 1e6


def check(bill: Bill, budget: Budget) -> None:
    """Nothing that the server evaluated is beyond the budget."""
    assert bill.passes <= (budget.max_forward_passes or bill.passes)
    assert bill.tokens <= (budget.max_tokens or bill.tokens)
    assert cost(bill) <= (budget.max_cost or cost(bill)) + 1e-9


@pytest.mark.parametrize("fault", [*USAGE_FAULTS, "thinks", *LOST, "all of them"])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("threads", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_what_the_server_bills_is_never_more_than_the_budget(shared, server, fault, limit, threads):
    budget = Budget(**{limit: LIMITS[limit]})
    if fault in LOST or fault == "all of them":
        names = (*USAGE_FAULTS, *LOST) if fault not in LOST else (fault,)
        faults = iter([None] * 4)  # the probe works
        drawn = seeded_faults(7, 0.6, names)
        server.fault = lambda: _next(faults, drawn)
    else:
        server.fault = lambda: fault
    meter = Meter(budget)
    try:
        lm = connected(shared, meter, max_concurrency=threads)
        lm.next_token(CHATS, 5)
        ended = None
    except (BudgetError, BackendError) as error:
        ended = error
    check(server.bill, budget)
    assert server.ledger
    if fault in USAGE_FAULTS and limit == "max_forward_passes":
        # what the probe asked for in vain is counted too, as some providers bill it
        assert isinstance(ended, BudgetError)
        assert server.bill.passes == LIMITS[limit] - 1


def _next(first, then):
    try:
        return next(first)
    except StopIteration:
        return then()


@pytest.mark.parametrize("limit", LIMITS)
def test_a_budget_of_nothing_sends_nothing(shared, server, limit):
    server.bodies.clear()
    with pytest.raises(BudgetError, match=r"a request may need .*, more than the budget of 0 "):
        connected(shared, Meter(Budget(**{limit: 0})))
    assert server.bodies == []


def test_an_unknown_price_is_said_before_the_probe_is_paid_for(shared, server, monkeypatch):
    monkeypatch.setattr(prices, "_own_table", lambda path: [])
    server.bodies.clear()
    with pytest.raises(UnknownPriceError, match="price of openai-compatible 'lm' is unknown"):
        connected(shared, Meter(Budget(max_cost=5)))
    assert server.bodies == []


@pytest.mark.parametrize("fault", ["usage is missing", "thinks", "no choices", "reset"])
@pytest.mark.parametrize("limit", LIMITS)
def test_draws_are_billed_within_the_budget_too(shared, server, fault, limit):
    budget = Budget(**{limit: 4 * LIMITS[limit]})
    faults = seeded_faults(3, 0.5, (fault,)) if fault in LOST else lambda: fault
    first = iter([None] * 4)
    server.fault = lambda: _next(first, faults) if fault in LOST else fault
    lm = connected(shared, Meter(budget), max_concurrency=4)
    with contextlib.suppress(BudgetError, BackendError):
        for start in range(0, 60, 4):
            lm.generate(CHATS[start : start + 4], 3, max_tokens=2)
    check(server.bill, budget)


def test_usage_counts_what_the_budget_counts(shared, server):
    lm = connected(shared, Meter(Budget(max_tokens=100_000)))
    before = server.bill
    server.fault = lambda: "thinks"
    usage = lm.next_token(CHATS[:10], 5).usage
    assert usage.passes_made == server.bill.passes - before.passes == 10
    assert usage.tokens == server.bill.tokens - before.tokens
    written = server.bill.written - before.written
    assert usage.cost == pytest.approx((usage.tokens * INPUT + written * OUTPUT) / 1e6)


def test_a_service_keeps_its_budget_over_all_its_requests(shared, server):
    budget = Budget(max_tokens=4000)
    meter = Meter(budget, whole=True)
    lm = connected(shared, meter)
    server.fault = lambda: "usage is negative"
    for start in range(0, 60, 4):
        with contextlib.suppress(BudgetError):
            lm.next_token(CHATS[start : start + 4], 5)
    answered = len(server.ledger)
    assert 0 < server.bill.tokens <= 4000
    with pytest.raises(BudgetError, match="budget of 4000 tokens"):
        lm.next_token(CHATS, 5)  # all of it, or nothing
    assert len(server.ledger) == answered


def test_when_a_server_begins_to_bill_more_what_is_under_way_counts_as_much(
    shared, server, monkeypatch
):
    meter = Meter(Budget(max_forward_passes=5000))
    lm = connected(shared, meter, max_concurrency=8)
    lm.generate(CHATS[:1], 1, max_tokens=1)
    number, real = itertools.count(), server.answer

    def answer(path, body):
        if 1 <= next(number) < 8:
            time.sleep(0.5)  # seven are under way when the first is billed more
        return real(path, body)

    monkeypatch.setattr(server, "answer", answer)
    server.fault = lambda: "thinks"
    with pytest.raises(BudgetError, match="5000 forward passes is used up"):
        lm.generate(CHATS, 1, max_tokens=1)
    assert 8 * THINKING <= server.bill.passes <= 5000


@pytest.mark.parametrize(
    ("details", "cached", "written"),
    [
        ({"cached_tokens": 1500, "cache_write_tokens": 0}, 1500, 0),
        ({"cached_tokens": 500, "cache_write_tokens": 1500}, 500, 1500),
        ({"cached_tokens": 1500}, 1500, 500),  # nothing is said of writing
        (None, 0, 2000),
        ({"cached_tokens": 9999, "cache_write_tokens": -1}, 2000, 0),
    ],
)
def test_cached_tokens_are_charged_as_reported_and_at_the_dearest_without_a_report(
    monkeypatch, details, cached, written
):
    entry = {"provider": "p", "model": "m", "input": 10.0, "output": 0.0, "source": "test"}
    entry |= {"cached_input": 1.0, "cache_write": 12.5}
    monkeypatch.setattr(prices, "_own_table", lambda path: [entry])
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 2000}]}
    account = Meter(Budget(max_cost=0.13))
    charge = Billing().begin(Rate("p", "m"), body | {"max_tokens": 1}, account)
    with pytest.raises(BudgetError):  # at the price of plain input a second try would fit
        account.reserve([Load(cost=0.13 - 1e-5 * charge.worst.input_tokens)])
    charge.settle({"usage": {"prompt_tokens": 2000, "prompt_tokens_details": details}})
    cost = 1e-6 * (10 * (2000 - cached - written) + cached + 12.5 * written)
    account.reserve([Load(cost=0.13 - cost)])
    with pytest.raises(BudgetError):
        account.reserve([Load(cost=1e-6)])
