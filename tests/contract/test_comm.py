"""The comm calls over every poller: accept, connect, read, write, close, and who is told what."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import struct
import threading
from typing import Any

import pytest
from contract.reactors import (
    LIMIT,
    Watched,
    connected,
    fill,
    in_child,
    open_fds,
    reactor,
    refusing_port,
)
from event_loops import full_queue

import lusca_comm as lc
from lusca_comm import CommError

__all__ = ["reactor"]

READ, WRITE = lc.COMM_SELECT_READ, lc.COMM_SELECT_WRITE
LOOPBACK = ("127.0.0.1", 0)


class Told:
    """A callback that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> None:
        self.calls.append(args)

    def __bool__(self) -> bool:
        return bool(self.calls)

    @property
    def only(self) -> tuple[Any, ...]:
        (call,) = self.calls
        return call


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def connection(reactor: Watched) -> Any:
    ours, peer = connected(reactor)
    yield ours, peer
    peer.close()


def listening(reactor: Watched, address: Any = LOOPBACK, **options: Any) -> socket.socket:
    sock = reactor.comm_open(address=address, flags=lc.COMM_REUSEADDR, **options)
    reactor.comm_listen(sock)
    return sock


# -- open, fdopen ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_sockets_are_real_and_never_block(reactor: Watched, host: str) -> None:
    socket.setdefaulttimeout(5)
    try:
        sock = reactor.comm_open(address=(host, 0), flags=lc.COMM_DOBIND)
        listener = listening(reactor, (host, 0))
        client = socket.create_connection(listener.getsockname()[:2])
        got = None
        while got is None:
            got = reactor.comm_accept(listener)
        accepted = got.sock
        ours, theirs = socket.socketpair()
        taken = reactor.comm_fdopen(ours.detach())
    finally:
        socket.setdefaulttimeout(None)
    for made in (sock, accepted, taken):
        assert type(made) is socket.socket
        assert made.gettimeout() == 0
        assert not os.get_blocking(made.fileno())
        assert not os.get_inheritable(made.fileno())
    for made in (sock, accepted):
        assert made.family == (socket.AF_INET6 if ":" in host else socket.AF_INET)
        assert made.type == socket.SOCK_STREAM
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    client.close()
    theirs.close()


def test_accepted_tells_both_ends(reactor: Watched) -> None:
    listener = listening(reactor, ("::", 0), dualstack=True)
    port = reactor.comm_local_port(listener)
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port)) as client:
            got = None
            while got is None:
                got = reactor.comm_accept(listener)
            # v4-mapped addresses are normalised
            assert (got.peer, got.me) == (client.getsockname()[:2], (host, port))
    assert reactor.comm_accept(listener) is None


def test_the_wildcard_of_v6_is_v6_only(reactor: Watched) -> None:
    four = None
    while four is None:  # a port may be somebody else's in the other family
        six = listening(reactor, ("::", 0))
        port = reactor.comm_local_port(six)
        with contextlib.suppress(CommError):
            four = listening(reactor, ("0.0.0.0", port))
    reactor.comm_close(four)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with socket.create_connection(("::1", port)):
        pass


def test_a_v4_address_on_a_v6_socket_is_mapped(reactor: Watched) -> None:
    sock = listening(reactor, LOOPBACK, family=socket.AF_INET6)
    assert sock.getsockname()[0] == "::ffff:127.0.0.1"
    with socket.create_connection(("127.0.0.1", reactor.comm_local_port(sock))):
        pass


def test_inherited_only_where_asked(reactor: Watched) -> None:
    sock = reactor.comm_open(flags=lc.COMM_NOCLOEXEC)
    assert os.get_inheritable(sock.fileno())
    ours, theirs = socket.socketpair()
    assert os.get_inheritable(reactor.comm_fdopen(ours, flags=lc.COMM_NOCLOEXEC).fileno())
    theirs.close()


def test_fdopen_takes_a_listener_as_systemd_passes_it(reactor: Watched) -> None:
    with socket.create_server(("127.0.0.1", 0)) as made:
        fd = made.detach()
    sock = reactor.comm_fdopen(fd, note="from systemd")
    assert (sock.fileno(), reactor.comm_accept(sock)) == (fd, None)
    with pytest.raises(CommError) as caught:
        reactor.comm_fdopen(fd)
    assert caught.value.errno == errno.EEXIST


