"""Ownership: open, close, close behind the table's back, dup, collect and use a number again, in
any order. No entry ever acts on another's descriptor, nobody goes deaf, and no descriptor leaks."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import lusca_comm as lc
from lusca_comm import CommError, Reactor


def open_fds() -> set[int]:
    """Of this process, but for the one that lists them."""
    found = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    return {fd for fd in found if os.path.exists(f"/proc/self/fd/{fd}")}  # noqa: PTH110


class Thing:
    """A descriptor in the table, and the other end of it, which is not."""

    def __init__(self, name: int, sock: Any, fd: int, peer: socket.socket | int) -> None:
        self.name = name
        self.sock = sock  # None once collected: the table alone holds it
        self.fd = fd
        self.peer = peer
        self.armed = False
        self.unread = 0
        self.closed = False
        self.told_closing = 0

    @property
    def handle(self) -> Any:
        return self.fd if self.sock is None else self.sock

    def write(self) -> None:
        token = b"%04d" % self.name
        if isinstance(self.peer, int):
            os.write(self.peer, token)
        else:
            self.peer.send(token)
        self.unread += 1

    def close_peer(self) -> None:
        if isinstance(self.peer, int):
            os.close(self.peer)
        else:
            self.peer.close()


class Ownership(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        gc.freeze()  # what is not of this run: collecting is quick then
        self.before = open_fds()
        self.reactor = Reactor()
        self.complaints: list[str] = []
        self.reactor.exception_hook = lambda why, where: self.complaints.append(f"{where}: {why!r}")
        self.things: list[Thing] = []
        self.dups: list[int] = []
        self.names = 0
        self.reactor.comm_select(0)

    def pick(
        self, number: int, where: Callable[[Thing], bool] = lambda thing: True
    ) -> Thing | None:
        living = [thing for thing in self.things if not thing.closed and where(thing)]
        return living[number % len(living)] if living else None

    def on_readable(self, sock: Any, thing: Thing) -> None:
        assert not thing.closed, "a closed descriptor's handler"
        assert thing.armed, "called twice"
        assert sock is thing.sock or thing.sock is None
        thing.armed = False
        got = os.read(thing.fd, 4) if isinstance(sock, int) else sock.recv(4)
        assert got == b"%04d" % thing.name, "another descriptor's bytes"
        thing.unread -= 1

    def on_closing(self, sock: Any, thing: Thing) -> None:
        thing.told_closing += 1

    # -- rules -------------------------------------------------------------------------------------

    def add(self, sock: Any, fd: int, peer: Any) -> Thing:
        self.names += 1
        thing = Thing(self.names, sock, fd, peer)
        self.things.append(thing)
        self.reactor.comm_add_close_handler(sock, self.on_closing, thing)
        return thing

    @rule()
    def take_over_a_socket(self) -> None:
        ours, peer = socket.socketpair()
        self.add(self.reactor.comm_fdopen(ours), ours.fileno(), peer)

    @rule()
    def take_over_a_number(self) -> None:
        ours, peer = socket.socketpair()
        fd = ours.detach()
        sock = self.reactor.comm_fdopen(fd)
        assert sock.fileno() == fd
        self.add(sock, fd, peer)

    @rule()
    def use_a_number(self) -> None:
        """Whose owner is nobody: a pipe's end."""
        r, w = os.pipe()
        self.add(r, r, w)

    @rule(number=st.integers(0))
    def arm(self, number: int) -> None:
        thing = self.pick(number)
        if thing is not None:
            self.reactor.comm_set_select(thing.handle, lc.COMM_SELECT_READ, self.on_readable, thing)
            thing.armed = True

    @rule(number=st.integers(0))
    def cancel(self, number: int) -> None:
        thing = self.pick(number)
        if thing is not None:
            self.reactor.comm_set_select(thing.handle, lc.COMM_SELECT_READ, None)
            thing.armed = False

    @rule(number=st.integers(0))
    def make_readable(self, number: int) -> None:
        thing = self.pick(number, lambda thing: thing.unread < 10)
        if thing is not None:
            thing.write()

    @rule(number=st.integers(0), by_number=st.booleans(), again=st.booleans())
    def close(self, number: int, by_number: bool, again: bool) -> None:
        thing = self.pick(number)
        if thing is None:
            return
        handle = thing.fd if by_number else thing.handle
        self.reactor.comm_close(handle)
        self.gone(thing)
        assert thing.told_closing == 1
        if again and not isinstance(handle, int):
            self.reactor.comm_close(handle)  # idempotent

    @rule(number=st.integers(0))
    def close_behind_its_back(self, number: int) -> None:
        thing = self.pick(number, lambda thing: thing.sock is not None)
        if thing is not None:
            os.close(thing.sock) if isinstance(thing.sock, int) else thing.sock.close()
            self.gone(thing)

    @rule(number=st.integers(0))
    def dup(self, number: int) -> None:
        thing = self.pick(number)
        if thing is not None and len(self.dups) < 20:
            self.dups.append(os.dup(thing.fd))

    @precondition(lambda self: self.dups)
    @rule(number=st.integers(0))
    def close_a_dup(self, number: int) -> None:
        os.close(self.dups.pop(number % len(self.dups)))

    @rule(number=st.integers(0))
    def collect(self, number: int) -> None:
        """The program forgets the object; the table does not."""
        thing = self.pick(number, lambda thing: isinstance(thing.sock, socket.socket))
        if thing is not None:
            known = weakref.ref(thing.sock)
            thing.sock = None
            gc.collect()
            assert known() is not None
            os.fstat(thing.fd)

    @rule(number=st.integers(0))
    def detach(self, number: int) -> None:
        thing = self.pick(number)
        if thing is None:
            return
        sock = self.reactor.comm_detach(thing.handle)
        os.fstat(thing.fd)  # still open
        os.close(sock) if isinstance(sock, int) else sock.close()
        self.gone(thing)
        assert thing.told_closing == 0

    @rule()
    def turn(self) -> None:
        """Whoever is armed and readable hears of it, within the turns of a rebuilt poller."""
        due = [thing for thing in self.things if thing.armed and thing.unread and not thing.closed]
        for _ in range(3):
            self.reactor.comm_select(0)
        assert not any(thing.armed for thing in due)

    def gone(self, thing: Thing) -> None:
        thing.closed = True
        thing.armed = False
        thing.close_peer()

    # -- what holds --------------------------------------------------------------------------------

    @invariant()
    def nobody_complained(self) -> None:
        assert not self.complaints

    @invariant()
    def the_living_are_in_the_table(self) -> None:
        for thing in self.things:
            if not thing.closed:
                entry = self.reactor.table.find(thing.handle)
                assert entry is not None
                assert entry.fd == thing.fd
                assert (thing.name, thing.armed) == (thing.name, entry.read_handler is not None)

    def teardown(self) -> None:
        for thing in self.things:
            if not thing.closed:
                self.reactor.comm_close(thing.handle)
                self.gone(thing)
        for fd in self.dups:
            os.close(fd)
        for _ in range(2):
            self.reactor.comm_select(0)
        assert not self.complaints
        # Behind the table's back: told late, or when the number was used again.
        stale = [entry for entry in self.reactor.table if not entry.stale]
        assert not stale
        self.reactor.close()
        del self.reactor
        self.things.clear()
        gc.collect()
        gc.unfreeze()
        assert open_fds() == self.before


