"""The server of lusca_comm.aio: whom it serves, where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import queue
import resource
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from event_loops import (
    HERE,
    Run,
    an_origin,
    fetch,
    nothing_left,
    plane_threads,
    port_of,
    run,
    serving,
    until,
)

from lusca_comm import CommError, NotIntercepted, aio, spoof
from lusca_comm._shim import lib
from lusca_comm.address import to_shim

__all__ = ["nothing_left", "run"]  # fixtures


async def answer(conn: aio.Connection) -> None:
    conn.writer.write(b"served")


def listening(port: int) -> bool:
    """Whether this process does. To connect would not tell: by now the port may be another
    process's, or the one that the kernel gives to the caller, who then meets himself."""
    own = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            own.add(str(fd.readlink()))
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return any(
        row[1].endswith(f":{port:04X}") and row[3] == "0A" and f"socket:[{row[9]}]" in own
        for row in rows
    )


def test_life(run: Run) -> None:
    async def main() -> None:
        server = await aio.start_intercept_server(answer, host, 0, engine="sockname")
        assert server.is_serving()
        assert server.get_loop() is asyncio.get_running_loop()
        (sock,) = server.sockets
        port = port_of(server)
        await server.start_serving()
        assert await fetch(port, host=host) == b"served"
        assert listening(port)
        server.close()
        server.close()
        assert (server.is_serving(), server.sockets, sock.fileno()) == (False, (), -1)
        await server.wait_closed()
        await server.wait_closed()
        assert not listening(port)
        with pytest.raises(RuntimeError, match="closed"):
            await server.start_serving()
        async with await aio.start_intercept_server(answer, host, port, engine="sockname"):
            assert await fetch(port, host=host) == b"served"
        assert plane_threads() == 0, "the last user has gone"

    # This process's alone: meanwhile nobody else gets the port.
    host = str(ipaddress.IPv4Address(HERE) - 1 + os.getpid())
    run(main)
    assert not run.told


def test_serving_begins_when_it_is_told(run: Run) -> None:
    """Until then there is no thread, so privileges can be dropped."""

    async def main() -> None:
        async with serving(answer, start_serving=False) as server:
            assert (server.is_serving(), plane_threads()) == (False, 0)
            assert not listening(port_of(server))
            await server.start_serving()
            assert await fetch(port_of(server)) == b"served"
        assert not server.is_serving()

    run(main)


def test_the_end_waits_for_the_handlers(run: Run) -> None:
    async def main() -> None:
        go_on = asyncio.get_running_loop().create_future()

        async def handler(conn: aio.Connection) -> None:
            await go_on
            conn.writer.write(b"late")

        async with serving(handler) as server:
            asking = asyncio.ensure_future(fetch(port_of(server)))
            await until(lambda: server.accepted)
            server.close()
            closed = asyncio.ensure_future(server.wait_closed())
            await asyncio.sleep(0)
            assert not closed.done()
            go_on.set_result(None)
            assert await asking == b"late"
            await closed

    run(main)


def test_closed_while_it_serves_forever(run: Run) -> None:
    """By a signal, for one: what is being handled goes on to its end."""

    async def main() -> None:
        async def serve() -> None:
            async with serving(handler) as server:
                started.set_result(server)
                await server.serve_forever()

        async def handler(conn: aio.Connection) -> None:
            await go_on
            conn.writer.write(b"late")

        go_on: asyncio.Future[None] = asyncio.Future()
        started: asyncio.Future[aio.InterceptServer] = asyncio.Future()
        task = asyncio.ensure_future(serve())
        server = await started
        asking = asyncio.ensure_future(fetch(port_of(server)))
        await until(lambda: server.accepted and server._forever)
        server.close()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set_result(None)
        assert await asking == b"late"
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


