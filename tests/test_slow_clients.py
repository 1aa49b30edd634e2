"""The service's connections over raw sockets: slow and hostile clients, heads, bodies left over."""

from __future__ import annotations

import inspect
import json
import re
import socket
import time
from contextlib import suppress

import pytest

pytest.importorskip("fastapi", reason="the service needs the `serve` extra")

from blackbox.service import slow_clients
from blackbox.service.request_heads import MAX_HEAD_BYTES
from blackbox.service.settings import Tokens
from tests.serving import Slow, running, served, train, wait_for

PATIENCE = 0.5
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def client(model):
    with running(served(model), read_timeout=PATIENCE) as one:
        yield one


def connected(client):
    one = socket.create_connection(("127.0.0.1", client.port))
    one.settimeout(10)
    return one


def rest(connection):
    """Everything until the service ends the connection; None if it stays open."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except TimeoutError:
        return None
    except ConnectionResetError:
        pass
    return b"".join(parts)


def flooded(connection, part):
    """Return how often, of 10,000, a part could be sent until the service ended the connection."""
    for number in range(10_000):
        try:
            connection.sendall(part)
        except OSError:
            return number
    return 10_000


def problem_in(answer):
    """Status, and the problem, of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    return int(head.split()[1]), json.loads(body)


class TestSlowRequests:
    @pytest.mark.parametrize(
        "begun", [b"", b"\r\n", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: "]
    )
    def test_a_head_that_never_comes_ends_the_connection(self, client, begun):
        with connected(client) as slow:
            slow.sendall(begun)
            assert rest(slow) == b""

    @pytest.mark.parametrize("begun", [b"\r\n", b"GET /healthz HT"])
    def test_so_does_one_after_a_request(self, client, begun):
        with connected(client) as slow:
            slow.sendall(HEALTH)
            slow.recv(4096)
            slow.sendall(begun)
            assert rest(slow) == b""

    def test_a_head_in_drops_is_given_no_more_time_for_each(self, client):
        started = time.monotonic()
        with connected(client) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\n")
            with suppress(OSError):  # which ends it
                while time.monotonic() < started + 20:
                    slow.sendall(b"X: 1\r\n")
                    time.sleep(PATIENCE / 5)
        assert time.monotonic() < started + 10

    def test_a_head_in_pieces_is_read(self, model):
        with running(served(model), read_timeout=2.0) as client, connected(client) as slow:
            for number in range(2):  # the second request on the same connection too
                for part in (b"GET /hea", b"lthz HTTP/1.1\r\nHo", b"st: localhost\r\n\r\n"):
                    slow.sendall(part)
                    time.sleep(0.1)
                assert slow.recv(4096).startswith(b"HTTP/1.1 200"), number

    def test_a_body_that_comes_too_slowly_or_breaks_off(self, client):
        with connected(client) as slow:
            slow.sendall(POST % 100 + b"{")
            assert problem_in(rest(slow))[0] == 408
        for _ in range(3):
            with connected(client) as broken:
                broken.sendall(POST % 100 + b"{")
        assert client.predict({"text": "match"})[0] == 200

    def test_an_answer_may_take_longer_than_a_head(self, model):
        with running(served(model, lm=Slow(1.5)), read_timeout=PATIENCE) as client:
            assert client.predict({"text": "match"})[0] == 200

    def test_part_of_the_next_request_takes_nothing_from_the_answer_to_this(self, model):
        body = b'{"text":"match"}'
        with running(served(model, lm=Slow(1.0)), read_timeout=PATIENCE) as client:
            with connected(client) as eager:
                eager.sendall(POST % len(body) + body + HEALTH[:9])
                assert eager.recv(4096).startswith(b"HTTP/1.1 200")
                eager.sendall(HEALTH[9:])
                assert eager.recv(4096).startswith(b"HTTP/1.1 200")
            with connected(client) as wrong:
                wrong.sendall(POST % len(body) + body + b"NONSENSE\r\n\r\n")
                assert rest(wrong).startswith(b"HTTP/1.1 200")


class TestHeads:
    @pytest.mark.parametrize("between", [b"", b"\r\nX: "])
    def test_a_flood_of_headers_is_refused_and_the_connection_ended(self, client, between):
        with connected(client) as flood:
            flood.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
            assert flooded(flood, (b"a" * 1000 + between) * 8) < 10_000

    def test_a_head_that_is_a_little_too_large_gets_a_problem(self, client):
        for size, status in ((MAX_HEAD_BYTES - 200, 200), (MAX_HEAD_BYTES, 431)):
            with connected(client) as large:
                large.sendall(HEALTH[:-2] + b"X: " + b"a" * size + b"\r\n\r\n")
                answer = large.recv(1 << 16)
                assert int(answer.split()[1]) == status
        assert problem_in(answer)[1]["detail"] == "the head of a request has at most 16384 bytes"

    def test_a_flood_of_trailers_is_cut_off(self, client):
        with connected(client) as flood:
            flood.sendall(
                POST.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
                + b"2\r\n{}\r\n0\r\nX: "
            )
            assert flooded(flood, b"a" * 8000) < 10_000

    def test_two_host_headers_are_refused(self, client):
        for second in (b"localhost", b"example.org"):
            with connected(client) as twice:
                twice.sendall(HEALTH[:-2] + b"Host: " + second + b"\r\n\r\n")
                status, problem = problem_in(twice.recv(4096))
                assert status == 400
                assert problem["detail"] == "a request has one Host header"

    def test_what_is_no_http_is_told_as_a_problem(self, client):
        with connected(client) as wrong:
            wrong.sendall(b"NONSENSE\r\n\r\n")
            status, problem = problem_in(rest(wrong))
            assert status == problem["status"] == 400


GET = b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\n"
TOKEN = b"Authorization: Bearer one\r\n"
CHUNKED = POST.replace(b"Content-Length: %d\r\n\r\n", b"Transfer-Encoding: chunked\r\n")
BODY = b'{"text":"match"}'
CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)