TestOwnership = Ownership.TestCase


# -- single cases that the machine meets too rarely ------------------------------------------------


@pytest.fixture
def reactor() -> Any:
    reactor = Reactor()
    yield reactor
    for entry in reactor.table:
        reactor.comm_close(entry.sock)
    reactor.close()


def test_a_ghost_is_got_rid_of(reactor: Reactor) -> None:
    """Closed behind the table's back while a dup holds the file: epoll would report it for ever,
    and the loop would spin."""
    ours, peer = socket.socketpair()
    with peer:
        reactor.comm_set_select(ours, lc.COMM_SELECT_READ, lambda sock, data: None)
        reactor.comm_select(0)
        dup = os.dup(ours.fileno())
        ours.close()
        peer.send(b"x")
        turns = 0
        while reactor.comm_select(0) == lc.COMM_OK or len(reactor.table):
            turns += 1
            assert turns < 5
        os.close(dup)
        calls = reactor.system_calls["interest"]
        reactor.comm_select(0)
        assert reactor.system_calls["interest"] == calls


@pytest.mark.parametrize("behind", [True, False], ids=["closed behind its back", "closed"])
def test_a_ghost_does_not_speak_for_its_successor(reactor: Reactor, behind: bool) -> None:
    called = []
    ours, peer = socket.socketpair()
    reactor.comm_set_select(ours, lc.COMM_SELECT_READ, lambda sock, data: None)
    reactor.comm_select(0)
    number, dup = ours.fileno(), os.dup(ours.fileno())
    ours.close() if behind else reactor.comm_close(ours)
    after = reactor.comm_open(socket.SOCK_DGRAM, 0, ("127.0.0.1", 0))
    assert after.fileno() == number
    reactor.comm_set_select(after, lc.COMM_SELECT_READ, lambda sock, data: called.append(sock))
    peer.send(b"to the one that was closed")
    for _ in range(4):
        reactor.comm_select(0)
    assert not called
    after_peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    after_peer.sendto(b"x", after.getsockname())
    while not called:
        reactor.comm_select(1000)
    assert called == [after]
    os.close(dup)
    peer.close()
    after_peer.close()


