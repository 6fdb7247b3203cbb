"""HTTP sessions of the data plane: exchanges, one after the other, on the loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_sessions import GET, Peer, Proxy, answer, proxying, wait_for


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxying() as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Peer]:
    client = proxy.client()
    yield client
    client.close()


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
    assert {e.status for e in proxy.exchanges} == {200}
    assert {e.upstream for e in proxy.exchanges} == {proxy.to}
    upstream.close()


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
    assert (request.method, request.target, request.version) == (
        b"POST",
        b"http://a.example/x",
        b"HTTP/1.1",
    )
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
    upstream.close()
