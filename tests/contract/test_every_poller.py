"""What every poller promises."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading

import pytest
from contract.pollers import BOTH, MAKERS, asked_for, broken, fill, reset
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm.reactor import kqueue
from lusca_comm.reactor.poller import READ, WRITE


def test_nothing_asked_nothing_told(poller, pair):
    assert poller.poll(0) == []


def test_readable_when_there_is_something_to_read(poller, pair):
    a, b = pair
    poller.set(a.fileno(), 0, READ)
    assert poller.poll(0) == []
    b.send(b"x")
    assert poller.poll(-1) == [(a.fileno(), READ)]


def test_told_again_until_it_is_read(poller, pair):
    a, b = pair
    poller.set(a.fileno(), 0, READ)
    b.send(b"x")
    assert [poller.poll(0) for _ in range(3)] == [[(a.fileno(), READ)]] * 3
    a.recv(1)
    assert poller.poll(0) == []


def test_writable_until_the_buffer_is_full(poller, pair):
    a, b = pair
    poller.set(a.fileno(), 0, WRITE)
    assert poller.poll(0) == [(a.fileno(), WRITE)]
    fill(a)
    assert poller.poll(0) == []
    while True:
        try:
            b.recv(1 << 20)
        except BlockingIOError:
            break
    assert poller.poll(-1) == [(a.fileno(), WRITE)]


def test_both_directions_are_one_event(poller, pair):
    a, b = pair
    poller.set(a.fileno(), 0, BOTH)
    assert poller.poll(0) == [(a.fileno(), WRITE)]
    b.send(b"x")
    assert poller.poll(0) == [(a.fileno(), BOTH)]


@pytest.mark.parametrize("before", [0, READ, WRITE, BOTH])
@pytest.mark.parametrize("after", [0, READ, WRITE, BOTH])
def test_every_change_of_interest(poller, pair, before, after):
    a, b = pair
    b.send(b"x")
    fd = a.fileno()
    poller.set(fd, 0, before) if before else None
    assert poller.poll(0) == ([(fd, before)] if before else [])
    poller.set(fd, before, after)
    assert poller.poll(0) == ([(fd, after)] if after else [])


def test_changes_between_two_polls_end_as_the_last_one(poller, pair):
    a, b = pair
    b.send(b"x")
    fd = a.fileno()
    for before, after in ((0, READ), (READ, 0), (0, WRITE), (WRITE, BOTH), (BOTH, READ)):
        poller.set(fd, before, after)
    assert poller.poll(0) == [(fd, READ)]
    for before, after in ((READ, 0), (0, READ), (READ, 0)):
        poller.set(fd, before, after)
    assert poller.poll(0) == []


def test_data_before_the_end_and_then_the_end(poller, pair):
    a, b = pair
    poller.set(a.fileno(), 0, READ)
    b.send(b"last words")
    b.shutdown(socket.SHUT_WR)
    assert poller.poll(-1) == [(a.fileno(), READ)]
    assert a.recv(100) == b"last words"
    assert poller.poll(-1) == [(a.fileno(), READ)]
    assert a.recv(100) == b""


@pytest.mark.parametrize("asked", [READ, WRITE, BOTH])
def test_a_hang_up_is_told_as_what_was_asked(poller, pair, asked):
    a, b = pair
    fill(a)
    poller.set(a.fileno(), 0, asked)
    assert poller.poll(0) == []
    b.close()
    assert asked_for(poller.poll(-1), a, asked) == asked


@pytest.mark.parametrize("asked", [READ, WRITE, BOTH])
def test_a_reset_is_told_as_what_was_asked(poller, tcp, asked):
    a, b = tcp
    fill(a)
    poller.set(a.fileno(), 0, asked)
    reset(b)
    while asked_for(poller.poll(-1), a, asked) != asked or not broken(a):
        pass  # one direction may be told before the other


def test_pollers_nest(poller, pair, pipe):
    """Its descriptor is readable while anything is ready."""
    a, b = pair
    outer = select.poll()
    outer.register(poller.fileno(), select.POLLIN)
    poller.set(a.fileno(), 0, READ)
    assert outer.poll(0) == []
    b.send(b"x")
    assert [outer.poll(0) for _ in range(2)] == [[(poller.fileno(), select.POLLIN)]] * 2
    assert poller.poll(0) == [(a.fileno(), READ)]
    assert outer.poll(0) == [(poller.fileno(), select.POLLIN)]
    a.recv(1)
    assert poller.poll(0) == []
    assert outer.poll(0) == []

    os.close(pipe[0])
    poller.set(pipe[1], 0, WRITE)
    assert [outer.poll(0) for _ in range(2)] == [[(poller.fileno(), select.POLLIN)]] * 2
    assert asked_for(poller.poll(0), pipe[1], WRITE) == WRITE
    assert [outer.poll(0) for _ in range(2)] == [[(poller.fileno(), select.POLLIN)]] * 2
    poller.set(pipe[1], WRITE, 0)
    assert poller.poll(0) == []
    assert outer.poll(0) == []
    pipe[0] = -1


@pytest.mark.parametrize("asked", [READ, WRITE, BOTH])
def test_a_refused_connect_is_told_as_what_was_asked(poller, asked):
    with socket.socket() as bound, socket.socket() as sock:
        bound.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        assert sock.connect_ex(bound.getsockname()) in (errno.EINPROGRESS, errno.ECONNREFUSED)
        poller.set(sock.fileno(), 0, asked)
        while asked_for(poller.poll(-1), sock, asked) != asked:
            pass
        assert asked_for(poller.poll(-1), sock, asked) == asked


def test_a_pipe_without_a_reader_stays_ready_for_writing(poller, pipe):
    r, w = pipe
    os.set_blocking(w, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(w, bytes(65536)):
            pass
    poller.set(w, 0, WRITE)
    assert poller.poll(0) == []
    os.close(r)
    pipe[0] = -1
    assert [asked_for(poller.poll(-1), w, WRITE) for _ in range(3)] == [WRITE] * 3
    poller.set(w, WRITE, 0)
    assert poller.poll(0) == []
    poller.set(w, 0, WRITE)
    assert [asked_for(poller.poll(-1), w, WRITE) for _ in range(3)] == [WRITE] * 3


def test_a_pipe_without_a_writer_stays_ready_for_reading(poller, pipe):
    r, w = pipe
    poller.set(r, 0, READ)
    os.write(w, b"x")
    os.close(w)
    pipe[1] = -1
    assert [asked_for(poller.poll(-1), r, READ) for _ in range(2)] == [READ] * 2
    os.read(r, 1)
    assert [asked_for(poller.poll(-1), r, READ) for _ in range(2)] == [READ] * 2


def test_what_is_closed_is_refused(poller, pair):
    a, _ = pair
    fd = a.fileno()
    a.close()
    for before, after in ((0, READ), (0, BOTH), (READ, BOTH), (READ, WRITE)):
        with pytest.raises(OSError) as caught:
            poller.set(fd, before, after)
        assert caught.value.errno == errno.EBADF
    assert poller.poll(0) == []


def test_files_are_refused(poller, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    for place, flags in ((path, os.O_RDWR), (tmp_path, os.O_RDONLY)):
        fd = os.open(place, flags)
        try:
            with pytest.raises(PermissionError):
                poller.set(fd, 0, READ)
            assert poller.poll(0) == []
        finally:
            os.close(fd)


def test_to_take_out_what_is_closed_is_no_error(poller, pair):
    a, b = pair
    poller.set(b.fileno(), 0, READ)
    poller.set(a.fileno(), 0, BOTH)
    fd = a.fileno()
    a.close()
    poller.set(fd, BOTH, 0)
    assert asked_for(poller.poll(-1), b, READ) == READ


def test_a_number_that_was_closed_is_forgotten(poller, pair):
    a, b = pair
    poller.set(a.fileno(), 0, READ)
    b.send(b"x")
    a.close()
    assert poller.poll(0) == []


@pytest.mark.parametrize("out_first", [True, False], ids=["taken out", "left in"])
@pytest.mark.parametrize("before", [READ, WRITE])
@pytest.mark.parametrize("after", [READ, WRITE, BOTH])
def test_a_number_that_is_used_again(poller, pair, out_first, before, after):
    a, _ = pair
    fd = a.fileno()
    poller.set(fd, 0, before)
    if out_first:
        poller.set(fd, before, 0)
    a.close()
    again, other = socket.socketpair()
    with again, other:
        moved = again if again.fileno() == fd else other
        assert moved.fileno() == fd
        (other if moved is again else again).send(b"x")
        poller.set(fd, 0 if out_first else before, after)
        assert poller.poll(0) == [(fd, after)]
        poller.set(fd, after, 0)
        assert poller.poll(0) == []


def test_another_thread_makes_it_ready(poller, pair):
    a, b = pair
    poller.set(a.fileno(), 0, READ)
    thread = threading.Thread(target=b.send, args=(b"x",))
    thread.start()
    assert poller.poll(-1) == [(a.fileno(), READ)]
    thread.join()


def test_more_ready_than_fit_all_get_their_turn(poller, monkeypatch):
    monkeypatch.setattr(kqueue, "_ROOM", 2)
    pairs = [socket.socketpair() for _ in range(7)]
    try:
        for a, _ in pairs:
            poller.set(a.fileno(), 0, BOTH)
        seen: dict[int, int] = {}
        for _ in range(len(pairs)):
            for fd, mask in poller.poll(0):
                seen[fd] = seen.get(fd, 0) | mask
        assert seen == {a.fileno(): WRITE for a, _ in pairs}
    finally:
        for a, b in pairs:
            a.close()
            b.close()


def test_a_very_long_time_out_is_no_error(poller, pair):
    a, b = pair
    poller.set(a.fileno(), 0, READ)
    b.send(b"x")
    assert poller.poll(2_000_000.0) == [(a.fileno(), READ)]


# -- any sequence of changes: both pollers agree with poll(2) ------------------------------------

FDS = 3
STEPS = st.one_of(
    st.tuples(st.just("set"), st.integers(0, FDS - 1), st.sampled_from([0, READ, WRITE, BOTH])),
    st.tuples(st.sampled_from(["send", "read", "reopen", "hang up"]), st.integers(0, FDS - 1)),
    st.tuples(st.just("poll")),
)


@pytest.mark.parametrize("name", MAKERS)
@given(steps=st.lists(STEPS, max_size=25))
def test_any_sequence(name, steps):
    """`interest` is the reactor's idea of what the poller waits for; ready is what poll(2) says."""
    poller = MAKERS[name]()
    pairs = [socket.socketpair() for _ in range(FDS)]
    interest = [0] * FDS
    try:
        for step, *rest in [*steps, ("poll",)]:
            if step == "poll":
                expected, asked = {}, {}
                for (a, _), mask in zip(pairs, interest, strict=True):
                    asked[a.fileno()] = mask
                    if mask and (got := mask & ready(a)):
                        expected[a.fileno()] = got
                told = {fd: mask & asked[fd] for fd, mask in poller.poll(0)}
                assert told == expected
                continue
            i = rest[0]
            a, b = pairs[i]
            if step == "set":
                poller.set(a.fileno(), interest[i], rest[1])
                interest[i] = rest[1]
            elif step == "send" and b.fileno() >= 0:
                b.send(b"x")
            elif step == "read":
                a.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    a.recv(100)
            elif step == "hang up":
                b.close()
            elif step == "reopen":
                fd = a.fileno()
                poller.set(fd, interest[i], 0)
                b.close()
                a.close()
                pairs[i] = socket.socketpair()
                interest[i] = 0
    finally:
        poller.close()
        for a, b in pairs:
            a.close()
            b.close()


def ready(sock: socket.socket) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    bits = sum(bits for _, bits in poll.poll(0))
    if bits & (select.POLLHUP | select.POLLERR):
        return BOTH
    return (READ if bits & select.POLLIN else 0) | (WRITE if bits & select.POLLOUT else 0)
