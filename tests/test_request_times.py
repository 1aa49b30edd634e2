"""Times of requests to an API, foretold by those that were sent anyway."""

import itertools
import json
import math
import threading

import numpy as np
import pytest

import backends
from backends.api.request_times import RateLimit, RequestTimes, announced_limits
from blackbox import PromptBoostingClassifier
from blackbox.protocol import ClosedQuestion, RenderedPrompt
from tests.decision_server import KEY, DecisionServer
from tests.endpoint_server import (
    LISTED,
    EndpointServer,
    chat,
    completion,
    distribution,
    error,
)
from tests.fakes import CountingBackend

TEXTS = [f"text {number} is {'lovely' if number % 2 else 'dull'}" for number in range(60)]
LABELS = [number % 2 for number in range(60)]
PROMPTS = ["{text} It was {mask}", "{text} A {mask}", "{text} So {mask}"]
SECONDS = 50.0  # of a request, beside which all that isn't one is nothing
FACTOR = 1.5


class Clock:
    """A clock by which whatever is measured takes the same time, in any thread."""

    def __init__(self, seconds):
        self._seconds, self._local = seconds, threading.local()

    def perf_counter(self):
        counter = self._local.__dict__.setdefault("counter", itertools.count())
        return next(counter) * self._seconds

    def thread_time(self):
        return 0.0


class Endpoint(EndpointServer):
    """An endpoint of one path, which may announce limits."""

    def __init__(self, path, headers=None):
        super().__init__(self._answer)
        self._path, self._headers = path, headers or {}

    def _answer(self, method, path, body):
        if path.endswith("/models"):
            return 200, LISTED
        if not path.endswith(self._path) or ("messages" in body) != ("chat" in self._path):
            return 404, error("no such path")
        k = body.get("top_logprobs") or body.get("logprobs") or 1
        answer = chat if "messages" in body else completion
        return 200, answer(distribution(body, min(k, 20))), self._headers


