"""A connection with the client's own port, when that very connection (the same 4-tuple) exists.

The kernel refuses the connect, and the socket cannot be bound again; so another socket takes its
place under the same number, while the reactor knows the number already.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

import lusca_comm as lc
from lusca_comm.lab import Host, Lab

SOURCE = {socket.AF_INET: ("127.7.7.7", 4242), socket.AF_INET6: ("2001:db8:7::7", 4242)}
HERE = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
FLAGS = lc.COMM_REUSEADDR | lc.COMM_TPROXY_REM | lc.COMM_TRANSPARENT_PORT

v4_and_v6 = pytest.mark.parametrize("family", SOURCE, ids=["v4", "v6"])


@pytest.fixture
def host(lab: Lab) -> Host:
    host = lab.host("proxy")
    host.route("2001:db8:7::/64", local=True)  # 127/8 is the machine's own already
    return host


class Program:
    """Connects twice from the same foreign address and port to the same listener."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.status: list[int] = []
        self.heard: list[Any] = []
        self.listener = lc.comm_open(address=HERE[family], flags=lc.COMM_REUSEADDR)
        lc.comm_listen(self.listener)

    def connect(self, priority: int = 0) -> socket.socket:
        sock = lc.comm_open(address=SOURCE[self.family], flags=FLAGS)
        fd, before = sock.fileno(), len(self.status)
        lc.comm_set_priority(sock, priority)
        lc.comm_set_keepalive(sock, 77, 7, 49)
        # The poller knows the number before there is another file under it.
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, self.on_readable)
        lc.comm_select(0)
        address = self.listener.getsockname()[:2]
        lc.comm_connect(sock, address, lambda _, status, __: self.status.append(status))
        assert len(self.status) == before
        self.until(lambda: self.status[before:])
        assert sock.fileno() == fd
        return sock

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            lc.comm_select(100)

    def on_readable(self, sock: socket.socket, _: Any) -> None:
        self.heard.append((sock.fileno(), sock.recv(100)))

    def accept(self) -> lc.Accepted:
        while (got := lc.comm_accept(self.listener)) is None:
            lc.comm_select(10)
        return got


def connects_twice(family: int) -> dict[str, Any]:
    program = Program(family)
    first, got_first = program.connect(), program.accept()
    second, got_second = program.connect(priority=5), program.accept()
    program.heard.clear()  # a socket that is not connected yet is ready as well
    lc.comm_set_select(second, lc.COMM_SELECT_READ, program.on_readable)
    got_second.sock.send(b"heard")
    program.until(lambda: program.heard)
    return {
        "status": program.status,
        "peers": (got_first.peer, got_second.peer),
        "spoof": (lc.comm_spoof(first), lc.comm_spoof(second)),
        "heard": program.heard == [(second.fileno(), b"heard")],
        "non-blocking": not os.get_blocking(second.fileno()),
        "close-on-exec": not os.get_inheritable(second.fileno()),
        "priority": second.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY),
        "keepalive": second.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        "transparent": second.getsockopt(socket.SOL_IP, 19),  # IP_TRANSPARENT, linux/in.h
    }


@v4_and_v6
def test_the_second_gets_another_port_under_the_same_number(host: Host, family: int) -> None:
    seen = host.run(connects_twice, family)
    source = SOURCE[socket.AddressFamily(family)]
    assert seen["status"] == [lc.COMM_OK, lc.COMM_OK]
    first, second = seen["spoof"]
    assert first == (source, True, "")
    assert (second.address[0], second.kept_port) == (source[0], False)
    assert second.address[1] != source[1]
    assert "this very connection exists already" in second.reason
    assert seen["peers"] == (source, second.address)
    assert seen["heard"]
    assert seen["non-blocking"]
    assert seen["close-on-exec"]
    assert (seen["priority"], seen["keepalive"], seen["transparent"]) == (5, 77, 1)


def connects_in_a_handler(family: int) -> Any:
    """In that of the read slot, armed again: what the poller waits for does not seem to change."""
    program = Program(family)
    socks = [lc.comm_open(address=SOURCE[family], flags=FLAGS) for _ in range(2)]
    begun, heard = set(), []

    def on_readable(sock: socket.socket, _: Any) -> None:
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, on_readable)
        if sock not in begun:
            begun.add(sock)
            address = program.listener.getsockname()[:2]
            lc.comm_connect(sock, address, lambda _, code, __: program.status.append(code))
        else:
            heard.append(sock.recv(100))

    for count, sock in enumerate(socks, 1):
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, on_readable)  # it is: not connected
        program.until(lambda count=count: len(program.status) == count)
        program.accept().sock.send(b"heard")
        program.until(lambda count=count: len(heard) == count)
    return program.status, heard, [lc.comm_spoof(sock).kept_port for sock in socks]


@v4_and_v6
def test_a_connect_within_a_handler(host: Host, family: int) -> None:
    ok = [lc.COMM_OK, lc.COMM_OK]
    seen = host.run(connects_in_a_handler, family)
    assert seen == (ok, [b"heard", b"heard"], [True, False])


def connects_in_turn(family: int) -> list[bool]:
    """The first is gone, without a trace, before the second comes."""
    program = Program(family)
    kept = []
    for _ in range(2):
        sock = program.connect()
        kept.append(lc.comm_spoof(sock).kept_port)
        lc.comm_reset_close(sock)
        lc.comm_reset_close(program.accept().sock)
    return kept


@v4_and_v6
def test_one_after_the_other_both_keep_the_port(host: Host, family: int) -> None:
    """The control: without the first there is nothing in the way."""
    assert host.run(connects_in_turn, family) == [True, True]
