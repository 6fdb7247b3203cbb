"""A peek whose connection goes meanwhile, two at once, and what a relay gave back."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest
from event_loops import (
    HERE,
    Run,
    an_origin,
    fetch,
    nothing_left,
    port_of,
    run,
    serving,
    until,
)

from lusca_comm import CommError, aio

__all__ = ["nothing_left", "run"]  # fixtures


async def gone(conn: aio.Connection, how: str, there: Any) -> None:
    if how == "reset":
        conn.reset()
    elif how == "close":
        await conn.close()
    elif how == "detach":
        with conn.detach() as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
    elif how == "relay":
        await conn.relay(conn.connect(there))
    else:
        conn.writer.write(b"by the writer")


@pytest.mark.parametrize("how", ["reset", "close", "detach", "relay", "writer"])
def test_the_socket_goes_meanwhile(run: Run, how: str) -> None:
    """The peek is told, and the next socket with its descriptor is nobody else's."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            if not ended:
                peeking = asyncio.ensure_future(conn.peek(50, least=50))
                await until(lambda: conn._peeking)
                going = asyncio.ensure_future(gone(conn, how, origin.address))
                with pytest.raises(CommError) as why:
                    await peeking
                ended.append(why.value.errno)
                await going
                return
            assert await conn.peek(5, least=5) == b"hello"
            conn.writer.write(b"ok")

        async with an_origin() as origin, serving(handler) as server:
            _, writer = await asyncio.open_connection(HERE, port_of(server))
            await until(lambda: ended)
            writer.close()
            assert ended == [errno.EBUSY if how == "writer" else errno.EBADF]
            for _ in range(3):
                assert await fetch(port_of(server)) == b"ok"

    ended: list[int | None] = []
    run(main)
    assert not run.told


def test_an_upstream_is_refused_meanwhile(run: Run, nobody: Any) -> None:
    """``gather`` leaves the peek as it was, and then the handler ends."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            peeking.append(asyncio.ensure_future(conn.peek(5)))
            await until(lambda: conn._peeking)
            await asyncio.gather(conn.connect(nobody), peeking[0])

        peeking: list[asyncio.Future[bytes]] = []
        async with serving(handler) as server:
            reader, writer = await asyncio.open_connection(HERE, port_of(server))
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
        with pytest.raises(CommError) as why:
            await peeking[0]
        assert why.value.errno == errno.EBADF

    run(main)
    assert [context["exception"].errno for context in run.told] == [errno.ECONNREFUSED]


@pytest.fixture
def nobody() -> Any:
    with socket.socket() as sock:
        sock.bind((HERE, 0))
        yield sock.getsockname()


def test_two_at_once(run: Run) -> None:
    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            first = asyncio.ensure_future(conn.peek(5, least=5))
            await until(lambda: conn._peeking)
            with pytest.raises(CommError) as why:
                await conn.peek(1)
            assert why.value.errno == errno.EBUSY
            go_on.set_result(None)
            assert await first == b"hello"
            assert await conn.peek(1) == b"h"
            conn.writer.write(b"ok")

        go_on = asyncio.get_running_loop().create_future()
        async with serving(handler) as server:
            reader, writer = await asyncio.open_connection(HERE, port_of(server))
            await go_on
            writer.write(b"hello")
            assert await reader.read() == b"ok"
            writer.close()

    run(main)
    assert not run.told


def test_at_what_a_relay_gave_back(run: Run) -> None:
    """Bytes that were read already are there, whether the socket has more or not."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            assert await conn.reader.readexactly(1) == b"0"
            result = await conn.relay(conn.connect(origin.address), limit_up=2)
            result.upstream.reset()
            seen.append(await conn.peek(10))
            seen.append(await conn.peek(10, least=3))
            seen.append(await conn.peek(2, least=2))
            more.set_result(None)
            seen.append(await conn.peek(10, least=5))
            seen.append(await conn.reader.readexactly(5))

        seen: list[bytes] = []
        more = asyncio.get_running_loop().create_future()
        async with an_origin() as origin, serving(handler) as server:
            reader, writer = await asyncio.open_connection(HERE, port_of(server))
            writer.write(b"012345")
            await more
            writer.write(b"67")
            assert await reader.read() == b""
            writer.close()
        assert seen == [b"345", b"345", b"34", b"34567", b"34567"]

    run(main)
    assert not run.told
