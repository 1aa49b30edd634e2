"""Budgets: never exceeded, also by threads, and nothing that was paid for is lost."""

import contextlib
import threading
import time
from dataclasses import replace

import pytest

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.backend import as_backend
from blackbox.errors import BudgetError, UnknownPriceError
from blackbox.lm import prices
from blackbox.lm.budgets import Budget, Meter, MeteredBackend
from blackbox.lm.client import with_store_and_budget
from blackbox.lm.prices import Price, price_of, rate_of
from blackbox.protocol import RenderedPrompt, Usage
from blackbox.spending import Rate
from blackbox.store import sharing
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend
from tests.fakes import CountingBackend

TEXTS = [f"text {number} is {'lovely' if number % 2 else 'dull'}" for number in range(40)]
LABELS = [number % 2 for number in range(40)]
PROMPTS = ["{text} It was {mask}", "{text} A {mask}"]
REQUESTS = [RenderedPrompt(text) for text in TEXTS]


class PaidBackend(CountingBackend):
    """Has a provider whose price is in the table or is not."""

    def __init__(self, provider="paid", **limits):
        super().__init__()
        self.identity = replace(self.identity, provider=provider, endpoint="http")
        self.limits = replace(self.limits, **limits)


class SlowBackend(CountingBackend):
    """Takes a while for each call."""

    seconds = 0.05

    def next_token(self, prompts, top_k):
        time.sleep(self.seconds)
        return super().next_token(prompts, top_k)


class Uncounted:
    """The same LM without a tokenizer."""

    def __init__(self, backend):
        self.backend, self.identity, self.limits = backend, backend.identity, backend.limits

    def next_token(self, prompts, top_k):
        return self.backend.next_token(prompts, top_k)


@pytest.fixture(autouse=True)
def _prices(monkeypatch):
    entry = {"provider": "paid", "model": "*", "input": 1000.0, "output": 2000.0, "source": "test"}
    monkeypatch.setattr(prices, "_own_table", lambda path: [entry])


def metered(backend, **limits):
    return MeteredBackend(as_backend(backend), Meter(Budget(**limits)))


@pytest.mark.parametrize("most", [0, 1, 39, 40])
def test_no_more_passes_are_made_than_allowed(most):
    backend = CountingBackend()
    lm = metered(backend, max_forward_passes=most)
    if most < len(REQUESTS):
        with pytest.raises(BudgetError, match=f"budget of {most} forward passes"):
            lm.next_token(REQUESTS, 5)
    else:
        lm.next_token(REQUESTS, 5)
    assert len(backend.asked) == lm.usage.passes_made == most


@pytest.mark.parametrize("most", [0, 7, 50, 100])
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_no_more_tokens_are_sent_than_allowed(most, has_tokenizer):
    backend = CountingBackend()
    lm = metered(backend if has_tokenizer else Uncounted(backend), max_tokens=most)
    fits = most >= (4 if has_tokenizer else len(TEXTS[0]) + 64)
    said = f"budget of {most} tokens is used up" if fits else f"more than the budget of {most} tok"
    with pytest.raises(BudgetError, match=said):
        lm.next_token(REQUESTS, 5)
    sent = sum(backend.count_tokens(backend.asked))
    assert sent == lm.usage.tokens <= most
    if has_tokenizer and most:
        assert sent > most - 4  # not one request less than fits


@pytest.mark.parametrize("attempts", [1, 3])
def test_no_more_money_is_spent_than_allowed_if_every_try_were_billed(attempts):
    backend = PaidBackend(max_attempts=attempts)
    lm = metered(backend, max_cost=0.1)
    with pytest.raises(BudgetError, match=r"0\.1 US dollars"):
        lm.next_token(REQUESTS, 5)
    assert 0 < lm.usage.cost <= 0.1
    each = (4 * 1000 + 2000) / 1e6
    # what was reserved for tries that were not needed is free again
    assert lm.usage.passes_made == int((0.1 - attempts * each) / each) + 1


def test_a_cost_of_unknown_price_cannot_be_limited():
    backend = PaidBackend("unheard-of")
    with pytest.raises(UnknownPriceError, match=r"price of unheard-of .* PROMPTBOOSTING_PRICES"):
        metered(backend, max_cost=5)
    assert backend.calls == []
    assert metered(backend).next_token(REQUESTS[:2], 5).usage.cost is None


def test_prices_are_by_the_million_and_local_models_are_free():
    assert Price(3.0, 15.0).of(2_000_000, 1_000_000) == 21
    lm = DeterministicBackend()
    for endpoint in (lm.identity.endpoint, "causal", "masked"):
        identity = replace(lm.identity, endpoint=endpoint)
        assert price_of(rate_of(identity, lm.limits)).of(10**9, 1) == 0
    assert price_of(Rate("nobody", "m")) is None


