"""HTTP sessions of the data plane: one exchange after the other, each framed as it says."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest
from http_sessions import GET, Peer, Proxy, answer, proxying, wait_for

from lusca_comm import HttpLimits

CHUNKED = b"Transfer-Encoding: chunked\r\n"
POST = b"POST / HTTP/1.1\r\nHost: example.org\r\n"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxying() as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Peer:
    return proxy.client()


@pytest.fixture
def upstream(proxy: Proxy, client: Peer) -> Peer:
    """The origin's side of the client's session, after one exchange."""
    client.send(GET % 0)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer())
    client.response()
    return upstream


def test_both_connections_are_kept(proxy: Proxy, client: Peer) -> None:
    client.send(GET % 0)
    upstream = proxy.upstream()
    for i in range(3):
        if i > 0:
            client.send(GET % i)
        assert upstream.head() == GET % i
        upstream.send(answer(b"body %d" % i))
        head, body = client.response()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Via: 1.1 lusca_comm\r\n" in head
        assert body == b"body %d" % i
    wait_for(lambda: len(proxy.exchanges) == 3)
    assert [e.reused for e in proxy.exchanges] == [False, True, True]
    assert [e.start for e in proxy.exchanges] == [b"GET /%d HTTP/1.1" % i for i in range(3)]
    assert {(e.status, e.end, e.upstream) for e in proxy.exchanges} == {(200, "eof", proxy.to)}
    assert {e.peer for e in proxy.exchanges} == {client.sock.getsockname()}
    assert proxy.plane.totals().requests == 3


def test_what_python_sees(proxy: Proxy, client: Peer) -> None:
    client.send(
        b"POST http://a.example/x HTTP/1.1\r\nhost:  a.example \r\nX: 1\r\nx: 2\r\n"
        b"Content-Length: 3\r\n\r\nabc"
    )
    upstream = proxy.upstream()
    head, body = upstream.response()
    assert body == b"abc"
    assert head.startswith(b"POST http://a.example/x HTTP/1.1\r\n")
    (request,) = proxy.seen
    assert (request.method, request.target) == (b"POST", b"http://a.example/x")
    assert request.version == b"HTTP/1.1"
    assert request.head.endswith(b"Content-Length: 3\r\n\r\n")
    assert request.field("host") == request.field("Host") == b"a.example"
    assert request.field("absent") is None
    assert request.fields("x") == [b"1", b"2"]
    assert (request.length, request.state, request.form) == (3, "request", "absolute")
    assert request.authority == b"a.example"
    assert request.peer == client.sock.getsockname()
    assert (request.original, request.engine) == (None, "")
    assert (request.expect, request.upgrade, request.connect) == (False, False, False)
    upstream.send(answer())
    assert client.response()[1] == b"fine"


def test_pipelined_requests_are_answered_in_order(
    proxy: Proxy, client: Peer, upstream: Peer
) -> None:
    client.send(b"".join(GET % i for i in range(1, 6)))
    for i in range(1, 6):
        assert upstream.head() == GET % i
        assert not upstream.rest  # the next one waits for this one's response
        upstream.send(answer(b"%d" % i))
    for i in range(1, 6):
        assert client.response()[1] == b"%d" % i


def test_a_head_in_single_bytes(client: Peer, upstream: Peer) -> None:
    for i in range(len(GET % 7)):
        client.send((GET % 7)[i : i + 1])
    assert upstream.head() == GET % 7
    for i in range(len(answer())):
        upstream.send(answer()[i : i + 1])
    assert client.response()[1] == b"fine"


@pytest.mark.parametrize("size", [0, 1, 8192, 100_000, 3_000_000])
def test_bodies_by_length(client: Peer, upstream: Peer, size: int) -> None:
    up, down = os.urandom(size), os.urandom(size)
    message = POST + b"Content-Length: %d\r\n\r\n" % size + up
    sender = threading.Thread(target=client.send, args=(message + GET % 9,))
    sender.start()
    head, body = upstream.response()
    sender.join()
    assert hashlib.sha256(body).digest() == hashlib.sha256(up).digest()
    assert b"Content-Length: %d\r\n" % size in head
    sender = threading.Thread(target=upstream.send, args=(answer(down),))
    sender.start()
    assert hashlib.sha256(client.response()[1]).digest() == hashlib.sha256(down).digest()
    sender.join()
    assert upstream.head() == GET % 9  # what was behind the body is the next request
    upstream.send(answer(b"next"))
    assert client.response()[1] == b"next"


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_chunked_bodies(client: Peer, upstream: Peer, step: int) -> None:
    data = b"5\r\nhello\r\nbb8\r\n%s\r\n0\r\n" % (b"x" * 3000)
    body = data + b"X-Sum: 1\r\n\r\n"

    def pieces(message: bytes) -> list[bytes]:
        return [message[at : at + step] for at in range(0, len(message), step)]

    for piece in pieces(POST + CHUNKED + b"\r\n" + body + GET % 9):
        client.send(piece)
    assert CHUNKED in upstream.head()
    assert upstream.exactly(len(data)) == data
    assert upstream.head().lower().startswith(b"x-sum:")
    for piece in pieces(b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n" + body):
        upstream.send(piece)
    assert CHUNKED in client.head()
    assert client.exactly(len(data)) == data
    assert client.head().lower().startswith(b"x-sum:")
    assert upstream.head() == GET % 9
    upstream.send(answer(b"next"))
    assert client.response()[1] == b"next"


def test_a_body_until_the_end(proxy: Proxy, client: Peer, upstream: Peer) -> None:
    client.send(GET % 1)
    upstream.head()
    upstream.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"y" * 100_000)
    upstream.close()
    assert b"Connection: close\r\n" in client.head()
    assert client.all() == b"y" * 100_000
    wait_for(lambda: len(proxy.exchanges) == 2)
    assert proxy.exchanges[1].end == "eof"


@pytest.mark.parametrize(
    ("method", "response"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n"),
    ],
)
def test_responses_without_a_body(
    client: Peer, upstream: Peer, method: bytes, response: bytes
) -> None:
    for _ in range(2):
        client.send(method + (GET % 1)[3:])
        upstream.head()
        upstream.send(response)
        assert client.head().startswith(response[:15])
    client.send(GET % 2)
    assert upstream.head() == GET % 2
    upstream.send(answer())
    assert client.response()[1] == b"fine"


def test_interim_responses_go_along(client: Peer, upstream: Peer) -> None:
    client.send(GET % 1)
    upstream.head()
    upstream.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
    hints = client.head()
    assert hints.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n")
    assert b"\r\nVia: 1.1 lusca_comm\r\n" in hints
    assert client.head().startswith(b"HTTP/1.1 102 ")
    upstream.send(answer())
    assert client.response()[1] == b"fine"


def test_an_expectation_streams(client: Peer, upstream: Peer, proxy: Proxy) -> None:
    client.send(POST + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n")
    assert b"100-continue" in upstream.head()
    assert proxy.seen[-1].expect
    upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert client.head().startswith(b"HTTP/1.1 100 Continue\r\n")
    client.send(b"body")
    assert upstream.exactly(4) == b"body"
    upstream.send(answer())
    assert client.response()[1] == b"fine"
    client.send(GET % 2)
    assert upstream.head() == GET % 2
    upstream.send(answer())
    client.response()


def test_whose_turn_it_is_after_an_expectation() -> None:
    """The client's once it was told to go on; until then the origin is late."""
    for told, status, origins in ((b"", 504, 0.4), (b"103 Hints", 504, 0.4), (b"100 Yes", 408, 60)):
        with proxying(limits=HttpLimits(body_time=0.2, response_time=origins)) as proxy:
            client = proxy.client()
            client.send(POST + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            upstream = proxy.upstream()
            upstream.head()
            if told:
                upstream.send(b"HTTP/1.1 %s\r\n\r\n" % told)
                client.head()
            assert client.head().startswith(b"HTTP/1.1 %d " % status)


def test_an_early_response_ends_both(proxy: Proxy, client: Peer, upstream: Peer) -> None:
    client.send(POST + b"Content-Length: 1000\r\n\r\nsome")
    upstream.head()
    upstream.send(answer(b"enough"))
    head, body = client.response()
    assert body == b"enough"
    assert b"Connection: close\r\n" in head  # so that the client asks for nothing more here
    client.send(
        b"GET /smuggled HTTP/1.1\r\nHost: example.org\r\n\r\n"
    )  # it is body, whatever it says
    assert client.ended()
    assert b"smuggled" not in upstream.all()
    assert len(proxy.seen) == 2


def test_an_expectation_that_is_not_met_ends_both(client: Peer, upstream: Peer) -> None:
    client.send(POST + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n")
    upstream.head()
    upstream.send(b"HTTP/1.1 417 no\r\nContent-Length: 0\r\n\r\n")
    assert b"Connection: close\r\n" in client.head()
    assert client.ended()


def test_http_1_0_is_closed_or_kept_as_it_asks(proxy: Proxy) -> None:
    client = proxy.client()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    upstream = proxy.upstream()
    assert upstream.head().startswith(b"GET / HTTP/1.0\r\n")
    upstream.send(answer())
    assert client.response()[1] == b"fine"
    assert client.ended()
    client.close()
    upstream.close()
    client = proxy.client()
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer())
    assert b"Connection: keep-alive\r\n" in client.response()[0]
    client.close()


def test_a_client_that_closes_is_closed(client: Peer, upstream: Peer) -> None:
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"close" not in upstream.head()  # that was about the client's hop
    upstream.send(answer())
    assert b"Connection: close\r\n" in client.response()[0]
    assert client.ended()


def test_a_half_closed_client_gets_its_response(client: Peer, upstream: Peer) -> None:
    client.send(GET % 1)
    client.sock.shutdown(1)
    upstream.head()
    upstream.send(answer())
    assert client.response()[1] == b"fine"
    assert client.ended()


@pytest.mark.parametrize("late", [b"\r\n", GET % 2])
def test_what_comes_behind_the_last_request_costs_nothing_of_its_response(
    proxy: Proxy, client: Peer, upstream: Peer, late: bytes
) -> None:
    """Closed at once, the connection would be reset by it, and what was not read would be lost."""
    size = 1_000_000
    client.send(GET % 1)
    upstream.head()
    upstream.send(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(size))
    upstream.close()
    wait_for(lambda: len(proxy.exchanges) == 2)  # all of it is the kernel's
    client.send(late)
    client.head()
    assert len(client.all()) == size
    client.close()
    wait_for(lambda: proxy.live == 0)


def test_a_response_without_a_date_gets_one(client: Peer, upstream: Peer) -> None:
    client.send(GET % 1)
    upstream.head()
    began = int(time.time())
    upstream.send(answer())
    (date,) = re.findall(rb"\r\nDate: (.*)\r\n", client.response()[0])
    assert began <= parsedate_to_datetime(str(date, "ascii")).timestamp() <= time.time()
    client.send(GET % 2)
    upstream.head()
    upstream.send(b"HTTP/1.1 204 No\r\ndate: once\r\n\r\n")
    assert re.findall(rb"(?i)\r\nDate: (.*)\r\n", client.head()) == [b"once"]


def test_what_connection_names_is_no_trailer_either(client: Peer, upstream: Peer) -> None:
    body = b"Connection: X-A\r\n" + CHUNKED + b"\r\n1\r\nx\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n"
    client.send(POST + body)
    upstream.head()
    assert upstream.until(b"0\r\n\r\n") == b"1\r\nx\r\n0\r\n\r\n"
    upstream.send(b"HTTP/1.1 200 OK\r\n" + body)
    client.head()
    assert client.until(b"0\r\n\r\n") == b"1\r\nx\r\n0\r\n\r\n"


def test_a_slow_reader_stops_the_origin(client: Peer, upstream: Peer) -> None:
    """Backpressure: what the client has not read is not read of the origin for ever either."""
    size = 40_000_000
    client.send(GET % 1)
    upstream.head()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    upstream.sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while select.select([], [upstream.sock], [], 0.3)[1]:
            sent += upstream.sock.send(bytes(min(1 << 20, size - sent)))
    assert 0 < sent < size
    upstream.sock.settimeout(30)
    sender = threading.Thread(target=upstream.send, args=(bytes(size - sent),))
    sender.start()
    client.head()
    got = len(client.rest)
    while got < size:
        got += len(client.sock.recv(1 << 20))
    sender.join()
    client.rest = b""
