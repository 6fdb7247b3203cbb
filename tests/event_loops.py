"""What the tests of lusca_comm.aio share: both loops, an origin, and what a process has open."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lusca_comm import aio

T = TypeVar("T")
HERE = "127.0.0.1"
LIMIT = 30.0


class Run:
    """Runs ``main(*args)`` in a new loop. What its exception handler was told: `told`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[dict[str, Any]] = []

    def __call__(self, main: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        async def whole() -> T:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: self.told.append(context))
            return await asyncio.wait_for(main(*args), LIMIT)

        if self.name == "uvloop":
            import uvloop

            return uvloop.run(whole())
        return asyncio.run(whole(), debug=True)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def open_sockets() -> list[str]:
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if (link := str(fd.readlink())).startswith("socket:"):
                found.append(link)
    return sorted(found)


PF_EXITING = 4  # linux/sched.h


def plane_threads() -> int:
    """Those that run. One that was waited for may be listed for a moment: pthread_join(3) returns
    in the middle of its exit."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            name, _, fields = (task / "stat").read_text().rpartition(")")
            exiting = int(fields.split()[6]) & PF_EXITING
            count += name.endswith("(lusca plane") and not exiting
    return count


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Of sockets and threads, for each test of a module that has it."""
    before = open_sockets(), plane_threads()
    yield
    assert (open_sockets(), plane_threads()) == before


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


class Origin:
    """Sends back everything, behind "origin: ", once the client has ended."""

    def __init__(self) -> None:
        self.address = ("", 0)
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            data = await reader.read()
            writer.write(b"origin: " + data)
            await writer.drain()
        except OSError:
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def an_origin() -> AsyncIterator[Origin]:
    origin = Origin()
    server = await asyncio.start_server(origin.serve, HERE, 0)
    origin.address = server.sockets[0].getsockname()
    try:
        yield origin
    finally:
        server.close()
        await until(lambda: origin.open == 0)


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[aio.Connection], Awaitable[object]], **options: Any
) -> AsyncIterator[aio.InterceptServer]:
    """Nothing intercepts here, so the engine that trusts getsockname stands in."""
    options = {"engine": "sockname", "host": HERE, "port": 0} | options
    async with await aio.start_intercept_server(handler, **options) as server:
        yield server


def port_of(server: aio.InterceptServer) -> int:
    return int(server.sockets[0].getsockname()[1])


async def fetch(port: int, data: bytes = b"hello", host: str = HERE) -> bytes:
    """What comes for `data` and the end; b"reset"."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        if writer.can_write_eof():
            writer.write_eof()
        return await reader.read()
    except OSError:  # ENOTCONN: it was reset before its end was sent
        return b"reset"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.contextmanager
def full_queue() -> Iterator[socket.socket]:
    """A listener whose queue is full: a connection to it is never made (Linux drops what begins
    it)."""
    with socket.socket() as listener, socket.socket() as one:
        listener.bind((HERE, 0))
        listener.listen(0)
        one.connect(listener.getsockname())
        assert select.select([listener], [], [], LIMIT)[0]  # it is in the queue
        yield listener


def small_buffers(sock: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 4096)