def test_a_number_that_fdopen_refuses_stays_the_callers(reactor: Watched) -> None:
    r, w = os.pipe()
    with pytest.raises(CommError) as caught:
        reactor.comm_fdopen(r)
    assert caught.value.errno == errno.ENOTSOCK
    os.close(r)
    os.close(w)


def test_a_reactor_has_every_function_of_the_module(reactor: Watched) -> None:
    calls = [name for name in lc.__all__ if name.startswith("comm_")]
    calls += ["call_soon_threadsafe", "intercept_relay", "original_destination", "relay", "run"]
    for name in calls:
        assert callable(getattr(lc, name))
        assert callable(getattr(reactor, name)), name


def test_defer_waits_for_the_first_bytes(reactor: Watched) -> None:
    listener = reactor.comm_open(address=LOOPBACK)
    reactor.comm_listen(listener, defer=30)
    if not hasattr(socket, "TCP_DEFER_ACCEPT"):
        pytest.skip("this system defers by an accept filter, which may not be loaded")
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) >= 30
    with socket.create_connection(listener.getsockname()) as client:
        assert reactor.comm_accept(listener) is None
        client.send(b"x")
        got = None
        while got is None:
            got = reactor.comm_accept(listener)
        assert got.sock.recv(1) == b"x"


def test_no_seconds_do_not_defer(reactor: Watched) -> None:
    listener = reactor.comm_open(address=LOOPBACK)
    reactor.comm_listen(listener, defer=0)
    with socket.create_connection(listener.getsockname()):
        assert select.select([listener], [], [], LIMIT)[0]
        assert reactor.comm_accept(listener) is not None


# -- connect ---------------------------------------------------------------------------------------


def test_connect(reactor: Watched, told: Told) -> None:
    listener = listening(reactor)
    sock = reactor.comm_open()
    reactor.comm_connect(sock, listener.getsockname(), told, "data", timeout=LIMIT)
    assert not told
    reactor.until(lambda: told)
    assert told.only == (sock, lc.COMM_OK, "data")
    assert sock.getpeername() == listener.getsockname()
    assert reactor.comm_error(sock) == 0


def test_a_connection_that_is_reset_before_its_caller_is_told(reactor: Watched, told: Told) -> None:
    listener = listening(reactor)
    sock = reactor.comm_open()
    reactor.comm_connect(sock, listener.getsockname(), told, timeout=LIMIT)
    assert select.select([listener], [], [], LIMIT)[0]
    got = reactor.comm_accept(listener)
    assert got is not None
    reactor.comm_reset_close(got.sock)
    reactor.until(lambda: told)
    assert told.only == (sock, lc.COMM_ERR_CONNECT, None)
    assert reactor.comm_error(sock) == errno.ECONNRESET
    reactor.settle()
    assert len(reactor.timers) == 0


def test_refused(reactor: Watched, told: Told) -> None:
    bound, address = refusing_port()
    with bound:
        sock = reactor.comm_open()
        reactor.comm_connect(sock, address, told)
        assert not told
        reactor.until(lambda: told)
    assert told.only == (sock, lc.COMM_ERR_CONNECT, None)
    assert reactor.comm_error(sock) == errno.ECONNREFUSED
    assert sock.fileno() >= 0  # the program decides what becomes of it


@pytest.mark.parametrize(
    ("family", "address", "code"),
    [
        (socket.AF_INET, ("::1", 1), errno.EAFNOSUPPORT),
        (socket.AF_INET, ("255.255.255.255", 1), errno.EACCES),
    ],
)
def test_what_fails_at_once_is_told_later(
    reactor: Watched, told: Told, family: int, address: Any, code: int
) -> None:
    sock = reactor.comm_open(family=family)
    reactor.comm_connect(sock, address, told)
    assert not told
    reactor.until(lambda: told)
    assert told.only == (sock, lc.COMM_ERR_CONNECT, None)
    assert reactor.comm_error(sock) in (code, errno.ENETUNREACH)