def answered(client, *parts):
    """Send parts and return the raw answer."""
    with connected(client) as one:
        for part in parts:
            one.sendall(part)
            time.sleep(0.05 if len(parts) > 1 else 0)
        return one.recv(1 << 16)


def status_of(answer):
    return int(answer.split()[1])


@pytest.fixture(scope="module")
def guarded(model):
    with running(served(model), tokens=Tokens(["one"]), read_timeout=5.0) as one:
        yield one


class TestTrailers:
    """Trailers after a body are no part of the head, in one segment or in several."""

    @pytest.mark.parametrize("split", [False, True])
    @pytest.mark.parametrize(
        ("head", "trailer", "status"),
        [
            (b"", TOKEN, 401),
            (TOKEN, b"", 200),
            (TOKEN, b"Host: example.org\r\n", 200),
            (TOKEN, b"Content-Type: text/plain\r\n", 200),
        ],
    )
    def test_a_trailer_changes_nothing(self, guarded, head, trailer, status, split):
        parts = [CHUNKED + head + b"\r\n", CHUNKS + trailer + b"\r\n"]
        answer = answered(guarded, *(parts if split else [b"".join(parts)]))
        assert status_of(answer) == status

    def test_a_host_in_the_trailer_is_no_host(self, guarded):
        for host, status in ((b"example.org", 421), (b"localhost", 200)):
            head = CHUNKED.replace(b"localhost", host) + TOKEN + b"\r\n"
            answer = answered(guarded, head + CHUNKS + b"Host: localhost\r\n\r\n")
            assert status_of(answer) == status