def test_cached_tokens_have_their_own_price_and_writing_to_a_cache_is_the_worst():
    price = Price(10.0, 20.0, cached=1.0, cache_write=12.5)
    assert price.of(2_000_000, 0, 1_000_000) == 11
    assert price.of(2_000_000, 1_000_000, 500_000, 1_500_000) == 0.5 + 12.5 * 1.5 + 20
    assert price.at_most(10**6, 0) == 12.5
    assert price.at_most(1000, 0) == price.of(1000, 0)  # too short for a cache
    assert price.cached_share == 0.1
    assert Price(10.0, 20.0).of(100, 0, 100, 0) == Price(10.0, 20.0).of(100, 0)


def test_list_prices_have_caches_batches_and_decisions():
    pytest.importorskip("genai_prices", reason="needs the `openai` extra")
    rate = Rate("openai", "gpt-5.6", host="api.openai.com")
    price = price_of(rate)
    assert price.cached < price.input < price.cache_write
    batch = price_of(replace(rate, price_share=0.5))
    assert "batches" in batch.source
    assert batch.cache_write == pytest.approx(price.cache_write / 2)
    decisions = price_of(Rate("openai", "gpt-6-luna", host="api.openai.com", is_decisions=True))
    assert decisions.output == 0 < decisions.input
    assert decisions.cached_share == 1


def test_no_part_of_a_price_is_below_what_may_have_to_be_paid(monkeypatch):
    """A list may have the fee of a cache as the price of writing to it, or cached tokens dearer."""
    pytest.importorskip("genai_prices", reason="needs the `openai` extra")
    listed = price_of(Rate("openai-compatible", "google/gemini-3.5-flash", host="openrouter.ai"))
    assert listed.cache_write >= listed.input > 0
    entry = {"provider": "openai-compatible", "input": 1.0, "output": 2.0, "source": "test"}
    own = [entry | {"model": "a", "cache_write": 0.1}, entry | {"model": "b", "cached_input": 3.0}]
    monkeypatch.setattr(prices, "_own_table", lambda path: own)
    cheap, dear = (price_of(Rate("openai-compatible", model)) for model in "ab")
    for price in (listed, cheap, dear):
        for cached, written in ((0, 0), (5000, 0), (0, 5000), (2500, 2500)):
            assert price.of(5000, 10, cached, written) <= price.at_most(5000, 10)
    assert cheap.at_most(5000, 0) == cheap.of(5000, 0) == 5000 / 1e6
    assert dear.at_most(5000, 0) == 3 * 5000 / 1e6


@pytest.mark.parametrize(
    ("host", "model", "low", "high"),
    [
        ("api.openai.com", "gpt-4.1-mini", 0.05, 2),
        ("api.openai.com", "gpt-4.1-mini-2025-04-14", 0.05, 2),
        ("api.deepseek.com", "deepseek-chat", 0.05, 2),
        ("generativelanguage.googleapis.com", "gemini-2.5-flash", 0.05, 2),
    ],
)
def test_list_prices_are_found_by_host_also_of_dated_models(host, model, low, high):
    """Bounds leave room for prices to change."""
    pytest.importorskip("genai_prices", reason="needs the `openai` extra")
    price = price_of(Rate("openai-compatible", model, host=host))
    assert low < price.input < price.output < 10 * high
    half = price_of(Rate("openai-compatible", model, price_share=0.5, host=host))
    assert half.input == pytest.approx(price.input / 2)


def test_a_model_or_host_that_no_list_has_is_of_unknown_price():
    assert price_of(Rate("openai", "my-finetune", host="api.openai.com")) is None
    assert price_of(Rate("openai-compatible", "gpt-4.1", host="llm.example.com")) is None
    assert price_of(Rate("openai-compatible", "gpt-4.1")) is None


def test_no_request_is_begun_after_the_time_is_up():
    backend = SlowBackend()
    backend.seconds = 0.6
    lm = metered(backend, max_seconds=0.5)  # a busy machine begins the first request by then
    with pytest.raises(BudgetError, match=r"0\.5 seconds"):
        lm.next_token(REQUESTS * 4, 5)
    assert len(backend.calls) == 1
    with pytest.raises(BudgetError):
        lm.next_token(REQUESTS, 5)
    assert len(backend.calls) == 1


def test_threads_share_one_budget():
    backend = CountingBackend()
    meter = Meter(Budget(max_forward_passes=100))
    stopped = []

    def work(number):
        lm = MeteredBackend(backend, meter)
        for request in REQUESTS:
            try:
                lm.next_token([replace(request, text=f"{request.text} {number}")], 5)
            except BudgetError:
                stopped.append(number)
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(backend.asked) == 100
    assert stopped


def test_a_whole_reservation_is_all_or_nothing():
    counting = CountingBackend()
    lm = MeteredBackend(counting, Meter(Budget(max_forward_passes=5), whole=True))
    with pytest.raises(BudgetError, match="5 forward passes"):
        lm.next_token(REQUESTS[:6], 3)
    assert not counting.asked
    assert lm.next_token(REQUESTS[:5], 3).usage.passes_made == 5
    with pytest.raises(BudgetError):
        lm.next_token(REQUESTS[:1], 3)