def test_datagram_sockets_connect_at_once_and_are_told_later(reactor: Watched, told: Told) -> None:
    sock = reactor.comm_open(socket.SOCK_DGRAM, family=socket.AF_INET)
    reactor.comm_connect(sock, ("127.0.0.1", 9), told)
    assert not told
    reactor.until(lambda: told)
    assert told.only[1] == lc.COMM_OK


@pytest.fixture
def silent() -> Any:
    """The address of a listener whose queue is full: a connect to it goes on for minutes."""
    with full_queue() as listener:
        yield listener.getsockname()


def test_time_out(reactor: Watched, told: Told, silent: Any) -> None:
    sock = reactor.comm_open()
    reactor.comm_connect(sock, silent, told, timeout=0.02)
    with pytest.raises(CommError) as caught:
        reactor.comm_connect(sock, silent, told)
    assert caught.value.errno == errno.EALREADY
    reactor.until(lambda: told)
    assert told.only == (sock, lc.COMM_TIMEOUT, None)
    assert reactor.comm_error(sock) == errno.ETIMEDOUT
    assert sock.fileno() >= 0


def test_closed_while_connecting(reactor: Watched, told: Told, silent: Any) -> None:
    sock = reactor.comm_open()
    reactor.comm_connect(sock, silent, told, "data", timeout=LIMIT)
    reactor.settle()
    reactor.comm_close(sock)
    reactor.settle()
    assert told.only == (sock, lc.COMM_ERR_CLOSING, "data")
    assert len(reactor.timers) == 0


def test_closed_before_it_was_told_of_success(reactor: Watched, told: Told) -> None:
    listener = listening(reactor)
    sock = reactor.comm_open()
    reactor.comm_connect(sock, listener.getsockname(), told)
    reactor.comm_close(sock)
    reactor.settle()
    assert told.only[1] == lc.COMM_ERR_CLOSING


def test_closed_before_it_was_told_of_failure(reactor: Watched, told: Told) -> None:
    sock = reactor.comm_open(family=socket.AF_INET)
    reactor.comm_connect(sock, ("::1", 1), told)
    reactor.comm_close(sock)
    reactor.settle()
    assert told.only[1] == lc.COMM_ERR_CLOSING


def test_comm_error_does_not_take_the_outcome_away(reactor: Watched, told: Told) -> None:
    bound, address = refusing_port()
    with bound:
        sock = reactor.comm_open()
        reactor.comm_connect(sock, address, told)
        assert reactor.comm_error(sock) == 0
        reactor.until(lambda: told)
    assert told.only[1] == lc.COMM_ERR_CONNECT


def test_an_operation_keeps_its_slot(reactor: Watched, told: Told, silent: Any) -> None:
    sock = reactor.comm_open()
    reactor.comm_connect(sock, silent, told, timeout=0.05)
    with pytest.raises(CommError) as caught:
        reactor.comm_set_select(sock, WRITE, lambda *_: None)
    assert caught.value.errno == errno.EALREADY
    reactor.comm_set_select(sock, READ | WRITE, None)  # cancels what the program has set: nothing
    with pytest.raises(CommError) as caught:
        reactor.comm_write(sock, b"x")
    assert caught.value.errno == errno.ENOTCONN
    reactor.until(lambda: told)
    assert told.only[1] == lc.COMM_TIMEOUT
    reactor.comm_set_select(sock, WRITE, told)


# -- read and write --------------------------------------------------------------------------------


def test_read(reactor: Watched, connection: Any, told: Told) -> None:
    sock, peer = connection
    reactor.comm_read(sock, 3, told, "data")
    with pytest.raises(CommError) as caught:
        reactor.comm_read(sock, 3, told)
    assert caught.value.errno == errno.EBUSY
    peer.send(b"hello")
    assert not told
    reactor.until(lambda: told)
    reactor.settle()
    assert told.only == (sock, b"hel", lc.COMM_OK, "data")
    reactor.comm_read(sock, 100, told)
    peer.shutdown(socket.SHUT_WR)
    reactor.until(lambda: len(told.calls) == 2)
    reactor.comm_read(sock, 100, told)
    reactor.until(lambda: len(told.calls) == 3)
    assert [call[1:3] for call in told.calls[1:]] == [(b"lo", lc.COMM_OK), (b"", lc.COMM_OK)]
    assert reactor.table.find(sock).bytes_in == 5


