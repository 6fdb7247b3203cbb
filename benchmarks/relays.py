"""The relays written in Python that the benchmarks compare.

    python relays.py NAME PORT ORIGIN_PORT [--busy] [--intercept]

All of them do the same: accept on 127.0.0.1:PORT, connect to 127.0.0.1:ORIGIN_PORT, relay both
ways with half-closes. ``--busy`` has another thread of the same interpreter compute all the time.
``--intercept``, for asyncio-streams: accept what TPROXY delivers, go where it was going, in the
client's name.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import lusca_comm as lc

HOST = "127.0.0.1"


def comm(port: int, origin: int) -> None:
    """comm_* callbacks and relay()."""
    there = (HOST, origin)

    def on_readable(listener: socket.socket, _: Any) -> None:
        lc.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable)
        while (got := lc.comm_accept(listener)) is not None:
            lc.comm_connect(lc.comm_open(), there, on_connected, got.sock)

    def on_connected(upstream: socket.socket, status: int, client: socket.socket) -> None:
        if status == lc.COMM_OK:
            lc.relay(client, upstream, on_done, idle=300)
        else:
            lc.comm_close(upstream)
            lc.comm_reset_close(client)

    def on_done(_: lc.RelayResult) -> None:
        pass

    listener = lc.comm_open(address=(HOST, port), flags=lc.COMM_REUSEADDR)
    lc.comm_listen(listener)
    lc.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable)
    lc.run()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


IP_TRANSPARENT = 19  # linux/in.h


def _transparent(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    sock.bind(address)
    return sock


def _intercepting_streams(port: int, _origin: int) -> Any:
    """What a Python author writes today."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = _transparent((writer.get_extra_info("peername")[0], 0))
        there = writer.get_extra_info("sockname")  # TPROXY: the original destination
        await asyncio.get_running_loop().sock_connect(sock, there)
        await _join(reader, writer, *await asyncio.open_connection(sock=sock))

    async def main() -> None:
        listener = _transparent(("0.0.0.0", port))
        async with await asyncio.start_server(handle, sock=listener, backlog=65535) as server:
            await server.serve_forever()

    return main()


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up_reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
) -> None:
    await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
    up_writer.close()
    writer.close()


def _streams(port: int, origin: int) -> Any:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join(reader, writer, *await asyncio.open_connection(HOST, origin))

    async def main() -> None:
        async with await asyncio.start_server(handle, HOST, port, backlog=65535) as server:
            await server.serve_forever()

    return main()


class _End(asyncio.Protocol):
    """One end of a pair; what it receives it writes to the other."""

    other: "_End | None" = None
    transport: Any = None

    def __init__(self) -> None:
        self.early: list[bytes] = []
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other is not None and self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return not (self.other is not None and self.other.ended)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        assert self.other is not None
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        assert self.other is not None
        self.other.transport.resume_reading()


def _protocol(port: int, origin: int) -> Any:
    loop_tasks: set[asyncio.Task[None]] = set()

    async def join(client: _End) -> None:
        _, upstream = await asyncio.get_running_loop().create_connection(_End, HOST, origin)
        upstream.other, client.other = client, upstream
        for data in client.early:
            upstream.transport.write(data)
        if client.ended:
            upstream.transport.write_eof()

    class Client(_End):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            task = asyncio.get_running_loop().create_task(join(self))
            loop_tasks.add(task)
            task.add_done_callback(loop_tasks.discard)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Client, HOST, port, backlog=65535)
        async with server:
            await server.serve_forever()

    return main()


def _uvloop(make: Callable[[int, int], Any]) -> Callable[[int, int], None]:
    def run(port: int, origin: int) -> None:
        import uvloop

        uvloop.run(make(port, origin))

    return run


RELAYS: dict[str, Callable[[int, int], None]] = {
    "comm": comm,
    "asyncio-streams": lambda port, origin: asyncio.run(_streams(port, origin)),
    "asyncio-protocol": lambda port, origin: asyncio.run(_protocol(port, origin)),
    "uvloop-streams": _uvloop(_streams),
    "uvloop-protocol": _uvloop(_protocol),
}


def _compute() -> None:
    number = 0
    while True:
        number = (number * 1103515245 + 12345) % 2147483648


def main() -> None:
    parser = argparse.ArgumentParser(description="one relay of the benchmarks")
    parser.add_argument("name", choices=sorted(RELAYS))
    parser.add_argument("port", type=int)
    parser.add_argument("origin", type=int)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--intercept", action="store_true")
    options = parser.parse_args()
    if options.busy:
        threading.Thread(target=_compute, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        if options.intercept:
            asyncio.run(_intercepting_streams(options.port, options.origin))
        else:
            RELAYS[options.name](options.port, options.origin)


if __name__ == "__main__":
    sys.exit(main())
