"""Deadlines, the size of responses, waits, and the circuit breaker, over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import json
import signal
import socket
import threading
import time
import zlib

import pytest
from fault_server import FaultServer

pytest.importorskip("openai", reason="needs the `openai` extra")

import httpx2
import openai

from backends.api import circuit, retries, sending, transport, waits
from backends.openai import OpenAIBackend
from backends.sampling import SamplingBackend
from blackbox import PromptBoostingClassifier
from blackbox.errors import BackendError, BudgetError, RowError
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.protocol import Message, RenderedPrompt

KEY = "sk-sentinel-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(retries, "_BACKOFF", (0.001, 0.01))


def chats(n):
    return [RenderedPrompt(messages=(Message("user", f"text number {i}"),)) for i in range(n)]


class RawServer:
    """Answers every connection with what `write` does, and counts its threads."""

    def __init__(self, write, *, reads=True):
        self.write, self.reads = write, reads
        self.held = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.stopped = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}/v1"

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                accepted = self.listening.accept()[0]
                threading.Thread(target=self._answer, args=(accepted,), daemon=True).start()

    def _answer(self, accepted):
        with contextlib.suppress(OSError), accepted:
            request = b"" if self.reads else b"GET"
            while b"{}" not in request and b"GET" not in request:
                request += accepted.recv(65536)
            self.write(accepted, self.stopped)

    def full(self):
        """The address of a server that takes no more connections."""
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.held = [full]
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
            self.held.append(waiting)
        return f"http://127.0.0.1:{full.getsockname()[1]}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for one in (self.listening, *self.held):
            one.close()


def drip(head, piece):
    """Write the head, and then a piece now and then, for ever."""

    def write(accepted, stopped):
        accepted.sendall(head)
        while not stopped.wait(0.05):
            accepted.sendall(piece)

    return write


def answer_all(data):
    """Answer every request of a connection with the same bytes."""

    def write(accepted, stopped):
        accepted.settimeout(0.1)
        while not stopped.is_set():
            accepted.sendall(data)
            with contextlib.suppress(TimeoutError):
                while accepted.recv(65536):
                    accepted.sendall(data)

    return write


def gzip_without_end(accepted, stopped):
    compressor = zlib.compressobj(wbits=31)
    accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
    while not stopped.is_set():
        accepted.sendall(compressor.compress(bytes(2**20)) or b"")


def never_read(accepted, stopped):
    stopped.wait(20)


ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MOVED = b"HTTP/1.1 307 Moved\r\nLocation: /v1/again\r\nContent-Length: 0\r\n\r\n"
SLOW = {
    "says nothing": drip(b"", b""),
    "a head that never ends": drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "half a head": drip(b"HTTP/1.1 200 OK\r\nContent-", b""),
    "a head by bytes": drip(b"", b"H"),
    "a body that never begins": drip(ENDLESS, b""),
    "a body that never ends": drip(ENDLESS, b" "),
    "chunks that never end": drip(CHUNKED, b"1\r\n \r\n"),
    "an error that never ends": drip(ENDLESS.replace(b"200 OK", b"500 No"), b" "),
    "answers that are none": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
ENDS = {
    **dict.fromkeys(SLOW, "no answer in time"),
    "compressed without an end": "larger than 32 MiB|no answer in time",
    "redirects without an end": "redirects without an end",
    "a wait without an end": "asks to wait 86400 s",
    "a request that is never read": "no answer in time",
    "a handshake that hangs": "no answer in time",
    "a handshake by bytes": "no answer in time",
    "a name that is never found": "no answer in time",
    "a connection that is never taken": "no answer in time",
}
OTHERS = {
    "compressed without an end": gzip_without_end,
    "redirects without an end": answer_all(MOVED),
    "a wait without an end": answer_all(
        b"HTTP/1.1 429 No\r\nRetry-After: 86400\r\nContent-Length: 0\r\n\r\n"
    ),
    "a request that is never read": never_read,
    "a handshake that hangs": never_read,
    "a handshake by bytes": drip(b"\x16\x03\x03\x40\x00", b"\x02"),
    "a name that is never found": never_read,
    "a connection that is never taken": never_read,
}


@pytest.mark.parametrize("how", ENDS)
def test_one_deadline_holds_for_a_whole_try_however_a_server_holds_it_up(how, monkeypatch):
    write = {**SLOW, **OTHERS}[how]
    body = {"x": "x" * 2**23} if "never read" in how else {}
    with RawServer(write, reads="handshake" not in how and not body) as server:
        url = server.url
        if "handshake" in how:
            url = url.replace("http:", "https:")
        elif "name" in how:
            hang = lambda *_, **__: server.stopped.wait(20)  # noqa: E731
            monkeypatch.setattr(socket, "getaddrinfo", hang)
            url = "http://somewhere.invalid/v1"
        elif "taken" in how:
            url = server.full()
        backend = OpenAIBackend("lm", base_url=url, timeout=0.5, max_attempts=1)
        started = time.monotonic()
        with pytest.raises(BackendError, match=ENDS[how]):
            backend._server.ask(lambda: backend._server.post("/chat/completions", body))
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("how", SLOW)
def test_a_run_ends_with_its_time_and_its_threads_end_too(how, monkeypatch):
    monkeypatch.setattr(sending, "_GRACE", 0.3)
    with RawServer(SLOW[how]) as server:
        started = time.monotonic()
        meter = Meter(Budget(max_seconds=0.3))
        lm = OpenAIBackend("lm", base_url=server.url)
        with meter.charging(), pytest.raises((BudgetError, BackendError)):
            lm.probe()
        assert time.monotonic() - started < 3


def test_requests_under_way_end_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(sending, "_GRACE", 0.2)
    hang = threading.Event()
    with FaultServer() as server:
        meter = Meter(Budget(max_seconds=1.0))
        with meter.charging():
            lm = OpenAIBackend("lm", base_url=server.url, max_concurrency=4)
        lm = with_store_and_budget(lm, False, meter.budget, meter)
        server.fault = lambda: hang.wait(20) and None
        before = set(threading.enumerate())
        started = time.monotonic()
        with pytest.raises(BudgetError, match="1 seconds is used up"):
            lm.next_token(chats(8), 5)
        assert time.monotonic() - started < 3
        hang.set()
        mine = [one for one in set(threading.enumerate()) - before if "api-" in one.name]
        for thread in mine:
            thread.join(5)
        assert not any(thread.is_alive() for thread in mine)


def test_a_wait_beyond_the_time_of_the_run_is_not_begun():
    with FaultServer() as server:
        meter = Meter(Budget(max_seconds=5))
        with meter.charging():
            lm = OpenAIBackend("lm", base_url=server.url)
        lm = with_store_and_budget(lm, False, meter.budget, meter)
        server.fault = lambda: (429, {"message": "slow down, try again in 20s", "code": "x"})
        started = time.monotonic()
        with pytest.raises(BudgetError, match="would have to wait 20 s"):
            lm.next_token(chats(3), 5)
        assert time.monotonic() - started < 2


@pytest.fixture
def default_interrupt():
    """Python's own handler of Ctrl-C, also where a shell began the tests with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.posix