def test_read_again_in_the_callback(reactor: Watched, connection: Any) -> None:
    sock, peer = connection
    got: list[bytes] = []

    def on_read(sock: Any, data: bytes, status: int, _: Any) -> None:
        got.append(data)
        if data:
            reactor.comm_read(sock, 1, on_read)

    reactor.comm_read(sock, 1, on_read)
    peer.send(b"abc")
    peer.shutdown(socket.SHUT_WR)
    reactor.until(lambda: got and not got[-1])
    assert got == [b"a", b"b", b"c", b""]


def test_a_reset_while_reading(reactor: Watched, connection: Any, told: Told) -> None:
    sock, peer = connection
    reactor.comm_read(sock, 3, told)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    reactor.until(lambda: told)
    assert told.only == (sock, b"", lc.COMM_ERROR, None)
    assert reactor.comm_error(sock) == errno.ECONNRESET


def test_writes_go_out_in_order_and_each_is_told(reactor: Watched, connection: Any) -> None:
    sock, peer = connection
    told = Told()
    sizes = [10, 3_000_000, 0, 5]
    for number, size in enumerate(sizes):
        reactor.comm_write(sock, bytes([number]) * size, told, number)
    assert not told
    received = bytearray()

    def drain() -> None:
        while len(received) < sum(sizes):
            received.extend(peer.recv(1 << 20))

    thread = threading.Thread(target=drain)
    thread.start()
    reactor.until(lambda: len(told.calls) == len(sizes))
    thread.join()
    assert told.calls == [(sock, size, lc.COMM_OK, n) for n, size in enumerate(sizes)]
    assert received == b"".join(bytes([n]) * size for n, size in enumerate(sizes))
    assert reactor.table.find(sock).bytes_out == sum(sizes)


@pytest.mark.parametrize(
    "buffer", [b"xyz", bytearray(b"xyz"), memoryview(b"xyz"), memoryview(b"_xyz_")[1:4]]
)
def test_any_buffer(reactor: Watched, connection: Any, buffer: Any) -> None:
    sock, peer = connection
    reactor.comm_write(sock, buffer)
    assert peer.recv(10) == b"xyz"


def test_a_peer_that_is_gone_fails_every_write(reactor: Watched, connection: Any) -> None:
    sock, peer = connection
    told = Told()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    size = 10_000_000
    for number in range(3):
        reactor.comm_write(sock, bytes(size), told, number)
    reactor.until(lambda: len(told.calls) == 3)
    assert [(status, n) for _, _, status, n in told.calls] == [(lc.COMM_ERROR, n) for n in range(3)]
    assert reactor.comm_error(sock) in (errno.EPIPE, errno.ECONNRESET)


def test_the_table_keeps_a_socket_while_it_is_written_to(reactor: Watched) -> None:
    """The program lets go of everything but the number."""
    sock, peer = connected(reactor)
    size = 5_000_000
    reactor.comm_write(sock, bytes(size), lambda sock, *_: reactor.comm_close(sock))
    del sock
    received = 0
    while received < size:
        reactor.comm_select(0)
        received += len(peer.recv(1 << 20))
    reactor.until(lambda: not len(reactor.table))
    assert peer.recv(1) == b""
    peer.close()


# -- closing ---------------------------------------------------------------------------------------


def test_closing_tells_everybody_in_order(reactor: Watched, connection: Any) -> None:
    sock, _ = connection
    order: list[Any] = []
    filled = fill(sock)
    assert filled
    reactor.comm_set_select(sock, READ, lambda *_: order.append("select handlers are not called"))
    # More than the kernel makes room for meanwhile, however full it was.
    large = bytes(1 << 24)
    reactor.comm_write(sock, large, lambda sock, sent, status, _: order.append(("write", status)))
    reactor.comm_read(sock, 1, lambda sock, data, status, _: order.append(("read", status)))
    for number in range(3):
        reactor.comm_add_close_handler(
            sock, lambda sock, n: order.append((n, sock.fileno() >= 0)), number
        )
    reactor.comm_close(sock)
    closing = lc.COMM_ERR_CLOSING
    assert sorted(order[:2]) == [("read", closing), ("write", closing)]
    assert order[2:] == [(2, True), (1, True), (0, True)]
    reactor.comm_close(sock)
    reactor.settle()
    assert len(order) == 5


