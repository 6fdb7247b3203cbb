"""relay() of a reactor over its data plane: ownership, close handlers, what is queued, fork."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from planes import DEADLINE, connection, fork, open_files, receive

import lusca_comm as lc
from lusca_comm import CommError, Reactor, RelayResult


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    raised: list[BaseException] = []
    reactor.exception_hook = lambda why, where: raised.append(why)
    yield reactor
    reactor.plane.stop()
    reactor.close()
    assert raised == []


class Pair:
    def __init__(self) -> None:
        self.client, self.near = connection()
        self.upstream, self.far = connection()
        self.results: list[RelayResult] = []

    def start(self, reactor: Reactor, **options: Any) -> lc.Relay:
        return reactor.relay(self.near, self.far, self.results.append, **options)

    def close(self) -> None:
        for sock in (self.client, self.near, self.upstream, self.far):
            sock.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def turn_until(reactor: Reactor, condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        reactor.comm_select(50)


def test_the_sockets_are_the_planes(reactor: Reactor, pair: Pair) -> None:
    relay = pair.start(reactor, data=7)
    assert (pair.near.fileno(), pair.far.fileno()) == (-1, -1)
    assert len(reactor.table) == 0
    pair.client.sendall(b"up")
    reactor.comm_select(0)
    assert receive(pair.upstream, 2) == b"up"
    turn_until(reactor, lambda: (relay.up, relay.down) == (2, 0))  # counted after it was sent
    pair.client.close()
    pair.upstream.close()
    turn_until(reactor, lambda: pair.results)
    assert pair.results[0][:2] == (2, 0)
    assert (pair.results[0].end, pair.results[0].data) == ("eof", 7)


def test_on_done_is_never_called_at_once(reactor: Reactor, pair: Pair) -> None:
    relay = pair.start(reactor)
    relay.kill()
    assert not pair.results
    turn_until(reactor, lambda: pair.results)
    assert pair.results[0].end == "killed"


@pytest.mark.parametrize("call", ["comm_close", "comm_reset_close", "comm_lingering_close"])
@pytest.mark.parametrize("by", ["object", "number"])
@pytest.mark.parametrize("handed_over", [False, True])
def test_closing_kills(reactor: Reactor, pair: Pair, call: str, by: str, handed_over: bool) -> None:
    number = pair.near.fileno()
    pair.start(reactor)
    if handed_over:
        reactor.comm_select(0)
    getattr(reactor, call)(pair.near if by == "object" else number)
    turn_until(reactor, lambda: pair.results)
    assert pair.results[0].end == "killed"
    with pytest.raises(ConnectionResetError):
        pair.client.recv(1)
    reactor.comm_close(pair.near)  # idempotent


def test_busy(reactor: Reactor, pair: Pair) -> None:
    number = pair.near.fileno()
    pair.start(reactor)
    for thing in (pair.near, number):
        with pytest.raises(CommError) as again:
            reactor.relay(thing, pair.far, print)
        assert again.value.errno == errno.EBUSY
        with pytest.raises(CommError) as select:
            reactor.comm_set_select(thing, lc.COMM_SELECT_READ, print)
        assert select.value.errno == errno.EBUSY


def test_close_handlers_run_before_on_done(reactor: Reactor, pair: Pair) -> None:
    order: list[Any] = []
    reactor.comm_add_close_handler(pair.near, lambda s, d: order.append((s is pair.near, d)), 1)
    relay = reactor.relay(pair.near, pair.far, lambda result: order.append(result.end))
    reactor.comm_add_close_handler(pair.near, lambda s, d: order.append((s is pair.near, d)), 2)
    reactor.comm_add_close_handler(pair.far, lambda s, d: order.append((s is pair.far, d)), 3)
    reactor.comm_select(0)
    relay.kill()
    turn_until(reactor, lambda: len(order) == 4)
    assert order[3] == "killed"
    assert sorted(order[:3]) == [(True, 1), (True, 2), (True, 3)]
    assert order.index((True, 2)) < order.index((True, 1))  # last in, first out


def test_a_limit_gives_the_very_objects_back(reactor: Reactor, pair: Pair) -> None:
    closed: list[Any] = []
    reactor.comm_fdopen(pair.near, note="client")
    reactor.comm_add_close_handler(pair.near, lambda s, d: closed.append(s))
    pair.start(reactor, limit_up=3)
    pair.client.sendall(b"123456")
    turn_until(reactor, lambda: pair.results)
    result = pair.results[0]
    assert (result.end, result.client, result.upstream) == ("limit", pair.near, pair.far)
    assert result.client.recv(10) == b"456"
    assert result.client.gettimeout() == 0
    assert not closed
    assert "client" in str(reactor.table)
    again: list[RelayResult] = []
    reactor.relay(result.client, result.upstream, again.append).kill()
    turn_until(reactor, lambda: again)
    assert closed == [pair.near]


def test_what_is_queued_goes_first(reactor: Reactor, pair: Pair) -> None:
    queued = os.urandom(3_000_000)
    told: list[Any] = []
    reactor.comm_write(pair.far, queued, lambda *args: told.append(args[1:3]))
    pair.start(reactor, prefix=b"prefix")
    pair.client.sendall(b"stream")
    pair.client.shutdown(socket.SHUT_WR)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(receive(pair.upstream, 1 << 30)))
    reader.start()
    turn_until(reactor, lambda: not reader.is_alive())
    reader.join()
    assert got == [queued + b"prefixstream"]
    assert told == [(len(queued), lc.COMM_OK)]
    pair.upstream.close()
    turn_until(reactor, lambda: pair.results)
    assert (pair.results[0].up, pair.results[0].end) == (12, "eof")


@pytest.mark.parametrize("how", ["idle", "total", "killed", "closed"])
def test_the_end_before_what_is_queued_has_gone(reactor: Reactor, pair: Pair, how: str) -> None:
    reactor.comm_write(pair.far, b"x" * 30_000_000)  # nobody reads it
    options = {how: 0.05} if how in ("idle", "total") else {}
    relay = pair.start(reactor, **options)
    reactor.comm_select(0)
    if how == "killed":
        relay.kill()
    elif how == "closed":
        reactor.comm_close(pair.near)
    turn_until(reactor, lambda: pair.results)
    assert pair.results[0].end == ("killed" if how == "closed" else how)
    assert len(reactor.table) == 0


def test_a_waiting_read_is_told(reactor: Reactor, pair: Pair) -> None:
    told: list[int] = []
    reactor.comm_read(pair.near, 10, lambda sock, got, status, data: told.append(status))
    pair.start(reactor).kill()
    turn_until(reactor, lambda: pair.results)
    assert told == [lc.COMM_ERR_CLOSING]


def test_connect_relay(reactor: Reactor, pair: Pair) -> None:
    refused: list[RelayResult] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reactor.connect_relay(pair.near, unused.getsockname(), refused.append, timeout=5)
        turn_until(reactor, lambda: refused)
    assert (refused[0].end, refused[0].errno) == ("connect", errno.ECONNREFUSED)
    client = refused[0].client
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        reactor.connect_relay(client, listener.getsockname(), pair.results.append, prefix=b"a")
        reactor.comm_select(0)
        upstream, _ = listener.accept()
    with upstream:
        assert receive(upstream, 1) == b"a"
    pair.client.close()
    turn_until(reactor, lambda: pair.results)
    assert pair.results[0].end == "eof"


def test_more_than_a_batch(reactor: Reactor) -> None:
    before = open_files()
    pairs = [Pair() for _ in range(150)]
    for pair in pairs:
        pair.start(reactor, prefix=b"to each its own")
    reactor.comm_select(0)
    for pair in pairs:
        assert receive(pair.upstream, 15) == b"to each its own"
        pair.close()
    turn_until(reactor, lambda: all(pair.results for pair in pairs))
    assert {pair.results[0].end for pair in pairs} == {"eof"}
    assert open_files() <= before + 8  # of the reactor and its plane


def test_no_plain_stream(reactor: Reactor, pair: Pair) -> None:
    class Changing(socket.socket):
        def recv(self, *args: Any) -> bytes:
            return super().recv(*args).upper()

    with Changing(fileno=os.dup(pair.near.fileno())) as changing, pytest.raises(TypeError):
        reactor.relay(changing, pair.far, print)
    pair.near.close()
    with pytest.raises(CommError) as closed:
        reactor.relay(pair.near, pair.far, print)
    assert closed.value.errno == errno.EBADF


def test_a_forked_child_starts_afresh(reactor: Reactor, pair: Pair) -> None:
    relay = pair.start(reactor)
    reactor.comm_select(0)

    def child() -> int:
        mine = Pair()
        mine.start(reactor, prefix=b"child")
        reactor.comm_select(0)
        if receive(mine.upstream, 5) != b"child":
            return 1
        mine.close()
        turn_until(reactor, lambda: mine.results)
        return 0 if not pair.results else 2

    assert fork(child) == 0
    pair.client.sendall(b"parent")
    assert receive(pair.upstream, 6) == b"parent"
    relay.kill()
    turn_until(reactor, lambda: pair.results)


def test_relays_go_on_while_python_is_busy(reactor: Reactor, pair: Pair) -> None:
    """No turn of the reactor happens meanwhile."""
    pair.start(reactor)
    reactor.comm_select(0)
    for _ in range(100):
        pair.client.sendall(b"ping")
        assert receive(pair.upstream, 4) == b"ping"
        pair.upstream.sendall(b"pong")
        assert receive(pair.client, 4) == b"pong"
