"""Datagrams on asyncio and uvloop, by TPROXY: the topology and the rules of test_datagram.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from kernel.proxying import FAMILIES, WILDCARD
from kernel.test_datagram import (
    DNS,
    PORT,
    ask,
    client_of,
    intercept,
    serve_origin,
    v4_and_v6,
)

import lusca_comm as lc
from lusca_comm import datagram_io
from lusca_comm.aio.datagram import InterceptDatagrams, start_intercept_datagrams
from lusca_comm.lab import Channel, Host, Lab, Process, Topology

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LIMIT = 30.0

every_loop = pytest.mark.parametrize("kind", LOOPS)


def run(kind: str, main: Callable[[], Awaitable[None]]) -> None:
    """In the loop named; what its exception handler is told fails the test."""
    loop = LOOPS[kind]()
    told: list[Any] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    loop.set_debug(True)
    try:
        loop.run_until_complete(asyncio.wait_for(main(), LIMIT))
    finally:
        loop.close()
    assert told == []


# -- intercepted ---------------------------------------------------------------------------------


def proxy_process(channel: Channel, kind: str, host: str | None, style: str, options: Any) -> None:
    def meet(datagram: Any) -> None:
        channel.send((datagram.data, datagram.peer, datagram.original))
        datagram.reply(b"proxy " + datagram.data)

    async def wait_and_meet(datagram: Any) -> None:
        await asyncio.sleep(0)
        meet(datagram)

    async def main() -> None:
        handler = meet if style == "plain" else wait_and_meet
        server = await start_intercept_datagrams(handler, host, PORT, **options)
        channel.send("ready")
        await server.serve_forever()

    LOOPS[kind]().run_until_complete(main())


def serve(
    host: Host, kind: str, address: str | None, style: str = "task", **options: Any
) -> Process[None]:
    process = host.start(proxy_process, kind, address, style, options)
    assert process.recv() == "ready"
    return process


@every_loop
@v4_and_v6
@pytest.mark.parametrize("style", ["task", "plain"])
def test_three_datagrams_of_a_flow_all_arrive_and_are_answered(
    three_hosts: Topology, kind: str, family: int, style: str
) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = serve(net.router, kind, WILDCARD[family], style)
    there = (net.origin_ip[family], DNS)
    with client_of(net, family, there[0]) as client:
        me = client.getsockname()[:2]
        for data in (b"one", b"two", b"three"):
            assert ask(client, data) == b"proxy " + data
            assert proxy.recv() == (data, me, there)
        burst = {b"%d" % number for number in range(100)}
        for data in burst:
            client.send(data)
        assert {client.recv(100) for _ in burst} == {b"proxy " + data for data in burst}


@v4_and_v6
def test_without_the_rule_the_origin_answers(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    serve_origin(net, family)
    serve(net.router, "asyncio", WILDCARD[family])
    with client_of(net, family, net.origin_ip[family]) as client:
        assert ask(client, b"x") == b"origin x"


def test_both_families_and_more_clients_than_flows(three_hosts: Topology) -> None:
    net = three_hosts
    intercept(net.router)
    serve(net.router, "asyncio", None, max_flows=2)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(client_of(net, family, net.origin_ip[family]))
            for family in FAMILIES
            for _ in range(3)
        ]
        for data in (b"one", b"two", b"three"):
            for client in clients:
                assert ask(client, data) == b"proxy " + data


@v4_and_v6
def test_a_datagram_to_the_server_itself_has_no_original(
    three_hosts: Topology, family: int
) -> None:
    net = three_hosts
    intercept(net.router)
    proxy = serve(net.router, "uvloop", WILDCARD[family])
    for to in (net.router_client_ip[family], net.router_origin_ip[family]):
        with client_of(net, family, to, PORT) as client:
            assert ask(client, b"hello") == b"proxy hello"
            assert proxy.recv() == (b"hello", client.getsockname()[:2], None)


def refusals() -> list[tuple[int | None, str]]:
    async def nobody(_: Any) -> None: ...

    async def said(**options: Any) -> tuple[int | None, str]:
        with pytest.raises(lc.CommError) as caught:
            await start_intercept_datagrams(nobody, "127.0.0.1", PORT, **options)
        return caught.value.errno, str(caught.value)

    async def main() -> list[tuple[int | None, str]]:
        return [await said(engine="netfilter"), await said(max_flows=0), await said()]

    return asyncio.run(main())


def test_what_cannot_be_is_refused(lab: Lab) -> None:
    redirect, nothing, powerless = lab.host("router").run(refusals, capabilities=())
    assert redirect[0] == errno.EOPNOTSUPP
    assert "TPROXY" in redirect[1]
    assert "lusca-comm rules" in redirect[1]
    assert nothing[0] == errno.EINVAL
    assert powerless[0] == errno.EPERM
    assert "CAP_NET_ADMIN" in powerless[1]


# -- on one host, without rules: 127/8 reaches the wildcard, as in test_datagram_flows.py ----------


class Bench:
    """A server in the running loop, and a client of it."""

    def __init__(self, handler: Any, **options: Any) -> None:
        datagram_io.is_own = lambda fd, address: False
        self.handler = handler
        self.options = options

    async def __aenter__(self) -> Bench:
        self.server = await start_intercept_datagrams(self.handler, "0.0.0.0", 0, **self.options)
        self.port = self.server.sockets[0].getsockname()[1]
        self.clients: list[socket.socket] = []
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.server.close()
        self.server.abort_handlers()
        await self.server.wait_closed()
        for client in self.clients:
            client.close()

    def client(self, to: str = "127.1.1.1") -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        sock.connect((to, self.port))
        self.clients.append(sock)
        return sock

    async def ask(self, client: socket.socket, data: bytes) -> bytes:
        client.send(data)
        return await asyncio.get_running_loop().sock_recv(client, 65536)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def echo(datagram: Any) -> None:
    datagram.reply(datagram.data)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@every_loop
def test_handlers_are_bounded_and_what_is_dropped_is_counted(lab: Lab, kind: str) -> None:
    async def main() -> None:
        go, at_work = asyncio.Event(), 0

        async def slow(datagram: Any) -> None:
            nonlocal at_work
            at_work += 1
            await go.wait()
            datagram.reply(datagram.data)

        async with Bench(slow, max_handlers=3) as bench:
            client = bench.client()
            for number in range(10):
                client.send(b"%d" % number)
            await until(lambda: bench.server.received + bench.server.dropped == 10)
            assert (at_work, bench.server.dropped) == (3, 7)
            go.set()
            loop = asyncio.get_running_loop()
            assert {await loop.sock_recv(client, 9) for _ in range(3)} == {b"0", b"1", b"2"}
            assert (bench.server.sent, bench.server.lost) == (3, 0)

    lab.host("proxy").run(run, kind, main)


@every_loop
def test_answers_are_what_they_were_and_no_others_business(lab: Lab, kind: str) -> None:
    """They are sent at the end of the turn: a buffer that is used again by then, and what is none
    at all."""

    async def main() -> None:
        async def meet(datagram: Any) -> None:
            if datagram.data == b"text":
                with pytest.raises(TypeError):
                    datagram.reply("text")
                return
            buffer[:] = datagram.data
            datagram.reply(buffer)
            datagram.reply(memoryview(buffer)[:2])
            buffer[:] = b"none"

        buffer = bytearray(4)
        async with Bench(meet) as bench:
            one, two = bench.client(), bench.client()
            one.send(b"one.")
            one.send(b"text")
            two.send(b"two.")
            loop = asyncio.get_running_loop()
            for client, data in ((one, b"one."), (two, b"two.")):
                assert await loop.sock_recv(client, 10) == data
                assert await loop.sock_recv(client, 10) == data[:2]

    lab.host("one").run(run, kind, main)


@every_loop
def test_what_a_handler_raises_ends_nothing_else(lab: Lab, kind: str) -> None:
    async def main() -> None:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(repr(context["exception"])))

        async def fails(datagram: Any) -> None:
            if datagram.data == b"fail":
                raise ValueError("in a task")
            datagram.reply(datagram.data)

        def fails_too(datagram: Any) -> Any:
            if datagram.data == b"plain":
                raise ValueError("in a call")
            return fails(datagram)

        async with Bench(fails_too) as bench:
            client = bench.client()
            client.send(b"fail")
            client.send(b"plain")
            assert await bench.ask(client, b"good") == b"good"
            await until(lambda: len(told) == 2)
        assert sorted(told) == ["ValueError('in a call')", "ValueError('in a task')"]

    lab.host("proxy").run(run, kind, main)


@every_loop
def test_close_lets_handlers_answer_and_leaves_nothing(lab: Lab, kind: str) -> None:
    async def main() -> None:
        before = descriptors()
        go = asyncio.Event()
        kept: list[Any] = []

        async def slow(datagram: Any) -> None:
            kept.append(datagram)
            await go.wait()
            datagram.reply(b"late " + datagram.data)

        async with Bench(slow) as bench:
            client, loop = bench.client(), asyncio.get_running_loop()
            client.send(b"one")
            await until(lambda: kept)
            closing = asyncio.ensure_future(bench.server.wait_closed())
            bench.server.close()
            client.send(b"two")  # nobody takes it any more
            assert bench.server.sockets == ()
            assert not bench.server.is_serving()
            await asyncio.sleep(0)
            assert not closing.done()
            go.set()
            await closing
            assert await loop.sock_recv(client, 100) == b"late one"
            assert [datagram.data for datagram in kept] == [b"one"]
            with pytest.raises(lc.CommError) as caught:
                kept[0].reply(b"too late")
            assert caught.value.errno == errno.EBADF
        assert descriptors() == before

    lab.host("proxy").run(run, kind, main)


@every_loop
def test_serve_forever_cancelled_ends_the_handlers(lab: Lab, kind: str) -> None:
    async def main() -> None:
        began = asyncio.Event()
        ended: list[str] = []

        async def endless(_: Any) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("handler")

        async with Bench(endless) as bench:
            serving = asyncio.ensure_future(bench.server.serve_forever())
            bench.client().send(b"x")
            await began.wait()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert ended == ["handler"]
            assert not bench.server.is_serving()

    lab.host("proxy").run(run, kind, main)


@every_loop
def test_idle_flows_close_and_serve_again(lab: Lab, kind: str) -> None:
    async def main() -> None:
        async with Bench(echo, flow_idle=0.02) as bench:
            client = bench.client()
            for _ in range(2):
                assert await bench.ask(client, b"x") == b"x"
                await until(lambda: bench.server.flows == 0)

    lab.host("proxy").run(run, kind, main)


def test_a_server_closed_by_its_handler(lab: Lab) -> None:
    async def main() -> None:
        servers: list[InterceptDatagrams] = []

        def closes(datagram: Any) -> None:
            datagram.reply(b"bye")
            servers[0].close()

        async with Bench(closes) as bench:
            servers.append(bench.server)
            client = bench.client()
            client.send(b"1")
            client.send(b"2")
            assert await asyncio.get_running_loop().sock_recv(client, 9) == b"bye"
            await bench.server.wait_closed()
            assert bench.server.received == 1

    lab.host("proxy").run(run, "asyncio", main)


def test_sockets_that_were_passed_on(lab: Lab) -> None:
    async def main() -> None:
        flags = lc.COMM_TPROXY_LCL | lc.COMM_REUSEADDR | lc.COMM_DOBIND
        sock = lc.comm_open(socket.SOCK_DGRAM, 0, ("0.0.0.0", 0), flags=flags)
        lc.comm_detach(sock)
        bench = Bench(echo)
        bench.server = await start_intercept_datagrams(echo, sock=sock)
        bench.port, bench.clients = sock.getsockname()[1], []
        async with bench.server:
            assert await bench.ask(bench.client(), b"x") == b"x"
        assert sock.fileno() == -1
        with socket.socket() as stream, pytest.raises(lc.CommError) as caught:
            await start_intercept_datagrams(echo, sock=stream)
        assert caught.value.errno == errno.EPROTOTYPE
        bench.clients[0].close()

    lab.host("proxy").run(run, "asyncio", main)