@pytest.mark.usefixtures("default_interrupt")
def test_an_interrupt_never_meets_who_writes_an_answer_down():
    stop, written = threading.Event(), []

    def ask(job, stop):
        stop.wait(0.05)
        yield job

    def write_answers():
        for part in retries.answers_as_they_come(list(range(100)), ask, 4, stop):
            if not written:
                signal.raise_signal(signal.SIGINT)  # while an answer is written down
            written.extend(answer for _, answer in part)

    with pytest.raises(KeyboardInterrupt):
        write_answers()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert 1 <= len(written) <= 12  # what was under way, and nothing that was not begun
    assert len(set(written)) == len(written)


def test_a_second_interrupt_ends_at_once():
    class Interrupted:
        def get(self, timeout):
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(retries._drain(Interrupted(), 1, threading.Event(), threading.Event()))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", ""])
@pytest.mark.parametrize("status", [200, 500])
def test_a_response_that_is_too_large_is_not_read_to_its_end(monkeypatch, encoding, status):
    monkeypatch.setattr(sending, "_MAX_BYTES", 2**20)
    data = b" " * 2**24
    if encoding == "gzip":
        data = gzip.compress(data)
    elif encoding == "deflate":
        data = zlib.compress(data)
    said = f"Content-Encoding: {encoding}\r\n" if encoding else ""
    head = f"HTTP/1.1 {status} X\r\n{said}Content-Length: {len(data)}\r\n\r\n".encode()

    with RawServer(lambda accepted, _: accepted.sendall(head + data)) as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_attempts=1)
        with pytest.raises(BackendError, match="the response is larger than 1 MiB"):
            backend._server.ask(lambda: backend._server.post("/chat/completions", {}))


