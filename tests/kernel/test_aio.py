"""lusca_comm.aio on the real kernel, on both loops: TPROXY and REDIRECT, both families, in whose
name, and what must not reach a handler. The topology is drawn in kernel/proxying.py.

The hosts, the rules of each mode and the origins are there for the whole module; a proxy runs as
long as one test.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from firewall_peers import shared_hosts
from kernel.proxying import FAMILIES, PROXY_PORT, WILDCARD, fetch, intercept, serve_origin

import lusca_comm as lc
from lusca_comm import aio
from lusca_comm.lab import Channel, Process, Topology

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
every_loop = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
RUN = {"asyncio": asyncio.run, "uvloop": uvloop.run}
ENGINE = {"tproxy": "tproxy4", "redirect": "netfilter"}


@pytest.fixture(scope="module", params=["tproxy", "redirect"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def net(mode: str) -> Iterator[Topology]:
    with contextlib.contextmanager(shared_hosts)() as net:
        intercept(
            net.router, mode=mode, port=PROXY_PORT, ports=(80, 81), spoof=True, same_port=True
        )
        for family in FAMILIES:
            serve_origin(net, family)
        yield net


def proxy(channel: Channel, loop: str, host: Any, style: str, spoof: bool, options: Any) -> None:
    """Relays in `style`, and says what it sees."""
    connect = options.pop("connect", {})

    async def relay(conn: aio.Connection) -> Any:
        connecting = conn.connect(spoof=spoof, **connect)
        if style == "fused":
            return await conn.relay(connecting)
        upstream = await connecting
        if style == "streams":
            upstream.writer.write(await conn.reader.readexactly(5))
        address = upstream.spoof.address
        assert upstream.peer == conn.original
        kept = upstream.spoof.kept_port
        return await conn.relay(upstream), address, kept

    async def handler(conn: aio.Connection) -> None:
        channel.send((conn.peer, conn.original, conn.engine))
        channel.send(await relay(conn))

    async def main() -> None:
        server = await aio.start_intercept_server(
            handler,
            host,
            PROXY_PORT,
            on_refused=lambda why: channel.send((type(why).__name__, why.errno, why.strerror)),
            **options,
        )
        told = asyncio.get_running_loop()
        told.set_exception_handler(lambda _, context: channel.send(repr(context["exception"])))
        channel.send("ready")
        await server.serve_forever()

    RUN[loop](main())


@contextlib.contextmanager
def serving(
    net: Topology, loop: str, host: Any, style: str = "fused", spoof: bool = True, **options: Any
) -> Iterator[Process[None]]:
    process = net.router.start(proxy, loop, host, style, spoof, options)
    try:
        assert process.recv() == "ready"
        yield process
    finally:
        process.stop()


@every_loop
@v4_and_v6
@pytest.mark.parametrize("style", ["fused", "steps", "streams"])
@pytest.mark.parametrize("spoof", [True, False], ids=["spoofed", "plain"])
def test_intercepted(
    net: Topology, mode: str, loop: str, family: int, style: str, spoof: bool
) -> None:
    with serving(net, loop, WILDCARD[family], style, spoof) as process:
        answer = net.client.run(fetch, family, net.origin_ip[family])
        assert answer.body == b"hello"
        assert answer.source == (net.client_ip if spoof else net.router_origin_ip)[family]
        assert process.recv() == (answer.mine, (net.origin_ip[family], 80), ENGINE[mode])
        told = process.recv()
        if style == "fused":
            assert (told.end, told.side) == ("eof", "")
        else:
            result, address, kept = told
            assert (result.end, kept) == ("eof", False)
            assert address == (answer.source, answer.port)


@v4_and_v6
@pytest.mark.parametrize("style", ["fused", "steps"])
def test_the_clients_port(net: Topology, mode: str, family: int, style: str) -> None:
    with serving(net, "asyncio", WILDCARD[family], style, connect={"keep_port": True}) as process:
        answer = net.client.run(fetch, family, net.origin_ip[family])
        assert (answer.body, answer.source) == (b"hello", net.client_ip[family])
        assert answer.port == answer.mine[1]
        process.recv()
        if style == "steps":
            assert process.recv()[1:] == (answer.mine, True)


@every_loop
@v4_and_v6
def test_an_origin_that_is_not_there(net: Topology, loop: str, family: int) -> None:
    """The plane's errno, in the words of a connect that failed; the client is reset."""
    with serving(net, loop, WILDCARD[family]) as process:
        assert net.client.run(fetch, family, net.origin_ip[family], 81).errno == errno.ECONNRESET
        assert process.recv()[1] == (net.origin_ip[family], 81)
        told = process.recv()
        assert "Connection refused" in told
        assert f"as {net.client_ip[family]}" in told


