"""What the tests of the reactor share: one over each poller, watched while it is used."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract.pollers import MAKERS

from lusca_comm import Reactor

LIMIT = 30.0  # seconds; every condition waited for here comes in milliseconds


class Watched(Reactor):
    """A reactor that keeps what its handlers raised."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.raised: list[tuple[BaseException, str]] = []
        self.exception_hook = lambda why, where: self.raised.append((why, where))

    def until(self, condition: Callable[[], object]) -> None:
        """Turns until `condition` holds."""
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, f"in vain; raised: {self.raised}"
            self.comm_select(50)

    def settle(self) -> None:
        """Turns until there is nothing to do at once."""
        for _ in range(1000):
            if self.comm_select(0):
                return
        raise AssertionError("always something to do")


@contextlib.contextmanager
def watched(poller: str = next(iter(MAKERS))) -> Iterator[Watched]:
    """Complains of what handlers raised and nobody looked at, and of descriptors left open."""
    before = open_fds()
    reactor = Watched(poller=MAKERS[poller])
    try:
        yield reactor
        assert not reactor.raised, reactor.raised
    finally:
        for entry in reactor.table:
            reactor.comm_close(entry.sock)
        reactor.close()
    assert not reactor.raised, reactor.raised
    if open_fds() - before:
        gc.collect()
    assert open_fds() - before == set()


@pytest.fixture(params=MAKERS)
def reactor(request: pytest.FixtureRequest) -> Iterator[Watched]:
    with watched(request.param) as reactor:
        yield reactor


def open_fds() -> set[int]:
    found = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    return {fd for fd in found if Path(f"/proc/self/fd/{fd}").exists()}


def connected(reactor: Reactor, backlog: int = 1) -> tuple[Any, Any]:
    """A TCP connection over the loopback: the end that the reactor accepted, and a plain one."""
    listener = reactor.comm_open(socket.SOCK_STREAM, 0, ("127.0.0.1", 0))
    reactor.comm_listen(listener)
    client = socket.create_connection(listener.getsockname())
    while (got := reactor.comm_accept(listener)) is None:
        reactor.comm_select(10)
    reactor.comm_close(listener)
    client.settimeout(LIMIT)
    return got.sock, client


def refusing_port() -> tuple[socket.socket, tuple[str, int]]:
    """Bound and not listening: connecting there is refused."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock, sock.getsockname()


def fill(sock: socket.socket) -> int:
    """Writes until the other side would have to read, and the kernel makes no more room either.

    Not a byte: poll(2) calls a socket writable only once a third of its buffer is free.
    """
    sock.setblocking(False)
    sent = 0
    settled = False
    while not settled:
        settled = not select.select([], [sock], [], 0.05)[1]
        for size in (65536, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += sock.send(bytes(size))
    return sent


def in_child(fn: Callable[[], object]) -> int:
    """Forks; the child calls `fn` and exits 0, or 1 where it raised. Returns its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fn()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid
