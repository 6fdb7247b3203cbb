"""``upstream = await conn.connect()``, then ``await conn.relay(upstream)``: both are the
data plane's work, and what happens in between is noticed."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from event_loops import (
    HERE,
    LIMIT,
    Run,
    an_origin,
    fetch,
    nothing_left,
    port_of,
    run,
    serving,
    until,
)

from lusca_comm import CommError, RelayResult, aio
from lusca_comm._shim import lib
from lusca_comm.address import shim_of
from lusca_comm.aio.planes import LoopPlane
from lusca_comm.plane import Plane

__all__ = ["nothing_left", "run"]  # fixtures


def noted(source: Any, to: Any) -> bool:
    """The loop guard would know it."""
    return bool(lib.lc_own_connection(shim_of(source), shim_of(to)))


class Far:
    """An origin that is a socket: what came to it, and how it ended, is looked at by hand."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HERE, 0))
        self.address = self.listener.getsockname()

    def accept(self) -> socket.socket:
        self.listener.settimeout(LIMIT)
        sock, _ = self.listener.accept()
        sock.settimeout(LIMIT)
        return sock

    def __enter__(self) -> Far:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


def reset(sock: socket.socket) -> None:
    lib.lc_abort(sock.fileno())
    sock.close()


def test_neither_leaves_the_plane(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's descriptor is never taken."""

    def taken(_: aio.Connection) -> int:
        raise AssertionError("it was handed over")

    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                upstream = await conn.connect(origin.address)
                assert (upstream.peer, upstream.closed, conn.closed) == (
                    origin.address,
                    False,
                    False,
                )
                results.append(await conn.relay(upstream, prefix=b"> "))
                assert upstream.closed
                assert conn.closed

            async with serving(handler) as server:
                port = port_of(server)
                answers = await asyncio.gather(*[fetch(port) for _ in range(50)])
                totals = LoopPlane.of(asyncio.get_running_loop()).plane.totals()
            assert answers == [b"origin: > hello"] * 50
            assert (totals.asked, totals.relayed, totals.live) == (50, 50, 0)

    results: list[RelayResult] = []
    monkeypatch.setattr(aio.Connection, "_take", taken)
    run(main)
    assert [(r.end, r.up, r.down, r.side) for r in results] == [("eof", 7, 15, "")] * 50
    assert not run.told


async def reader(_: aio.Connection, upstream: aio.Upstream) -> None:
    assert await upstream.reader.readexactly(7) == b"banner "


async def writer(conn: aio.Connection, _: aio.Upstream) -> None:
    assert await conn.reader.readexactly(1) == b"!"


async def peek(conn: aio.Connection, upstream: aio.Upstream) -> None:
    assert await asyncio.gather(conn.peek(1), upstream.peek(6, least=6)) == [b"!", b"banner"]


async def descriptors(conn: aio.Connection, upstream: aio.Upstream) -> None:
    for end in (conn, upstream):
        with socket.socket(fileno=os.dup(end.fileno())) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def nothing(_: aio.Connection, __: aio.Upstream) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("use", [reader, writer, peek, descriptors, nothing])
def test_used_in_between(
    run: Run, use: Callable[[aio.Connection, aio.Upstream], Awaitable[None]]
) -> None:
    """Not a byte is lost at either side, whichever of them was touched."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"banner ")
            writer.write(await reader.read())
            writer.close()

        async def handler(conn: aio.Connection) -> None:
            upstream = await conn.connect(there)
            await use(conn, upstream)
            await conn.relay(upstream)

        origin = await asyncio.start_server(serve, HERE, 0)
        there = origin.sockets[0].getsockname()
        async with serving(handler) as server:
            answer = await fetch(port_of(server), b"!hello")
        gone = {reader: b"!hello", writer: b"banner hello"}
        assert answer == gone.get(use, b"banner !hello")
        origin.close()

    run(main)
    assert not run.told


def test_the_client_is_used_while_it_connects(run: Run) -> None:
    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                upstream, first = await asyncio.gather(
                    conn.connect(origin.address), conn.peek(5, least=5)
                )
                assert first == b"hello"
                await conn.relay(upstream)

            async with serving(handler) as server:
                assert await fetch(port_of(server)) == b"origin: hello"

    run(main)
    assert not run.told


def test_the_upstream_of_another_connection(run: Run) -> None:
    """Whoever made it: it serves the client it is given to, and that one alone."""

    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                made.append((conn, await conn.connect(origin.address)))
                if len(made) == 2:
                    both.set_result(None)
                await both
                (_, one), (_, other) = made
                await conn.relay(other if conn is made[0][0] else one)

            made: list[tuple[aio.Connection, aio.Upstream]] = []
            both = asyncio.get_running_loop().create_future()
            async with serving(handler) as server:
                port = port_of(server)
                got = await asyncio.gather(fetch(port, b"one"), fetch(port, b"two"))
                assert got == [b"origin: one", b"origin: two"]

    run(main)
    assert not run.told


@pytest.mark.parametrize("side", ["client", "upstream"])
@pytest.mark.parametrize("how", ["reset", "end"])
def test_one_has_gone_in_between(run: Run, side: str, how: str) -> None:
    """A reset is passed on as one, and an end as an end, behind what came before it."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            upstream = await conn.connect(far.address)
            connected.set_result(None)
            await go_on
            results.append(await conn.relay(upstream))

        results: list[RelayResult] = []
        connected, go_on = (asyncio.get_running_loop().create_future() for _ in range(2))
        async with serving(handler) as server:
            client = socket.create_connection((HERE, port_of(server)), LIMIT)
            await connected
            origin = far.accept()
            goes, stays = (client, origin) if side == "client" else (origin, client)
            goes.sendall(b"last words")
            if how == "reset":
                reset(goes)
            else:
                goes.close()
            go_on.set_result(None)
            if how == "reset":
                with pytest.raises(ConnectionResetError):
                    await asyncio.to_thread(all_of, stays)
            else:
                assert await asyncio.to_thread(all_of, stays) == b"last words"
            stays.close()
            await until(lambda: results)
        assert results[0].end == ("reset" if how == "reset" else "eof")
        assert results[0].side == (side if how == "reset" else "")

    with Far() as far:
        run(main)
    assert not run.told


def all_of(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("then", ["returns", "raises", "closes", "resets", "detaches"])
def test_connected_and_not_relayed(run: Run, then: str) -> None:
    """Neither the upstream nor what the loop guard notes of it outlives the handler."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            upstream = await conn.connect(far.address)
            ends.append((upstream.spoof.address, upstream.peer))
            assert noted(*ends[0])
            if then == "raises":
                raise ValueError
            if then == "closes":
                await upstream.close()
            if then == "resets":
                upstream.reset()
            if then == "detaches":
                upstream.detach().close()
            if then != "returns":
                assert not noted(*ends[0])

        ends: list[Any] = []
        async with serving(handler) as server:
            assert await fetch(port_of(server)) in (b"", b"reset")
            with far.accept() as origin:
                if then in ("raises", "resets"):
                    with pytest.raises(ConnectionResetError):
                        await asyncio.to_thread(all_of, origin)
                else:
                    assert await asyncio.to_thread(all_of, origin) == b""
        assert not noted(*ends[0])

    with Far() as far:
        run(main)
    assert bool(run.told) == (then == "raises")


def test_the_guard_knows_it_until_its_end(run: Run) -> None:
    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                upstream = await conn.connect(origin.address)
                local = upstream.spoof.address
                assert upstream.spoof.reason == "not asked for"
                relaying = asyncio.ensure_future(conn.relay(upstream))
                await until(lambda: upstream.closed)
                assert noted(local, origin.address)
                waiting.set_result(None)
                await relaying
                assert not noted(local, origin.address)
                done.append(1)

            done: list[int] = []
            waiting = asyncio.get_running_loop().create_future()
            async with serving(handler) as server:
                reader, writer = await asyncio.open_connection(HERE, port_of(server))
                await waiting
                writer.write_eof()
                assert await reader.read() == b"origin: "
                writer.close()
            assert done

    run(main)
    assert not run.told


@pytest.mark.parametrize("call", ["submit", "answer"])
def test_a_plane_that_takes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """It was stopped: what was to be its own is closed all the same."""

    def refuse(*_: object) -> None:
        raise CommError(errno.ESHUTDOWN, "stopped")

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            if call == "submit":
                with monkeypatch.context() as patch:
                    patch.setattr(Plane, "submit", refuse)
                    with pytest.raises(CommError, match="connecting to") as why:
                        await conn.connect(far.address)
                assert why.value.errno == errno.ESHUTDOWN
                return
            upstream = await conn.connect(far.address)
            local = upstream.spoof.address
            with monkeypatch.context() as patch:
                patch.setattr(Plane, "answer", refuse)
                result = await conn.relay(upstream)
            assert (result.end, result.errno) == ("error", errno.ESHUTDOWN)
            assert not noted(local, far.address)
            LoopPlane.of(asyncio.get_running_loop()).plane.stop()  # the client, whose end is its

        async with serving(handler) as server:
            assert await fetch(port_of(server)) in (b"", b"reset")

    with Far() as far:
        run(main)
        if call == "answer":
            with far.accept() as origin, pytest.raises(ConnectionResetError):
                all_of(origin)


def test_the_loop_ends_in_between(run: Run) -> None:
    """asyncio.run cancels the handler; neither connection outlives it."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            upstreams.append(await conn.connect(far.address))
            await asyncio.get_running_loop().create_future()

        upstreams: list[aio.Upstream] = []
        server = await aio.start_intercept_server(handler, HERE, 0, engine="sockname")
        asking.append(socket.create_connection((HERE, port_of(server)), LIMIT))
        await until(lambda: upstreams)

    asking: list[socket.socket] = []
    with Far() as far:
        run(main)
        with asking[0], far.accept() as origin:
            for end in (asking[0], origin):
                with pytest.raises(ConnectionResetError):
                    all_of(end)