@pytest.mark.parametrize("how", ["cancel", "raise"])
def test_the_end_does_not_wait(run: Run, how: str) -> None:
    """What is cancelled, or left by an exception, ends its handlers."""

    async def main() -> None:
        async def serve() -> None:
            async with serving(handler) as server:
                started.set_result(server)
                if how == "cancel":
                    await server.serve_forever()
                await stop
                raise ValueError("stop")

        async def handler(conn: aio.Connection) -> None:
            try:
                await conn.reader.read()
            except asyncio.CancelledError:
                cancelled.append(conn)
                raise

        cancelled: list[aio.Connection] = []
        started: asyncio.Future[aio.InterceptServer] = asyncio.Future()
        stop: asyncio.Future[None] = asyncio.Future()
        task = asyncio.ensure_future(serve())
        server = await started
        reader, writer = await asyncio.open_connection(HERE, port_of(server))
        await until(lambda: server.accepted)
        if how == "cancel":
            await until(lambda: server._forever)
            with pytest.raises(RuntimeError, match="running already"):
                await server.serve_forever()
            task.cancel()
        else:
            stop.set_result(None)
        with pytest.raises((asyncio.CancelledError, ValueError)):
            await task
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert [conn.closed for conn in cancelled] == [True]

    run(main)


def test_a_server_that_nobody_closed(run: Run) -> None:
    """It ends with its loop, and so do its connections."""

    async def main() -> tuple[int, Any]:
        async def handler(conn: aio.Connection) -> None:
            await conn.reader.read()

        server = await aio.start_intercept_server(handler, HERE, 0, engine="sockname")
        waiting = socket.create_connection(server.sockets[0].getsockname())
        await until(lambda: server.accepted)
        return port_of(server), waiting

    port, waiting = run(main)
    assert plane_threads() == 0
    assert not listening(port)
    with waiting, pytest.raises(ConnectionResetError):
        waiting.recv(1)


def test_many_servers_one_after_the_other(run: Run) -> None:
    """A plane has 64 numbers for listeners: those of closed ones are had again."""

    async def main() -> None:
        async with serving(answer) as first:
            for _ in range(70):
                async with serving(answer) as server:
                    pass
            assert await fetch(port_of(first)) == b"served"
            async with serving(answer) as server:
                assert await fetch(port_of(server)) == b"served"
            assert plane_threads() == 1

    run(main)


def test_a_loop_is_refused(run: Run) -> None:
    """What this process connects to itself would go round for ever."""
    told: list[CommError] = []

    async def main() -> None:
        async with serving(answer, on_refused=told.append) as server:
            async with await aio.connect((HERE, port_of(server))) as upstream:
                with pytest.raises(ConnectionResetError):
                    await upstream.reader.read()
            await until(lambda: told)
            assert (server.accepted, server.refused) == (0, 1)
            assert await fetch(port_of(server)) == b"served"

    run(main)
    (why,) = told
    assert isinstance(why, NotIntercepted)
    assert why.errno == errno.ELOOP
    assert "is a loop" in why.strerror


def test_a_connection_that_was_made_is_forgotten(run: Run) -> None:
    """The guard against loops keeps nothing of what has ended, in any way."""

    async def main() -> None:
        ends: list[tuple[Any, Any]] = []
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                made = [await conn.connect(origin.address) for _ in range(4)]
                ends.extend((upstream.spoof.address, origin.address) for upstream in made)
                assert all(lib.lc_own_connection(*map(to_shim, pair)) for pair in ends)
                await made[0].close()
                made[1].reset()
                made[2].detach().close()
                await conn.relay(made[3])

            async with serving(handler) as server:
                assert await fetch(port_of(server)) == b"origin: hello"
        assert len(ends) == 4
        assert not any(lib.lc_own_connection(*map(to_shim, pair)) for pair in ends)

    run(main)


# -- where it listens --------------------------------------------------------------------------


def test_every_address(run: Run) -> None:
    """Of both families, each its own socket, on one port."""

    async def main() -> None:
        for host in ("", None):
            async with serving(answer, host=host) as server:
                ports = {sock.getsockname()[1] for sock in server.sockets}
                families = {sock.family for sock in server.sockets}
                assert (len(ports), families) == (1, {socket.AF_INET, socket.AF_INET6})
                for address in (HERE, "::1"):
                    assert await fetch(port_of(server), host=address) == b"served"

    run(main)