def test_an_encoding_that_was_not_asked_for_is_an_error():
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}"
    with RawServer(lambda accepted, _: accepted.sendall(head)) as server:
        backend = OpenAIBackend("lm", base_url=server.url, max_attempts=1)
        with pytest.raises(BackendError, match="unknown content encoding 'br'"):
            backend._server.ask(lambda: backend._server.post("/chat/completions", {}))


def test_compressed_answers_are_read():
    answer = json.dumps({"a": "é"}).encode()
    data = gzip.compress(answer)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(data)}\r\n\r\n"
    with RawServer(lambda accepted, _: accepted.sendall(head.encode() + data)) as server:
        backend = OpenAIBackend("lm", base_url=server.url)
        assert backend._server.post("/chat/completions", {}) == {"a": "é"}


def test_the_private_names_that_limits_are_installed_by_are_there():
    with httpx2.Client() as client:
        client._mounts = {httpx2._utils.URLPattern("http://x"): httpx2.HTTPTransport()}
        transport.install(client)
        transport.install(client)
        for one in (client._transport, *client._mounts.values()):
            assert isinstance(one, transport._LimitedTransport)
            assert not isinstance(one._inner, transport._LimitedTransport)
            assert isinstance(one._inner._pool._network_backend, transport._Network)
    own = openai.OpenAI(base_url="http://127.0.0.1:9/v1")
    backend = OpenAIBackend("lm", client=own)
    assert isinstance(own._client._transport, transport._LimitedTransport)
    assert backend._server.client._client is own._client


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({}, "Rate limit reached for x. Please try again in 20s. Visit", 20),
        ({}, {"message": "Please try again in 6ms."}, 0.006),
        ({}, {"message": "Please try again in 7m12.5s."}, 432.5),
        ({}, {"message": "Please retry after 9 seconds."}, 9),
        ({}, [{"error": {"details": [{"retryDelay": "34.5s"}]}}], 34.5),
        ({}, {"message": "try again in 1 minute and 5 seconds"}, 65),
        ({}, {"message": "Try again later"}, None),
        ({"x-ratelimit-reset-tokens": "90", "x-ratelimit-remaining-tokens": "0"}, None, 90),
        ({"x-ratelimit-reset-tokens": "1m30s", "x-ratelimit-remaining-tokens": "0"}, None, 90),
        ({"x-ratelimit-reset-requests": "1h", "x-ratelimit-remaining-requests": "7"}, None, None),
        ({"retry-after": "inf"}, None, None),
        ({"retry-after": "3"}, "try again in 20s", 3),
    ],
)
def test_a_wait_is_read_wherever_it_is_asked_for(headers, body, seconds):
    assert waits.retry_after(headers, body) == seconds


def test_a_rate_limit_is_waited_out_with_more_tries_than_other_failures(monkeypatch):
    monkeypatch.setattr(retries, "_BACKOFF", (0.001, 20.0))
    pace, sent = retries.Pace(), []

    def send():
        sent.append(1)
        if len(sent) < 5:
            error = retries.RetryLaterError("slow down")
            error.kind = "rate_limit"
            raise error
        return "answer"

    options = {"pace": pace, "tokens": 1, "stop": threading.Event(), "on_retry": int}
    assert retries.send_with_retries(send, attempts=2, **options) == "answer"
    assert len(sent) == 5


def test_a_long_wait_is_said_once_a_minute_with_the_server_s_words(monkeypatch, caplog):
    monkeypatch.setattr(retries, "_BACKOFF", (0.001, 0.002))
    monkeypatch.setattr(retries, "_TOLD", 0.0)
    pace, sent = retries.Pace(), []

    def send():
        sent.append(1)
        if len(sent) % 4:
            raise retries.RetryLaterError("h 'm' says (429): slow down")
        return "answer"

    options = {"pace": pace, "tokens": 1, "stop": threading.Event(), "on_retry": int}
    for _ in range(2):
        retries.send_with_retries(send, attempts=6, **options)
    (record,) = caplog.records
    assert record.getMessage() == "h 'm' says (429): slow down; trying again in 0 s"


