"""A hundred thousand relays through one reactor and its plane: nothing adds up.

Not collected unless named: ``pytest tests/long``, or ``tox run -e long``.
"""

from __future__ import annotations

import collections
import gc
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from planes import DEADLINE, open_files, receive

from lusca_comm import Reactor, RelayResult

RELAYS, BATCH = 100_000, 100
SETTLED = 20_000  # relays, after which memory is taken for what it will be
GROWTH = 4 << 20  # bytes: some fifty for each relay since
REQUEST, ANSWER = b"q" * 100, b"a" * 1000


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    raised: list[BaseException] = []
    reactor.exception_hook = lambda why, where: raised.append(why)
    yield reactor
    reactor.close()
    assert raised == []


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=BATCH) as listener:
        yield listener


def connected(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    near = socket.create_connection(listener.getsockname(), DEADLINE)
    far, _ = listener.accept()
    far.settimeout(DEADLINE)
    return near, far


def batch(reactor: Reactor, listener: socket.socket, ends: collections.Counter[str]) -> None:
    """A request and its answer through each; every tenth client resets instead of taking it."""
    results: list[RelayResult] = []
    pairs = []
    for _ in range(BATCH):
        client, ours = connected(listener)
        theirs, origin = connected(listener)
        reactor.relay(ours, theirs, results.append, idle=DEADLINE)
        client.sendall(REQUEST)
        pairs.append((client, origin))
    reactor.comm_select(0)
    for number, (client, origin) in enumerate(pairs):
        with client, origin:
            assert receive(origin, len(REQUEST)) == REQUEST
            if number % 10 == 0:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                with pytest.raises(ConnectionResetError):
                    origin.recv(1)
                continue
            origin.sendall(ANSWER)
            origin.shutdown(socket.SHUT_WR)
            assert receive(client, len(ANSWER) + 1) == ANSWER
    end = time.monotonic() + DEADLINE
    while len(results) < BATCH:
        assert time.monotonic() < end, "not every relay ended"
        reactor.comm_select(50)
    assert all(result.up == len(REQUEST) for result in results)
    assert all(result.down == (0 if result.end == "reset" else len(ANSWER)) for result in results)
    ends.update(result.end for result in results)


@pytest.mark.timeout(900)
def test_nothing_adds_up(reactor: Reactor, listener: socket.socket) -> None:
    ends: collections.Counter[str] = collections.Counter()
    batch(reactor, listener, ends)  # the plane, its thread and its pipes are there now
    files, memory = open_files(), 0
    while ends.total() < RELAYS:
        batch(reactor, listener, ends)
        if ends.total() == SETTLED:
            memory = resident()
    assert ends == {"eof": RELAYS * 9 // 10, "reset": RELAYS // 10}
    assert open_files() == files
    assert len(reactor.table) == 0
    assert resident() - memory < GROWTH
    totals = reactor.plane.totals()
    assert (totals.relayed, totals.ended) == (RELAYS, RELAYS)
    assert totals.up == RELAYS * len(REQUEST)
    assert totals.down == RELAYS * 9 // 10 * len(ANSWER)
