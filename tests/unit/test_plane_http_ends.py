"""HTTP sessions of the data plane: whoever goes away or stalls, wherever it is, ends what it must
and nothing else."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
from http_sessions import GET, Peer, Proxy, answer, proxying, wait_for

from lusca_comm import HttpLimits

POST = b"POST / HTTP/1.1\r\nHost: example.org\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxying() as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Peer:
    return proxy.client()


@pytest.fixture
def bystander(proxy: Proxy) -> Iterator[None]:
    """A session that must not notice anything."""
    client = proxy.client()
    client.send(GET % 100)
    upstream = proxy.upstream()
    upstream.head()
    yield
    upstream.send(answer(b"mine"))
    assert client.response()[1] == b"mine"
    client.close()


pytestmark = pytest.mark.usefixtures("bystander")


def failure(proxy: Proxy) -> tuple[str, str, int]:
    wait_for(lambda: proxy.seen[-1].state == "failed")
    request = proxy.seen[-1]
    return request.failed, request.method.decode(), request.errno


# -- the origin ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Le"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_origin_that_dies_before_its_head_is_whole(
    proxy: Proxy, client: Peer, sent: bytes, how: str
) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(sent)
    getattr(upstream, how)()
    assert client.response()[0].startswith(b"HTTP/1.1 502 ")
    assert failure(proxy) == ("response", "GET", errno.ECONNRESET)
    assert client.ended()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n",
    ],
)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_origin_that_dies_within_the_body(
    proxy: Proxy, client: Peer, head: bytes, how: str
) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(head + b"5\r\nhello\r\n")
    client.head()
    getattr(upstream, how)()
    assert client.was_reset()  # a part does not look like the whole
    wait_for(lambda: proxy.exchanges)
    assert proxy.exchanges[0].end == "reset"


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01" * 10,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_garbage_of_the_origin_reaches_nobody(proxy: Proxy, client: Peer, garbage: bytes) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(garbage)
    assert client.response()[0].startswith(b"HTTP/1.1 502 ")
    assert failure(proxy)[::2] == ("response", errno.EPROTO)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_exchange_that_breaks_off_costs_nothing_of_the_response_before_it(
    proxy: Proxy, client: Peer, method: str
) -> None:
    """The origin goes within its second response; the client within its second request."""
    size = 1_000_000
    second = GET % 2 if method == "GET" else POST + b"Content-Length: 9\r\n\r\nsome"
    client.send(GET % 1 + second)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer(bytes(size)))
    upstream.head()
    if method == "GET":
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
        upstream.close()
    else:
        client.sock.shutdown(socket.SHUT_WR)
    wait_for(lambda: len(proxy.exchanges) == 2)
    assert [exchange.end for exchange in proxy.exchanges] == ["eof", "reset"]
    assert client.response()[1] == bytes(size)
    rest = client.all()
    assert rest.endswith(b"\r\n\r\npart") if method == "GET" else rest == b""


def test_garbage_within_a_chunked_body_resets(proxy: Proxy, client: Peer) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n5\r\nhello\r\n")
    client.until(b"hello")
    upstream.send(b"zz\r\n")
    assert client.was_reset()


def test_what_is_beyond_a_response_is_nobodys(proxy: Proxy, client: Peer) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer() + answer(b"poison"))
    assert client.response()[1] == b"fine"
    client.send(GET % 2)
    fresh = proxy.upstream()  # the first one is not used again
    assert fresh.head() == GET % 2
    fresh.send(answer(b"good"))
    assert client.response()[1] == b"good"


def test_what_comes_between_responses_is_nobodys(proxy: Proxy, client: Peer) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer())
    client.response()
    upstream.send(answer(b"poison"))
    assert not upstream.all()
    client.send(GET % 2)
    fresh = proxy.upstream()
    fresh.head()
    fresh.send(answer(b"good"))
    assert client.response()[1] == b"good"


def test_an_origin_that_answers_and_resets(proxy: Proxy, client: Peer) -> None:
    """What it said before it broke is passed on."""
    client.send(POST + b"Content-Length: 10000000\r\n\r\n" + bytes(100))
    upstream = proxy.upstream()
    upstream.send(answer(b"too large"))
    upstream.close()  # with bytes unread: a reset
    assert client.response()[1] == b"too large"
    client.close()


# -- the client ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHo"])
def test_a_client_that_goes_before_its_head_is_whole(
    proxy: Proxy, client: Peer, sent: bytes, how: str
) -> None:
    client.send(sent)
    getattr(client, how)()
    wait_for(lambda: proxy.live == 1)
    assert len(proxy.seen) == 1  # the bystander's


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("framing", [b"Content-Length: 1000\r\n", CHUNKED])
def test_a_client_that_goes_within_its_body(
    proxy: Proxy, client: Peer, framing: bytes, how: str
) -> None:
    client.send(POST + framing + b"\r\n5\r\nhello\r\n")
    upstream = proxy.upstream()
    upstream.until(b"hello")
    getattr(client, how)()
    assert upstream.was_reset()
    wait_for(lambda: proxy.live == 1)


def test_a_client_that_resets_while_it_waits(proxy: Proxy, client: Peer) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    client.reset()
    assert upstream.was_reset()
    wait_for(lambda: proxy.live == 1)


def test_a_client_that_goes_within_the_response(proxy: Proxy, client: Peer) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + bytes(100_000))
    client.head()
    client.reset()
    assert upstream.was_reset()
    wait_for(lambda: proxy.live == 1)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 505),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000, 431),
        (POST + CHUNKED + b"Content-Length: 3\r\n\r\nabc", 400),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ],
)
def test_what_is_no_good_request_goes_nowhere(
    proxy: Proxy, client: Peer, sent: bytes, status: int
) -> None:
    client.send(sent)
    assert client.response()[0].startswith(b"HTTP/1.1 %d " % status)
    assert client.ended()
    assert (proxy.seen[-1].state, proxy.seen[-1].status) == ("refused", status)
    assert proxy.seen[-1].why


@pytest.mark.parametrize(
    ("sent", "state"),
    [(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2"), (b"\x16\x03\x01\x02\x00", "other")],
)
def test_what_is_no_http_1(proxy: Proxy, client: Peer, sent: bytes, state: str) -> None:
    client.send(sent)
    assert client.was_reset()
    assert proxy.seen[-1].state == state
    assert proxy.seen[-1].head == sent


@pytest.mark.parametrize(
    ("sent", "status"), [(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505), (b"\x16\x03\x01\x02\x00", 400)]
)
def test_what_is_no_http_1_behind_a_request_is_refused(
    proxy: Proxy, client: Peer, sent: bytes, status: int
) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer(b"one"))
    assert client.response()[1] == b"one"
    client.send(sent)
    assert client.response()[0].startswith(b"HTTP/1.1 %d " % status)
    assert client.ended()
    assert (proxy.seen[-1].state, proxy.seen[-1].status) == ("refused", status)


def test_a_bad_chunk_ends_the_request(proxy: Proxy, client: Peer) -> None:
    client.send(POST + CHUNKED + b"\r\n5\r\nhello\r\n")
    upstream = proxy.upstream()
    upstream.until(b"hello")
    client.send(b"zz\r\n")
    assert client.response()[0].startswith(b"HTTP/1.1 400 ")
    assert upstream.all() == b"\r\n"
    client.close()


# -- limits and times ------------------------------------------------------------------------------


def with_limits(limits: HttpLimits) -> Iterator[tuple[Proxy, Peer]]:
    with proxying(limits=limits) as proxy:
        yield proxy, proxy.client()


@pytest.fixture
def small() -> Iterator[tuple[Proxy, Peer]]:
    yield from with_limits(HttpLimits(body=100))


@pytest.fixture
def hasty(request: pytest.FixtureRequest) -> Iterator[tuple[Proxy, Peer]]:
    """One limit is short: the test has all the time it takes to come to where that one holds."""
    yield from with_limits(HttpLimits(**request.param))


def short(name: str, seconds: float = 0.2) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("hasty", [{name: seconds}], indirect=True, ids=[name])


def test_a_body_that_says_it_is_too_large(small: tuple[Proxy, Peer]) -> None:
    _, client = small
    client.send(POST + b"Content-Length: 101\r\n\r\n")
    assert client.response()[0].startswith(b"HTTP/1.1 413 ")
    assert client.ended()


def test_a_client_that_sends_all_of_it_first_still_reads_the_answer(
    small: tuple[Proxy, Peer],
) -> None:
    size = 32 << 20
    _, client = small
    client.send(POST + b"Content-Length: %d\r\n\r\n" % size)
    client.sock.sendall(bytes(size))
    assert client.response()[0].startswith(b"HTTP/1.1 413 ")
    assert client.ended()


def test_the_lines_of_chunks_are_no_part_of_a_body(small: tuple[Proxy, Peer]) -> None:
    proxy, client = small
    client.send(POST + CHUNKED + b"\r\n" + b"1\r\nx\r\n" * 90 + b"0\r\n\r\n")
    upstream = proxy.upstream()
    upstream.head()
    assert upstream.until(b"0\r\n\r\n").count(b"x") == 90
    upstream.send(answer())
    assert client.response()[1] == b"fine"


def test_a_body_that_becomes_too_large(small: tuple[Proxy, Peer]) -> None:
    proxy, client = small
    client.send(POST + CHUNKED + b"\r\n")
    proxy.upstream()
    for _ in range(30):
        client.send(b"a\r\n0123456789\r\n")
    assert client.response()[0].startswith(b"HTTP/1.1 413 ")
    client.close()


@short("head_time")
def test_silence_is_asked_about(hasty: tuple[Proxy, Peer]) -> None:
    proxy, client = hasty
    assert client.was_reset()
    assert [r.state for r in proxy.seen] == ["silent"]


@short("head_time", 2)
def test_a_slow_head(hasty: tuple[Proxy, Peer]) -> None:
    proxy, client = hasty
    client.send(b"GET / HT")
    assert client.response()[0].startswith(b"HTTP/1.1 408 ")
    assert client.ended()
    assert proxy.seen[0].head == b"GET / HT"


@short("idle_time")
def test_between_requests_the_end_is_silent(hasty: tuple[Proxy, Peer]) -> None:
    proxy, client = hasty
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer())
    client.response()
    assert client.ended()
    assert len(proxy.seen) == 1


@short("idle_time")
def test_an_empty_line_begins_no_request(hasty: tuple[Proxy, Peer]) -> None:
    proxy, client = hasty
    client.send(POST + b"Content-Length: 1\r\n\r\nx\r\n")
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer())
    client.response()
    assert client.ended()
    assert [r.state for r in proxy.seen] == ["request"]


@short("body_time")
def test_a_slow_body(hasty: tuple[Proxy, Peer]) -> None:
    proxy, client = hasty
    client.send(POST + b"Content-Length: 10\r\n\r\nabc")
    upstream = proxy.upstream()
    upstream.until(b"abc")
    assert client.response()[0].startswith(b"HTTP/1.1 408 ")
    assert upstream.all() == b""


@short("response_time")
def test_a_slow_origin(hasty: tuple[Proxy, Peer]) -> None:
    proxy, client = hasty
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    assert client.response()[0].startswith(b"HTTP/1.1 504 ")
    assert (proxy.seen[-1].failed, proxy.seen[-1].errno) == ("time", errno.ETIMEDOUT)


@short("body_time")
def test_an_origin_that_stalls(hasty: tuple[Proxy, Peer]) -> None:
    proxy, client = hasty
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    assert client.was_reset()
    wait_for(lambda: proxy.exchanges)
    assert proxy.exchanges[0].end == "idle"


# -- drain, kill, stop -----------------------------------------------------------------------------


def test_drain_lets_the_exchange_end() -> None:
    with proxying() as proxy:
        drained: list[int] = []
        proxy.plane.on_drained = lambda: drained.append(1)
        idle, busy = proxy.client(), proxy.client()
        for client in (idle, busy):
            client.send(GET % 1)
            upstream = proxy.upstream()
            upstream.head()
            if client is idle:
                upstream.send(answer())
                idle.response()
        proxy.plane.drain()
        assert idle.ended()
        assert not drained
        upstream.send(answer(b"last"))
        head, body = busy.response()
        assert (b"Connection: close\r\n" in head, body) == (True, b"last")
        assert busy.ended()
        wait_for(lambda: drained)


def test_kill_ends_one(proxy: Proxy, client: Peer) -> None:
    client.send(GET % 1)
    upstream = proxy.upstream()
    upstream.head()
    proxy.plane.kill_id(proxy.seen[-1].id)
    assert client.was_reset()
    assert upstream.was_reset()


def test_stop_ends_all() -> None:
    with proxying() as proxy:
        clients = [proxy.client() for _ in range(4)]
        clients[1].send(b"GET")
        clients[2].send(GET % 1)
        proxy.upstream().close()
        clients[3].send(POST + b"Content-Length: 10\r\n\r\nabc")
        upstream = proxy.upstream()
        upstream.until(b"abc")
        proxy.plane.stop()
        for client in clients[:2] + clients[3:]:
            assert client.was_reset()
        assert upstream.was_reset()