@every_loop
@v4_and_v6
def test_a_direct_connection_is_refused(net: Topology, loop: str, family: int) -> None:
    """It is told, and never seen by the handler; who is intercepted afterwards is served."""
    with serving(net, loop, WILDCARD[family]) as process:
        direct = net.client.run(fetch, family, net.router_client_ip[family], PROXY_PORT)
        assert direct.errno == errno.ECONNRESET
        name, _, text = process.recv()
        assert name == "NotIntercepted"
        assert net.client_ip[family] in text
        assert net.client.run(fetch, family, net.origin_ip[family]).body == b"hello"
        assert process.recv()[1] == (net.origin_ip[family], 80)


@v4_and_v6
def test_without_a_server_nothing_is_intercepted(net: Topology, mode: str, family: int) -> None:
    """The control of all of these: who answers is the origin (TPROXY fails open), or nobody."""
    answer = net.client.run(fetch, family, net.origin_ip[family])
    if mode == "tproxy":
        assert (answer.body, answer.source) == (b"hello", net.client_ip[family])
        assert answer.port == answer.mine[1], "no proxy between them"
    else:
        assert answer.errno == errno.ECONNREFUSED


@every_loop
def test_both_families_and_no_port_of_its_own(net: Topology, mode: str, loop: str) -> None:
    """Every address, by one server; or by one socket."""
    for host, options in ((None, {}), ("::", {"dualstack": True})):
        with serving(net, loop, host, "streams", **options) as process:
            for family in FAMILIES:
                answer = net.client.run(fetch, family, net.origin_ip[family])
                assert (answer.body, answer.source) == (b"hello", net.client_ip[family])
                assert process.recv() == (answer.mine, (net.origin_ip[family], 80), ENGINE[mode])
                assert process.recv()[0].end == "eof"


# -- privileges --------------------------------------------------------------------------------


def opened(channel: Channel, engine: str | None) -> tuple[int, str]:
    async def main() -> None:
        async def handler(conn: aio.Connection) -> None: ...

        server = await aio.start_intercept_server(handler, "0.0.0.0", PROXY_PORT, engine=engine)
        server.close()
        await server.wait_closed()

    try:
        asyncio.run(main())
    except lc.CommError as why:
        return why.errno or -1, why.strerror
    return 0, ""


def test_the_missing_privilege_is_named(net: Topology) -> None:
    def tried(engine: str | None, *capabilities: str) -> tuple[int, str]:
        some = frozenset(capabilities)
        return net.router.start(opened, engine, capabilities=some).result()

    for engine in (None, "tproxy4"):
        assert tried(engine, "CAP_NET_RAW") == (0, "")
        code, text = tried(engine)
        assert code == errno.EPERM
        assert "CAP_NET_ADMIN or CAP_NET_RAW" in text
        assert ('engine="netfilter" takes' in text) == (engine is None)
    assert tried("netfilter") == (0, "")


@v4_and_v6
def test_redirect_without_privileges(net: Topology, mode: str, family: int) -> None:
    """The engine "netfilter" alone; under TPROXY rules its listener gets nothing."""
    none: frozenset[str] = frozenset()
    arguments = ("asyncio", WILDCARD[family], "fused", False, {"engine": "netfilter"})
    process = net.router.start(proxy, *arguments, capabilities=none)
    assert process.recv() == "ready"
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert answer.body == b"hello"
    if mode == "redirect":
        assert answer.source == net.router_origin_ip[family]
        assert process.recv() == (answer.mine, (net.origin_ip[family], 80), "netfilter")
    else:
        assert answer.port == answer.mine[1], "no proxy between them"
    process.stop()


# -- servers of asyncio's own ------------------------------------------------------------------


def own_server(channel: Channel, loop: str, family: int) -> None:
    """An asyncio server on a socket that comm_open made; relays with aio.connect and aio.relay."""

    async def main() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock = writer.get_extra_info("socket")
            seen = [lc.original_destination(thing) for thing in (writer, writer.transport, sock)]
            assert seen == [seen[0]] * 3
            channel.send(seen[0])
            assert await reader.readexactly(5) == b"hello"
            source = writer.get_extra_info("peername")
            upstream = await aio.connect(seen[0].address, source=source, spoof=True)
            upstream.writer.write(b"hello")
            channel.send((await aio.relay((reader, writer), upstream)).end)

        flags = lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL | lc.COMM_INTERCEPT
        listener = lc.comm_open(address=(WILDCARD[family], PROXY_PORT), flags=flags)
        lc.comm_listen(listener)
        server = await asyncio.start_server(handler, sock=lc.comm_detach(listener))
        channel.send("ready")
        async with server:
            await server.serve_forever()

    RUN[loop](main())


@every_loop
@v4_and_v6
def test_a_server_of_asyncio(net: Topology, mode: str, loop: str, family: int) -> None:
    process = net.router.start(own_server, loop, family)
    assert process.recv() == "ready"
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert (answer.body, answer.source) == (b"hello", net.client_ip[family])
    there = lc.Interception((net.origin_ip[family], 80), ENGINE[mode], mode == "redirect")
    assert process.recv() == there
    assert process.recv() == "eof"
    process.stop()