@pytest.fixture
def priced(tmp_path, monkeypatch):
    """An API that costs money, and whose requests all take SECONDS."""
    entry = {"provider": "openai-compatible", "model": "m", "input": 2.0, "output": 8.0}
    (tmp_path / "prices.json").write_text(json.dumps({"prices": [entry]}))
    monkeypatch.setenv("PROMPTBOOSTING_PRICES", str(tmp_path / "prices.json"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr("backends.api.sending.time", Clock(SECONDS))


@pytest.mark.parametrize("half", [False, True], ids=["empty store", "half full"])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
@pytest.mark.parametrize("at_a_time", [1, 16])
def test_planned_seconds_are_those_of_the_requests(priced, tmp_path, path, half, at_a_time):
    given = {"prompts": PROMPTS, "store": tmp_path / "s", "embeddings": None, "random_state": 0}
    with Endpoint(path) as server:
        lm = backends.load("openai", model="m", base_url=server.url, max_concurrency=at_a_time)
        if half:
            PromptBoostingClassifier(lm, **given).fit(TEXTS[:30], LABELS[:30])
        model = PromptBoostingClassifier(lm, **given)
        lm.probe()
        before = len(server.posts())
        plan = model.plan(TEXTS, LABELS)
        assert len(server.posts()) == before, "a plan pays for nothing beyond the probe"
        model.fit(TEXTS, LABELS)
        sent = len(server.posts()) - before
    assert sent == plan.passes_to_make == 180 - 90 * half
    used = math.ceil(sent / at_a_time) * SECONDS
    low, expected, worst = plan.seconds
    assert used / FACTOR < expected < used * FACTOR
    assert low < used < worst
    assert f"{at_a_time} at a time" in plan.seconds_source


@pytest.mark.parametrize("half", [False, True], ids=["empty store", "half full"])
def test_planned_seconds_of_a_free_lm_are_those_of_its_passes(tmp_path, half):
    class Timed(CountingBackend):
        def next_token(self, prompts, top_k):
            answers = super().next_token(prompts, top_k)
            answers.usage.seconds_lm = SECONDS * len(prompts)
            return answers

    given = {"prompts": PROMPTS, "store": tmp_path / "s", "random_state": 0}
    model = PromptBoostingClassifier(Timed(), **given)
    if half:
        PromptBoostingClassifier(Timed(), **given).fit(TEXTS[:30], LABELS[:30])
    plan = model.plan(TEXTS, LABELS)
    model.fit(TEXTS, LABELS)
    assert model.usage_.seconds_lm == pytest.approx(SECONDS * (180 - 90 * half))
    assert plan.seconds[1] == pytest.approx(model.usage_.seconds_lm, rel=0.05)
    assert plan.seconds_source == "a short probe"


def test_a_full_store_takes_no_time_inside_the_lm(priced, tmp_path):
    given = {"prompts": PROMPTS, "store": tmp_path / "s", "embeddings": None, "random_state": 0}
    with Endpoint("/completions") as server:
        lm = backends.load("openai", model="m", base_url=server.url)
        model = PromptBoostingClassifier(lm, **given)
        model.fit(TEXTS, LABELS)
        plan = model.plan(TEXTS, LABELS)
    assert plan.passes_to_make == 0
    assert plan.seconds[2] < SECONDS


def test_a_batch_has_no_planned_time(priced, tmp_path):
    with Endpoint("/completions") as server:
        lm = backends.load("openai", model="m", base_url=server.url, batch=True)
        model = PromptBoostingClassifier(lm, prompts=PROMPTS, store=False, embeddings=None)
        plan = model.plan(TEXTS, LABELS)
    assert plan.seconds is None
    assert plan.seconds_source == "a batch is answered within a day"


def test_a_paid_lm_without_an_estimate_has_no_planned_time(priced):
    lm = CountingBackend()
    lm.identity = type(lm.identity)(provider="openai-compatible", endpoint="http", model="m")
    plan = PromptBoostingClassifier(lm, prompts=PROMPTS, store=False).plan(TEXTS, LABELS)
    assert plan.seconds is None
    assert plan.seconds_source.startswith("this LM may cost money, so it was not probed")


def test_what_a_user_and_a_server_let_through_is_in_the_plan(priced):
    limited = {"x-ratelimit-limit-requests": "3", "x-ratelimit-remaining-requests": "0"}
    for options, headers, source in (
        ({"requests_per_minute": 1}, {}, "by requests_per_minute=1"),
        ({}, limited, "by the provider's limit of 3 requests a minute"),
    ):
        with Endpoint("/completions", headers) as server:
            lm = backends.load("openai", model="m", base_url=server.url, max_concurrency=64)
            lm._options |= options  # the pace of the probe itself would be waited for
            model = PromptBoostingClassifier(lm, prompts=PROMPTS, store=False, embeddings=None)
            plan = model.plan(TEXTS, LABELS)
        assert plan.seconds_source == source
        each = 60 if options else 20
        assert plan.seconds[1] == pytest.approx(180 * each, rel=0.01)


@pytest.mark.parametrize("takes", ["taken", "refused"])
def test_draws_are_as_many_requests_as_are_sent(priced, takes):
    def answer(method, path, body):
        if path.endswith("/models"):
            return 200, LISTED
        if not path.endswith("/chat/completions") or body["messages"][-1]["role"] == "assistant":
            return 404, error("no such path")
        if body["n"] > 1 and takes == "refused":
            return 400, error("n must be 1", param="n")
        said = body["messages"][-1]["content"]
        letter = "A" if ("lovely" in said) == ("A. good" in said) else "B"
        one = {"message": {"content": letter}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 20, "completion_tokens": body["n"]}
        return 200, {"choices": [one] * body["n"], "usage": usage}

    with EndpointServer(answer) as server:
        lm = backends.load("sampling", model="m", base_url=server.url, n_draws=4)
        model = PromptBoostingClassifier(
            lm, prompts=["<choice>Which?<option>good<option>bad"], store=False, random_state=0
        )
        plan = model.plan(TEXTS[:32], LABELS[:32])
        before = len(server.posts())
        model.fit(TEXTS[:32], LABELS[:32])
        sent = len(server.posts()) - before
    assert sent == 32 * (2 if takes == "taken" else 4)  # two orders of the options
    assert plan.seconds[1] == pytest.approx(sent / 16 * SECONDS, rel=0.1)


def test_a_decision_endpoint_is_asked_once_per_text(priced, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = [ClosedQuestion("predicate", said, ("yes", "no")) for said in ("Lovely?", "Dull?")]
    prompts = [RenderedPrompt(text, question=question) for text in TEXTS for question in asked]
    with DecisionServer() as server:
        lm = backends.load("decisions", model="m", base_url=server.url)
        lm.probe()
        estimate = lm.estimate_seconds([prompts], 100)
        assert estimate.seconds == math.ceil(len(TEXTS) / 16) * SECONDS


def bucket(limit, remaining, window, n):
    """Seconds until n requests went through a limit that refills evenly."""
    left, now = remaining, 0.0
    for _ in range(n):
        if left < 1:
            now += (1 - left) * window / limit
            left = 1
        left -= 1
    return now


def fixed(limit, remaining, reset, window, n):
    """Seconds until n requests went through windows that begin anew."""
    left, now = remaining, 0.0
    for _ in range(n):
        if not left:
            now = reset if not now else now + window
            left = limit
        left -= 1
    return now


@pytest.mark.parametrize("n", [10, 95, 120, 250, 1000])
def test_the_time_of_a_limit_is_that_of_a_simulation(n):
    of_bucket = RateLimit("requests", 100, 95, 3.0)  # 5 used of 100 a minute
    assert of_bucket.window == 60
    assert of_bucket.seconds(n) == pytest.approx(bucket(100, 95, 60, n), abs=0.7)
    of_windows = RateLimit("requests", 100, 95, 41.0)
    assert of_windows.window == 60
    assert of_windows.seconds(n) == pytest.approx(fixed(100, 95, 41.0, 60, n))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s",
                "X-RateLimit-Limit-Tokens": "150000",
                "X-RateLimit-Remaining-Tokens": "149984",
                "X-RateLimit-Reset-Tokens": "6ms",
            },
            ["60 requests a minute", "150000 tokens a minute"],
        ),
        (  # of requests a day, as at Groq
            {
                "x-ratelimit-limit-requests": "14400",
                "x-ratelimit-remaining-requests": "14370",
                "x-ratelimit-reset-requests": "2m59.56s",
            },
            ["14400 requests a day"],
        ),
        (
            {
                "anthropic-ratelimit-input-tokens-limit": "50000",
                "anthropic-ratelimit-input-tokens-remaining": "49000",
                "anthropic-ratelimit-output-tokens-limit": "10000",
                "anthropic-ratelimit-output-tokens-remaining": "10000",
            },
            ["50000 tokens a minute"],
        ),
        ({"ratelimit-limit": "10", "ratelimit-remaining": "9"}, ["10 requests a minute"]),
        ({"x-ratelimit-limit-requests": "60"}, []),
        ({"ratelimit-limit": "10, 10;w=1", "ratelimit-remaining": "9"}, []),
        ({"ratelimit-limit": "0", "ratelimit-remaining": "0"}, []),
        ({"ratelimit-limit": "nan", "ratelimit-remaining": "nan"}, []),
        ({"ratelimit-limit": "inf", "ratelimit-remaining": "5"}, []),
        ({}, []),
    ],
)
def test_limits_are_read_from_the_headers_of_providers(headers, said):
    assert [str(limit) for limit in announced_limits(headers)] == said


def test_processor_time_is_a_bound_where_requests_are_quick():
    times = RequestTimes()
    for _ in range(20):
        times.add(0.01, 0.004)
    assert times.estimate([1600], 0, at_a_time=16).seconds == pytest.approx(6.4)
    assert times.estimate([1600], 0, at_a_time=1).seconds == pytest.approx(16)


def test_the_first_of_few_requests_connects_and_is_no_measure():
    times = RequestTimes()
    assert times.estimate([16], 0, at_a_time=16).seconds is None
    times.add(3.0, 0.5)
    times.add(0.5, 0.001)
    assert times.estimate([16], 0, at_a_time=16).seconds == 0.5
    rng = np.random.default_rng(0)
    many = rng.lognormal(-1, 1, 300)
    for seconds in many:
        times.add(seconds, 0.001)
    assert times.estimate([1], 0, at_a_time=1).seconds == pytest.approx(many[-256:].mean())