def test_hosts(run: Run) -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def handler(conn: aio.Connection) -> None:
            seen.append(conn.original)
            conn.writer.write(str(conn.peer[0]).encode())

        async with serving(handler, host=[HERE, "::1", "127.0.0.2"]) as server:
            port = port_of(server)
            assert len(server.sockets) == 3
            assert await fetch(port, host="127.0.0.2") == HERE.encode()
            assert await fetch(port, host="::1") == b"::1"
            assert seen == [("127.0.0.2", port), ("::1", port)]
            assert not await _answers("127.0.0.3", port)
        async with serving(handler, host="localhost") as server:
            assert await fetch(port_of(server), host="localhost")

    run(main)


@pytest.mark.parametrize("taken", [3, 1000])
def test_a_port_that_another_host_has_taken(
    run: Run, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """The kernel chooses the port for the first host; somebody may have it on the second."""
    blocking: list[socket.socket] = []  # what it holds of [::1]
    really = spoof.request_for

    def request_for(kind: int, proto: int, address: Any, *rest: Any) -> Any:
        if address[0] == "::1" and len(blocking) < taken:
            with contextlib.suppress(OSError):  # somebody else has it: as good
                blocking.append(socket.create_server(address, family=socket.AF_INET6))
        return really(kind, proto, address, *rest)

    monkeypatch.setattr(spoof, "request_for", request_for)

    async def main() -> None:
        async with serving(answer, host=[HERE, "::1"]) as server:
            assert len(server.sockets) == 2
            assert {sock.getsockname()[1] for sock in server.sockets} == {port_of(server)}
            for host in (HERE, "::1"):
                assert await fetch(port_of(server), host=host) == b"served"

    try:
        if taken < 64:
            run(main)
        else:
            with pytest.raises(CommError) as caught:
                run(main)
            assert caught.value.errno == errno.EADDRINUSE
        assert len(blocking) >= min(taken, 60)
    finally:
        for sock in blocking:
            sock.close()


async def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(await fetch(port, host=host))
    return False


@pytest.mark.parametrize("dualstack", [True, False])
def test_the_wildcard_of_ipv6(run: Run, dualstack: bool) -> None:
    async def main() -> None:
        async def tell(conn: aio.Connection) -> None:
            assert await conn.peek(5) == b"hello"  # its socket is one of AF_INET6
            conn.writer.write(str(conn.peer[0]).encode())

        async with serving(tell, host="::", dualstack=dualstack) as server:
            assert len(server.sockets) == 1
            assert await fetch(port_of(server), host="::1") == b"::1"
            if dualstack:
                assert await fetch(port_of(server)) == HERE.encode(), "not ::ffff:127.0.0.1"
                return
            with socket.socket() as mine:
                try:
                    mine.bind((HERE, port_of(server)))
                except OSError:  # somebody has the port there, who need not be this server
                    return await main()
                assert not await _answers(HERE, port_of(server))

    run(main)
    assert not run.told


def test_sockets_of_ones_own(run: Run) -> None:
    async def main() -> None:
        mine = socket.create_server((HERE, 0))
        async with serving(answer, host=None, port=None, sock=mine) as server:
            assert server.sockets == (mine,)
            assert await fetch(port_of(server)) == b"served"
        assert mine.fileno() == -1
        with pytest.raises(CommError, match="either sock"):
            await aio.start_intercept_server(answer, HERE, 0, sock=mine)

    run(main)


def test_what_makes_no_sense(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="not callable"):
            await aio.start_intercept_server("handler", HERE, 0)  # type: ignore[arg-type]
        with pytest.raises(CommError, match="no engine 'magic'"):
            await aio.start_intercept_server(answer, HERE, 0, engine="magic")
        with pytest.raises(CommError, match="'bindany' tells no original destinations") as why:
            await aio.start_intercept_server(answer, HERE, 0, engine="bindany")
        assert why.value.errno == errno.ENOTSUP
        with pytest.raises(CommError, match="port 65536 is not from") as why:
            await aio.start_intercept_server(answer, HERE, 65536, engine="sockname")
        assert why.value.errno == errno.EINVAL
        with pytest.raises(CommError, match="mark -1 is outside") as why:
            await aio.start_intercept_server(answer, HERE, 0, engine="sockname", mark=-1)
        assert why.value.errno == errno.EINVAL
        with socket.create_server((HERE, 0)) as taken:
            with pytest.raises(CommError) as why:
                await aio.start_intercept_server(
                    answer, HERE, taken.getsockname()[1], engine="sockname"
                )
            assert why.value.errno == errno.EADDRINUSE
        with pytest.raises(socket.gaierror):
            await aio.start_intercept_server(answer, "no such host", 0, engine="sockname")

    run(main)


def test_a_handler_that_is_no_coroutine_function(run: Run) -> None:
    async def main() -> None:
        async with serving(lambda conn: None) as server:  # type: ignore[arg-type,return-value]
            assert await fetch(port_of(server)) == b"reset"

    run(main)
    assert isinstance(run.told[0]["exception"], TypeError)


def test_out_of_descriptors(run: Run) -> None:
    """The server neither spins nor goes deaf: whom it could not accept it accepts later."""

    async def main() -> None:
        async def handler(conn: aio.Connection) -> None:
            await conn.reader.read()
            conn.writer.write(b"served")

        async with serving(handler) as server:
            assert await fetch(port_of(server)) == b"served"
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(socket.socket()) for _ in range(4)]
                used = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3, hard))
                try:
                    for client in clients:
                        client.connect(server.sockets[0].getsockname())
                        client.shutdown(socket.SHUT_WR)
                    await until(lambda: server.accepted >= 2)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await until(lambda: server.accepted == 5)
                loop = asyncio.get_running_loop()
                for client in clients:
                    client.setblocking(False)
                    assert await loop.sock_recv(client, 100) == b"served"

    run(main)
    assert not run.told


