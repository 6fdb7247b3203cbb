"""Random exchanges over random splits: each client gets its own responses, byte for byte, in their
order, and the origin gets each request once, whoever else is talking."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator

import pytest
from http_sessions import BODIES, Message, Peer, Proxy, proxying, unframed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FRAMINGS = st.sampled_from(["none", "length", "chunked"])


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Message, Message]:
    request = Message(draw(FRAMINGS), draw(BODIES))
    response = Message(draw(st.sampled_from(["length", "chunked"])), draw(BODIES))
    return request, response


@st.composite
def scripts(draw: st.DrawFn) -> tuple[list[list[tuple[Message, Message]]], list[int]]:
    """Of each client, and the sizes of the pieces that anybody sends."""
    clients = draw(st.lists(st.lists(exchanges(), min_size=1, max_size=4), min_size=1, max_size=3))
    return clients, draw(st.lists(st.integers(1, 5000), min_size=1, max_size=8))


class Talker:
    """A socket of the script: sends in pieces, collects what comes."""

    def __init__(self, sock: socket.socket, pieces: list[int]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.pieces = pieces
        self.turn = 0
        self.out = b""
        self.got = b""
        self.messages: list[tuple[bytes, bytes]] = []

    def work(self, mask: int) -> bool:
        """False: the other side has closed."""
        if mask & selectors.EVENT_WRITE and self.out:
            size = self.pieces[self.turn % len(self.pieces)]
            self.turn += 1
            self.out = self.out[self.sock.send(self.out[:size]) :]
        if mask & selectors.EVENT_READ:
            chunk = self.sock.recv(1 << 16)
            if not chunk:
                return False
            self.got += chunk
            while (found := unframed(self.got)) is not None:
                head, body, self.got = found
                self.messages.append((head, body))
        return True


def play(
    proxy: Proxy,
    origins: list[Talker],
    script: list[list[tuple[Message, Message]]],
    pieces: list[int],
) -> None:
    """The origin answers a request by the name in its target: client and number. Its connections
    go on from script to script, in the proxy's pool."""
    clients = [Talker(proxy.client().sock, pieces) for _ in script]
    asked: list[tuple[int, int, bytes]] = []
    with selectors.DefaultSelector() as selector:
        proxy.origin.setblocking(False)
        selector.register(proxy.origin, selectors.EVENT_READ)
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        for i, talker in enumerate(clients):
            for j, (request, _) in enumerate(script[i]):
                start = b"PUT /%d/%d HTTP/1.1\r\nHost: example.org\r\n" % (i, j)
                talker.out += start + request.field + b"\r\n" + request.bytes
            selector.register(talker.sock, both, talker)
        for talker in origins:
            talker.pieces = pieces
            selector.register(talker.sock, selectors.EVENT_READ, talker)
        while any(len(c.messages) < len(script[i]) for i, c in enumerate(clients)):
            events = selector.select(30)
            assert events, "nothing happens any more"
            for key, mask in events:
                if key.data is None:
                    accepted = Peer(proxy.origin.accept()[0])
                    proxy.peers.append(accepted)
                    origins.append(Talker(accepted.sock, pieces))
                    selector.register(accepted.sock, both, origins[-1])
                    continue
                talker = key.data
                before = len(talker.messages)
                if not talker.work(mask):
                    assert talker in origins, "a client was closed"
                    selector.unregister(talker.sock)
                    origins.remove(talker)
                    continue
                for head, body in talker.messages[before:]:
                    if talker not in clients:
                        i, j = map(int, head.split(b" ")[1].split(b"/")[1:])
                        asked.append((i, j, body))
                        _, response = script[i][j]
                        talker.out += (
                            b"HTTP/1.1 200 OK\r\nX-For: %d/%d\r\n" % (i, j)
                            + response.field
                            + b"\r\n"
                            + response.bytes
                        )
                wanted = both if talker.out else selectors.EVENT_READ
                if talker.sock in selector.get_map():
                    selector.modify(talker.sock, wanted, talker)
            for talker in origins:
                if talker.out and talker.sock in selector.get_map():
                    selector.modify(talker.sock, both, talker)
    for i, talker in enumerate(clients):
        for j, (head, body) in enumerate(talker.messages):
            assert b"X-For: %d/%d" % (i, j) in head
            assert body == script[i][j][1].body
    wanted_requests = [
        (i, j, request.body) for i, one in enumerate(script) for j, (request, _) in enumerate(one)
    ]
    assert sorted(asked) == wanted_requests
    for talker in clients:
        talker.sock.close()


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Proxy, list[Talker]]]:
    with proxying() as proxy:
        yield proxy, []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts())
def test_everybody_gets_their_own(
    stage: tuple[Proxy, list[Talker]],
    script: tuple[list[list[tuple[Message, Message]]], list[int]],
) -> None:
    play(*stage, *script)