class TestAmbiguousHeads:
    @pytest.mark.parametrize(
        "coding",
        [b"gzip, chunked", b"x\r\nTransfer-Encoding: chunked", b"gzip", b"xchunked", b"identity"],
    )
    def test_an_unknown_transfer_coding_is_refused(self, guarded, coding):
        head = CHUNKED.replace(b"chunked", coding) + TOKEN + b"\r\n"
        status, problem = problem_in(answered(guarded, head + CHUNKS + b"\r\n"))
        assert status == 501
        assert problem["detail"] == "the only transfer coding here is chunked: send no other"

    def test_the_known_coding_has_no_case(self, guarded):
        head = CHUNKED.replace(b"chunked", b"ChunKed") + TOKEN + b"\r\n"
        assert status_of(answered(guarded, head + CHUNKS + b"\r\n")) == 200

    @pytest.mark.parametrize(
        "length",
        [
            b"Content-Length: 5",
            b"Content-Length: 16\r\nContent-Length: 16",
            b"Content-Length: 16, 16",
            b"Content-Length: +16",
            b"Content-Length : 16",
            b"Content-Length: 99999999999999999999",
        ],
    )
    def test_a_length_that_can_be_read_in_two_ways_is_refused(self, guarded, length):
        chunked = [CHUNKED + TOKEN + length + b"\r\n\r\n" + CHUNKS + b"\r\n"]
        plain = [GET.replace(b"GET", b"POST") + TOKEN + length + b"\r\n\r\n" + BODY]
        for request in chunked if length == b"Content-Length: 5" else plain:
            assert problem_in(answered(guarded, request))[0] == 400

    @pytest.mark.parametrize("name", ["Host", "Authorization", "Content-Type"])
    def test_a_header_that_matters_occurs_once(self, guarded, name):
        known = {"Host": b"localhost", "Authorization": b"Bearer one", "Content-Type": b"a/b"}
        twice = b"".join(b"%b: %b\r\n" % (name.encode(), value) for value in (known[name], b"x"))
        head = b"GET /v1/model HTTP/1.1\r\n" + twice + b"\r\n"
        status, problem = problem_in(answered(guarded, head))
        assert (status, problem["detail"]) == (400, f"a request has one {name} header")

    @pytest.mark.parametrize(
        ("target", "host", "status"),
        [
            (b"http://localhost/healthz", b"localhost", 200),
            (b"http://example.org/healthz", b"localhost", 400),
            (b"http://localhost/healthz", b"example.org", 400),
            (b"http://localhost@example.org/healthz", b"localhost", 400),
            (b"http://example.org/healthz", b"example.org", 200),
            (b"http://example.org/v1/model", b"example.org", 421),
        ],
    )
    def test_a_target_in_absolute_form_names_the_host_of_the_header(
        self, guarded, target, host, status
    ):
        head = b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host)
        assert status_of(answered(guarded, head)) == status

    def test_a_version_that_is_not_served_is_refused(self, guarded):
        for version in (b"HTTP/2.0", b"HTTP/0.9"):
            assert problem_in(answered(guarded, HEALTH.replace(b"HTTP/1.1", version)))[0] == 505
        head = CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + TOKEN + b"\r\n"
        assert problem_in(answered(guarded, head + CHUNKS + b"\r\n"))[0] == 400

    def test_many_small_headers_are_a_large_head(self, guarded):
        for number, status in ((200, 200), (5000, 431)):
            head = HEALTH[:-2] + b"a:\r\n" * number + b"\r\n"
            assert status_of(answered(guarded, head)) == status

    def test_a_body_that_is_no_chunk_is_refused_at_once(self, guarded):
        started = time.monotonic()
        for size in (b"-1", b"0x10", b"FFFFFFFFFFFFFFFFFF"):
            head = CHUNKED + TOKEN + b"\r\n"
            assert problem_in(answered(guarded, head, size + b"\r\n" + BODY))[0] == 400
        assert time.monotonic() < started + 4

    def test_nothing_after_an_upgrade_is_read_as_a_request(self, guarded):
        upgrade = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
        head = POST.replace(b"\r\n\r\n", b"\r\n") % len(HEALTH) + TOKEN + upgrade + b"\r\n"
        with connected(guarded) as one:
            one.sendall(head)
            time.sleep(0.05)
            with suppress(OSError):
                one.sendall(HEALTH)
            assert problem_in(rest(one))[0] == 501
        with connected(guarded) as one:
            one.sendall(HEALTH[:-2] + upgrade + b"\r\n")
            answer = rest(one)
            assert status_of(answer) == 200
            assert b"connection: close" in answer


class TestWebServer:
    """The parts of uvicorn that the protocol is built on, all of them public names."""

    def test_no_private_name_of_the_web_server_is_used(self):
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        ours = slow_clients._TimeoutProtocol
        private = {name for name in vars(ours) if re.fullmatch(r"_[a-z]\w*", name)}
        used = set(re.findall(r"(?:self|super\(\))\.(_[a-z]\w*)", inspect.getsource(ours)))
        assert used <= private
        theirs = inspect.getsource(HttpToolsProtocol)
        assert not {name for name in private if re.search(rf"\b{name}\b", theirs)}

    def test_what_is_overridden_is_there_and_takes_the_same(self):
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        ours = slow_clients._TimeoutProtocol
        # ours, and the parser's own callback, which uvicorn doesn't have
        own = {"timeout", "on_unreadable", "on_chunk_header"}
        methods = {n for n in vars(ours) if not n.startswith("_")} - own
        assert len(methods) == 13
        for name in methods:
            theirs = inspect.signature(getattr(HttpToolsProtocol, name)).parameters
            assert list(inspect.signature(getattr(ours, name)).parameters) == list(theirs), name

    def test_the_attributes_that_are_read_are_there(self, client):
        with connected(client) as one:
            one.sendall(HEALTH)
            one.recv(4096)
            (connection,) = client.server.server_state.connections
            assert connection.headers[0] == (b"host", b"localhost")
            assert connection.url == b"/healthz"
            wait_for(lambda: connection.cycle.response_complete)
            assert connection.cycle.response_started
            assert not connection.cycle.more_body
            assert connection.cycle.keep_alive
            assert not connection.pipeline
            assert connection.timeout_keep_alive > 0
            assert not connection.parser.should_upgrade()
            assert not connection.flow.write_paused


