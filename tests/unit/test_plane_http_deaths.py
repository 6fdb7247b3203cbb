"""Whoever dies, after whichever byte: what was not sent to its end is not taken for whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_sessions import BODIES, Message, Peer, Proxy, proxying, unframed, wait_for
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import HttpLimits

ENDS = st.sampled_from(["close", "reset"])


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """Each client has an upstream of its own."""
    with proxying(limits=HttpLimits(pool_size=0)) as proxy:
        yield proxy


def seen(peer: Peer) -> tuple[bytes, bool]:
    """All that comes, and whether it came to its end in order."""
    got, peer.rest = peer.rest, b""
    try:
        while chunk := peer.sock.recv(1 << 16):
            got += chunk
    except ConnectionResetError:
        return got, False
    return got, True


@given(st.sampled_from(["length", "chunked"]), BODIES, st.data(), ENDS)
def test_of_a_response(
    proxy: Proxy, framing: str, body: bytes, data: st.DataObject, end: str
) -> None:
    message = Message(framing, body)
    whole = b"HTTP/1.1 200 OK\r\n" + message.field + b"\r\n" + message.bytes
    cut = data.draw(st.integers(0, len(whole)))
    client = proxy.client()
    client.send(b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n")
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(whole[:cut])
    if cut < len(whole) or end == "close":
        getattr(upstream, end)()
    got, in_order = seen(client)
    found = unframed(got)
    if cut == len(whole):
        assert found is not None
        assert (found[0][:15], found[1], in_order) == (b"HTTP/1.1 200 OK", message.body, True)
    elif found is not None:
        assert found[0].startswith(b"HTTP/1.1 502 ")
    else:
        assert not in_order
    client.close()
    wait_for(lambda: proxy.live == 0)


@given(st.sampled_from(["length", "chunked"]), BODIES, st.data(), ENDS)
def test_of_a_request(
    proxy: Proxy, framing: str, body: bytes, data: st.DataObject, end: str
) -> None:
    message = Message(framing, body)
    head = b"PUT / HTTP/1.1\r\nHost: example.org\r\n" + message.field + b"\r\n"
    cut = data.draw(st.integers(0, len(message.bytes)))
    client = proxy.client()
    client.send(head + message.bytes[:cut])
    upstream = proxy.upstream()
    if cut < len(message.bytes):
        upstream.head()
        getattr(client, end)()
        got, in_order = seen(upstream)
        assert unframed(head + got) is None
        assert not in_order
    else:
        while unframed(upstream.rest) is None:
            assert upstream._more()
        assert unframed(upstream.rest)[1] == message.body  # type: ignore[index]
        client.close()
    upstream.close()
    wait_for(lambda: proxy.live == 0)