def test_loops_in_threads(run: Run) -> None:
    """Each has a plane of its own."""

    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                threads.add(threading.get_ident())
                await conn.relay(conn.connect(origin.address))

            async def serve() -> None:
                async with serving(handler) as server:
                    ready.put(port_of(server))
                    await until(done.is_set)

            threads: set[int] = set()
            done = threading.Event()
            ready: queue.Queue[int] = queue.Queue()
            served = [asyncio.to_thread(Run(run.name), serve) for _ in range(3)]
            serving_all = asyncio.gather(*served)
            await until(lambda: ready.qsize() == 3)
            await until(lambda: plane_threads() == 3)  # a thread gives itself its name
            ports = [ready.get() for _ in served]
            answers = await asyncio.gather(*[fetch(port) for port in ports * 10])
            assert answers == [b"origin: hello"] * 30
            done.set()
            await serving_all
            assert len(threads) == 3

    run(main)


def test_a_forked_child_holds_nothing_back(run: Run) -> None:
    """It has all descriptors, and its plane is nobody's: ends arrive all the same."""

    async def main() -> None:
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                pids.append(os.fork())
                if pids[-1] == 0:
                    try:
                        os.read(waiting, 1)
                    finally:
                        os._exit(0)
                await conn.relay(conn.connect(origin.address))

            async with serving(handler) as server:
                assert await fetch(port_of(server)) == b"origin: hello"
                os.write(go_on, b"x")
                assert os.waitpid(pids[0], 0)[1] == 0
                assert await fetch(port_of(server)) == b"origin: hello"
                os.write(go_on, b"x")
                assert os.waitpid(pids[1], 0)[1] == 0

    pids: list[int] = []
    waiting, go_on = os.pipe()
    run(main)
    os.close(waiting)
    os.close(go_on)
    assert not run.told


def test_next_to_other_code(run: Run) -> None:
    """Two servers, their handlers, and tasks and timers that have nothing to do with them."""

    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        async with an_origin() as origin:

            async def handler(conn: aio.Connection) -> None:
                await asyncio.gather(asyncio.sleep(0.001), conn.peek(1))
                await conn.relay(conn.connect(origin.address))

            async with serving(handler) as one, serving(answer) as two:
                fetches = [fetch(port_of(server)) for server in (one, two) * 20]
                assert set(await asyncio.gather(*fetches)) == {b"origin: hello", b"served"}
                assert plane_threads() == 1
        ticking.cancel()
        assert ticks > 10

    run(main)
    assert not run.told