def test_scores_that_do_not_fit_or_fail_leave_the_budget_to_others():
    counting = CountingBackend()
    lm = MeteredBackend(counting, Meter(Budget(max_forward_passes=5)))
    with pytest.raises(BudgetError):
        lm.score(REQUESTS[:6], [1])
    counting.score = None  # fails when it is called
    with pytest.raises(TypeError):
        lm.score(REQUESTS[:5], [1])
    assert lm.next_token(REQUESTS[:5], 3).usage.passes_made == 5


def test_scores_are_counted_too():
    backend = CountingBackend()
    lm = metered(backend, max_forward_passes=50)
    lm.score(REQUESTS, [1, 2])
    with pytest.raises(BudgetError):
        lm.score(REQUESTS, [1, 2])
    assert lm.usage.passes_made == 40
    assert len(backend.calls) == 1


def test_draws_keep_to_budgets_at_their_worst():
    backend = PaidBackend()
    lm = metered(backend, max_forward_passes=100, max_cost=1)
    drawn = lm.generate(REQUESTS[:4], 5, max_tokens=5)
    assert drawn.usage.passes_made == 100
    assert drawn.usage.cost == pytest.approx((4 * 5 * 4 * 1000 + 100 * 2000) / 1e6)
    with pytest.raises(BudgetError, match="forward passes"):
        lm.generate(REQUESTS[:1])
    with pytest.raises(BudgetError, match="US dollars"):
        metered(PaidBackend(), max_cost=0.01).generate(REQUESTS[:4], 5, max_tokens=5)


def test_a_stopped_training_goes_on_where_it_was(tmp_path):
    def train(**limits):
        backend = CountingBackend()
        model = PromptBoostingClassifier(
            backend, prompts=PROMPTS, store=tmp_path / "s", random_state=0, **limits
        )
        with contextlib.suppress(BudgetError):
            model.fit(TEXTS, LABELS)
        assert len(backend.asked) == model.usage_.passes_made
        return model

    made = [train(max_forward_passes=30).usage_.passes_made for _ in range(3)]
    assert made == [30, 30, 20]
    model = train(max_forward_passes=0)
    assert model.usage_.passes_from_store == 80
    model.set_params(max_forward_passes=None)
    whole = PromptBoostingClassifier(DeterministicBackend(), prompts=PROMPTS, random_state=0).fit(
        TEXTS, LABELS
    )
    assert (model.predict_proba(TEXTS) == whole.predict_proba(TEXTS)).all()


def test_answers_out_of_the_store_are_free(tmp_path):
    backend = CountingBackend()
    store = StoreFile(tmp_path / "s")
    StoredBackend(backend, store).next_token(REQUESTS, 5)
    lm = StoredBackend(metered(backend, max_forward_passes=0, max_tokens=0), store)
    assert lm.next_token(REQUESTS, 5).usage == Usage(passes_from_store=40)


@pytest.mark.parametrize("call", ["next_token", "score", "generate", "embed"])
def test_a_wait_for_another_process_is_told_and_ends_with_the_time(
    tmp_path, monkeypatch, caplog, call
):
    monkeypatch.setattr(sharing, "_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(sharing, "_LOOKS_IN_SILENCE", 2)
    ask = {
        "next_token": lambda lm: lm.next_token(REQUESTS, 5),
        "score": lambda lm: lm.score(REQUESTS, [65]),
        "generate": lambda lm: lm.generate(REQUESTS),
        "embed": lambda lm: list(lm.iter_embed(TEXTS)),
    }[call]
    begun, over = threading.Event(), threading.Event()

    class Held(CountingBackend):
        def __getattribute__(self, name):
            if name in (call, f"iter_{call}"):
                begun.set()
                over.wait(30)
            return super().__getattribute__(name)

    path = tmp_path / "store.sqlite"
    other = StoredBackend(as_backend(Held()), StoreFile(path))
    thread = threading.Thread(target=ask, args=(other,))
    thread.start()
    try:
        assert begun.wait(30)
        lm = as_backend(CountingBackend())
        lm = with_store_and_budget(lm, StoreFile(path), Budget(max_seconds=0.6))
        with pytest.raises(BudgetError, match=r"budget of 0\.6 seconds is used up"):
            ask(lm)
    finally:
        over.set()
        thread.join()
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for answers that another process is asking for"
    ]


def test_prediction_keeps_to_the_budget(tmp_path):
    model = PromptBoostingClassifier("deterministic", prompts=PROMPTS, random_state=0)
    model.fit(TEXTS, LABELS)
    model.set_params(max_forward_passes=10)
    with pytest.raises(BudgetError, match="forward passes"):
        model.predict(TEXTS)
    model.set_params(max_forward_passes=80).predict(TEXTS)
    assert model.prediction_usage_.passes_made <= 80
