"""The relays written in Python that the benchmarks compare.

    python relays.py NAME PORT ORIGIN_PORT [--busy] [--intercept]

All of them do the same: accept on 127.0.0.1:PORT, connect to 127.0.0.1:ORIGIN_PORT, relay both
ways with half-closes. ``--busy`` has another thread of the same interpreter compute all the time.
``--intercept``: accept what TPROXY delivers, go where it was going, in the client's name.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import lusca_comm as lc
from lusca_comm import aio

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


def decide(port: int, origin: int) -> None:
    """intercept_relay(): the plane accepts and relays, Python is asked about each connection.

    Nothing is intercepted here, so the engine that trusts getsockname stands in."""

    def answer(questions: list[lc.Question]) -> None:
        for question in questions:
            question.relay((HOST, origin))

    listener = lc.comm_open(address=(HOST, port), flags=lc.COMM_REUSEADDR)
    lc.comm_listen(listener)
    lc.intercept_relay(listener, decide=answer, policy=[("ask",)], engine="sockname", idle=300)
    lc.run()


def _intercepting_decide(port: int) -> None:
    def answer(questions: list[lc.Question]) -> None:
        for question in questions:
            question.relay(spoof=True)

    listener = _intercepting_listener(port)
    lc.intercept_relay(listener, decide=answer, policy=[("ask",)], idle=300)
    lc.run()


def _intercepting_policy(port: int) -> None:
    lc.intercept_relay(_intercepting_listener(port), policy=[("spoof",)], idle=300)
    lc.run()


def _intercepting_listener(port: int) -> socket.socket:
    flags = lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL
    listener = lc.comm_open(address=("0.0.0.0", port), flags=flags)
    lc.comm_listen(listener)
    return listener


def _aio(listen: tuple[str, int], engine: str | None, fused: bool, **how: Any) -> Any:
    """lusca_comm.aio, connecting and relaying in one step, or in two."""

    async def handle(conn: aio.Connection) -> None:
        upstream = conn.connect(**how)
        await conn.relay(upstream if fused else await upstream, idle=300)

    async def main() -> None:
        async with await aio.start_intercept_server(handle, *listen, engine=engine) as server:
            await server.serve_forever()

    return main()


def _one_host_aio(fused: bool) -> Callable[[int, int], Any]:
    return lambda port, origin: _aio((HOST, port), "sockname", fused, to=(HOST, origin))


def _intercepting_aio(fused: bool) -> Callable[[int], Any]:
    return lambda port: _aio(("0.0.0.0", port), None, fused, spoof=True)


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


async def _spoofed(transport: Any) -> socket.socket:
    """A connection to where the one of `transport` was going, from where it comes."""
    sock = _transparent((transport.get_extra_info("peername")[0], 0))
    there = transport.get_extra_info("sockname")  # TPROXY: the original destination
    await asyncio.get_running_loop().sock_connect(sock, there)
    return sock


def _intercepting_streams(port: int) -> Any:
    """What a Python author writes today."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = await _spoofed(writer)
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


def _serve_pairs(
    listen: dict[str, Any], connect: Callable[[Any], Coroutine[Any, Any, dict[str, Any]]]
) -> Any:
    """:param connect: what create_connection is given for the upstream of a transport."""
    tasks: set[asyncio.Task[None]] = set()

    async def join(client: _End) -> None:
        how = await connect(client.transport)
        _, upstream = await asyncio.get_running_loop().create_connection(_End, **how)
        upstream.other, client.other = client, upstream
        for data in client.early:
            upstream.transport.write(data)
        if client.ended:
            upstream.transport.write_eof()

    class Client(_End):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            task = asyncio.get_running_loop().create_task(join(self))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with await loop.create_server(Client, backlog=65535, **listen) as server:
            await server.serve_forever()

    return main()


def _protocol(port: int, origin: int) -> Any:
    async def connect(_: Any) -> dict[str, Any]:
        return {"host": HOST, "port": origin}

    return _serve_pairs({"host": HOST, "port": port}, connect)


def _intercepting_protocol(port: int) -> Any:
    async def connect(transport: Any) -> dict[str, Any]:
        return {"sock": await _spoofed(transport)}

    return _serve_pairs({"sock": _transparent(("0.0.0.0", port))}, connect)


Make = Callable[..., Any]
"""Of the port, and on one host the origin's: the coroutine that serves."""


def _asyncio(make: Make) -> Callable[..., None]:
    return lambda *ports: asyncio.run(make(*ports))


def _uvloop(make: Make) -> Callable[..., None]:
    def run(*ports: int) -> None:
        import uvloop

        uvloop.run(make(*ports))

    return run


RELAYS: dict[str, Callable[[int, int], None]] = {
    "comm": comm,
    "decide": decide,
    "asyncio-aio": _asyncio(_one_host_aio(fused=True)),
    "uvloop-aio": _uvloop(_one_host_aio(fused=True)),
    "asyncio-aio-two-steps": _asyncio(_one_host_aio(fused=False)),
    "uvloop-aio-two-steps": _uvloop(_one_host_aio(fused=False)),
    "asyncio-streams": _asyncio(_streams),
    "asyncio-protocol": _asyncio(_protocol),
    "uvloop-streams": _uvloop(_streams),
    "uvloop-protocol": _uvloop(_protocol),
}


INTERCEPTING: dict[str, Callable[[int], None]] = {
    "decide": _intercepting_decide,
    "policy": _intercepting_policy,
    "asyncio-aio": _asyncio(_intercepting_aio(fused=True)),
    "uvloop-aio": _uvloop(_intercepting_aio(fused=True)),
    "asyncio-aio-two-steps": _asyncio(_intercepting_aio(fused=False)),
    "uvloop-aio-two-steps": _uvloop(_intercepting_aio(fused=False)),
    "asyncio-streams": _asyncio(_intercepting_streams),
    "asyncio-protocol": _asyncio(_intercepting_protocol),
    "uvloop-streams": _uvloop(_intercepting_streams),
    "uvloop-protocol": _uvloop(_intercepting_protocol),
}


def _compute() -> None:
    number = 0
    while True:
        number = (number * 1103515245 + 12345) % 2147483648


def main() -> None:
    parser = argparse.ArgumentParser(description="one relay of the benchmarks")
    parser.add_argument("name", choices=sorted({*RELAYS, *INTERCEPTING}))
    parser.add_argument("port", type=int)
    parser.add_argument("origin", type=int)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--intercept", action="store_true")
    options = parser.parse_args()
    if options.busy:
        threading.Thread(target=_compute, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        if options.intercept:
            INTERCEPTING[options.name](options.port)
        else:
            RELAYS[options.name](options.port, options.origin)


if __name__ == "__main__":
    sys.exit(main())
