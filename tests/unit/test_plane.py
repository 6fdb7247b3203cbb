"""The data plane by itself: ends, limits, time-outs, connects, life and death."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from planes import Pair, connection, fork, open_files, receive, until, wait_readable

from lusca_comm import CommError, Plane, RelayResult


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane()
    yield plane
    plane.stop()


def ended(plane: Plane, pair: Pair) -> RelayResult:
    until(plane, lambda: pair.results)
    pair.close()
    return pair.results[0]


def test_bytes_go_both_ways_and_ends_are_passed_on(plane: Plane) -> None:
    pair = Pair(plane, prefix=b"before ", data="mine")
    pair.client.sendall(b"up")
    pair.client.shutdown(socket.SHUT_WR)
    assert receive(pair.upstream, 100) == b"before up"
    pair.upstream.sendall(b"down")  # half-closed: this way is still open
    assert receive(pair.client, 4) == b"down"
    assert not pair.results
    pair.upstream.close()
    assert pair.client.recv(1) == b""
    result = ended(plane, pair)
    assert (result.end, result.up, result.down, result.errno) == ("eof", 9, 4, 0)
    assert (result.client, result.upstream, result.data) == (None, None, "mine")
    assert (pair.relay.up, pair.relay.down, pair.relay.ended) == (9, 4, True)


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_reset_is_passed_on_as_a_reset(plane: Plane, side: str) -> None:
    pair = Pair(plane)
    breaker = pair.client if side == "client" else pair.upstream
    other = pair.upstream if side == "client" else pair.client
    breaker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    breaker.close()
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    result = ended(plane, pair)
    assert (result.end, result.side, result.errno) == ("reset", side, errno.ECONNRESET)


def test_a_reset_after_the_end_is_still_heard_of(plane: Plane) -> None:
    pair = Pair(plane)
    pair.upstream.shutdown(socket.SHUT_WR)
    assert pair.client.recv(1) == b""
    pair.upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.upstream.close()
    result = ended(plane, pair)
    assert (result.end, result.side) == ("reset", "upstream")


def test_kill_resets_both(plane: Plane) -> None:
    pair = Pair(plane)
    pair.relay.kill()
    for sock in (pair.client, pair.upstream):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert ended(plane, pair).end == "killed"
    pair.relay.kill()  # of what has ended: nothing
    assert plane.run_completions(0.05) == 0


@pytest.mark.parametrize("end", ["idle", "total"])
def test_time(plane: Plane, end: str) -> None:
    pair = Pair(plane, **{end: 0.05})
    with contextlib.suppress(ConnectionError):
        while end == "total" and not pair.results:  # activity does not help
            pair.client.send(b"x")
            plane.run_completions(0.005)
    result = ended(plane, pair)
    assert result.end == end
    assert result.seconds >= 0.05


def test_activity_puts_idle_off(plane: Plane) -> None:
    pair = Pair(plane, idle=1, total=2)
    with contextlib.suppress(ConnectionError):
        while not pair.results:
            pair.client.send(b"x")
            plane.run_completions(0.01)
    assert ended(plane, pair).end == "total"


def test_limit_gives_the_sockets_back(plane: Plane) -> None:
    pair = Pair(plane, limit_up=5, prefix=b"ab")
    pair.client.sendall(b"cdefgh")
    assert receive(pair.upstream, 5) == b"abcde"
    result = ended(plane, pair)
    assert (result.end, result.up) == ("limit", 5)
    assert receive(result.client, 3) == b"fgh"
    result.upstream.close()
    result.client.close()


def test_limit_both_ways_waits_for_both(plane: Plane) -> None:
    pair = Pair(plane, limit_up=2, limit_down=3)
    pair.client.sendall(b"upup")
    assert receive(pair.upstream, 2) == b"up"
    assert not pair.results
    pair.upstream.sendall(b"downdown")
    assert receive(pair.client, 3) == b"dow"
    until(plane, lambda: pair.results)
    result = pair.results[0]
    assert (result.end, result.up, result.down) == ("limit", 2, 3)
    assert receive(result.client, 2) == b"up"
    assert receive(result.upstream, 5) == b"ndown"
    for sock in (pair.client, pair.upstream, result.client, result.upstream):
        sock.close()


def test_an_urgent_byte_does_not_stall_what_follows(plane: Plane) -> None:
    pair = Pair(plane)
    pair.client.sendall(b"before")
    pair.client.send(b"!", socket.MSG_OOB)
    pair.client.sendall(b"after")
    assert receive(pair.upstream, 11) == b"beforeafter"
    pair.relay.kill()
    ended(plane, pair)


def test_unix_sockets(plane: Plane) -> None:
    client, near = socket.socketpair()
    far, upstream = socket.socketpair()
    results: list[RelayResult] = []
    plane.relay(near, far, results.append)
    blob = os.urandom(300_000)
    writer = threading.Thread(target=lambda: (client.sendall(blob), client.close()))
    writer.start()
    assert receive(upstream, len(blob) + 1) == blob
    writer.join()
    upstream.close()
    until(plane, lambda: results)
    assert results[0].up == len(blob)


def test_counters_while_it_runs(plane: Plane) -> None:
    pair = Pair(plane)
    pair.client.sendall(b"12345")
    assert receive(pair.upstream, 5) == b"12345"
    until(plane, lambda: (pair.relay.up, pair.relay.down) == (5, 0))  # counted after it was sent
    assert plane.totals().live == 1
    pair.relay.kill()
    ended(plane, pair)
    totals = plane.totals()
    assert (totals.relayed, totals.ended, totals.live, totals.up) == (1, 1, 0, 5)


# -- connects ----------------------------------------------------------------------------------


def test_connect(plane: Plane) -> None:
    client, near = connection()
    results: list[RelayResult] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        plane.connect_relay(
            near, listener.getsockname(), results.append, source=("127.0.0.9", 0), prefix=b"a"
        )
        client.sendall(b"b")
        client.shutdown(socket.SHUT_WR)
        upstream, peer = listener.accept()
    with upstream:
        assert peer[0] == "127.0.0.9"
        assert receive(upstream, 3) == b"ab"
    until(plane, lambda: results)
    client.close()
    assert (results[0].end, results[0].up) == ("eof", 2)


def test_refused_connect_gives_the_client_back(plane: Plane) -> None:
    client, near = connection()
    results: list[RelayResult] = []
    client.sendall(b"still here")
    with socket.socket() as unused:  # bound, and nobody listens
        unused.bind(("127.0.0.1", 0))
        plane.connect_relay(near, unused.getsockname(), results.append)
        until(plane, lambda: results)
    result = results[0]
    assert (result.end, result.errno, result.side) == ("connect", errno.ECONNREFUSED, "upstream")
    assert receive(result.client, 10) == b"still here"
    result.client.sendall(b"sorry")
    assert receive(client, 5) == b"sorry"
    client.close()
    result.client.close()


def test_foreign_source_without_the_flag(plane: Plane) -> None:
    client, near = connection()
    results: list[RelayResult] = []
    plane.connect_relay(near, ("127.0.0.1", 1), results.append, source=("192.0.2.9", 0))
    until(plane, lambda: results)
    assert (results[0].end, results[0].errno) == ("connect", errno.EADDRNOTAVAIL)
    results[0].client.close()
    client.close()


# -- arguments ---------------------------------------------------------------------------------


def test_what_is_refused_stays_its_owners(plane: Plane) -> None:
    client, near = connection()
    with pytest.raises(CommError) as same:
        plane.relay(near, near, print)
    assert same.value.errno == errno.EINVAL
    with pytest.raises(CommError) as long:
        plane.relay(near, client, print, prefix=b"abc", limit_up=2)
    assert long.value.errno == errno.EINVAL
    with pytest.raises(TypeError):
        plane.relay(near, client, None)  # type: ignore[arg-type]
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(CommError) as kind:
        plane.relay(near, datagrams, print)
    assert kind.value.errno == errno.EPROTOTYPE
    near.sendall(b"mine")
    assert receive(client, 4) == b"mine"
    client.close()
    near.close()


# -- life and death ----------------------------------------------------------------------------


def test_drain_lets_what_runs_end(plane: Plane) -> None:
    drained: list[bool] = []
    plane.on_drained = lambda: drained.append(True)
    pair = Pair(plane)
    plane.drain()
    one, two = connection()
    with pytest.raises(CommError) as refused:
        plane.relay(one, two, print)
    assert refused.value.errno == errno.ESHUTDOWN
    one.close()
    two.close()
    pair.client.sendall(b"x")
    assert receive(pair.upstream, 1) == b"x"
    assert not drained
    pair.client.close()
    pair.upstream.close()
    until(plane, lambda: drained)
    assert pair.results[0].end == "eof"


def test_stop_ends_everything(plane: Plane) -> None:
    pairs = [Pair(plane) for _ in range(5)]
    plane.stop()
    plane.stop()
    plane.run_completions()
    assert [p.results[0].end for p in pairs] == ["killed"] * 5
    one, two = connection()
    with pytest.raises(CommError):
        plane.relay(one, two, print)
    for sock in (one, two):
        sock.close()
    for pair in pairs:
        pair.close()


def test_the_descriptor_is_readable_while_there_is_something_to_fetch(plane: Plane) -> None:
    pair = Pair(plane)
    assert select.select([plane], [], [], 0) == ([], [], [])
    pair.relay.kill()
    wait_readable(plane)  # type: ignore[arg-type]
    assert plane.run_completions() == 1
    assert select.select([plane], [], [], 0) == ([], [], [])
    pair.close()


def test_no_descriptor_is_left(plane: Plane) -> None:
    plane.fileno()
    before = open_files()
    done: list[RelayResult] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        for i in range(2000):
            client, near = socket.create_connection(listener.getsockname()), listener.accept()[0]
            far, upstream = connection() if i % 2 else socket.socketpair()
            plane.relay(near, far, done.append)
            client.close()
            upstream.close()
            if i % 50 == 0:
                plane.run_completions()
    until(plane, lambda: len(done) == 2000)
    assert open_files() == before
    assert {result.end for result in done} <= {"eof", "reset"}


def test_fork_in_the_child_the_plane_is_gone_and_the_peers_see_nothing(plane: Plane) -> None:
    pair = Pair(plane)

    def child() -> int:
        try:
            plane.fileno()
        except CommError as why:
            if why.errno != errno.ESRCH:
                return 1
        own = Plane()
        mine = Pair(own)
        mine.client.sendall(b"x")
        return 0 if mine.upstream.recv(1) == b"x" else 2

    assert fork(child) == 0
    pair.client.sendall(b"alive")
    assert receive(pair.upstream, 5) == b"alive"
    pair.relay.kill()
    ended(plane, pair)


def test_a_forked_child_holds_neither_end_nor_reset_back(plane: Plane) -> None:
    one, two = Pair(plane), Pair(plane)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(w)
        os.read(r, 1)  # until the parent lets go
        os._exit(0)
    os.close(r)
    one.client.close()  # the child holds it too, so the end is said aloud
    two.relay.kill()
    for sock in (two.client, two.upstream):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    os.close(w)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert one.upstream.recv(1) == b""
    one.upstream.close()
    ended(plane, one)
    ended(plane, two)


@pytest.mark.parametrize("how", ["exit", "thread", "abandoned"])
def test_the_interpreter_ends_with_relays_open(how: str) -> None:
    program = f"""
import sys, threading
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from planes import Pair
from lusca_comm import Plane
kept = []
def work():
    plane = Plane()
    kept.append((plane, [Pair(plane, idle=60) for _ in range(20)]))
if {how!r} == "thread":
    thread = threading.Thread(target=work); thread.start(); thread.join()
    pair = kept[0][1][0]
    pair.client.sendall(b"x")
    assert pair.upstream.recv(1) == b"x"
else:
    work()
if {how!r} == "abandoned":
    client = kept[0][1][0].client
    kept.clear()
    import gc; gc.collect()
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        pass
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", program],
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
