"""The sockets that answer for a listener: which of them goes when there are too many, and that
nothing that waits in one is forgotten.

All in one host, without rules: the listener is on the wildcard, and a datagram to any address of
127/8 reaches it, or the flow socket bound to that address. That these are the machine's own is left
out of account.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lusca_comm as lc
from lusca_comm import datagram_io
from lusca_comm.lab import Host, Lab

READ = lc.COMM_SELECT_READ
LIMIT = 30.0


class Bench:
    """A listener of a reactor of its own, and clients of it."""

    def __init__(self, **options: Any) -> None:
        datagram_io.is_own = lambda fd, address: False
        self.reactor = lc.Reactor()
        for name, value in options.items():
            setattr(self.reactor, name, value)
        self.raised: list[BaseException] = []
        self.reactor.exception_hook = lambda why, where: self.raised.append(why)
        self.listener = self.reactor.comm_open(
            socket.SOCK_DGRAM,
            0,
            ("0.0.0.0", 0),
            flags=lc.COMM_TPROXY_LCL | lc.COMM_REUSEADDR | lc.COMM_DOBIND,
        )
        self.port = self.reactor.comm_local_port(self.listener)
        self.got: list[bytes] = []

    def client(self, to: str = "127.1.1.1") -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(LIMIT)
        sock.bind(("127.0.0.1", 0))
        sock.connect((to, self.port))
        return sock

    def receive(self) -> Any:
        end = time.monotonic() + LIMIT
        while (got := self.reactor.comm_udp_recvfrom(self.listener)) is None:
            assert time.monotonic() < end
        return got

    def flow(self, client: socket.socket) -> Any:
        """Opens one: `client` asks and is answered."""
        client.send(b"hello")
        got = self.receive()
        self.reactor.comm_udp_reply(got, b"answer")
        assert client.recv(100) == b"answer"
        return got

    @property
    def flows(self) -> Any:
        entry = self.reactor.table.find(self.listener)
        assert entry is not None
        return entry.flows

    def has_flow(self, client: socket.socket) -> bool:
        return any(peer == client.getsockname() for peer, _ in self.flows._flows)

    def on_readable(self, sock: Any, _: Any) -> None:
        self.reactor.comm_set_select(sock, READ, self.on_readable)
        while (got := self.reactor.comm_udp_recvfrom(sock)) is not None:
            self.got.append(got.data)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end
            self.reactor.comm_select(10)
        assert not self.raised


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.host("proxy")


def test_the_longest_unused_goes(host: Host) -> None:
    def run() -> None:
        bench = Bench(max_flows=2)
        a, b, c = (bench.client() for _ in range(3))
        bench.flow(a)
        bench.flow(b)
        a.send(b"again")
        assert bench.receive().data == b"again"
        bench.flow(c)
        assert [bench.has_flow(client) for client in (a, b, c)] == [True, False, True]
        bench.flow(b)
        assert [bench.has_flow(client) for client in (a, b, c)] == [False, True, True]

    host.run(run)


def test_one_in_which_a_datagram_waits_does_not_go(host: Host) -> None:
    def run() -> None:
        bench = Bench(max_flows=2)
        a, b, c = (bench.client() for _ in range(3))
        for client in (a, b):
            bench.flow(client)
        c.send(b"hello")
        got = bench.receive()
        a.send(b"waits")
        bench.reactor.comm_udp_reply(got, b"answer")
        assert [bench.has_flow(client) for client in (a, b, c)] == [True, False, True]
        assert bench.receive().data == b"waits"

    host.run(run)


def test_where_in_all_of_them_one_waits_the_longest_unused_goes(host: Host) -> None:
    def run() -> None:
        bench = Bench(max_flows=2)
        a, b, c = (bench.client() for _ in range(3))
        for client in (a, b):
            bench.flow(client)
        c.send(b"hello")
        got = bench.receive()
        a.send(b"lost")
        b.send(b"waits")
        bench.reactor.comm_udp_reply(got, b"answer")
        assert [bench.has_flow(client) for client in (a, b, c)] == [False, True, True]
        assert bench.receive().data == b"waits"

    host.run(run)


def test_idle_ones_go_but_not_what_waits_in_them(host: Host) -> None:
    def run() -> None:
        bench = Bench(flow_idle=0.02)
        a, b = bench.client(), bench.client()
        bench.flow(a)
        bench.flow(b)
        a.send(b"waits")
        bench.until(lambda: not bench.has_flow(b))
        assert bench.has_flow(a)
        assert bench.receive().data == b"waits"
        bench.until(lambda: not bench.has_flow(a))
        assert len(bench.reactor.timers) == 0
        bench.flow(a)
        assert bench.has_flow(a)

    host.run(run)


def test_out_of_descriptors_the_longest_unused_goes(host: Host) -> None:
    def run() -> None:
        import resource

        bench = Bench()
        a, b = bench.client(), bench.client()
        bench.flow(a)
        b.send(b"hello")
        got = bench.receive()
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1,) * 2)
        with contextlib.suppress(OSError):
            while True:
                os.dup(0)
        bench.reactor.comm_udp_reply(got, b"answer")
        assert b.recv(100) == b"answer"
        assert [bench.has_flow(client) for client in (a, b)] == [False, True]

    host.run(run)


def test_a_client_that_is_gone_is_no_error_of_the_answer(host: Host) -> None:
    """The second answer is told what became of the first (ICMP port unreachable)."""

    def run() -> None:
        bench = Bench()
        with bench.client() as client:
            got = bench.flow(client)
        for _ in range(3):
            assert bench.reactor.comm_udp_reply(got, b"answer") == 6
        assert bench.reactor.comm_udp_recvfrom(bench.listener) is None

    host.run(run)


def test_listener_and_flows_take_turns(host: Host) -> None:
    def run() -> None:
        bench = Bench()
        known, new = bench.client("127.1.1.1"), bench.client("127.1.1.2")
        bench.flow(known)
        for number in range(5):
            known.send(b"known %d" % number)
            new.send(b"new %d" % number)
        got = [bench.receive().data for _ in range(10)]
        assert {data.split()[0] for data in got[:2]} == {b"known", b"new"}
        assert {data.split()[0] for data in got[2:4]} == {b"known", b"new"}
        assert len(set(got)) == 10
        assert bench.reactor.comm_udp_recvfrom(bench.listener) is None

    host.run(run)


def test_a_batch_has_a_share_of_each(host: Host) -> None:
    def run() -> None:
        bench = Bench()
        receive = bench.reactor.comm_udp_recvmany
        known, new = bench.client("127.1.1.1"), bench.client("127.1.1.2")
        bench.flow(known)
        for number in range(40):
            known.send(b"known %d" % number)
            new.send(b"new %d" % number)
        got: list[bytes] = []
        for most, of_each in ((8, 4), (100, 32), (100, 4)):
            batch = [one.data for one in receive(bench.listener, most)]
            assert [data.split()[0] for data in batch].count(b"new") == of_each
            assert len(batch) == 2 * of_each
            got += batch
        assert len(set(got)) == len(got) == 80
        assert receive(bench.listener) == []
        for kind in (b"known", b"new"):  # in order, each
            mine = [data for data in got if data.startswith(kind)]
            assert mine == [b"%s %d" % (kind, number) for number in range(40)]

    host.run(run)


def test_more_flows_than_a_batch_has_room_for_all_get_their_turn(host: Host) -> None:
    def run() -> None:
        bench = Bench()
        clients = [bench.client() for _ in range(80)]
        for client in clients:
            bench.flow(client)
        for client in clients:
            client.send(b"1")
            client.send(b"2")
        first = bench.reactor.comm_udp_recvmany(bench.listener, 50)
        second = bench.reactor.comm_udp_recvmany(bench.listener, 50)
        served = {one.peer for one in first} | {one.peer for one in second}
        assert served == {client.getsockname() for client in clients}

    host.run(run)


def test_answers_in_a_batch_that_needs_more_flows_than_there_may_be(host: Host) -> None:
    """What was to go through a socket goes before another flow takes its place."""

    def run() -> None:
        bench = Bench(max_flows=2)
        clients = [bench.client() for _ in range(5)]
        for client in clients:
            client.send(b"hello")
        got: list[Any] = []
        while len(got) < 5:
            got += bench.reactor.comm_udp_recvmany(bench.listener)
        answers = [(one, b"%d for %d" % (turn, one.peer[1])) for one in got for turn in range(2)]
        assert bench.reactor.comm_udp_replymany(answers) == 10
        for client in clients:
            for turn in range(2):
                assert client.recv(100) == b"%d for %d" % (turn, client.getsockname()[1])
        assert len(bench.flows) == 2

    host.run(run)


@pytest.mark.parametrize("many", [False, True])
def test_the_last_words_of_a_client_that_is_gone(host: Host, many: bool) -> None:
    """They are read before the ICMP message about it ends its flow."""

    def run() -> list[bytes]:
        bench = Bench()
        gone = bench.client()
        got = bench.flow(gone)
        peer = gone.getsockname()
        gone.send(b"last words")
        gone.close()
        bench.reactor.comm_udp_reply(got, b"for nobody")
        found: list[bytes] = []
        end = time.monotonic() + LIMIT
        while not found:
            assert time.monotonic() < end
            if many:
                found += [one.data for one in bench.reactor.comm_udp_recvmany(bench.listener)]
            elif (one := bench.reactor.comm_udp_recvfrom(bench.listener)) is not None:
                found.append(one.data)
                assert one.peer == peer
        return found

    assert host.run(run) == [b"last words"]


def test_a_client_that_is_gone_costs_the_batch_nothing(host: Host) -> None:
    """The second answer to it is told what became of the first, and goes out all the same."""

    def run() -> None:
        bench = Bench()
        gone, stays = bench.client(), bench.client()
        old, new = bench.flow(gone), bench.flow(stays)
        gone.close()
        for _ in range(2):
            answers = [(old, b"a"), (old, b"b"), (new, b"c"), (new, b"d")]
            assert bench.reactor.comm_udp_replymany(answers) == 4
        stays.send(b"still here")
        bench.until(lambda: bench.reactor.comm_udp_recvmany(bench.listener) != [])
        assert [stays.recv(100) for _ in range(4)] == [b"c", b"d"] * 2
        assert bench.has_flow(stays)
        assert len(bench.flows) == 1

    host.run(run)


def test_the_longest_datagrams_are_whole(host: Host) -> None:
    def run() -> None:
        bench = Bench()
        client = bench.client()
        contents = [bytes([number]) * size for number, size in enumerate((65507, 0, 1, 65507))]
        for data in contents:
            client.send(data)
        got = bench.reactor.comm_udp_recvmany(bench.listener)
        assert [one.data for one in got] == contents
        bench.reactor.comm_udp_replymany([(one, one.data) for one in got])
        assert [client.recv(65536) for _ in contents] == contents

    host.run(run)


def test_flows_are_ready_as_their_listener_is(host: Host) -> None:
    def run() -> None:
        bench = Bench()
        reactor, listener = bench.reactor, bench.listener
        with bench.client() as client:
            bench.flow(client)
            reactor.comm_set_select(listener, READ, bench.on_readable)
            client.send(b"1")
            bench.until(lambda: bench.got == [b"1"])
            reactor.comm_set_select(listener, READ, None)
            client.send(b"2")
            assert reactor.comm_select(0) == lc.COMM_TIMEOUT  # neither told
            assert reactor._open_poller().poll(0) == []  # nor spinning
            reactor.comm_set_select(listener, READ, bench.on_readable)
            bench.until(lambda: bench.got == [b"1", b"2"])
            reactor.comm_defer(listener)
            client.send(b"3")
            assert reactor.comm_select(0) == lc.COMM_TIMEOUT
            assert reactor._open_poller().poll(0) == []
            reactor.comm_resume(listener)
            bench.until(lambda: bench.got == [b"1", b"2", b"3"])
            reactor.close()  # a poller built anew knows them too
            client.send(b"4")
            bench.until(lambda: len(bench.got) == 4)

    host.run(run)


@pytest.mark.parametrize("how", ["comm_close", "comm_reset_close", "comm_detach", "behind"])
def test_flows_end_with_their_listener(host: Host, how: str) -> None:
    def run() -> None:
        def fds() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        gc.collect()
        before = fds()
        bench = Bench()
        bench.reactor.comm_select(0)
        clients = [bench.client() for _ in range(3)]
        for client in clients:
            got = bench.flow(client)
        if how == "behind":
            bench.listener.close()
        else:
            getattr(bench.reactor, how)(bench.listener)
        with pytest.raises(lc.CommError) as caught:
            bench.reactor.comm_udp_reply(got, b"too late") if how != "comm_detach" else (
                bench.reactor.comm_fdopen(-1)
            )
        assert caught.value.errno == errno.EBADF
        for _ in range(3):
            bench.reactor.comm_select(0)
        assert not bench.raised
        assert len(bench.reactor.table) == 0
        assert len(bench.reactor.timers) == 0
        bench.listener.close()
        for client in clients:
            client.close()
        bench.reactor.close()
        assert fds() == before

    host.run(run)


def test_after_a_fork_each_has_a_poller_of_its_own(host: Host) -> None:
    """The child closes its flows; the parent still hears of them."""

    def run() -> None:
        bench = Bench()
        with bench.client() as client:
            bench.flow(client)
            bench.reactor.comm_set_select(bench.listener, READ, bench.on_readable)
            bench.reactor.comm_select(0)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    client.send(b"to the child")
                    bench.until(lambda: bench.got == [b"to the child"])
                    bench.flows._drop(next(iter(bench.flows._flows)))
                    bench.reactor.comm_close(bench.listener)
                    bench.reactor.comm_select(0)
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            client.send(b"to the parent")
            bench.until(lambda: bench.got == [b"to the parent"])

    host.run(run)
