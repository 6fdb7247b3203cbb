"""What is left when a loop, a server or a handler ends before what it began."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
from pathlib import Path

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

from lusca_comm import CommError, RelayResult, aio

__all__ = ["nothing_left", "run"]  # fixtures


CLOSED_LOOP = """
import asyncio, gc, socket, sys
sys.path.insert(0, {tests!r})
from event_loops import HERE, plane_threads, port_of, until
from lusca_comm import aio
if {kind!r} == "uvloop":
    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop

async def stop_once_relaying():
    await until(lambda: server._plane.plane.totals().live)
    loop.stop()

async def handler(conn):
    if {at!r} == "relay":
        tasks.append(loop.create_task(stop_once_relaying()))
    else:
        loop.stop()  # before the plane is told
    await conn.relay(conn.connect(there.getsockname()))

there = socket.create_server((HERE, 0))
tasks = []
loop = new_event_loop()
loop.set_exception_handler(lambda *_: None)
server = loop.run_until_complete(
    aio.start_intercept_server(handler, HERE, 0, engine="sockname")
)
client = socket.create_connection((HERE, port_of(server)))
loop.run_forever()
loop.close()
if {how!r} == "collected":
    del loop, server, handler
    tasks.clear()
    gc.collect()
    assert plane_threads() == 0
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        pass
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("at", ["answer", "relay"])
@pytest.mark.parametrize("how", ["collected", "exit"])
def test_a_loop_that_is_closed_with_a_relay_under_way(kind: str, at: str, how: str) -> None:
    """Nothing of it was shut down: the garbage collector ends all of it, in any order."""
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_LOOP.format(tests=tests, kind=kind, at=at, how=how)],
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_tasks_are_cancelled_after_the_shutdown(run: Run) -> None:
    """asyncio.run does it before."""

    async def main() -> None:
        async def handler(_: aio.Connection) -> None:
            began.set_result(None)
            await asyncio.get_running_loop().create_future()

        began = asyncio.get_running_loop().create_future()
        server = await aio.start_intercept_server(handler, HERE, 0, engine="sockname")
        with socket.create_connection((HERE, port_of(server))):
            await began
        await asyncio.get_running_loop().shutdown_asyncgens()

    run(main)
    assert not run.told


def test_connected_after_the_handler(run: Run) -> None:
    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                tasks.append(asyncio.ensure_future(late(conn)))

            async def late(conn: aio.Connection) -> None:
                await until(lambda: not server._handlers)
                (await conn.connect(origin.address)).reset()

            tasks: list[asyncio.Future[None]] = []
            async with serving(handler) as server:
                assert await fetch(port_of(server)) == b""
                with pytest.raises(CommError) as why:
                    await tasks[0]
                assert why.value.errno == errno.EBADF

    run(main)
    assert not run.told


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_given_back_after_the_handler(run: Run, fused: bool, used: bool) -> None:
    """A relay that outlives it, and ends by its limit."""

    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                if used:
                    assert await conn.peek(1) == b"a"
                upstream = conn.connect(origin.address)
                relaying = conn.relay(upstream if fused else await upstream, limit_up=3)
                tasks.append(asyncio.ensure_future(relaying))
                await until(lambda: conn.closed)

            tasks: list[asyncio.Future[RelayResult]] = []
            async with serving(handler) as server:
                reader, writer = await asyncio.open_connection(HERE, port_of(server))
                writer.write(b"a")
                await until(lambda: tasks and not server._handlers)
                writer.write(b"bcd")
                result = await tasks[0]
                assert (result.end, result.up) == ("limit", 3)
                closed = result.client.closed, result.upstream.closed
                result.client.reset()
                result.upstream.reset()
                assert closed == (True, True)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()

    run(main)
    assert not run.told


@pytest.mark.parametrize("how", ["detach", "relay", "close", "nothing"])
def test_an_exception_is_told_as_what_it_did(run: Run, how: str) -> None:
    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                if how == "detach":
                    conn.detach().close()
                elif how == "relay":
                    await conn.relay(conn.connect(origin.address))
                elif how == "close":
                    await conn.close()
                raise ValueError(how)

            async with serving(handler) as server:
                ends = {"nothing": b"reset", "relay": b"origin: "}
                assert await fetch(port_of(server), b"") == ends.get(how, b"")

    run(main)
    (told,) = run.told
    assert ("the connection was reset" in told["message"]) == (how == "nothing")
