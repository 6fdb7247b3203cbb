"""What a reactor promises, over every poller: readiness, time, order, and what handlers may do."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from typing import Any

import pytest
from contract.reactors import LIMIT, Watched, connected, fill, in_child, reactor

import lusca_comm as lc
from lusca_comm import CommError

__all__ = ["reactor"]

READ, WRITE = lc.COMM_SELECT_READ, lc.COMM_SELECT_WRITE


@pytest.fixture
def pair(reactor: Watched) -> Any:
    a, b = socket.socketpair()
    yield reactor.comm_fdopen(a), b
    b.close()


def ignore(sock: Any, data: Any) -> None:
    pass


# -- select ----------------------------------------------------------------------------------------


def test_a_handler_is_called_once(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[Any] = []
    reactor.comm_set_select(sock, READ, lambda *args: calls.append(args), "data")
    peer.send(b"x")
    reactor.until(lambda: calls)
    reactor.settle()
    assert calls == [(sock, "data")]


def test_armed_again_it_is_called_again(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[Any] = []

    def again(sock: Any, data: Any) -> None:
        reactor.comm_set_select(sock, READ, again)
        calls.append(sock.recv(1))

    reactor.comm_set_select(sock, READ, again)
    for _ in range(3):
        count = len(calls)
        peer.send(b"x")
        reactor.until(lambda count=count: len(calls) > count)
    assert calls == [b"x"] * 3
    interest = reactor.system_calls["interest"]
    peer.send(b"x")
    reactor.until(lambda: len(calls) == 4)
    assert reactor.system_calls["interest"] == interest  # the usual case costs nothing


def test_slots_are_independent(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[str] = []
    reactor.comm_set_select(sock, READ, lambda *_: calls.append("read"))
    reactor.comm_set_select(sock, WRITE, lambda *_: calls.append("write"))
    reactor.until(lambda: calls)
    reactor.settle()
    assert calls == ["write"]
    peer.send(b"x")
    reactor.until(lambda: len(calls) > 1)
    assert calls == ["write", "read"]


def test_none_cancels_one_slot(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[str] = []
    reactor.comm_set_select(sock, READ, lambda *_: calls.append("read"))
    reactor.comm_set_select(sock, WRITE, lambda *_: calls.append("write"))
    peer.send(b"x")
    reactor.comm_set_select(sock, READ, None)
    reactor.until(lambda: calls)
    reactor.settle()
    assert calls == ["write"]


def test_a_handler_that_is_cancelled_by_another_of_the_same_turn(reactor: Watched) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    calls: list[Any] = []

    def first(sock: Any, other: Any) -> None:
        calls.append(sock)
        reactor.comm_set_select(other, READ, None)

    for (a, b), (other, _) in zip(pairs, reversed(pairs), strict=True):
        reactor.comm_set_select(a, READ, first, other)
        b.send(b"x")
    reactor.until(lambda: calls)
    reactor.settle()
    assert len(calls) == 1
    for _, b in pairs:
        b.close()


def test_what_is_not_armed_does_not_spin(reactor: Watched, pair: Any) -> None:
    """A hang-up, data and an error waiting, and nobody who wants to know."""
    sock, peer = pair
    reactor.comm_set_select(sock, READ, ignore)
    peer.send(b"x")
    peer.close()
    reactor.settle()
    assert reactor.comm_select(20) == lc.COMM_TIMEOUT


def test_a_hang_up_calls_whoever_waits(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[str] = []
    fill(sock)
    reactor.comm_set_select(sock, READ, lambda *_: calls.append("read"))
    reactor.comm_set_select(sock, WRITE, lambda *_: calls.append("write"))
    reactor.settle()
    peer.close()
    reactor.until(lambda: len(calls) == 2)
    assert sorted(calls) == ["read", "write"]


def test_plain_numbers_and_anything_with_fileno(reactor: Watched) -> None:
    r, w = os.pipe()
    calls: list[Any] = []
    reactor.comm_set_select(r, READ, lambda sock, data: calls.append((sock, os.read(sock, 1))))
    os.write(w, b"x")
    reactor.until(lambda: calls)
    assert calls == [(r, b"x")]
    with os.fdopen(w, "wb", buffering=0) as file:
        reactor.comm_set_select(file, WRITE, lambda sock, data: calls.append(sock))
        reactor.until(lambda: len(calls) == 2)
        assert calls[1] is file
        reactor.comm_detach(file)


def test_a_number_stands_for_the_object_that_owns_it(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[Any] = []
    reactor.comm_set_select(sock.fileno(), READ, lambda sock, data: calls.append(sock))
    peer.send(b"x")
    reactor.until(lambda: calls)
    assert calls[0] is sock


def test_it_makes_non_blocking(reactor: Watched) -> None:
    a, b = socket.socketpair()
    r, w = os.pipe()
    reactor.comm_set_select(a, READ, ignore)
    reactor.comm_set_select(r, READ, ignore)
    assert a.gettimeout() == 0
    assert not os.get_blocking(a.fileno())
    assert not os.get_blocking(r)
    a.settimeout(5)  # its user's idea
    reactor.comm_set_select(a, READ, ignore)
    assert a.gettimeout() == 0
    b.close()
    os.close(w)


def test_files_are_refused(reactor: Watched, tmp_path: Any) -> None:
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(CommError) as caught:
            reactor.comm_set_select(file, READ, ignore)
        assert caught.value.errno == errno.EPERM
    assert len(reactor.table) == 0


# -- defer -----------------------------------------------------------------------------------------


def test_deferred_it_is_not_called_until_resumed(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[Any] = []
    reactor.comm_set_select(sock, READ, lambda *_: calls.append("read"))
    reactor.comm_defer(sock)
    peer.send(b"x")
    assert reactor.comm_select(20) == lc.COMM_TIMEOUT  # and it does not spin
    reactor.comm_set_select(sock, WRITE, lambda *_: calls.append("write"))
    reactor.until(lambda: calls)
    assert calls == ["write"]
    reactor.comm_resume(sock)
    reactor.until(lambda: len(calls) == 2)
    assert calls == ["write", "read"]


def test_deferred_by_another_of_the_same_turn(reactor: Watched) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    calls: list[Any] = []

    def first(sock: Any, other: Any) -> None:
        calls.append(sock)
        reactor.comm_defer(other)

    for (a, b), (other, _) in zip(pairs, reversed(pairs), strict=True):
        reactor.comm_set_select(a, READ, first, other)
        b.send(b"x")
    reactor.until(lambda: calls)
    reactor.settle()
    assert len(calls) == 1
    (other,) = {a for a, _ in pairs} - set(calls)
    reactor.comm_resume(other)
    reactor.until(lambda: len(calls) == 2)
    for _, b in pairs:
        b.close()


# -- time ------------------------------------------------------------------------------------------


def test_a_deadline_with_a_handler(reactor: Watched, pair: Any) -> None:
    sock, _ = pair
    calls: list[Any] = []
    reactor.comm_set_timeout(sock, 0.01, lambda *args: calls.append(args), "data")
    reactor.until(lambda: calls)
    reactor.settle()
    assert calls == [(sock, "data")]
    assert sock.fileno() >= 0


def test_a_deadline_without_a_handler_closes(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    told: list[Any] = []
    reactor.comm_add_close_handler(sock, lambda *args: told.append(args), 1)
    reactor.comm_set_timeout(sock, 0.01)
    reactor.until(lambda: told)
    assert told == [(sock, 1)]
    assert sock.fileno() == -1
    assert peer.recv(1) == b""


def test_a_negative_number_clears(reactor: Watched, pair: Any) -> None:
    sock, _ = pair
    reactor.comm_set_timeout(sock, 0.0)
    reactor.comm_set_timeout(sock, -1)
    reactor.settle()
    assert sock.fileno() >= 0
    assert len(reactor.timers) == 0


def test_a_select_with_a_time_out_sets_the_deadline_only(reactor: Watched, pair: Any) -> None:
    sock, _ = pair
    calls: list[Any] = []
    reactor.comm_set_timeout(sock, 1000, lambda *args: calls.append(args))
    reactor.comm_set_select(sock, READ, ignore, timeout=0.01)
    reactor.until(lambda: calls)
    assert sock.fileno() >= 0


def test_events_in_their_order(reactor: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    now = time.monotonic()
    with monkeypatch.context() as patch:  # all at the same time, however long it takes
        patch.setattr(time, "monotonic", lambda: now)
        for name, seconds in (("c", 0.03), ("a", 0.01), ("b", 0.02), ("now", -5)):
            reactor.comm_add_event(seconds, calls.append, name)
        event = reactor.comm_add_event(0.005, calls.append, "never")
    reactor.comm_cancel_event(event)
    reactor.comm_cancel_event(event)
    reactor.until(lambda: len(calls) == 4)
    assert calls == ["now", "a", "b", "c"]
    reactor.comm_cancel_event(event)
    assert len(reactor.timers) == 0


def test_an_event_cancelled_by_another_that_is_due_too(reactor: Watched) -> None:
    calls: list[Any] = []
    reactor.comm_add_event(0, lambda _: reactor.comm_cancel_event(second))
    second = reactor.comm_add_event(0, calls.append, "second")
    reactor.settle()
    assert not calls


def test_an_event_that_sets_itself_again_does_not_starve_the_rest(
    reactor: Watched, pair: Any
) -> None:
    sock, peer = pair
    calls: list[Any] = []

    def again(_: Any) -> None:
        if not calls:
            reactor.comm_add_event(0, again)

    again(None)
    reactor.comm_set_select(sock, READ, lambda *args: calls.append(args))
    peer.send(b"x")
    reactor.until(lambda: calls)


def test_far_events_do_not_overflow_the_system_call(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    reactor.comm_add_event(1e300, ignore)
    reactor.comm_add_event(float("inf"), ignore)
    reactor.comm_set_timeout(sock, float("inf"))
    reactor.comm_set_select(sock, READ, ignore)
    peer.send(b"x")
    assert reactor.comm_select(float("inf")) == lc.COMM_OK
    assert reactor.comm_select(10) == lc.COMM_TIMEOUT


def test_comm_select_says_whether_anything_was_done(reactor: Watched) -> None:
    assert reactor.comm_select(0) == lc.COMM_TIMEOUT
    reactor.comm_add_event(0.01, lambda _: None)
    assert reactor.comm_select(LIMIT * 1000) == lc.COMM_OK
    assert reactor.comm_select(0) == lc.COMM_TIMEOUT


# -- handlers that raise, close, recurse -----------------------------------------------------------


def test_a_handler_that_raises_stops_nobody(reactor: Watched) -> None:
    pairs = [socket.socketpair() for _ in range(5)]
    calls: list[int] = []

    def handler(sock: Any, number: int) -> None:
        calls.append(number)
        if number == 0:
            raise ZeroDivisionError("the first of many")

    for number, (a, b) in enumerate(pairs):
        reactor.comm_set_select(a, READ, handler, number)
        b.send(b"x")
    reactor.until(lambda: len(calls) == 5)
    ((why, where),) = reactor.raised
    assert isinstance(why, ZeroDivisionError)
    assert "handler" in where
    reactor.raised.clear()
    for _, b in pairs:
        b.close()


def test_whatever_raises_the_loop_goes_on(reactor: Watched, pair: Any) -> None:
    sock, _ = pair

    def bad(*_: Any) -> None:
        raise ZeroDivisionError

    reactor.comm_add_event(0, bad)
    reactor.call_soon_threadsafe(bad)
    reactor.comm_set_timeout(sock, 0, bad)
    reactor.comm_write(sock, b"x", bad)
    reactor.settle()
    reactor.comm_add_close_handler(sock, bad)
    reactor.comm_read(sock, 1, bad)
    reactor.comm_close(sock)
    assert [type(why) for why, _ in reactor.raised] == [ZeroDivisionError] * 6
    assert sock.fileno() == -1
    reactor.raised.clear()


def test_a_hook_that_raises_is_no_end_either(
    reactor: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(*_: Any) -> None:
        raise ZeroDivisionError

    reactor.exception_hook = bad
    reactor.comm_add_event(0, bad)
    reactor.settle()
    assert "exception_hook raised" in caplog.text


def test_by_default_what_is_raised_is_logged(
    reactor: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    reactor.exception_hook = lc.Reactor().exception_hook
    reactor.comm_add_event(0, lambda _: 1 // 0)
    reactor.settle()
    assert "ZeroDivisionError" in caplog.text


def test_system_exit_is_passed_on_and_nothing_is_lost(reactor: Watched) -> None:
    calls: list[Any] = []
    reactor.comm_add_event(0, lambda _: exit(3))
    reactor.comm_add_event(0, calls.append)
    with pytest.raises(SystemExit):
        reactor.run()
    reactor.settle()
    assert calls == [None]


def test_a_handler_cannot_run_the_loop(reactor: Watched) -> None:
    for fn in (lambda _: reactor.comm_select(0), lambda _: reactor.run()):
        reactor.comm_add_event(0, fn)
        reactor.settle()
        ((why, _),) = reactor.raised
        assert isinstance(why, CommError)
        assert why.errno == errno.EDEADLK
        reactor.raised.clear()


def test_a_handler_closes_another_that_is_ready_too(reactor: Watched) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    calls: list[Any] = []

    def first(sock: Any, other: Any) -> None:
        calls.append(sock)
        reactor.comm_close(other)

    for (a, b), (other, _) in zip(pairs, reversed(pairs), strict=True):
        reactor.comm_set_select(a, READ, first, other)
        b.send(b"x")
    reactor.until(lambda: calls)
    reactor.settle()
    assert len(calls) == 1
    for _, b in pairs:
        b.close()


def test_a_handler_closes_itself_in_its_read_slot(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[str] = []

    def close(sock: Any, _: Any) -> None:
        calls.append("read")
        reactor.comm_close(sock)

    reactor.comm_set_select(sock, READ, close)
    reactor.comm_set_select(sock, WRITE, lambda *_: calls.append("write"))
    fill(sock)
    peer.close()
    reactor.until(lambda: calls)
    reactor.settle()
    assert calls == ["read"]


def test_the_poller_refuses_late(reactor: Watched, pair: Any) -> None:
    """Whoever would wait in vain is closed, told and reported."""
    sock, _ = pair
    told: list[Any] = []
    reactor.comm_select(0)
    real = reactor._open_poller().set

    def refuse(fd: int, before: int, after: int) -> None:
        if after and fd == sock.fileno():
            raise OSError(errno.ENOSPC, "no more watches")
        real(fd, before, after)

    reactor._open_poller().set = refuse  # type: ignore[method-assign]
    reactor.comm_read(sock, 1, lambda *args: told.append(args))
    reactor.settle()
    assert told == [(sock, b"", lc.COMM_ERR_CLOSING, None)]
    ((why, where),) = reactor.raised
    assert isinstance(why, OSError)
    assert why.errno == errno.ENOSPC
    assert "waiting" in where
    reactor.raised.clear()


# -- threads ---------------------------------------------------------------------------------------


def test_calls_from_other_threads_wake_it_and_keep_their_order(reactor: Watched) -> None:
    calls: list[int] = []

    def many() -> None:
        for number in range(1000):
            reactor.call_soon_threadsafe(calls.append, number)
        reactor.call_soon_threadsafe(reactor.stop)

    thread = threading.Thread(target=many)
    reactor.comm_add_event(0, lambda _: thread.start())
    reactor.run()
    thread.join()
    assert calls == list(range(1000))


def test_a_call_before_the_first_turn(reactor: Watched) -> None:
    calls: list[int] = []
    reactor.call_soon_threadsafe(calls.append, 1)
    assert reactor.comm_select(-1) == lc.COMM_OK
    assert calls == [1]


def test_other_threads_are_refused_while_it_runs(reactor: Watched, pair: Any) -> None:
    sock, _ = pair
    errors: list[Any] = []

    def misuse() -> None:
        for call in (
            lambda: reactor.comm_set_select(sock, READ, ignore),
            lambda: reactor.comm_accept(sock),
            lambda: reactor.comm_open(),
            lambda: reactor.comm_close(sock),
            lambda: reactor.comm_detach(sock),
            lambda: reactor.comm_fdopen(sock),
            lambda: reactor.comm_add_event(0, ignore),
            lambda: reactor.comm_connect(sock, ("127.0.0.1", 1), ignore),
            lambda: reactor.comm_udp_recvfrom(sock),
            lambda: reactor.comm_select(0),
            reactor.run,
            reactor.close,
        ):
            try:
                call()
            except CommError as why:
                errors.append(why.errno)
            else:
                errors.append(None)
        reactor.call_soon_threadsafe(reactor.stop)

    thread = threading.Thread(target=misuse)
    reactor.comm_add_event(0, lambda _: thread.start())
    reactor.run()
    thread.join()
    assert errors == [errno.EPERM] * 12


def test_it_runs_in_any_thread(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    got: list[Any] = []

    def on_readable(sock: Any, _: Any) -> None:
        got.append((threading.get_ident(), sock.recv(1)))
        reactor.stop()

    reactor.comm_set_select(sock, READ, on_readable)
    thread = threading.Thread(target=reactor.run)
    thread.start()
    peer.send(b"x")
    thread.join(LIMIT)
    assert got == [(thread.ident, b"x")]
    assert reactor.comm_select(0) == lc.COMM_TIMEOUT  # it is free again


# -- stop, signals ---------------------------------------------------------------------------------


def test_stop_in_a_handler(reactor: Watched) -> None:
    reactor.comm_add_event(0, lambda _: reactor.stop())
    reactor.run()
    reactor.comm_add_event(0.01, lambda _: reactor.stop())
    reactor.run()


def test_stop_before_run(reactor: Watched) -> None:
    reactor.stop()
    reactor.run()


def test_stop_does_not_make_comm_select_spin(reactor: Watched) -> None:
    reactor.comm_select(0)
    reactor.stop()
    reactor.comm_select(0)
    polls = reactor.system_calls["poll"]
    began = time.monotonic()
    while time.monotonic() - began < 0.1:
        reactor.comm_select(50)
    assert reactor.system_calls["poll"] - polls < 10


def send_soon(reactor: Watched, signum: int) -> threading.Timer:
    """From another thread, once the loop runs: most likely in its poll."""
    timer = threading.Timer(0.02, os.kill, [os.getpid(), signum])
    reactor.comm_add_event(0, lambda _: timer.start())
    return timer


def test_ctrl_c_ends_run(reactor: Watched) -> None:
    timer = send_soon(reactor, signal.SIGINT)
    reactor.run()
    timer.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_ends_the_turn_first(reactor: Watched) -> None:
    calls: list[str] = []

    def interrupted(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        calls.append("went on")

    reactor.comm_add_event(0, interrupted)
    reactor.comm_add_event(0, lambda _: calls.append("and the rest of the turn"))
    reactor.run()
    assert calls == ["went on", "and the rest of the turn"]


def test_a_second_ctrl_c_breaks_a_handler_off(reactor: Watched) -> None:
    def stubborn(_: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    reactor.comm_add_event(0, stubborn)
    with pytest.raises(KeyboardInterrupt):
        reactor.run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    reactor.settle()


def test_ctrl_c_in_comm_select_is_a_keyboard_interrupt(reactor: Watched) -> None:
    timer = send_soon(reactor, signal.SIGINT)

    def turns() -> None:
        while True:
            reactor.comm_select(-1)

    with pytest.raises(KeyboardInterrupt):
        turns()
    timer.join()
    assert reactor.comm_select(0) == lc.COMM_TIMEOUT


def test_a_programs_own_handler_is_left_alone(reactor: Watched) -> None:
    calls: list[int] = []

    def mine(signum: int, frame: Any) -> None:
        calls.append(signum)
        reactor.stop()

    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            timer = send_soon(reactor, number)
            reactor.run()
            timer.join()
            assert signal.getsignal(number) is mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert calls == [signal.SIGINT, signal.SIGTERM]


# -- fork, close -----------------------------------------------------------------------------------


def test_after_a_fork_both_go_on(reactor: Watched, pair: Any) -> None:
    """The child closes, opens and waits for other things; the parent hears nothing of it."""
    sock, peer = pair
    calls: list[Any] = []
    reactor.comm_set_select(sock, READ, lambda sock, _: calls.append(sock.recv(1)))
    reactor.comm_select(0)
    ours, theirs = socket.socketpair()

    def child() -> None:
        got: list[Any] = []
        reactor.comm_set_select(sock, READ, None)
        reactor.comm_set_select(ours, READ, lambda sock, _: got.append(sock.recv(1)))
        reactor.call_soon_threadsafe(theirs.send, b"c")
        reactor.until(lambda: got)
        assert got == [b"c"]
        reactor.comm_close(sock)
        reactor.settle()

    pid = in_child(child)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    peer.send(b"p")
    reactor.until(lambda: calls)
    assert calls == [b"p"]
    ours.close()
    theirs.close()


def test_a_child_does_not_wake_its_parent(reactor: Watched) -> None:
    reactor.comm_select(0)

    _, status = os.waitpid(in_child(lambda: reactor.call_soon_threadsafe(reactor.stop)), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert reactor._open_poller().poll(0) == []
    reactor.call_soon_threadsafe(ignore, None, None)
    assert reactor._open_poller().poll(0) != []


def test_a_handler_that_forks(reactor: Watched, pair: Any) -> None:
    """Both return from it into the loop, and neither is deaf."""
    sock, peer = pair
    pids: list[int] = []
    got: list[bytes] = []
    own = socket.socketpair()

    def on_readable(sock: Any, _: Any) -> None:
        reactor.comm_set_select(sock, READ, on_readable)
        got.append(sock.recv(1))
        if len(got) > 1:
            return
        pid = os.fork()
        if pid:
            pids.append(pid)
            return
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)  # whatever happens, it does not stay
        try:
            reactor.comm_select(0)
        except CommError as why:  # it is in the loop, as its parent
            code = why.errno
        else:
            os._exit(8)
        reactor.comm_set_select(
            own[0], READ, lambda *_: os._exit(7 if code == errno.EDEADLK else 9)
        )
        own[1].send(b"x")

    reactor.comm_set_select(sock, READ, on_readable)
    peer.send(b"1")
    reactor.until(lambda: pids)
    _, status = os.waitpid(pids[0], 0)
    assert os.waitstatus_to_exitcode(status) == 7
    peer.send(b"2")
    reactor.until(lambda: got == [b"1", b"2"])
    for end in own:
        end.close()


def test_closed_it_gives_its_descriptors_back_and_can_be_used_again(
    reactor: Watched, pair: Any
) -> None:
    sock, peer = pair
    calls: list[Any] = []
    reactor.comm_set_select(sock, READ, lambda *args: calls.append(args))
    reactor.settle()
    reactor.close()
    reactor.close()
    peer.send(b"x")
    reactor.until(lambda: calls)


def test_closed_by_a_handler(reactor: Watched, pair: Any) -> None:
    sock, peer = pair
    calls: list[Any] = []
    reactor.comm_add_event(0, lambda _: reactor.close())
    reactor.comm_set_select(sock, READ, lambda *args: calls.append(args))
    peer.send(b"x")
    reactor.until(lambda: calls)


def test_a_connection_from_end_to_end(reactor: Watched) -> None:
    sock, client = connected(reactor)
    reactor.comm_write(sock, b"hello")
    assert client.recv(5) == b"hello"
    reactor.comm_close(sock)
    assert client.recv(1) == b""
    client.close()
