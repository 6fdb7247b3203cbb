"""What the kqueue poller does beyond the contract of all: which calls it makes, and what a fork
leaves. On Linux against the stand-in."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contract.pollers import BOTH, KQUEUES, MAKERS, SYSTEM

from lusca_comm.reactor import kqueue
from lusca_comm.reactor.poller import READ, WRITE


@pytest.fixture(params=KQUEUES)
def poller(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = MAKERS[request.param]()
    yield made
    made.close()


def test_removals_travel_with_the_poll(poller, pair, monkeypatch):
    a, b = pair
    b.send(b"x")
    poller.set(a.fileno(), 0, READ)
    poller.poll(0)
    calls = recorded(poller)
    poller.set(a.fileno(), READ, 0)
    assert calls == []
    poller.set(b.fileno(), 0, WRITE)
    assert poller.poll(0) == [(b.fileno(), WRITE)]
    assert [len(changes or ()) for changes, _, _ in calls] == [1, 1]


def test_a_removal_too_late_hides_no_event(poller, pair):
    """The kernel answers with the error alone; the poll asks again."""
    a, _ = pair
    with socket.socket() as gone:
        poller.set(gone.fileno(), 0, READ)
        poller.set(gone.fileno(), READ, 0)
    poller.set(a.fileno(), 0, WRITE)
    calls = recorded(poller)
    assert poller.poll(-1) == [(a.fileno(), WRITE)]
    assert len(calls) == 2
    assert poller.poll(-1) == [(a.fileno(), WRITE)]
    assert len(calls) == 3


def test_more_removals_too_late_than_events_fit(poller, pair, monkeypatch):
    monkeypatch.setattr(kqueue, "_ROOM", 2)
    a, _ = pair
    pipes = [os.pipe() for _ in range(5)]
    for r, w in pipes:
        poller.set(r, 0, READ)
        poller.set(w, 0, WRITE)
    for r, w in pipes:
        poller.set(r, READ, 0)
        poller.set(w, WRITE, 0)
        os.close(r)
        os.close(w)
    poller.set(a.fileno(), 0, WRITE)
    assert poller.poll(0) == [(a.fileno(), WRITE)]


def test_a_time_out_that_no_kernel_takes(poller, pair):
    a, _ = pair
    poller.set(a.fileno(), 0, WRITE)
    assert poller.poll(1e12) == [(a.fileno(), WRITE)]


def test_a_pipe_without_a_reader_and_without_a_descriptor_left(poller, monkeypatch):
    """No descriptor for the one that makes fileno() ready: the poll knows all the same."""
    r, w = os.pipe()
    os.close(r)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(kqueue.os, "pipe", no_descriptor)
            poller.set(w, 0, WRITE)
        assert [poller.poll(-1) for _ in range(2)] == [[(w, WRITE)]] * 2
        poller.set(w, WRITE, 0)
        assert poller.poll(0) == []
    finally:
        os.close(w)


def no_descriptor() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_nothing_is_left_open(poller):
    r, w = os.pipe()
    os.close(r)
    poller.set(w, 0, WRITE)
    mine = [poller.fileno(), poller._beacon]
    poller.close()
    os.close(w)
    for fd in mine:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_half_an_addition_is_taken_back(poller, pair, monkeypatch):
    """The read filter was added, the write filter refused: nothing may be left of either."""
    a, b = pair
    b.send(b"x")
    queue = poller._kqueue

    class Refusing:
        def control(self, changes: list[Any], *rest: Any) -> list[Any]:
            if changes and any(c.filter == poller._system.KQ_FILTER_WRITE for c in changes):
                queue.control([c for c in changes if c.filter != -2], *rest)
                raise OSError(errno.ENOMEM, "no memory")
            return queue.control(changes, *rest)

    monkeypatch.setattr(poller, "_kqueue", Refusing())
    with pytest.raises(OSError) as caught:
        poller.set(a.fileno(), 0, BOTH)
    assert caught.value.errno == errno.ENOMEM
    monkeypatch.undo()
    assert poller.poll(0) == []


def in_child(fn: Callable[[], object]) -> bytes:
    """What `fn` does in a forked child: b"" or what it raised."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            fn()
        except BaseException as why:
            text = repr(why)
        os.write(w, text.encode())
        os._exit(0)
    os.close(w)
    with open(r, "rb") as result:  # noqa: PTH123
        said = result.read()
    os.waitpid(pid, 0)
    return said


@pytest.mark.parametrize("knows", [True, False], ids=["3.12.1", "3.10"])
def test_a_forked_child_closes_nobodys_number(poller, pair, monkeypatch, knows):
    if SYSTEM is not select:
        monkeypatch.setattr(SYSTEM.kqueue, "object_knows_fork", knows)
    a, b = pair
    poller.set(a.fileno(), 0, READ)
    number = poller._kqueue.fileno()

    def taken() -> None:
        with open(os.devnull) as mine:  # noqa: PTH123
            os.dup2(mine.fileno(), number)

    def number_is_free() -> None:
        poller.close()
        taken()
        poller.close()
        del poller._kqueue
        os.fstat(number)

    def number_is_taken() -> None:
        getattr(poller._kqueue, "closed", None)  # the kernel's part comes first
        taken()
        poller.close()
        del poller._kqueue
        os.fstat(number)

    assert in_child(number_is_free) == b""
    assert in_child(number_is_taken) == b""
    b.send(b"x")
    assert poller.poll(-1) == [(a.fileno(), READ)]


def test_closing_twice(poller):
    poller.close()
    poller.close()
    with pytest.raises(ValueError):
        poller.poll(0)


def recorded(poller: Any) -> list[tuple[Any, int, Any]]:
    """Calls of control() from now on."""
    queue, calls = poller._kqueue, []

    class Recorder:
        closed = False

        def control(self, changes: Any, room: int, timeout: Any = None) -> Any:
            calls.append((changes, room, timeout))
            return queue.control(changes, room, timeout)

        def close(self) -> None:
            queue.close()

    poller._kqueue = Recorder()
    return calls


@pytest.mark.skipif(SYSTEM is select, reason="here is a real kqueue")
def test_the_stand_in_says_what_it_cannot():
    queue = SYSTEM.kqueue()
    try:
        for flags in (SYSTEM.KQ_EV_ADD | SYSTEM.KQ_EV_CLEAR, SYSTEM.KQ_EV_DISABLE):
            with pytest.raises(NotImplementedError):
                queue.control([SYSTEM.kevent(0, SYSTEM.KQ_FILTER_READ, flags)], 0)
    finally:
        queue.close()