def test_close_handlers_are_added_once_and_removed(reactor: Watched, connection: Any) -> None:
    sock, _ = connection
    told = Told()
    reactor.comm_add_close_handler(sock, told, 1)
    reactor.comm_add_close_handler(sock, told, 2)
    with pytest.raises(CommError) as caught:
        reactor.comm_add_close_handler(sock, told, 1)
    assert caught.value.errno == errno.EEXIST
    reactor.comm_remove_close_handler(sock, told, 1)
    with pytest.raises(CommError) as caught:
        reactor.comm_remove_close_handler(sock, told, 1)
    assert caught.value.errno == errno.ENOENT
    reactor.comm_close(sock)
    assert told.only == (sock, 2)


def test_closing_in_a_close_handler(reactor: Watched) -> None:
    sock, peer = connected(reactor)
    told = Told()

    def again(sock: Any, _: Any) -> None:
        told()
        reactor.comm_close(sock)
        reactor.comm_reset_close(sock)
        with pytest.raises(CommError) as caught:
            reactor.comm_set_select(sock, READ, told)
        assert caught.value.errno == errno.EBADF

    reactor.comm_add_close_handler(sock, again)
    reactor.comm_close(sock)
    assert told.only == ()
    peer.close()


def test_reset_close_resets_although_a_dup_is_open(reactor: Watched, connection: Any) -> None:
    sock, peer = connection
    dup = os.dup(sock.fileno())
    reactor.comm_reset_close(sock)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    os.close(dup)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_reset_close_of_what_is_not_connected_is_a_close(reactor: Watched, kind: int) -> None:
    sock = reactor.comm_open(kind, address=LOOPBACK)
    if kind == socket.SOCK_STREAM:
        reactor.comm_listen(sock)
    reactor.comm_reset_close(sock)
    assert sock.fileno() == -1


def test_detached_it_is_the_callers(reactor: Watched, connection: Any) -> None:
    sock, _ = connection
    closed, read = Told(), Told()
    reactor.comm_add_close_handler(sock, closed)
    reactor.comm_read(sock, 1, read)
    reactor.comm_set_timeout(sock, 0)
    reactor.settle()
    assert closed.only == (sock, None)
    sock, peer2 = connected(reactor)
    reactor.comm_add_close_handler(sock, closed)
    reactor.comm_read(sock, 1, read)
    reactor.comm_set_timeout(sock, 0)
    assert reactor.comm_detach(sock) is sock
    assert reactor.comm_detach(sock) is sock
    reactor.settle()
    assert [call[2] for call in read.calls] == [lc.COMM_ERR_CLOSING] * 2
    assert len(closed.calls) == 1
    with sock:
        sock.settimeout(LIMIT)
        peer2.send(b"x")
        assert sock.recv(1) == b"x"
        with pytest.raises(CommError):
            reactor.comm_close(sock.fileno())
    peer2.close()


def test_a_lingering_close_gets_everything_out(reactor: Watched, connection: Any) -> None:
    """The peer goes on sending: a plain close would answer that with a reset, and what is still on
    its way to the peer would be lost."""
    sock, peer = connection
    told = Told()
    size = fill(sock) + 1_000_000
    reactor.comm_read(sock, 1, told)
    reactor.comm_write(sock, bytes(1_000_000))
    reactor.comm_lingering_close(sock)
    assert told.only[2] == lc.COMM_ERR_CLOSING
    reactor.comm_lingering_close(sock)
    with pytest.raises(CommError) as caught:
        reactor.comm_write(sock, b"more")
    assert caught.value.errno == errno.EBUSY
    received = 0
    while received < size:
        peer.send(b"still sending")
        reactor.comm_select(0)
        received += len(peer.recv(1 << 20))
    assert peer.recv(1) == b""
    assert sock.fileno() >= 0
    peer.shutdown(socket.SHUT_WR)
    reactor.until(lambda: sock.fileno() == -1)


