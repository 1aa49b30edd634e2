"""The service's connections over raw sockets: slow and hostile clients, heads, bodies left over."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

import pytest

pytest.importorskip("fastapi", reason="the service needs the `serve` extra")

from blackbox.service.settings import Tokens
from blackbox.service.slow_clients import MAX_HEAD_BYTES
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
    """How often a part could be sent until the service ended the connection, of 10,000 times."""
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
