"""Workers without a network: starts, ends and restarts, what they inherit, what they are told."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import CommError
from lusca_comm.cli.relay.worker import Limit
from lusca_comm.lab import wait_for
from lusca_comm.workers import Ended, Seat, Workers, back_off


class Team:
    """Workers, and what was heard of them."""

    def __init__(self, main: Callable[[Seat], int], sets: list[list[socket.socket]]) -> None:
        self.said: list[tuple[int, Any]] = []
        self.ends: list[Ended] = []
        self.workers = Workers(
            sets, main, lambda number, obj: self.said.append((number, obj)), self.ends.append
        )

    def until(self, condition: Callable[[], object]) -> None:
        def turn() -> object:
            self.workers.turn(0.05)
            return condition()

        wait_for(turn, 30)

    def hear(self, count: int) -> list[tuple[int, Any]]:
        """The next `count` messages, sorted."""
        self.until(lambda: len(self.said) >= count)
        said, self.said = self.said, []
        return sorted(said)


@contextlib.contextmanager
def team(
    main: Callable[[Seat], int], count: int = 1, sets: list[list[socket.socket]] | None = None
) -> Iterator[Team]:
    made = Team(main, [[] for _ in range(count)] if sets is None else sets)
    with made.workers:
        made.workers.start()
        yield made


def obey(seat: Seat) -> int:
    """Tells its pid, answers what it is told, and ends with a status it is told."""
    seat.channel.send(os.getpid())
    while True:
        try:
            told = seat.channel.recv()
        except EOFError:
            return 9
        if isinstance(told, int):
            return told
        seat.channel.send(told)


def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_each_is_told_and_tells() -> None:
    with team(obey, 3) as it:
        pids = dict(it.hear(3))
        assert pids == it.workers.pids
        assert it.workers.tell("something") == {0, 1, 2}
        assert it.hear(3) == [(number, "something") for number in range(3)]
        it.workers.finish()
        it.workers.tell(0)
        it.until(lambda: len(it.ends) == 3)
        assert sorted(it.ends) == [Ended(number, pids[number], 0, None) for number in range(3)]
        assert it.workers.pids == {}
        assert it.workers.tell("nobody") == set()


def test_the_end_of_the_block_leaves_nobody() -> None:
    with team(obey, 2) as it:
        pids = [pid for _, pid in it.hear(2)]
    assert all(map(gone, pids))


@pytest.mark.parametrize(
    ("order", "status", "text"),
    [
        (0, 0, "ended with status 0"),
        (7, 7, "ended with status 7"),
        (signal.SIGKILL, -9, "was killed by SIGKILL"),
    ],
    ids=["ended", "failed", "killed"],
)
def test_one_that_ended_is_started_again(order: int, status: int, text: str) -> None:
    with team(obey) as it:
        ((_, first),) = it.hear(1)
        if status < 0:
            os.kill(first, order)
        else:
            it.workers.tell(int(order))
        ((_, second),) = it.hear(1)
        assert second != first
        assert it.ends == [Ended(0, first, status, 0.0)]
        assert str(it.ends[0]) == text
        it.workers.tell("still there")
        assert it.hear(1) == [(0, "still there")]


def test_an_exception_ends_the_worker_alone(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(seat: Seat) -> int:
        if seat.channel.poll():
            return 0
        raise ValueError("of the worker")

    with team(fail) as it:
        it.until(lambda: it.ends)
        assert it.ends[0].status == 1
    assert "ValueError: of the worker" in capfd.readouterr().err


def test_a_crash_loop_is_slowed_down() -> None:
    with team(lambda seat: 1) as it:
        it.until(lambda: len(it.ends) == 4)
        assert [ended.again for ended in it.ends] == [0, 0.1, 0.2, 0.4]


def test_a_system_without_processes_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork

    def refuse() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    with team(obey) as it:
        ((_, first),) = it.hear(1)
        monkeypatch.setattr(os, "fork", refuse)
        os.kill(first, signal.SIGKILL)
        it.until(lambda: len(it.ends) == 2)
        assert it.ends[1] == Ended(0, 0, errno.EAGAIN, 0.1)
        assert str(it.ends[1]).startswith("could not be started: ")
        monkeypatch.setattr(os, "fork", fork)
        ((_, second),) = it.hear(1)
        assert second != first
    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(CommError) as caught, team(obey):
        pytest.fail("it started")
    assert caught.value.errno == errno.EAGAIN


def test_signals_are_the_parents() -> None:
    with team(obey) as it:
        ((_, pid),) = it.hear(1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(pid, number)
        it.workers.tell("still there")
        assert it.hear(1) == [(0, "still there")]
        assert it.ends == []


def test_a_worker_has_its_own_listeners_and_no_others() -> None:
    def tell(seat: Seat) -> int:
        own = [sock.getsockname() for sock in seat.listeners]
        seat.channel.send((own, [sock.fileno() >= 0 for sock in socks]))
        seat.channel.recv()
        return 0

    socks = [listener(), listener(), listener()]
    with team(tell, sets=[socks[:2], socks[2:]]) as it:
        names = [sock.getsockname() for sock in socks]
        assert it.hear(2) == [
            (0, (names[:2], [True, True, False])),
            (1, (names[2:], [False, False, True])),
        ]
        assert all(sock.fileno() >= 0 for sock in socks)
    assert all(sock.fileno() < 0 for sock in socks)


def test_what_waits_in_the_queue_outlives_the_worker() -> None:
    """The first worker accepts nothing; its successor gets what came meanwhile."""

    def main(seat: Seat) -> int:
        seat.channel.send(os.getpid())
        seat.channel.recv()
        conn, _ = seat.listeners[0].accept()
        with conn:
            conn.sendall(b"served")
        return 0

    sock = listener()
    with team(main, sets=[[sock]]) as it:
        ((_, pid),) = it.hear(1)
        with socket.create_connection(sock.getsockname(), 10) as client:
            os.kill(pid, signal.SIGKILL)
            it.hear(1)
            it.workers.tell("serve")
            assert client.recv(100) == b"served"


def test_a_queue_that_nobody_keeps_is_reset() -> None:
    """The negative control: why the parent keeps the listeners open."""
    sock = listener()
    with socket.create_connection(sock.getsockname(), 10) as client:
        sock.close()
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_a_worker_that_dies_ends_its_own_connections_and_no_others() -> None:
    """Nobody else has a descriptor that would hold its connections open."""

    def echo(seat: Seat) -> int:
        seat.channel.send(os.getpid())
        conn, _ = seat.listeners[0].accept()
        with conn:
            while data := conn.recv(100):
                conn.sendall(data)
        return 0

    socks = [listener(), listener()]
    with team(echo, sets=[[sock] for sock in socks]) as it, contextlib.ExitStack() as stack:
        pids = dict(it.hear(2))
        clients = [
            stack.enter_context(socket.create_connection(sock.getsockname(), 10)) for sock in socks
        ]
        for client in clients:
            client.sendall(b"first")
            assert client.recv(100) == b"first"
        os.kill(pids[0], signal.SIGKILL)
        it.hear(1)
        assert clients[0].recv(100) == b""
        clients[1].sendall(b"second")
        assert clients[1].recv(100) == b"second"


def test_they_end_with_their_parent() -> None:
    """The channel's end tells them: nobody else has its other end open."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with team(obey, 3) as it:
            os.write(write, " ".join(str(pid) for _, pid in it.hear(3)).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        pids = [int(pid) for pid in pipe.read(100).split()]
    os.waitpid(parent, 0)
    assert len(pids) == 3
    wait_for(lambda: all(gone(pid) or zombie(pid) for pid in pids), 30)


def zombie(pid: int) -> bool:
    """Ended, and nobody has taken note: pid 1 of a container need not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@given(st.integers(0, 10_000))
def test_back_off_grows_to_a_limit(ends: int) -> None:
    assert 0 <= back_off(ends) <= back_off(ends + 1) <= 5
    assert back_off(0) == back_off(1) == 0 < back_off(2)


@given(st.integers(1, 5), st.lists(st.floats(0, 3), max_size=60))
def test_a_limit_tells_of_everything_once(most: int, waits: list[float]) -> None:
    now = 0.0
    limit = Limit(most, lambda: now)
    let_through = withheld = 0
    times = []
    for wait in waits:
        now += wait
        withheld += limit.withheld()
        if limit.admits():
            let_through += 1
            times.append(now)
    patience = limit.patience()
    now += patience or 0.0
    withheld += limit.withheld()
    assert limit.patience() is None
    assert let_through + withheld == len(waits)
    # Between these lies a whole second's worth.
    assert all(last - first > 0.999 for first, last in zip(times, times[2 * most :], strict=False))
