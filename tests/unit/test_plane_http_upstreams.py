"""HTTP sessions of the data plane: which connection a request travels on."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_sessions import GET, Peer, Proxy, answer, proxying, wait_for

from lusca_comm import HttpLimits
from lusca_comm.http import Request

POST = b"POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 4\r\n\r\nbody"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxying() as proxy:
        yield proxy


def test_an_upstream_goes_from_client_to_client(proxy: Proxy) -> None:
    one, two = proxy.client(), proxy.client()
    upstream = proxy.exchange(one, number=1)
    one.close()
    wait_for(lambda: proxy.live == 1)
    proxy.exchange(two, upstream, number=2)
    wait_for(lambda: len(proxy.exchanges) == 2)
    assert [e.reused for e in proxy.exchanges] == [False, True]


@pytest.mark.parametrize(
    ("asks", "answers"),
    [
        (b"Authorization: Negotiate YII=\r\n", b""),
        (b"Authorization: NTLM TlRMTVNTUAAD\r\n", b""),
        (b"", b'WWW-Authenticate: Basic realm="x", NTLM TlRMTVNTUAAC\r\n'),
        (b"", b"WWW-Authenticate: Basic\r\nWWW-Authenticate: negotiate\r\n"),
    ],
)
def test_an_upstream_that_knows_its_client_is_nobody_elses(
    proxy: Proxy, asks: bytes, answers: bytes
) -> None:
    """NTLM and Negotiate authenticate the connection: whoever is next on it is the first client."""
    one, two = proxy.client(), proxy.client()
    one.send((GET % 1)[:-2] + asks + b"\r\n")
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer(b"1").replace(b"\r\n", b"\r\n" + answers, 1))
    assert one.response()[1] == b"1"
    proxy.exchange(one, upstream, number=2)  # it stays with its client
    one.close()
    assert upstream.ended()
    assert proxy.exchange(two, number=3) is not upstream


def test_other_credentials_are_of_a_request(proxy: Proxy) -> None:
    one, two = proxy.client(), proxy.client()
    one.send((GET % 1)[:-2] + b"Authorization: Basic eDp5\r\n\r\n")
    upstream = proxy.upstream()
    assert b"Basic eDp5" in upstream.head()
    upstream.send(answer())
    one.response()
    one.close()
    wait_for(lambda: proxy.live == 1)
    proxy.exchange(two, upstream, number=2)


def test_an_upstream_that_was_not_asked_did_not_answer(proxy: Proxy) -> None:
    client = proxy.client()
    upstream = proxy.exchange(client)
    client.send(b"BAD\r\n\r\n")
    assert client.response()[0].startswith(b"HTTP/1.1 400 ")
    wait_for(lambda: len(proxy.exchanges) == 2)
    assert [e.upstream for e in proxy.exchanges] == [proxy.to, None]
    assert upstream.ended()


def test_busy_upstreams_are_nobody_elses(proxy: Proxy) -> None:
    one, two = proxy.client(), proxy.client()
    one.send(GET % 1)
    first = proxy.upstream()
    assert first.head() == GET % 1
    second = proxy.exchange(two, number=2)
    assert not second.rest
    first.send(answer(b"1"))
    assert one.response()[1] == b"1"
    proxy.exchange(two, second, number=3)  # each client stays with its own


def test_another_mark_or_source_is_another_connection() -> None:
    def decide(requests: list[Request]) -> None:
        for request in requests:
            source = request.field("x-source")
            request.forward(proxy.to, source=(source.decode(), 0) if source else None)

    with proxying(decide=decide) as proxy:
        client = proxy.client()
        made: list[Peer] = []
        lines = [b""] + [b"X-Source: 127.0.0.%d\r\n" % i for i in (2, 3)]
        for line in lines:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n")
            made.append(proxy.upstream())
            made[-1].head()
            made[-1].send(answer())
            client.response()
        sources = [upstream.sock.getpeername()[0] for upstream in made]
        assert sources == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        client.close()
        wait_for(lambda: proxy.live == 0)
        # Each waits for whoever asks for the very same.
        client = proxy.client()
        for line, upstream in zip(lines, made, strict=True):
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n")
            upstream.head()
            upstream.send(answer())
            assert client.response()[1] == b"fine"


def test_an_upstream_that_closes_in_the_pool_is_forgotten(proxy: Proxy) -> None:
    client = proxy.client()
    upstream = proxy.exchange(client)
    client.close()
    wait_for(lambda: proxy.live == 0)
    upstream.close()
    proxy.exchange(proxy.client(), number=1)  # a new one


def test_an_upstream_that_says_something_in_the_pool_is_closed(proxy: Proxy) -> None:
    client = proxy.client()
    upstream = proxy.exchange(client)
    client.close()
    wait_for(lambda: proxy.live == 0)
    upstream.send(answer(b"poison"))
    assert upstream.all() == b""
    proxy.exchange(proxy.client(), number=1)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_used_upstream_that_dies_is_replaced_once(proxy: Proxy, how: str) -> None:
    client = proxy.client()
    upstream = proxy.exchange(client)
    client.send(GET % 1)
    upstream.head()
    getattr(upstream, how)()  # the race of every keep-alive connection
    fresh = proxy.upstream()
    assert fresh.head() == GET % 1
    fresh.close()
    assert client.response()[0].startswith(b"HTTP/1.1 502 ")
    assert [r.state for r in proxy.seen] == ["request", "request", "failed"]


def test_no_bytes_are_no_body(proxy: Proxy) -> None:
    client = proxy.client()
    upstream = proxy.exchange(client)
    client.send(b"DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    upstream.head()
    upstream.close()
    fresh = proxy.upstream()
    assert fresh.head().startswith(b"DELETE ")
    fresh.send(answer())
    assert client.response()[1] == b"fine"


def test_a_new_upstream_that_dies_is_not_replaced(proxy: Proxy) -> None:
    client = proxy.client()
    client.send(GET % 1)
    proxy.upstream().reset()
    assert client.response()[0].startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_after_a_byte_of_the_response_nothing_is_sent_again(proxy: Proxy, part: bytes) -> None:
    client = proxy.client()
    upstream = proxy.exchange(client)
    client.send(GET % 1)
    upstream.head()
    upstream.send(part)
    upstream.close()
    assert b"HTTP/1.1 502 " in client.all()


@pytest.mark.parametrize("method", [POST, b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_what_is_not_safe_is_not_sent_again_unasked(proxy: Proxy, method: bytes) -> None:
    client = proxy.client()
    upstream = proxy.exchange(client)
    client.send(method)
    upstream.head()
    upstream.close()
    assert client.response()[0].startswith(b"HTTP/1.1 502 ")
    assert proxy.seen[-1].failed == "response"


def test_python_may_send_it_again() -> None:
    """Body and all, as long as nothing of it went beyond recall."""

    def decide(requests: list[Request]) -> None:
        for request in requests:
            request.forward(proxy.to)

    with proxying(decide=decide) as proxy:
        client = proxy.client()
        upstream = proxy.exchange(client)
        client.send(POST)
        assert upstream.response()[1] == b"body"
        upstream.close()
        fresh = proxy.upstream()
        assert fresh.response()[1] == b"body"
        fresh.send(answer())
        assert client.response()[1] == b"fine"
        assert [r.state for r in proxy.seen] == ["request", "request", "failed"]


def test_what_is_beyond_recall_is_not_sent_again() -> None:
    """A body that was read on from the client is in no buffer any more."""

    def decide(requests: list[Request]) -> None:
        for request in requests:
            if request.failed == "connect":
                request.respond(answer(str(request.errno).encode()), close=True)
            else:
                request.forward(proxy.to)

    with proxying(decide=decide) as proxy:
        client = proxy.client()
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nbody")
        upstream = proxy.upstream()
        upstream.until(b"body")
        client.send(b"1")
        upstream.until(b"1")
        upstream.close()
        assert client.response()[1] == str(errno.ESPIPE).encode()
        assert client.ended()


def test_an_upstream_that_is_not_there(proxy: Proxy) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy.to = nobody.getsockname()
        client = proxy.client()
        client.send(GET % 1)
        assert client.response()[0].startswith(b"HTTP/1.1 502 ")
        assert (proxy.seen[-1].failed, proxy.seen[-1].errno) == ("connect", errno.ECONNREFUSED)
    assert proxy.plane.totals().failed == 1


def test_a_request_to_this_very_proxy_is_a_loop(proxy: Proxy) -> None:
    proxy.to = proxy.front.getsockname()
    client = proxy.client()
    client.send(GET % 1)
    assert client.response()[0].startswith(b"HTTP/1.1 502 ")
    assert (proxy.seen[-1].failed, proxy.seen[-1].errno) == ("connect", errno.ELOOP)
    assert proxy.plane.totals().looped == 1


def test_an_upstream_waits_for_its_time_only() -> None:
    with proxying(limits=HttpLimits(pool_idle=0.1)) as proxy:
        client = proxy.client()
        upstream = proxy.exchange(client)
        client.close()
        assert upstream.all() == b""
        proxy.exchange(proxy.client(), number=1)


def test_a_full_pool_lets_the_oldest_go() -> None:
    with proxying(limits=HttpLimits(pool_size=1)) as proxy:
        clients = [proxy.client() for _ in range(2)]
        first, second = (proxy.exchange(client) for client in clients)
        for client in clients:
            client.close()
            wait_for(lambda: proxy.live == len([c for c in clients if c.sock.fileno() >= 0]))
        assert first.all() == b""
        proxy.exchange(proxy.client(), second, number=1)


def test_out_of_descriptors_the_pool_gives_way(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        client = proxy.client()
        upstream = proxy.exchange(client)
        client.close()
        wait_for(lambda: proxy.live == 0)
        client = proxy.client()
        client.send((GET % 1)[:10])
        wait_for(lambda: proxy.live == 1)
        proxy.to = other.getsockname()
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        spare = [os.dup(0) for _ in range(8)]
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(highest, *spare) + 1, before[1]))
        try:
            fill = []
            while True:
                try:
                    fill.append(os.dup(0))
                except OSError:
                    break
            client.send((GET % 1)[10:])
            assert upstream.all() == b""  # it was closed for this
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for fd in fill + spare:
                os.close(fd)
        fresh = Peer(other.accept()[0])
        proxy.peers.append(fresh)
        assert fresh.head() == GET % 1
        fresh.send(answer())
        assert client.response()[1] == b"fine"
