"""Relays over every poller: every byte, every end, and nothing after it.

client ---- ours | relay | theirs ---- origin
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from contract.pollers import MAKERS
from contract.reactors import LIMIT, Watched, connected, fill, reactor, watched
from hypothesis import given
from hypothesis import strategies as st

import lusca_comm as lc
from lusca_comm import CommError, RelayResult

__all__ = ["reactor"]


class Ends:
    """Both connections of a relay, and its result."""

    def __init__(self, reactor: Watched) -> None:
        self.reactor = reactor
        self.ours, self.client = connected(reactor)
        self.theirs, self.origin = connected(reactor)
        self.results: list[RelayResult] = []
        self.relayed: Any = None

    def relay(self, **options: Any) -> Any:
        self.relayed = self.reactor.relay(self.ours, self.theirs, self.results.append, **options)
        assert not self.results
        return self.relayed

    @property
    def result(self) -> RelayResult:
        self.reactor.until(lambda: self.results)
        self.reactor.settle()
        (result,) = self.results
        return result

    def send(self, sock: socket.socket, data: bytes) -> threading.Thread:
        thread = threading.Thread(target=sock.sendall, args=(data,))
        thread.start()
        return thread

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """Exactly `size` bytes, with the relay at work."""
        sock.setblocking(False)
        got = b""
        while len(got) < size:
            with contextlib.suppress(BlockingIOError):
                chunk = sock.recv(size - len(got))
                assert chunk, "the end came too early"
                got += chunk
            self.reactor.comm_select(1)
        return got

    def ended(self, sock: socket.socket) -> None:
        """The peer's end is there, with the relay at work."""
        sock.setblocking(False)
        end: list[bytes] = []

        def come() -> bool:
            with contextlib.suppress(BlockingIOError):
                end.append(sock.recv(1))
            return bool(end)

        self.reactor.until(come)
        assert end == [b""]

    def close(self) -> None:
        self.client.close()
        self.origin.close()


@pytest.fixture
def ends(reactor: Watched) -> Iterator[Ends]:
    ends = Ends(reactor)
    yield ends
    ends.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def was_reset(sock: socket.socket) -> bool:
    """Whether the connection ended with a reset, once what came before is read."""
    sock.settimeout(LIMIT)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


# -- bytes -----------------------------------------------------------------------------------------

SIZES = st.one_of(st.integers(1, 100), st.sampled_from([65160, 65161, 130320, 300_000, 1_500_000]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["client sends", "origin sends"]), SIZES),
        st.tuples(st.sampled_from(["client reads", "origin reads"]), SIZES),
        st.tuples(st.just("turns"), st.integers(1, 5)),
    ),
    max_size=12,
)
LIMITS = st.one_of(st.none(), st.integers(0, 200), st.integers(0, 400_000))


