"""Cancellation at every await of a handler, one after the other, on both loops: nothing is left of
its connections, at either side, and the server goes on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest
from event_loops import (
    HERE,
    Run,
    fetch,
    full_queue,
    open_sockets,
    plane_threads,
    port_of,
    run,
    serving,
    until,
)

from lusca_comm import CommError, aio

__all__ = ["run"]  # a fixture


class Cancelled:
    """Awaits what a coroutine function makes, and has its task cancelled when it waits for the
    `at`-th time. What it waits for meanwhile may have come about, or not: `late` turns of the loop
    lie in between."""

    def __init__(self, doing: Awaitable[object], at: int, late: int) -> None:
        self.doing = doing
        self.at = at
        self.late = late
        self.waited = 0
        self.ended = self.over = False
        """Over: it came to its own end."""

    def __await__(self) -> Generator[Any, None, None]:
        try:
            yield from self._steps()
        finally:
            self.ended = True

    def _steps(self) -> Generator[Any, None, None]:
        steps = self.doing.__await__()
        task = asyncio.current_task()
        assert task is not None
        answer = None
        while True:
            try:
                future = steps.send(answer) if answer is None else steps.throw(answer)
            except StopIteration:
                self.over = True
                return
            self.waited += 1
            if self.waited == self.at:
                self._cancel(task, self.late)
            try:
                yield future
                answer = None
            except BaseException as why:
                answer = why

    def _cancel(self, task: asyncio.Task[Any], turns: int) -> None:
        if turns == 0:
            task.cancel()
        else:
            asyncio.get_running_loop().call_soon(self._cancel, task, turns - 1)


async def fused(conn: aio.Connection, there: Any) -> None:
    await conn.relay(conn.connect(there))


async def in_two_steps(conn: aio.Connection, there: Any) -> None:
    await conn.relay(await conn.connect(there), idle=30)


async def apart(conn: aio.Connection, there: Any) -> None:
    """Between the two steps both are connected, and nobody's but the handler's."""
    upstream = await conn.connect(there)
    await asyncio.sleep(0)
    result = await conn.relay(upstream, prefix=b"p", limit_up=3)
    await result.upstream.close()
    await conn.peek(3, least=3)


async def side_by_side(conn: aio.Connection, there: Any) -> None:
    upstream, _ = await asyncio.gather(conn.connect(there), conn.peek(5, least=5))
    await conn.relay(upstream)


async def after_streams(conn: aio.Connection, there: Any) -> None:
    await conn.reader.readexactly(2)
    upstream = await conn.connect(there)
    upstream.writer.write(b"u" * 4_000_000)
    conn.writer.write(b"c" * 4_000_000)
    await conn.relay(upstream)


async def fused_after_streams(conn: aio.Connection, there: Any) -> None:
    await conn.reader.readexactly(2)
    await conn.relay(conn.connect(there))


async def with_streams(conn: aio.Connection, there: Any) -> None:
    await conn.peek(5, least=5)
    line = await conn.reader.readexactly(5)
    async with await conn.connect(there) as upstream:
        upstream.writer.write(line)
        await upstream.writer.drain()
        upstream.writer.write_eof()
        conn.writer.write(await upstream.reader.read())
        await conn.writer.drain()
    await conn.close()


async def until_a_limit(conn: aio.Connection, there: Any) -> None:
    result = await conn.relay(conn.connect(there), limit_up=3)
    await result.upstream.close()
    await conn.reader.read()


async def nowhere(conn: aio.Connection, full: Any) -> None:
    with pytest.raises(CommError):
        await conn.relay(conn.connect(full, timeout=0.05))
    with pytest.raises(CommError):
        await conn.connect(full, timeout=0.05)
    await conn.peek(5, least=5)


async def sockets(conn: aio.Connection, there: Any) -> None:
    sock = conn.detach()
    with contextlib.closing(sock):
        upstream = await aio.connect(there)
        await aio.relay(sock, upstream)


async def pairs_of_streams(conn: aio.Connection, there: Any) -> None:
    client = await asyncio.open_connection(sock=conn.detach())
    try:
        await client[0].readexactly(1)
        async with await aio.connect(there) as upstream:
            await aio.relay(client, upstream)
    finally:
        client[1].close()


SCRIPTS = [
    fused,
    in_two_steps,
    apart,
    side_by_side,
    after_streams,
    fused_after_streams,
    with_streams,
    until_a_limit,
    nowhere,
    sockets,
    pairs_of_streams,
]


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("script", SCRIPTS, ids=[script.__name__ for script in SCRIPTS])
def test_at_every_await(
    run: Run, script: Callable[[aio.Connection, Any], Awaitable[None]], late: int
) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(await reader.read())
            writer.close()

        async def handler(conn: aio.Connection) -> None:
            steps.append(Cancelled(script(conn, there), len(steps) + 1, late))
            await steps[-1]

        origin = await asyncio.start_server(serve, HERE, 0)
        there = origin.sockets[0].getsockname()
        if script is nowhere:
            there = full.getsockname()
        steps: list[Cancelled] = []
        async with serving(handler) as server:
            port, listening = port_of(server), open_sockets()
            while not (steps and steps[-1].over):
                await fetch(port)
                await until(lambda: steps[-1].ended)
                # The origin's end comes of that of the upstream.
                await until(lambda: open_sockets() == listening)
            assert len(steps) > 1, "it waits for something"
        origin.close()

    with full_queue() as full:
        before = open_sockets()
        run(main)
        assert (open_sockets(), plane_threads()) == (before, 0)
    assert not run.told


def test_before_it_has_begun(run: Run) -> None:
    """A task that is cancelled before its first step runs nothing of its handler."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            began.append(conn)

        began: list[aio.Connection] = []
        async with serving(handler) as server:
            port = port_of(server)
            asking = asyncio.ensure_future(fetch(port))
            decide = server._decide

            def decide_and_cancel(*args: Any) -> None:
                decide(*args)
                server.abort_clients()

            server._listeners[0]._user_decide = lambda qs: decide_and_cancel(socket.AF_INET, qs)
            assert await asking == b"reset"
        assert not began

    before = open_sockets()
    run(main)
    assert (open_sockets(), plane_threads()) == (before, 0)
    assert not run.told


def test_a_relay_that_is_killed_resets_both(run: Run) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.read()
            except ConnectionResetError:
                gone.set_result("reset")
            writer.close()

        async def handler(conn: aio.Connection) -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(conn.relay(conn.connect(there)), 0.05)
            assert conn.closed

        gone = asyncio.get_running_loop().create_future()
        origin = await asyncio.start_server(serve, HERE, 0)
        there = origin.sockets[0].getsockname()
        async with serving(handler) as server:
            reader, writer = await asyncio.open_connection(HERE, port_of(server))
            writer.write(b"hello")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert await gone == "reset"
            writer.close()
        origin.close()

    run(main)
    assert not run.told