class TestCircuit:
    def test_log_probabilities_that_are_gone_end_the_run_after_a_few_requests(self):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=4)
            backend.probe()
            server.fault, server.bodies = lambda: "no log-probabilities", []
            with pytest.raises(BackendError, match="no log-probabilities"):
                backend.next_token(chats(600), 5)
            assert len(server.bodies) <= circuit._LIMITS["bad"] + 4

    def test_a_form_that_is_refused_ends_the_run(self):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url)
            backend.probe()
            server.fault, server.bodies = lambda: (400, {"message": "no such field"}), []
            with pytest.raises(BackendError, match=r"one after the other.*no such field"):
                backend.next_token(chats(600), 5)
            assert len(server.bodies) <= circuit._LIMITS["rejected"] + 16

    @pytest.mark.parametrize(
        "refusal",
        [
            (400, {"message": "Content Exists Risk", "code": "invalid_request_error"}),
            (403, {"code": 403, "message": "moderated", "metadata": {"flagged_input": "13"}}),
            (403, {"message": "Request blocked"}),
            (500, {"message": "Internal Server Error"}),
        ],
    )
    def test_a_text_that_is_refused_in_many_prompts_costs_the_others_nothing(self, refusal):
        prompts = [
            RenderedPrompt(messages=(Message("user", f"{text} of {prompt}"),))
            for text in ("fine", "spam" * 9, "good")  # the longest is asked for last
            for prompt in range(15)
        ]
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_attempts=2, max_concurrency=4)
            backend.probe()
            real = server.refusal
            server.refusal = lambda path, body: (
                refusal if "spam" in str(body["messages"]) else real(path, body)
            )
            found = backend.next_token(prompts, 5)
            assert sorted(found.row_errors) == list(range(15, 30))
            assert not any("check the key" in why for why in found.row_errors.values())
            # only refused requests are left, as when a run is begun again
            for threads in (1, 8):
                begun = OpenAIBackend(
                    "lm", base_url=server.url, max_attempts=2, max_concurrency=threads
                )
                assert len(begun.next_token(prompts[15:30], 5).row_errors) == 15

    def test_a_key_that_is_withdrawn_ends_the_run(self):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url)
            backend.probe()
            server.fault, server.bodies = lambda: (403, {"message": "no access"}), []
            with pytest.raises(BackendError, match=r"no access; check the key"):
                backend.next_token(chats(600), 5)
            assert len(server.bodies) <= 2 * 16 + 1

    @pytest.mark.parametrize("status", [400, 403])
    def test_texts_that_are_all_refused_cost_few_known_requests(self, status):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=1)
            backend.probe()
            server.refusal = lambda path, body: (
                (status, {"message": "not this"}) if "text number" in str(body) else None
            )
            server.bodies = []
            assert len(backend.next_token(chats(300), 5).row_errors) == 300
            assert 300 < len(server.bodies) <= 310

    def test_billed_answers_of_no_use_end_the_run_though_a_known_request_is_answered(self):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=1, max_attempts=1)
            backend.probe()
            real = server.answer

            def answer(path, body):
                found = real(path, body)
                return found | {"choices": []} if "text number" in str(body) else found

            server.answer, server.bodies = answer, []
            with pytest.raises(BackendError, match="the answer has 0 choices"):
                backend.next_token(chats(600), 5)
            assert len(server.bodies) <= sum(12 * 2**n for n in range(5)) + 5

    def test_draws_that_are_all_refused_end_after_a_few(self):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url)
            backend.probe()
            server.fault, server.bodies = lambda: (400, {"message": "no texts here"}), []
            with pytest.raises(BackendError, match="no texts here"):
                backend.generate(chats(100), 5)
            assert len(server.bodies) == 2 * circuit._MAX_UNPROVEN

    def test_a_server_that_takes_no_n_is_asked_for_single_texts(self):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url)
            backend.probe()
            real = server.refusal
            server.refusal = lambda path, body: (
                (400, {"message": "n must be 1", "param": "n"})
                if body.get("n", 1) > 1
                else real(path, body)
            )
            server.bodies = []
            draws = backend.generate(chats(6), 3, max_tokens=2)
            assert [len(texts) for texts in draws.texts] == [3] * 6
            assert not draws.row_errors
            assert len(server.bodies) == 1 + 6 * 3

    @pytest.mark.parametrize("answer", [[], {"choices": ["x"]}, {"choices": 7}, "text", None])
    def test_answers_that_are_no_texts_are_bad_answers(self, answer):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_attempts=2)
            backend.probe()
            server.fault = lambda: (200, {})
            real = backend._server.post
            backend._server.post = lambda *args: real(*args) and answer
            with pytest.raises(BackendError, match="no choices, in 2 tries"):
                backend.generate(chats(1), 2)

    def test_a_text_that_breaks_the_server_is_one_row(self):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_attempts=2)
            backend.probe()
            real = server.refusal
            server.refusal = lambda path, body: (
                (500, {"message": "it broke"})
                if "number 13" in json.dumps(body)
                else real(path, body)
            )
            answers = backend.next_token(chats(40), 5)
            assert list(answers.row_errors) == [13]
            assert "it broke, in 2 tries" in answers.row_errors[13]
            server.fault = lambda: "502"
            with pytest.raises(BackendError, match="in 2 tries"):
                backend.next_token(chats(40), 5)