def pattern(size: int, start: int) -> bytes:
    block = bytes((start + n) % 251 for n in range(251))
    return (block * (size // 251 + 1))[:size]


class Side:
    """What one side's program sends and gets."""

    def __init__(self, sock: socket.socket, start: int) -> None:
        self.sock = sock
        self.start = start
        self.to_send = b""
        self.sent = b""
        self.got = b""
        self.saw_end = False
        sock.setblocking(False)

    def wants_to_send(self, size: int) -> None:
        self.to_send += pattern(size, self.start)
        self.push()

    def push(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.to_send:
                count = self.sock.send(self.to_send)
                self.sent += self.to_send[:count]
                self.to_send = self.to_send[count:]

    def read(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while size > 0 and not self.saw_end:
                chunk = self.sock.recv(min(size, 65536))
                self.saw_end = not chunk
                self.got += chunk
                size -= len(chunk)


@pytest.mark.parametrize("poller", MAKERS)
@given(
    steps=STEPS,
    first_to_end=st.sampled_from(["client", "origin"]),
    small=st.booleans(),
    prefix=st.sampled_from([b"", b"prefix", bytes(100_000)]),
    limit_up=LIMITS,
    limit_down=LIMITS,
)
def test_every_byte_arrives_and_none_beyond_a_limit(
    poller: str,
    steps: list[Any],
    first_to_end: str,
    small: bool,
    prefix: bytes,
    limit_up: int | None,
    limit_down: int | None,
) -> None:
    if limit_up is not None:
        limit_up += len(prefix)
    with watched(poller) as reactor:
        ends = Ends(reactor)
        if small:
            for sock in (ends.ours, ends.theirs):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sides = {"client": Side(ends.client, 0), "origin": Side(ends.origin, 100)}
        client, origin = sides["client"], sides["origin"]
        ends.relay(prefix=prefix, limit_up=limit_up, limit_down=limit_down)
        for what, number in steps:
            if what == "turns":
                for _ in range(number):
                    reactor.comm_select(0)
                continue
            name, verb = what.split()
            if verb == "sends":
                sides[name].wants_to_send(number)
            else:
                sides[name].read(number)
        names = ["client", "origin"] if first_to_end == "client" else ["origin", "client"]
        for name in names:
            side = sides[name]

            def all_sent(side: Side = side) -> bool:
                side.push()
                for other in (client, origin):
                    other.read(1 << 30)
                return not side.to_send or bool(ends.results)

            reactor.until(all_sent)
            side.sock.shutdown(socket.SHUT_WR)

        def over() -> bool:
            for side in (client, origin):
                side.read(1 << 30)
            return bool(ends.results)

        reactor.until(over)
        result = ends.result
        up, down = prefix + client.sent, origin.sent
        expected_up = up if limit_up is None else up[:limit_up]
        expected_down = down if limit_down is None else down[:limit_down]
        if result.end == "limit":
            # Given back, with every byte beyond the limits unread in them.
            assert result.client is ends.ours
            assert result.upstream is ends.theirs
            assert result.up <= len(expected_up)
            assert result.down <= len(expected_down)
            limits = ((limit_up, result.up), (limit_down, result.down))
            assert all(limit is None or limit == count for limit, count in limits) or (
                limit_up == result.up or limit_down == result.down
            )
            for sock, sent, count in (
                (result.client, up, result.up),
                (result.upstream, down, result.down),
            ):
                sock.settimeout(LIMIT)
                rest = b"".join(iter(lambda sock=sock: sock.recv(1 << 20), b""))
                assert rest == sent[count:]
                reactor.comm_close(sock)
        else:
            assert result.end == "eof"
            assert (result.client, result.upstream) == (None, None)
            assert (result.up, result.down) == (len(up), len(down))
        ends.client.settimeout(LIMIT)
        ends.origin.settimeout(LIMIT)
        for side in (client, origin):
            while not side.saw_end:
                chunk = side.sock.recv(1 << 20)
                side.saw_end = not chunk
                side.got += chunk
        assert origin.got == up[: result.up]
        assert client.got == down[: result.down]
        ends.close()


def test_half_closed_the_other_direction_goes_on(ends: Ends) -> None:
    ends.relay()
    ends.client.send(b"request")
    ends.client.shutdown(socket.SHUT_WR)
    assert ends.receive(ends.origin, 7) == b"request"
    ends.ended(ends.origin)
    ends.origin.setblocking(True)
    for part in (b"a", b"b", b"c"):
        ends.origin.send(part)
        assert ends.receive(ends.client, 1) == part
    assert not ends.results
    ends.origin.shutdown(socket.SHUT_WR)
    ends.ended(ends.client)
    result = ends.result
    assert (result.up, result.down, result.end, result.errno, result.side) == (7, 3, "eof", 0, "")
    assert (result.client, result.upstream) == (None, None)
    assert ends.ours.fileno() == ends.theirs.fileno() == -1


def test_a_side_that_does_not_read_stops_the_other(ends: Ends) -> None:
    ends.relay()
    ends.client.setblocking(False)
    sent = 0
    while True:
        try:
            sent += ends.client.send(bytes(65536))
        except BlockingIOError:
            ends.reactor.settle()
            if not select.select([], [ends.client], [], 0.05)[1]:
                break
    assert ends.reactor.comm_select(20) == lc.COMM_TIMEOUT  # and nothing spins
    assert ends.receive(ends.origin, sent) == bytes(sent)


def test_what_was_queued_goes_out_first(ends: Ends) -> None:
    told: list[Any] = []
    filled = fill(ends.theirs)
    ends.reactor.comm_write(ends.theirs, b"queued", lambda *args: told.append(args[1:3]))
    ends.client.send(b" then the client's")
    ends.relay(prefix=b" then the prefix")
    ends.reactor.settle()
    assert not told
    expected = bytes(filled) + b"queued then the prefix then the client's"
    assert ends.receive(ends.origin, len(expected)) == expected
    assert told == [(6, lc.COMM_OK)]
    assert ends.relayed.up == len(b" then the prefix then the client's")


def test_counters_live(ends: Ends) -> None:
    ends.relay()
    ends.client.send(b"12345")
    ends.receive(ends.origin, 5)
    ends.origin.setblocking(True)
    ends.origin.send(b"123")
    ends.receive(ends.client, 3)
    assert (ends.relayed.up, ends.relayed.down) == (5, 3)


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_a_reset_is_passed_on(ends: Ends, who: str) -> None:
    ends.relay()
    ends.client.send(b"x")
    ends.receive(ends.origin, 1)
    gone, other = (ends.client, ends.origin) if who == "client" else (ends.origin, ends.client)
    reset(gone)
    result = ends.result
    assert (result.end, result.side, result.errno) == ("reset", who, errno.ECONNRESET)
    assert was_reset(other)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="kqueue does not tell of it")
@pytest.mark.parametrize("who", ["client", "upstream"])
def test_a_reset_after_a_half_close_is_passed_on(who: str) -> None:
    """The direction from there has ended, and the other side is silent: nothing would be read."""
    with watched("epoll") as reactor:
        ends = Ends(reactor)
        ends.relay()
        gone, other = (ends.client, ends.origin) if who == "client" else (ends.origin, ends.client)
        gone.shutdown(socket.SHUT_WR)
        ends.ended(other)
        reset(gone)
        result = ends.result
        assert (result.end, result.side) == ("reset", who)
        # Its end came before, so reading tells nothing more; writing does.
        poll = select.poll()
        poll.register(other, 0)
        assert poll.poll(LIMIT * 1000)
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
        ends.close()


def test_a_write_to_a_peer_that_is_gone(ends: Ends) -> None:
    ends.relay()
    ends.origin.shutdown(socket.SHUT_WR)
    ends.ended(ends.client)
    ends.origin.close()  # what comes now is answered with a reset
    ends.client.setblocking(True)
    with contextlib.suppress(ConnectionError):
        while not ends.results:
            ends.client.send(b"x")
            ends.reactor.comm_select(1)
    result = ends.result
    assert (result.end, result.side) == ("reset", "upstream")


def test_idle(ends: Ends) -> None:
    ends.relay(idle=1)
    for _ in range(3):
        ends.client.send(b"x")
        ends.receive(ends.origin, 1)
    result = ends.result
    assert (result.end, result.up, result.errno, result.side) == ("idle", 3, 0, "")
    assert result.seconds >= 1
    assert was_reset(ends.client)  # a half-finished stream must not look like a whole one
    assert was_reset(ends.origin)


def test_total(ends: Ends) -> None:
    ends.relay(total=0.1, idle=100)
    ends.origin.setblocking(False)
    with contextlib.suppress(ConnectionError):
        while not ends.results:
            ends.client.send(b"x")
            ends.reactor.comm_select(1)
    assert ends.result.end == "total"
    assert len(ends.reactor.timers) == 0


def test_total_counts_while_what_was_queued_goes_out(ends: Ends) -> None:
    fill(ends.theirs)
    ends.reactor.comm_write(ends.theirs, b"never read")
    ends.relay(total=0.02)
    assert ends.result.end == "total"


def test_killed(ends: Ends) -> None:
    relay = ends.relay(data="data")
    ends.reactor.settle()
    relay.kill()
    relay.kill()
    assert not ends.results  # never before the call has returned
    result = ends.result
    assert (result.end, result.data) == ("killed", "data")
    assert was_reset(ends.client)
    assert was_reset(ends.origin)
    relay.kill()
    ends.reactor.settle()
    assert len(ends.results) == 1


def test_killed_before_it_began(ends: Ends) -> None:
    ends.relay().kill()
    assert ends.result.end == "killed"


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_closing_a_side_kills(ends: Ends, side: str) -> None:
    ends.relay()
    ends.reactor.settle()
    ends.reactor.comm_close(getattr(ends, side))
    assert ends.result.end == "killed"
    assert was_reset(ends.origin if side == "ours" else ends.client)
    assert len(ends.reactor.table) == 0


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_lingering_close_of_a_side_kills(ends: Ends, side: str) -> None:
    ends.relay()
    ends.reactor.settle()
    ends.reactor.comm_lingering_close(getattr(ends, side))
    assert ends.result.end == "killed"
    assert len(ends.reactor.table) == 0


def test_close_handlers_run_at_the_end(ends: Ends) -> None:
    order: list[Any] = []
    for name, sock in (("client", ends.ours), ("upstream", ends.theirs)):
        ends.reactor.comm_add_close_handler(sock, lambda sock, name: order.append(name), name)
    ends.relay()
    ends.client.close()
    ends.origin.close()
    ends.reactor.until(lambda: ends.results or len(order) == 2)
    assert ends.result.end == "eof"
    assert sorted(order) == ["client", "upstream"]


def test_a_close_handler_that_closes_the_other_side(ends: Ends) -> None:
    ends.reactor.comm_add_close_handler(
        ends.ours, lambda sock, other: ends.reactor.comm_close(other), ends.theirs
    )
    ends.relay().kill()
    assert ends.result.end == "killed"


def test_an_on_done_that_raises(ends: Ends) -> None:
    ends.reactor.relay(ends.ours, ends.theirs, lambda result: 1 // 0).kill()
    ends.reactor.until(lambda: ends.reactor.raised)
    assert [type(why) for why, _ in ends.reactor.raised] == [ZeroDivisionError]
    ends.reactor.raised.clear()


# -- limits ----------------------------------------------------------------------------------------


def test_at_the_limit_the_sockets_are_given_back(ends: Ends) -> None:
    told: list[Any] = []
    ends.reactor.comm_add_close_handler(ends.ours, lambda *args: told.append(args))
    ends.relay(limit_up=10, prefix=b"1234")
    ends.client.send(b"567890 and beyond")
    result = ends.result
    assert (result.end, result.up, result.down) == ("limit", 10, 0)
    assert (result.client, result.upstream) == (ends.ours, ends.theirs)
    assert ends.origin.recv(100) == b"1234567890"
    assert not told
    got: list[Any] = []
    ends.reactor.comm_read(result.client, 100, lambda *args: got.append(args[1]))
    ends.reactor.until(lambda: got)
    assert got == [b" and beyond"]
    ends.results.clear()
    ends.relay()  # and may be relayed again
    ends.client.send(b"more")
    assert ends.receive(ends.origin, 4) == b"more"


def test_a_limit_of_nothing(ends: Ends) -> None:
    ends.relay(limit_down=0)
    ends.origin.send(b"x")
    result = ends.result
    assert (result.end, result.down) == ("limit", 0)
    result.upstream.settimeout(LIMIT)
    assert result.upstream.recv(1) == b"x"


def test_both_limits_have_to_be_reached(ends: Ends) -> None:
    ends.relay(limit_up=3, limit_down=5)
    ends.client.send(b"123456")
    assert ends.receive(ends.origin, 3) == b"123"
    ends.reactor.settle()
    assert not ends.results
    ends.origin.setblocking(True)
    ends.origin.send(b"12345678")
    result = ends.result
    assert (result.end, result.up, result.down) == ("limit", 3, 5)


def test_at_the_limit_nothing_that_was_read_is_lost(ends: Ends) -> None:
    """The other direction has bytes in hand, because its sink does not read."""
    for sock in (ends.ours, ends.client):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ends.relay(limit_up=1)
    size = fill(ends.origin)
    ends.reactor.settle()
    size += fill(ends.origin)
    ends.client.send(b"x")
    ends.reactor.settle()
    ends.client.setblocking(False)
    got = b""
    while not ends.results:
        with contextlib.suppress(BlockingIOError):
            got += ends.client.recv(65536)
        ends.reactor.comm_select(1)
    ends.client.settimeout(LIMIT)
    result = ends.result
    got += ends.receive(ends.client, result.down - len(got))
    result.upstream.settimeout(LIMIT)
    ends.origin.shutdown(socket.SHUT_WR)
    got += b"".join(iter(lambda: result.upstream.recv(65536), b""))
    assert len(got) == size


# -- taking over -----------------------------------------------------------------------------------


def test_taking_over_cancels_slots_and_deadlines(ends: Ends) -> None:
    called: list[Any] = []
    both = lc.COMM_SELECT_READ | lc.COMM_SELECT_WRITE
    for sock in (ends.ours, ends.theirs):
        ends.reactor.comm_set_select(sock, both, lambda *_: called.append("select"))
        ends.reactor.comm_set_timeout(sock, 0.01, lambda *_: called.append("deadline"))
        ends.reactor.comm_defer(sock)
    relay = ends.relay()
    ends.client.send(b"x")
    assert ends.receive(ends.origin, 1) == b"x"
    later: list[Any] = []
    ends.reactor.comm_add_event(0.05, later.append)
    ends.reactor.until(lambda: later)
    assert not called
    relay.kill()
    assert ends.result.end == "killed"
    assert not called


def test_a_read_that_waits_is_told(ends: Ends) -> None:
    told: list[Any] = []
    ends.reactor.comm_read(ends.ours, 10, lambda *args: told.append(args))
    ends.relay()
    assert not told
    ends.client.send(b"x")
    assert ends.receive(ends.origin, 1) == b"x"
    assert told == [(ends.ours, b"", lc.COMM_ERR_CLOSING, None)]


def test_meanwhile_nobody_else_uses_the_sockets(ends: Ends) -> None:
    ends.relay()
    reactor, sock = ends.reactor, ends.ours
    for call in (
        lambda: reactor.relay(sock, ends.theirs, ends.results.append),
        lambda: reactor.comm_read(sock, 1, print),
        lambda: reactor.comm_write(sock, b"x"),
        lambda: reactor.comm_set_select(sock, lc.COMM_SELECT_READ, print),
        lambda: reactor.comm_set_select(sock, lc.COMM_SELECT_WRITE, print),
        lambda: reactor.comm_connect(sock, ("127.0.0.1", 1), print),
        lambda: reactor.comm_set_timeout(sock, 1),
        lambda: reactor.comm_defer(sock),
        lambda: reactor.comm_detach(sock),
    ):
        with pytest.raises(CommError) as caught:
            call()
        assert caught.value.errno == errno.EBUSY
    ends.client.send(b"x")
    assert ends.receive(ends.origin, 1) == b"x"


def test_plain_numbers_are_taken_over(ends: Ends) -> None:
    ours, theirs = (sock.detach() for sock in (ends.ours, ends.theirs))
    ends.ours, ends.theirs = ours, theirs  # closed behind the table's back, as it were
    ends.relay()
    ends.client.send(b"x")
    assert ends.receive(ends.origin, 1) == b"x"
    ends.relayed.kill()
    assert ends.result.end == "killed"
    for fd in (ours, theirs):
        with pytest.raises(OSError) as caught:
            os.fstat(fd)
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limit_up": -1}, CommError),
        ({"limit_down": -1}, CommError),
        ({"limit_up": 1.5}, TypeError),
        ({"limit_down": "1"}, TypeError),
        ({"limit_down": True}, TypeError),
        ({"limit_up": 1 << 63}, CommError),
        ({"idle": -1}, CommError),
        ({"total": float("nan")}, CommError),
        ({"idle": "1"}, TypeError),
        ({"prefix": 5}, TypeError),
        ({"prefix": "text"}, TypeError),
        ({"prefix": b"12345", "limit_up": 4}, CommError),
    ],
)
def test_bad_options(ends: Ends, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ends.relay(**options)
    ends.relay()  # nothing has been touched
    ends.client.send(b"x")
    assert ends.receive(ends.origin, 1) == b"x"


def test_bad_sockets(ends: Ends) -> None:
    reactor = ends.reactor
    datagrams = reactor.comm_open(socket.SOCK_DGRAM)
    r, w = os.pipe()
    closed = socket.socket()
    closed.close()
    for bad, error in (
        (ends.ours, CommError),
        (datagrams, CommError),
        (r, CommError),
        (closed, CommError),
        (None, TypeError),
    ):
        with pytest.raises(error):
            reactor.relay(ends.ours, bad, ends.results.append)
    with pytest.raises(TypeError):
        reactor.relay(ends.ours, ends.theirs, None)
    reactor.comm_detach(r)
    os.close(r)
    os.close(w)
    ends.relay()
    ends.client.send(b"x")
    assert ends.receive(ends.origin, 1) == b"x"


# -- a dup or a forked child that holds the sockets ------------------------------------------------


def test_a_dup_does_not_hold_the_end_back(ends: Ends) -> None:
    dups = [os.dup(sock.fileno()) for sock in (ends.ours, ends.theirs)]
    ends.relay()
    ends.client.send(b"x")
    ends.client.shutdown(socket.SHUT_WR)
    assert ends.receive(ends.origin, 1) == b"x"
    ends.ended(ends.origin)
    ends.origin.shutdown(socket.SHUT_WR)
    ends.ended(ends.client)
    assert ends.result.end == "eof"
    for fd in dups:
        os.close(fd)


@contextlib.contextmanager
def child_that_holds_all(*but: socket.socket) -> Iterator[None]:
    """A forked child that keeps every descriptor open, `but` these, until the test is over."""
    ready, over = socket.socketpair(), socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            for sock in (*but, ready[0], over[0]):
                sock.close()
            ready[1].send(b"x")
            over[1].recv(1)
        finally:
            os._exit(0)
    ready[0].recv(1)
    try:
        yield
    finally:
        for sock in (*ready, *over):
            sock.close()
        os.waitpid(pid, 0)


def test_a_forked_child_does_not_hold_the_end_back(ends: Ends) -> None:
    ends.relay()
    ends.reactor.settle()
    with child_that_holds_all(ends.client, ends.origin):
        ends.client.shutdown(socket.SHUT_WR)
        ends.ended(ends.origin)
        ends.origin.shutdown(socket.SHUT_WR)
        ends.ended(ends.client)
        assert ends.result.end == "eof"


def test_a_forked_child_does_not_hold_a_reset_back(ends: Ends) -> None:
    ends.relay()
    ends.reactor.settle()
    with child_that_holds_all(ends.client, ends.origin):
        reset(ends.client)
        assert ends.result.end == "reset"
        assert was_reset(ends.origin)


def test_a_forked_child_does_not_hold_a_killed_relay_back(ends: Ends) -> None:
    ends.relay()
    ends.reactor.settle()
    with child_that_holds_all(ends.client, ends.origin):
        ends.relayed.kill()
        assert was_reset(ends.client)
        assert was_reset(ends.origin)


def test_a_reset_that_comm_error_told_of_is_passed_on(ends: Ends) -> None:
    """Asking takes the error off the socket, which reads as an orderly end from then on."""
    ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends.client.close()
    ends.reactor.until(lambda: ends.reactor.comm_error(ends.ours))
    ends.relay()
    result = ends.result
    assert (result.end, result.errno, result.side) == ("reset", errno.ECONNRESET, "client")
    assert was_reset(ends.origin)