@pytest.mark.parametrize("again", [False, True], ids=["closed", "number used again"])
def test_closing_one_that_is_ready_costs_the_others_nothing(reactor: Reactor, again: bool) -> None:
    """Its event is in the batch; that is no reason to build the poller anew."""
    pairs = [socket.socketpair() for _ in range(20)]

    def close_the_second(sock: Any, _: Any) -> None:
        other = pairs[1][0] if sock is pairs[0][0] else pairs[0][0]
        number = other.fileno()
        reactor.comm_close(other)
        if again:
            assert reactor.comm_open().fileno() == number

    for ours, _ in pairs:
        reactor.comm_set_select(ours, lc.COMM_SELECT_READ, close_the_second)
    reactor.comm_select(0)
    interest = reactor.system_calls["interest"]
    for _, peer in pairs[:2]:
        peer.send(b"x")
    for _ in range(3):
        reactor.comm_select(0)
    assert reactor.system_calls["interest"] - interest == 2  # one closed, the other's slot used
    for _, peer in pairs:
        peer.close()


def test_a_number_used_again_within_a_batch_gets_no_event_of_its_predecessor(
    reactor: Reactor,
) -> None:
    """Two are ready in one poll; the first one's handler closes the second and opens another, which
    gets its number."""
    one, one_peer = socket.socketpair()
    two, two_peer = socket.socketpair()
    made: list[socket.socket] = []

    def swap(other: socket.socket) -> None:
        number = other.fileno()
        reactor.comm_close(other)
        sock = reactor.comm_open(socket.SOCK_DGRAM, 0, ("127.0.0.1", 0))
        assert sock.fileno() == number
        reactor.comm_set_select(sock, lc.COMM_SELECT_READ, lambda sock, data: wrong.append(sock))
        made.append(sock)

    wrong: list[Any] = []
    for sock, other in ((one, two), (two, one)):
        reactor.comm_set_select(sock, lc.COMM_SELECT_READ, lambda sock, data: swap(data), other)
    one_peer.send(b"x")
    two_peer.send(b"x")
    for _ in range(3):
        reactor.comm_select(0)
    assert len(made) == 1
    assert not wrong
    one_peer.close()
    two_peer.close()


def test_a_number_that_somebody_else_owns_is_not_closed(reactor: Reactor) -> None:
    with socket.socket() as sock:
        with pytest.raises(CommError) as caught:
            reactor.comm_close(sock.fileno())
        assert caught.value.errno == errno.EBADF
        os.fstat(sock.fileno())


def test_a_plain_number_closed_and_used_again_is_another_descriptor(reactor: Reactor) -> None:
    r, w = os.pipe()
    told: list[Any] = []
    reactor.comm_add_close_handler(r, lambda sock, data: told.append(sock))
    os.close(r)
    again = os.open(os.devnull, os.O_RDONLY)
    assert again == r
    with pytest.raises(CommError):  # in the table no more, and open
        reactor.comm_close(again)
    os.fstat(again)
    reactor.comm_select(0)
    assert told == [r]
    os.close(again)
    os.close(w)


def test_a_deadline_of_what_was_closed_behind_the_tables_back(reactor: Reactor) -> None:
    """The number is another's by then."""
    told: list[str] = []
    r, w = os.pipe()
    sock = socket.socket()
    reactor.comm_set_timeout(r, 0, lambda *_: told.append("deadline"))
    reactor.comm_set_timeout(sock, 0, lambda *_: told.append("deadline"))
    reactor.comm_add_close_handler(r, lambda *_: told.append("closed"))
    reactor.comm_add_close_handler(sock, lambda *_: told.append("closed"))
    os.close(r)
    sock.close()
    again = os.open(os.devnull, os.O_RDONLY)
    assert again == r
    for _ in range(2):
        reactor.comm_select(0)
    assert told == ["closed", "closed"]
    os.close(again)
    os.close(w)


def test_a_close_handler_that_closes_the_number_itself(reactor: Reactor) -> None:
    """And opens something else, which gets the number."""
    r, w = os.pipe()
    again: list[int] = []

    def close(fd: int, _: Any) -> None:
        os.close(fd)
        again.append(os.open(os.devnull, os.O_RDONLY))

    reactor.comm_add_close_handler(r, close)
    reactor.comm_close(r)
    assert again == [r]
    os.fstat(r)
    os.close(r)
    os.close(w)


def test_an_object_without_close_is_left_to_its_owner(reactor: Reactor) -> None:
    class Borrowed:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def fileno(self) -> int:
            return self.sock.fileno()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        thing = Borrowed(sock)
        reactor.comm_set_select(thing, lc.COMM_SELECT_READ, lambda sock, data: None)
        assert len(reactor.table) == 1
        reactor.comm_close(thing)
        assert len(reactor.table) == 0
        assert sock.fileno() >= 0


def test_printed(reactor: Reactor) -> None:
    a, b = socket.socketpair()
    with b:
        reactor.comm_fdopen(a, note="a pair")
        reactor.comm_write(a, b"12345")
        reactor.comm_set_select(a, lc.COMM_SELECT_READ, lambda sock, data: None)
        line = str(reactor.table).splitlines()[1]
        assert line.split() == [str(a.fileno()), "read", "0", "5", "a", "pair"]
        reactor.comm_note(a, "another note")
        assert str(reactor.table).endswith("another note")
        counted = dict(reversed(line.split()) for line in str(reactor.system_calls).splitlines())
        assert counted["write"] == "1"
        with contextlib.suppress(BlockingIOError):
            a.recv(1)