class TestBodiesLeftOver:
    @pytest.mark.parametrize("sent", [b"{", b"{" * 70_000])
    def test_a_refusal_before_the_body_ends_the_connection(self, model, sent):
        with running(served(model), tokens=Tokens(["one"])) as client, connected(client) as left:
            left.sendall(POST % 10**12 + sent)
            answer = left.recv(1 << 16)
            assert b"connection: close" in answer
            assert problem_in(answer)[0] == 401
            left.sendall(b"{")
            assert rest(left) == b""

    def test_a_body_that_comes_after_the_refusal_does_not_take_it_away(self, model):
        with running(served(model), tokens=Tokens(["one"])) as client, connected(client) as late:
            late.sendall(POST % 50_000)
            time.sleep(0.2)
            late.sendall(b"{" * 50_000)
            assert problem_in(rest(late))[0] == 401


class TestSlowReaders:
    def test_an_answer_that_nobody_reads_is_not_held(self, model):
        body = json.dumps({"texts": ["match goal"] * 16, "explain": True}).encode()
        with (
            running(served(model), read_timeout=PATIENCE) as client,
            socket.socket() as deaf,
        ):
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", client.port))
            deaf.sendall(POST % len(body) + body)
            connections = client.server.server_state.connections
            wait_for(lambda: any(one.flow.write_paused for one in connections))
            wait_for(lambda: not connections, seconds=10)

    def test_one_who_reads_slowly_but_steadily_gets_it_all(self, model):
        body = json.dumps({"texts": ["match goal"] * 16, "explain": True}).encode()
        with running(served(model), read_timeout=1.0) as client, connected(client) as slow:
            slow.sendall(POST % len(body) + body)
            answer = slow.recv(4096)
            length = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
            size = len(answer.partition(b"\r\n\r\n")[2])
            while size < length:
                part = slow.recv(1 << 20)
                assert part
                size += len(part)
                time.sleep(0.02)


class TestClientsThatLeave:
    def test_their_texts_do_not_wait(self, model):
        body = json.dumps({"texts": [f"match {number}" for number in range(250)]}).encode()
        with running(served(model, lm=Slow(2.0)), passes_per_minute=10_000) as client:
            service = client.service
            for _ in range(4):
                with connected(client) as leaving:
                    leaving.sendall(POST % len(body) + body)
                    time.sleep(0.05)
            wait_for(lambda: service._batchers["m"].n_waiting == 0, seconds=1.5)
            wait_for(lambda: service._passes._reserved == 0, seconds=10)
            page = client.get("/metrics")[2]
            assert 'blackbox_requests_total{route="/v1/predict",status="499"} 4.0' in page
            assert client.predict({"text": "match"})[0] == 200

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            (
                "/v2/models/m/infer",
                {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["bank"]}]},
            ),
            (
                "/v1/decisions",
                {
                    "model": "m",
                    "input": "bank",
                    "questions": [{"type": "predicate", "instructions": "sport"}],
                },
            ),
        ],
    )
    def test_so_on_every_route(self, model, path, body):
        data = json.dumps(body).encode()
        post = (POST % len(data)).replace(b"/v1/predict", path.encode()) + data
        first = b'{"text":"match"}'
        with running(served(model, lm=Slow(2.0))) as client, connected(client) as patient:
            batcher = client.service._batchers["m"]
            patient.sendall(POST % len(first) + first)
            wait_for(lambda: batcher.seconds_at_work)
            with connected(client) as leaving:
                leaving.sendall(post)
                wait_for(lambda: batcher.n_waiting == 1)
            wait_for(lambda: batcher.n_waiting == 0, seconds=1)
            assert patient.recv(4096).startswith(b"HTTP/1.1 200")
