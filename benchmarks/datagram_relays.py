"""The datagram relays that datagrams.py compares.

    python datagram_relays.py NAME PORT ORIGIN ORIGIN_PORT

Each has an upstream socket of its own for every client. All but the plain ones take what TPROXY
delivers and answer from where it was going. A plain DatagramProtocol knows nothing of that: the
clients send to its address, and it to ORIGIN.
"""

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import lusca_comm as lc
from lusca_comm import aio

FLAGS = lc.COMM_TPROXY_LCL | lc.COMM_REUSEADDR
FLOWS = 16384


def _listener(port: int) -> socket.socket:
    return lc.comm_open(socket.SOCK_DGRAM, 0, ("0.0.0.0", port), flags=FLAGS)


def plane(port: int, *_: Any) -> None:
    """intercept_flows()."""
    lc.intercept_flows(_listener(port), max_flows=FLOWS)
    lc.run()


def comm(port: int, *_: Any) -> None:
    """comm_udp_recvmany and comm_udp_replymany."""
    lc.default_reactor.max_flows = FLOWS
    upstreams: dict[Any, socket.socket] = {}

    def on_readable(listener: socket.socket, _: Any) -> None:
        lc.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable)
        while batch := lc.comm_udp_recvmany(listener):
            for datagram in batch:
                key = datagram.peer, datagram.original
                upstream = upstreams.get(key)
                if upstream is None:
                    upstream = upstreams[key] = lc.comm_open(socket.SOCK_DGRAM)
                    upstream.connect(datagram.original)
                    lc.comm_set_select(upstream, lc.COMM_SELECT_READ, on_answer, datagram)
                upstream.send(datagram.data)
            if len(batch) < 64:
                return

    def on_answer(upstream: socket.socket, datagram: lc.Datagram) -> None:
        lc.comm_set_select(upstream, lc.COMM_SELECT_READ, on_answer, datagram)
        lc.comm_udp_replymany((datagram, one.data) for one in lc.comm_udp_recvmany(upstream))

    lc.comm_set_select(_listener(port), lc.COMM_SELECT_READ, on_readable)
    lc.run()


class Answers(asyncio.DatagramProtocol):
    """From an upstream to whatever passes them on."""

    def __init__(self, reply: Callable[[bytes], object]) -> None:
        self.reply = reply

    def datagram_received(self, data: bytes, _: Any) -> None:
        self.reply(data)


async def intercepting(port: int, *_: Any) -> None:
    """aio.start_intercept_datagrams()."""
    loop = asyncio.get_running_loop()
    upstreams: dict[Any, Any] = {}

    def meet(datagram: aio.InterceptedDatagram) -> Any:
        upstream = upstreams.get((datagram.peer, datagram.original))
        return begin(datagram) if upstream is None else upstream.sendto(datagram.data)

    async def begin(datagram: aio.InterceptedDatagram) -> None:
        upstream, _ = await loop.create_datagram_endpoint(
            lambda: Answers(datagram.reply), remote_addr=datagram.original
        )
        upstreams[datagram.peer, datagram.original] = upstream
        upstream.sendto(datagram.data)

    server = await aio.start_intercept_datagrams(meet, "0.0.0.0", port, max_flows=FLOWS)
    await server.serve_forever()


class Plain(asyncio.DatagramProtocol):
    """What one writes without this library."""

    def __init__(self, origin: tuple[str, int]) -> None:
        self.origin = origin
        self.upstreams: dict[Any, Any] = {}
        self.tasks: set[Any] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, client: Any) -> None:
        upstream = self.upstreams.get(client)
        if upstream is not None:
            upstream.sendto(data)
            return
        task = asyncio.get_running_loop().create_task(self.begin(data, client))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def begin(self, data: bytes, client: Any) -> None:
        def reply(answer: bytes) -> None:
            self.transport.sendto(answer, client)

        self.upstreams[client], _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Answers(reply), remote_addr=self.origin
        )
        self.upstreams[client].sendto(data)


async def plain(port: int, *origin: Any) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Plain(origin), local_addr=("0.0.0.0", port))
    await asyncio.Event().wait()


def _on(name: str, main: Callable[..., Any]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        if name == "uvloop":
            import uvloop

            uvloop.run(main(*arguments))
        else:
            asyncio.run(main(*arguments))

    return run


RELAYS: dict[str, Callable[..., None]] = {
    "plane": plane,
    "comm": comm,
    "uvloop-aio": _on("uvloop", intercepting),
    "asyncio-aio": _on("asyncio", intercepting),
    "uvloop-plain": _on("uvloop", plain),
    "asyncio-plain": _on("asyncio", plain),
}

if __name__ == "__main__":
    name, port, origin, origin_port = sys.argv[1:]
    RELAYS[name](int(port), origin, int(origin_port))