class TestFirstRefusedRow:
    """Under ``on_row_error="raise"`` the first refused row stops the requests."""

    TEXTS = tuple(f"{word} film {i}" for i in range(100) for word in ("a lovely", "a dull"))
    LABELS = ("good", "bad") * 100

    def server(self):
        server = FaultServer()
        real = server.refusal
        server.refusal = lambda path, body: (
            (400, {"message": "not this one", "code": "content_filter"})
            if "film 3" in json.dumps(body)
            else real(path, body)
        )
        return server

    @pytest.mark.parametrize("prompts", [["{text} It was {mask}", "{text} A {mask}"], "auto"])
    def test_of_a_training(self, prompts):
        with self.server() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=4)
            backend.probe()
            server.bodies = []
            classifier = PromptBoostingClassifier(backend, prompts=prompts, random_state=0)
            with pytest.raises(RowError, match="not this one"):
                classifier.fit(self.TEXTS, self.LABELS)
            assert len(server.bodies) < 300  # of thousands

    def test_of_generated_prompts(self):
        with self.server() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=4)
            backend.probe()
            server.bodies = []
            classifier = PromptBoostingClassifier(backend, random_state=0)
            with pytest.raises(RowError, match="not this one"):
                classifier.generate_prompts(self.TEXTS, self.LABELS)
            assert len(server.bodies) < 300

    def test_of_draws(self):
        with self.server() as server:
            drawn = SamplingBackend(OpenAIBackend("lm", base_url=server.url), n_draws=2)
            drawn.backend.probe()
            server.bodies = []
            classifier = PromptBoostingClassifier(drawn, prompts=["{text} It was {mask}"])
            with pytest.raises(RowError, match="not this one"):
                classifier.fit(self.TEXTS, self.LABELS)
            assert len(server.bodies) < 40

    @pytest.mark.parametrize("early_stop", [None, "exact"])
    def test_of_a_prediction(self, early_stop, tmp_path):
        with FaultServer() as server:
            backend = OpenAIBackend("lm", base_url=server.url, max_concurrency=4)
            classifier = PromptBoostingClassifier(
                backend, prompts=["{text} It was {mask}", "{text} A {mask}"], random_state=0
            ).fit(self.TEXTS[:40], self.LABELS[:40])
            real = server.refusal
            server.refusal = lambda path, body: (
                (400, {"message": "not this one", "code": "content_filter"})
                if "film 10" in json.dumps(body)
                else real(path, body)
            )
            server.bodies = []
            classifier.set_params(early_stop=early_stop, store=tmp_path / "s")
            with pytest.raises(RowError, match="not this one") as caught:
                classifier.predict(self.TEXTS)
            assert set(caught.value.reasons) <= {20, 21}
            assert len(server.bodies) < 80  # of 200 and more
            # what was under way is paid for, and kept
            usage = classifier.set_params(on_row_error="abstain", abstain_label="?")
            usage.predict(self.TEXTS)
            assert usage.prediction_usage_.passes_from_store > 0
