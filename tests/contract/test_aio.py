"""lusca_comm.aio over the loopback, on both loops: what a handler can do with a connection."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from event_loops import (
    HERE,
    Run,
    an_origin,
    fetch,
    full_queue,
    open_sockets,
    port_of,
    run,
    serving,
    until,
)

from lusca_comm import CommError, RelayResult, aio

__all__ = ["run"]  # a fixture
BIG = 8_000_000  # bytes, more than any buffer of the kernel here
Handler = Callable[[aio.Connection], Awaitable[object]]


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    before = open_sockets()
    yield
    assert open_sockets() == before


@pytest.mark.parametrize("fused", [True, False])
def test_relays(run: Run, fused: bool) -> None:
    results: list[RelayResult] = []

    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                assert (conn.engine, conn.original) == ("sockname", (HERE, port))
                upstream = conn.connect(origin.address)
                results.append(await conn.relay(upstream if fused else await upstream))
                assert conn.closed

            async with serving(handler) as server:
                port = port_of(server)
                answers = await asyncio.gather(*[fetch(port) for _ in range(100)])
            assert answers == [b"origin: hello"] * 100
            assert server.accepted == 100

    run(main)
    assert [(r.end, r.up, r.down) for r in results] == [("eof", 5, 13)] * 100
    assert not run.told


def test_what_streams_hold_is_relayed(run: Run) -> None:
    """Bytes that readers have, and bytes that writers have not sent, both ways."""
    front, back, first = b"f" * BIG, b"b" * BIG, b"u" * BIG

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"banner " + back)
            same.append(await reader.read() == first + b"prefix left" + front)
            writer.close()

        async def handler(conn: aio.Connection) -> None:
            assert await conn.reader.readexactly(5) == b"taken"
            upstream = await conn.connect(there)
            assert await upstream.reader.readexactly(7) == b"banner "
            upstream.writer.write(first)
            conn.writer.write(b"hi " + first)
            results.append(await conn.relay(upstream, prefix=b"prefix "))

        results: list[RelayResult] = []
        same: list[bool] = []
        origin = await asyncio.start_server(serve, HERE, 0)
        there = origin.sockets[0].getsockname()
        async with serving(handler) as server:
            answer = await fetch(port_of(server), b"takenleft" + front)
        same.append(answer == b"hi " + first + back)  # not in assert: it would show megabytes
        assert (results[0].end, same) == ("eof", [True, True])
        origin.close()

    run(main)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_a_limit_gives_both_back(run: Run, used: bool, fused: bool) -> None:
    """Both are given back, with what is beyond the limit still to be read."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readexactly(4) == b"1234"
            writer.write(b"got it")
            assert await reader.read() == b""
            writer.close()

        async def handler(conn: aio.Connection) -> None:
            if used:
                assert await conn.reader.readexactly(1) == b"0"
            upstream: Any = conn.connect(there)
            result = await conn.relay(upstream if fused else await upstream, limit_up=4)
            assert (result.end, result.up, result.client) == ("limit", 4, conn)
            async with result.upstream as upstream:
                assert upstream.peer == there
                assert await upstream.reader.readexactly(6) == b"got it"
            assert not conn.closed
            assert await conn.peek(5, least=5) == b"56789"
            conn.writer.write(b"rest: " + await conn.reader.read())

        origin = await asyncio.start_server(serve, HERE, 0)
        there = origin.sockets[0].getsockname()
        async with serving(handler) as server:
            data = b"0123456789" if used else b"123456789"
            assert await fetch(port_of(server), data) == b"rest: 56789"
        origin.close()

    run(main)
    assert not run.told


@pytest.mark.parametrize("fused", [True, False])
def test_an_upstream_that_is_not_there(run: Run, fused: bool) -> None:
    """The client is as it was, so the handler can go elsewhere."""

    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind((HERE, 0))
            async with an_origin() as origin:

                async def handler(conn: aio.Connection) -> None:
                    upstream: Any = conn.connect(nobody.getsockname())
                    with pytest.raises(CommError, match=r"connecting to 127\.0\.0\.1") as why:
                        await conn.relay(upstream if fused else await upstream)
                    assert why.value.errno == errno.ECONNREFUSED
                    assert await conn.peek(5) == b"hello"
                    await conn.relay(conn.connect(origin.address))

                async with serving(handler) as server:
                    assert await fetch(port_of(server)) == b"origin: hello"

    run(main)
    assert not run.told