def test_a_lingering_close_waits_no_longer_than_it_must(
    reactor: Watched, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lusca_comm.buffered._LINGER", 0.05)
    sock, _ = connection
    fill(sock)
    told = Told()
    reactor.comm_write(sock, b"never read", told)
    reactor.comm_lingering_close(sock)
    reactor.until(lambda: sock.fileno() == -1)
    assert told.only[2] == lc.COMM_ERR_CLOSING


def test_a_lingering_close_of_what_is_not_connected(reactor: Watched) -> None:
    sock = reactor.comm_open()
    reactor.comm_lingering_close(sock)
    assert sock.fileno() == -1
    reactor.comm_lingering_close(sock)


# -- out of descriptors ----------------------------------------------------------------------------


def starve() -> None:
    """From now on this process has no descriptor left."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 1,) * 2)
    with contextlib.suppress(OSError):
        while True:
            os.dup(0)


def accepts_without_descriptors(reactor: Watched, listener: socket.socket) -> None:
    accepted: list[Any] = []

    def on_readable(sock: Any, _: Any) -> None:
        reactor.comm_set_select(sock, READ, on_readable)
        while (got := reactor.comm_accept(sock)) is not None:
            accepted.append(got.sock)

    reactor.comm_select(0)
    spare = reactor.comm_open()
    starve()
    reactor.comm_set_select(listener, READ, on_readable)
    polls, accepts = (reactor.system_calls[name] for name in ("poll", "accept"))
    reactor.until(lambda: reactor.system_calls["accept"] - accepts == 2)  # after 100 ms
    assert not accepted
    assert reactor.system_calls["poll"] - polls < 10  # it has not spun
    reactor.comm_close(spare)  # the listener hears of it at once
    reactor.comm_select(0)
    assert len(accepted) == 1
    os.close(accepted[0].detach())  # and of what the table does not see within 100 ms
    reactor.until(lambda: len(accepted) == 2)
    assert not reactor.raised


def test_out_of_descriptors_it_neither_spins_nor_goes_deaf(reactor: Watched) -> None:
    listener = listening(reactor)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
    pid = in_child(lambda: accepts_without_descriptors(reactor, listener))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for client in clients:
        client.close()


def test_a_handler_that_raises_on_the_first_of_many_connections(reactor: Watched) -> None:
    listener = listening(reactor)
    served: list[Any] = []

    def on_readable(sock: Any, _: Any) -> None:
        reactor.comm_set_select(sock, READ, on_readable)  # first, so that no error deafens it
        while (got := reactor.comm_accept(sock)) is not None:
            served.append(got)
            if len(served) == 1:
                raise ZeroDivisionError
            reactor.comm_write(got.sock, b"served")

    reactor.comm_set_select(listener, READ, on_readable)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
    reactor.until(lambda: len(served) == 20)
    for client in clients[1:]:
        client.settimeout(LIMIT)
        assert client.recv(10) == b"served"
    assert len(reactor.raised) == 1
    reactor.raised.clear()
    for client in clients:
        client.close()


def test_connections_that_broke_in_the_queue_are_passed_over(reactor: Watched) -> None:
    listener = listening(reactor)
    for _ in range(10):
        client = socket.create_connection(listener.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    with socket.create_connection(listener.getsockname()) as client:
        peers = []
        while client.getsockname() not in peers:
            if (got := reactor.comm_accept(listener)) is not None:
                peers.append(got.peer)


def test_a_child_that_accepts_for_its_parent(reactor: Watched) -> None:
    """A listener shared over fork: whoever of the two is served, nobody blocks."""
    listener = listening(reactor)
    got: list[Any] = []

    def on_readable(sock: Any, _: Any) -> None:
        reactor.comm_set_select(sock, READ, on_readable)
        if (one := reactor.comm_accept(sock)) is not None:
            one.sock.send(b"%d" % os.getpid())
            reactor.comm_close(one.sock)
            got.append(one)

    def serve() -> None:
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        reactor.until(lambda: got)

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    reactor.comm_set_select(listener, READ, on_readable)
    reactor.settle()
    pid = in_child(serve)
    with socket.create_connection(listener.getsockname()) as client:
        assert client.recv(10) == b"%d" % pid
    os.waitpid(pid, 0)
    with socket.create_connection(listener.getsockname()) as client:
        reactor.until(lambda: got)
        assert client.recv(10) == b"%d" % os.getpid()
