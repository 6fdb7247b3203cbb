"""HTTP/3 by aioquic: a server that says whom it saw, and a client. As programs:

python http3.py serve CHAIN KEY PORT
python http3.py fetch CA HOST PORT PATH [BYTES]     # prints what came, as JSON
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import defaultdict
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

NAME = "origin.test"


class Exchange:
    """A request or a response that comes in."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.digest = hashlib.sha256()
        self.size = 0
        self.body = bytearray()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, event: Any) -> None:
        if isinstance(event, HeadersReceived):
            self.headers |= dict(event.headers)
        elif isinstance(event, DataReceived):
            self.digest.update(event.data)
            self.size += len(event.data)
            self.body += event.data[: max(0, 4096 - len(self.body))]
        if event.stream_ended and not self.over.done():
            self.over.set_result(None)


class Peer(QuicConnectionProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.exchanges: defaultdict[int, Exchange] = defaultdict(Exchange)
        self.peer: Any = None
        self.sizes: set[int] = set()

    def datagram_received(self, data: Any, addr: Any) -> None:
        self.peer = addr[:2]
        self.sizes.add(len(data))
        super().datagram_received(data, addr)

    def quic_event_received(self, event: QuicEvent) -> None:
        for one in self.http.handle_event(event):
            if isinstance(one, (HeadersReceived, DataReceived)):
                self.exchanges[one.stream_id].take(one)
                if one.stream_ended:
                    self.whole(one.stream_id)

    def whole(self, stream: int) -> None:
        """A message has come."""


class Server(Peer):
    def whole(self, stream: int) -> None:
        asked = self.exchanges.pop(stream)
        path = asked.headers[b":path"].decode()
        seen = {
            "peer": self.peer,
            "host": asked.headers[b":authority"].decode(),
            "path": path,
            "size": asked.size,
            "sha256": asked.digest.hexdigest(),
            "datagrams": max(self.sizes),
        }
        body = json.dumps(seen).encode()
        if path.startswith("/big/"):
            body = bytes(range(256)) * (int(path[5:]) // 256)
        self.http.send_headers(stream, [(b":status", b"200")])
        self.http.send_data(stream, body, end_stream=True)
        self.transmit()


class Client(Peer):
    async def fetch(self, path: str, body: bytes) -> dict[str, Any]:
        stream = self._quic.get_next_available_stream_id()
        head = [
            (b":method", b"POST" if body else b"GET"),
            (b":scheme", b"https"),
            (b":authority", NAME.encode()),
            (b":path", path.encode()),
        ]
        self.http.send_headers(stream, head, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        got = self.exchanges[stream]
        self.transmit()
        await asyncio.wait_for(got.over, 30)
        return {
            "status": got.headers[b":status"].decode(),
            "size": got.size,
            "sha256": got.digest.hexdigest(),
            "body": got.body.decode("latin-1") if got.size < 4096 else "",
            "datagrams": max(self.sizes),
        }

    async def move(self) -> None:
        """To another port, as behind a NAT that has forgotten the flow."""
        before = self._transport
        loop = asyncio.get_running_loop()
        there = self._quic._network_paths[0].addr
        local = (before.get_extra_info("sockname")[0], 0)
        await loop.create_datagram_endpoint(lambda: self, local_addr=local)
        assert self._transport is not before
        before.abort()
        self._quic._network_paths[0].addr = there


async def serving(chain: str, key: str, port: int) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    configuration.load_cert_chain(chain, key)
    # Of both families: asyncio leaves IPV6_V6ONLY as the system has it.
    await serve("::", port, configuration=configuration, create_protocol=Server)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def fetching(ca: str, host: str, port: int, path: str, size: int, moves: bool) -> None:
    configuration = QuicConfiguration(alpn_protocols=["h3"], server_name=NAME)
    configuration.load_verify_locations(ca)
    async with connect(
        host, port, configuration=configuration, create_protocol=Client, local_port=0
    ) as client:
        assert isinstance(client, Client)
        fetched = [client.fetch(path, bytes(size)) for _ in range(4)]
        found = list(await asyncio.gather(*fetched))
        if moves:
            await client.move()
            found.append(await client.fetch(path, b""))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "serve":
        asyncio.run(serving(words[0], words[1], int(words[2])))
    else:
        ca, host, port, path, size, *moves = words
        asyncio.run(fetching(ca, host, int(port), path, int(size), bool(moves)))