@pytest.mark.parametrize("fused", [True, False])
def test_connecting_takes_too_long(run: Run, fused: bool, full_listener: socket.socket) -> None:
    async def handler(conn: aio.Connection) -> None:
        upstream: Any = conn.connect(full_listener.getsockname(), timeout=0.05)
        with pytest.raises(CommError) as why:
            await conn.relay(upstream if fused else await upstream)
        assert why.value.errno == errno.ETIMEDOUT
        conn.writer.write(b"too long")

    async def main() -> None:
        async with serving(handler) as server:
            assert await fetch(port_of(server)) == b"too long"

    run(main)
    assert not run.told


@pytest.fixture
def full_listener() -> Any:
    with full_queue() as listener:
        yield listener


@pytest.mark.parametrize("end", ["idle", "total"])
@pytest.mark.parametrize("used", [True, False])
def test_time_limits(run: Run, end: str, used: bool) -> None:
    """`used`: what is written to a client that does not read is not sent within the time."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async def handler(conn: aio.Connection) -> None:
            if used:
                conn.writer.write(bytes(4 * BIG))
            results.append(await conn.relay(await conn.connect(there), **{end: 0.05}))

        results: list[RelayResult] = []
        origin = await asyncio.start_server(serve, HERE, 0)
        there = origin.sockets[0].getsockname()
        async with serving(handler) as server:
            _, writer = await asyncio.open_connection(HERE, port_of(server), limit=1)
            await until(lambda: results)
            writer.transport.abort()
        assert (results[0].end, results[0].client) == (end, None)
        origin.close()

    run(main)


def test_peek(run: Run) -> None:
    seen: list[bytes] = []

    async def handler(conn: aio.Connection) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(conn.peek(4), 0.01)
        ready.set_result(None)
        seen.append(await conn.peek(2))
        seen.append(await conn.peek(6, least=6))
        seen.append(await conn.peek(100, least=100))  # fewer: the end
        seen.append(await conn.reader.read())
        with pytest.raises(CommError) as why:
            await conn.peek(1)
        assert why.value.errno == errno.EBUSY

    async def main() -> None:
        nonlocal ready
        ready = asyncio.get_running_loop().create_future()
        async with serving(handler) as server:
            reader, writer = await asyncio.open_connection(HERE, port_of(server))
            await ready
            for part in (b"ab", b"cd", b"ef"):
                writer.write(part)
                await until(lambda part=part: part != b"ab" or seen)
            await until(lambda: len(seen) == 2)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

    ready: Any = None
    run(main)
    assert seen == [b"ab", b"abcdef", b"abcdef", b"abcdef"]
    assert not run.told


def test_peek_at_the_end_and_at_a_reset(run: Run) -> None:
    async def handler(conn: aio.Connection) -> None:
        try:
            seen.append(await conn.peek(1))
        except CommError as why:
            seen.append(why.errno)

    async def main() -> None:
        async with serving(handler) as server:
            assert await fetch(port_of(server), b"") == b""
            _, writer = await asyncio.open_connection(HERE, port_of(server))
            await until(lambda: server.accepted == 2)
            linger = b"\1\0\0\0\0\0\0\0"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            await until(lambda: len(seen) == 2)

    seen: list[Any] = []
    run(main)
    assert seen == [b"", errno.ECONNRESET]


def test_an_answer_is_not_lost(run: Run) -> None:
    """The client has still to read it all, and sent what nobody read."""

    async def handler(conn: aio.Connection) -> None:
        assert await conn.reader.readexactly(1) == b"x"
        conn.writer.write(b"y" * BIG)  # neither drained nor closed

    async def main() -> None:
        async with serving(handler) as server:
            answer = await fetch(port_of(server), b"x" * 300_000)
        assert len(answer) == BIG

    run(main)
    assert not run.told


@pytest.mark.parametrize("how", ["return", "close", "reset", "raise", "detach", "writer"])
def test_ends(run: Run, how: str) -> None:
    async def handler(conn: aio.Connection) -> None:
        if how == "close":
            await conn.close()
            await conn.close()
        elif how == "reset":
            conn.reset()
            conn.reset()
        elif how == "raise":
            raise ValueError("of the handler")
        elif how == "writer":
            conn.writer.close()
        elif how == "detach":
            sock = conn.detach()
            assert sock.gettimeout() == 0.0
            sock.setblocking(True)
            sock.sendall(b"bye")
            sock.close()

    async def main() -> None:
        async with serving(handler) as server:
            port = port_of(server)
            seen.append(await fetch(port, b""))
            assert await fetch(port, b"") == seen[0], "the server goes on"

    seen: list[bytes] = []
    run(main)
    ends = {"reset": b"reset", "raise": b"reset", "detach": b"bye"}
    assert seen == [ends.get(how, b"")]
    if how == "raise":
        assert [str(context["exception"]) for context in run.told] == ["of the handler"] * 2
        assert "the connection was reset" in run.told[0]["message"]
    else:
        assert not run.told


@pytest.mark.parametrize("used", [True, False])
def test_a_reset_is_passed_on(run: Run, used: bool) -> None:
    async def main() -> None:
        gone = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                gone.set_result(await reader.read())
            except ConnectionError as why:
                gone.set_result(why.errno)
            writer.close()

        async def handler(conn: aio.Connection) -> None:
            upstream = await conn.connect(there)
            if used:
                assert await conn.reader.readexactly(1) == b"x"
                writer.get_extra_info("socket").setsockopt(*linger)
                writer.transport.abort()
                with pytest.raises(ConnectionError):
                    await conn.reader.readexactly(1)
            results.append(await conn.relay(upstream))

        results: list[RelayResult] = []
        linger = (socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        origin = await asyncio.start_server(serve, HERE, 0)
        there = origin.sockets[0].getsockname()
        async with serving(handler) as server:
            _, writer = await asyncio.open_connection(HERE, port_of(server))
            writer.write(b"x")
            await until(lambda: server.accepted)
            if not used:
                writer.get_extra_info("socket").setsockopt(*linger)
                writer.transport.abort()
            assert await gone == errno.ECONNRESET
        assert [(r.end, r.side, r.errno) for r in results] == [
            ("reset", "client", errno.ECONNRESET)
        ]
        origin.close()

    run(main)


def test_use_after_the_end(run: Run) -> None:
    async def handler(conn: aio.Connection) -> None:
        with pytest.raises(CommError) as why:
            await conn.relay(conn)
        assert why.value.errno == errno.EINVAL
        connecting = conn.connect(conn.original)
        conn.reset()
        for call in (lambda: conn.reader, conn.detach, lambda: conn.writer):
            with pytest.raises(CommError) as why:
                call()
            assert why.value.errno == errno.EBADF
        for wait in (conn.peek(1), conn.relay(connecting)):
            with pytest.raises(CommError) as why:
                await wait
            assert why.value.errno == errno.EBADF
        assert (conn.closed, conn.fileno()) == (True, -1)
        with pytest.raises(CommError, match="keep_port goes with"):
            conn.connect(keep_port=True)
        with pytest.raises(TypeError):
            conn.connect(timeout="soon")  # type: ignore[arg-type]
        done.append(True)

    async def main() -> None:
        async with serving(handler) as server:
            assert await fetch(port_of(server)) == b"reset"

    done: list[bool] = []
    run(main)
    assert done
    assert not run.told


def test_a_connection_is_made_once(run: Run) -> None:
    async def main() -> None:
        async with an_origin() as origin:
            connecting = aio.connect(origin.address)
            async with await connecting as upstream:
                assert upstream.peer == origin.address
                assert upstream.spoof.address == upstream.writer.get_extra_info("sockname")
                with pytest.raises(RuntimeError, match="made already"):
                    await connecting

    run(main)
