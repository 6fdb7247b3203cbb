"""Framed reads: a verdict on what came, the connection given back, and no byte lost between."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from planes import DEADLINE, connection, open_files, receive, until

import lusca_comm as lc
from lusca_comm import CommError, FramedRead, Plane, Reactor


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane()
    yield plane
    plane.stop()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Reading:
    """A framed read of what `peer` sends."""

    def __init__(self, plane: Plane, framer: str, unix: bool = False, **options: Any) -> None:
        self.peer, self.near = socket.socketpair() if unix else connection()
        self.got: list[FramedRead] = []
        self.plane = plane
        self.handle = plane.framed_read(self.near, framer, self.got.append, **options)

    def result(self) -> FramedRead:
        until(self.plane, lambda: self.got)
        (result,) = self.got
        assert self.handle.ended
        return result

    def close(self) -> None:
        self.peer.close()
        for result in self.got:
            if result.sock is not None:
                result.sock.close()


REQUEST = b"POST /x HTTP/1.1\r\nHost: a\r\nX: 1\r\nx: 2\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize("unix", [False, True])
def test_a_request_and_what_is_behind_it(plane: Plane, unix: bool) -> None:
    reading = Reading(plane, "http request", unix, data="mine")
    assert reading.near.fileno() == -1
    reading.peer.sendall(REQUEST + b"hello")
    result = reading.result()
    assert (result.verdict, result.read, result.size) == ("whole", REQUEST + b"hello", len(REQUEST))
    assert (result.data, result.status, result.why, result.errno) == ("mine", 0, "", 0)
    assert [result.read[at : at + n] for at, n in result.start] == [b"POST", b"/x", b"HTTP/1.1"]
    assert result.values(b"X") == [b"1", b"2"]
    assert result.values(b"none") == []
    assert result.head.length == 5
    # The connection is the caller's again, with what comes now unread.
    reading.peer.sendall(b"more")
    result.sock.settimeout(DEADLINE)
    assert receive(result.sock, 4) == b"more"
    reading.close()


def test_a_hello_byte_by_byte_and_then_a_relay(plane: Plane) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            incoming, outgoing, server_hostname="origin.example"
        ).do_handshake()
    hello = outgoing.read()
    reading = Reading(plane, "tls")
    reading.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for i in range(len(hello)):
        reading.peer.send(hello[i : i + 1])
    result = reading.result()
    assert (result.verdict, result.size, result.start) == ("whole", len(hello), ())
    upstream, far = connection()
    plane.relay(result.sock, far, lambda _: None, prefix=result.read)
    reading.peer.sendall(b"and on")
    assert receive(upstream, len(hello) + 6) == hello + b"and on"
    upstream.close()
    reading.peer.close()


def test_messages_one_behind_the_other(plane: Plane) -> None:
    reading = Reading(plane, "length16")
    reading.peer.sendall(b"\0\3one\0\5three\0\1")
    seen, left = [], b""
    for _ in range(2):
        result = reading.result()
        assert result.verdict == "whole"
        ((at, n),) = result.start
        seen.append(result.read[at : at + n])
        left = result.read[result.size :]
        reading.got.clear()
        reading.handle = plane.framed_read(result.sock, "length16", reading.got.append, prefix=left)
    assert seen == [b"one", b"three"]
    reading.peer.shutdown(socket.SHUT_WR)
    result = reading.result()
    assert (result.verdict, result.read, result.size) == ("eof", left, 0)
    reading.close()


def test_what_was_read_already_is_judged_first(plane: Plane) -> None:
    reading = Reading(plane, "http request", prefix=REQUEST[:20])
    reading.peer.sendall(REQUEST[20:])
    assert reading.result().read == REQUEST
    reading.close()
    alone = Reading(plane, "http request", prefix=REQUEST)
    assert (alone.result().verdict, alone.result().read) == ("whole", REQUEST)
    alone.close()


@pytest.mark.parametrize(
    ("framer", "data", "verdict", "status"),
    [
        ("http request", b"GET / HTTP/1.1\nHost: a\n\n", "refused", 400),
        ("http request", b"GET / HTTP/3.0\r\n", "refused", 505),
        ("http request", b"\x16\x03\x01", "other", 400),
        ("http request", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2", 0),
        ("http response", b"220 mail.example ESMTP\r\n", "other", 502),
        ("tls", b"GET / HTTP/1.1\r\n", "other", 0),
        ("length16", b"\0\0", "refused", 0),
    ],
)
def test_other_verdicts(plane: Plane, framer: str, data: bytes, verdict: str, status: int) -> None:
    reading = Reading(plane, framer)
    reading.peer.sendall(data)
    result = reading.result()
    assert (result.verdict, result.status, result.read) == (verdict, status, data)
    assert (result.size, result.start, result.values(b"host")) == (0, (), [])
    assert bool(result.why) == (verdict != "h2")
    reading.close()


@pytest.mark.parametrize(
    ("answers", "body"), [("GET", lc._shim.lib.LC_BODY_CLOSE), ("HEAD", lc._shim.lib.LC_BODY_NONE)]
)
def test_a_response_is_judged_by_what_it_answers(plane: Plane, answers: str, body: int) -> None:
    reading = Reading(plane, "http response", answers=answers)
    reading.peer.sendall(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n")
    assert (reading.result().verdict, reading.result().head.body) == ("whole", body)
    reading.close()


def test_limits(plane: Plane) -> None:
    reading = Reading(plane, "http request", limits=(10, 100, 9))
    reading.peer.sendall(b"GET /12345678")
    assert (reading.result().verdict, reading.result().status) == ("refused", 414)
    reading.close()


def test_time(plane: Plane) -> None:
    """Where the server speaks first, the client says nothing."""
    silent, begun = Reading(plane, "tls", timeout=0), Reading(plane, "tls", timeout=0.05)
    begun.peer.sendall(b"\x16\x03")
    assert (silent.result().verdict, silent.result().read) == ("time", b"")
    assert begun.result().verdict == "time"
    assert b"\x16\x03".startswith(begun.result().read)
    silent.result().sock.sendall(b"220 welcome")
    assert receive(silent.peer, 11) == b"220 welcome"
    silent.close()
    begun.close()


def test_a_reset(plane: Plane) -> None:
    reading = Reading(plane, "tls")
    reset(reading.peer)
    result = reading.result()
    assert (result.verdict, result.errno, result.sock) == ("reset", errno.ECONNRESET, None)


def test_kill_and_stop(plane: Plane) -> None:
    before = open_files()
    killed, stopped = Reading(plane, "tls"), Reading(plane, "tls")
    stopped.peer.sendall(b"\x16")
    killed.handle.kill()
    assert (killed.result().verdict, killed.result().read) == ("killed", b"")
    with pytest.raises(ConnectionResetError):
        killed.peer.recv(1)
    plane.stop()
    assert stopped.result().verdict == "killed"
    killed.close()
    stopped.close()
    plane.close()
    assert open_files() <= before


def test_a_plane_that_is_dropped_closes_what_nobody_fetched() -> None:
    before = open_files()
    plane = Plane()
    reading = Reading(plane, "http request")
    reading.peer.sendall(REQUEST)
    assert select.select([plane], [], [], DEADLINE)[0]
    reading.peer.settimeout(DEADLINE)
    plane.close()
    assert reading.peer.recv(1) == b""
    reading.peer.close()
    assert open_files() <= before


def test_drain_waits_for_it(plane: Plane) -> None:
    drained: list[bool] = []
    plane.on_drained = lambda: drained.append(True)
    reading = Reading(plane, "length16")
    plane.drain()
    here, there = connection()
    with pytest.raises(CommError) as late:
        plane.framed_read(here, "length16", lambda _: None)
    assert (late.value.errno, drained) == (errno.ESHUTDOWN, [])
    here.close()
    there.close()
    reading.peer.sendall(b"\0\1x")
    until(plane, lambda: drained)
    assert reading.result().verdict == "whole"
    reading.close()


@pytest.mark.parametrize(
    ("framer", "options", "why"),
    [
        ("ftp", {}, CommError),
        ("tls", {"timeout": -1}, CommError),
        ("tls", {"limits": (1, -1, 1)}, CommError),
        ("tls", {"prefix": 5}, TypeError),
    ],
)
def test_bad_arguments_take_nothing(
    plane: Plane, framer: str, options: dict[str, Any], why: type[Exception]
) -> None:
    here, there = connection()
    with pytest.raises(why):
        plane.framed_read(here, framer, lambda _: None, **options)
    assert here.fileno() >= 0
    here.close()
    there.close()


# -- from a reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    raised: list[BaseException] = []
    reactor.exception_hook = lambda why, where: raised.append(why)
    yield reactor
    reactor.close()
    assert raised == []


def turn_until(reactor: Reactor, condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        reactor.comm_select(50)


def test_a_reactor_gets_its_very_socket_back(reactor: Reactor) -> None:
    peer, near = connection()
    got: list[FramedRead] = []
    closed: list[Any] = []
    reactor.comm_fdopen(near, note="a client")
    reactor.comm_add_close_handler(near, lambda sock, data: closed.append(data), 7)
    reactor.comm_write(near, b"220 first")  # goes out before the read begins
    reactor.framed_read(near, "length16", got.append, data=5)
    with pytest.raises(CommError) as busy:
        reactor.framed_read(near, "length16", got.append)
    assert busy.value.errno == errno.EBUSY
    peer.sendall(b"\0\2hi!")
    turn_until(reactor, lambda: got)
    assert (got[0].verdict, got[0].read, got[0].data) == ("whole", b"\0\2hi!", 5)
    assert got[0].sock is near
    assert receive(peer, 9) == b"220 first"
    assert reactor.table.entries[near.fileno()].note == "a client"
    # And goes on, to a relay, with all that was read of it.
    upstream, far = connection()
    reactor.relay(near, far, lambda _: None, prefix=got[0].read)
    reactor.comm_select(0)
    assert receive(upstream, 5) == b"\0\2hi!"
    peer.close()
    upstream.close()
    turn_until(reactor, lambda: closed)
    assert closed == [7]


def test_closing_a_socket_ends_its_framed_read(reactor: Reactor) -> None:
    peer, near = connection()
    got: list[FramedRead] = []
    reactor.framed_read(reactor.comm_fdopen(near), "tls", got.append)
    reactor.comm_select(0)
    reactor.comm_close(near)
    turn_until(reactor, lambda: got)
    assert (got[0].verdict, got[0].sock) == ("killed", None)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    peer.close()


def test_an_error_that_was_told_already(reactor: Reactor) -> None:
    peer, near = connection()
    got: list[FramedRead] = []
    reactor.comm_fdopen(near)
    reset(peer)
    turn_until(reactor, lambda: reactor.comm_error(near))
    reactor.framed_read(near, "tls", got.append)
    turn_until(reactor, lambda: got)
    assert (got[0].verdict, got[0].errno) == ("reset", errno.ECONNRESET)


def test_no_thread_for_it(reactor: Reactor) -> None:
    peer, near = connection()
    got: list[FramedRead] = []
    reactor.comm_fdopen(near)
    assert reactor.plane.fileno() >= 0
    reactor.plane.stop()
    reactor.framed_read(near, "tls", got.append)
    turn_until(reactor, lambda: got)
    assert (got[0].verdict, got[0].errno, got[0].sock) == ("error", errno.ESHUTDOWN, None)
    assert peer.recv(1) == b""
    peer.close()
