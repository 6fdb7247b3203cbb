"""The orderly end: what was sent arrives, whatever the peer still sends."""

from __future__ import annotations

import asyncio
import socket

import pytest
from event_loops import (
    HERE,
    LIMIT,
    Run,
    fetch,
    nothing_left,
    port_of,
    run,
    serving,
    small_buffers,
    until,
)

from lusca_comm import aio
from lusca_comm.aio import lingering

__all__ = ["nothing_left", "run"]  # fixtures

BIG = 3_000_000


def client_of(server: aio.InterceptServer) -> socket.socket:
    return socket.create_connection((HERE, port_of(server)), LIMIT)


def all_of(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("how", ["return", "close", "reset"])
def test_nobody_read_it(run: Run, how: str) -> None:
    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            assert await conn.peek(5, least=5) == b"hello"
            if how == "reset":
                conn.reset()
            elif how == "close":
                await conn.close()

        async with serving(handler) as server:
            assert await fetch(port_of(server)) == (b"reset" if how == "reset" else b"")

    run(main)
    assert not run.told


@pytest.mark.parametrize("unread", [True, False])
def test_what_a_relay_has_delivered(run: Run, unread: bool) -> None:
    """It has not arrived when the connection is closed, and the client sends on."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readexactly(5) == b"GET 1"
            writer.write(b"y" * BIG)
            assert await reader.read() == b""
            writer.close()

        async def handler(conn: aio.Connection) -> None:
            conns.append(conn)
            result = await conn.relay(conn.connect(there), limit_up=5, limit_down=BIG)
            assert result.end == "limit"

        conns: list[aio.Connection] = []
        origin = await asyncio.start_server(serve, HERE, 0)
        there = origin.sockets[0].getsockname()
        async with serving(handler) as server:
            with client_of(server) as client:
                client.sendall(b"GET 1" + b"GET 2" * unread)
                got = await asyncio.to_thread(exactly, client, 100_000)
                await until(lambda: conns[0]._lingering or got < 100_000)
                client.sendall(b"GET 3")
                assert got + len(await asyncio.to_thread(all_of, client)) == BIG
        origin.close()

    run(main)
    assert not run.told


def exactly(sock: socket.socket, size: int) -> int:
    return len(sock.recv(size, socket.MSG_WAITALL))


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("then", ["time", "reset"])
def test_a_client_that_does_not_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, used: bool, then: str
) -> None:
    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            await conn.peek(1)
            if used:
                conn.writer.write(b"")
            closing = asyncio.ensure_future(conn.close())
            if then == "reset":
                await until(lambda: conn.closed)
                conn.reset()
            await closing

        async with serving(handler) as server:
            with client_of(server) as client:
                client.sendall(b"hello")
                await server_ends(server)

    monkeypatch.setattr(lingering, "LINGER", 0.05 if then == "time" else LIMIT * 2)
    run(main)
    assert not run.told


async def server_ends(server: aio.InterceptServer) -> None:
    """Its handlers have, too."""
    await until(lambda: server.accepted)
    server.close()
    await server.wait_closed()


def test_it_does_not_wait_for_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is unread, and all that was sent has arrived."""

    async def main() -> None:
        async def handler(_: aio.Connection) -> None:
            pass

        async with serving(handler) as server:
            with client_of(server) as client:
                await server_ends(server)
                assert client.recv(1) == b""

    monkeypatch.setattr(lingering, "LINGER", LIMIT * 2)
    run(main)
    assert not run.told


def test_somebody_is_reading(run: Run) -> None:
    """The reader is told of the end, and the client gets all of the answer."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            reading = asyncio.ensure_future(conn.reader.readexactly(100))
            await until(lambda: len(conn.reader._buffer) == 5)  # type: ignore[attr-defined]
            small_buffers(conn.writer.get_extra_info("socket"))
            conn.writer.write(b"y" * 300_000)
            await conn.close()
            with pytest.raises(asyncio.IncompleteReadError) as why:
                await reading
            assert why.value.partial == b"hello"

        async with serving(handler) as server:
            reader, writer = await asyncio.open_connection(HERE, port_of(server))
            writer.write(b"hello")
            assert len(await reader.read()) == 300_000
            writer.close()

    run(main)
    assert not run.told
