"""A forward proxy on uvloop and httptools, as a reference: what an HTTP proxy costs in Python that
parses every head, in both directions, and does nothing else.

    python http_reference.py PORT

Absolute-form requests, one upstream for each client; bodies, ends and errors only as far as a
benchmark needs them.
"""

import asyncio
import sys
from typing import Any

import httptools
import uvloop


class Upstream(asyncio.Protocol):
    def __init__(self, client: "Client") -> None:
        self.client = client
        self.parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        self.client.transport.write(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        pass

    def connection_lost(self, _why: Exception | None) -> None:
        self.client.transport.close()


class Client(asyncio.Protocol):
    transport: Any = None
    upstream: Any = None

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.fields: list[bytes] = []
        self.url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in (b"connection", b"proxy-connection", b"keep-alive"):
            self.fields.append(b"%s: %s\r\n" % (name, value))

    def on_message_complete(self) -> None:
        parts = httptools.parse_url(self.url)
        line = b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), parts.path or b"/")
        head = line + b"".join(self.fields) + b"\r\n"
        self.fields.clear()
        if self.upstream is not None:
            self.upstream.write(head)
        else:
            self.upstream = _Waiting(head)
            task = asyncio.ensure_future(self.connect(parts.host.decode(), parts.port or 80))
            self.connecting = task

    async def connect(self, host: str, port: int) -> None:
        waiting = self.upstream
        loop = asyncio.get_running_loop()
        self.upstream, _ = await loop.create_connection(lambda: Upstream(self), host, port)
        self.upstream.write(b"".join(waiting.heads))

    def connection_lost(self, _why: Exception | None) -> None:
        if self.upstream is not None:
            self.upstream.close()


class _Waiting:
    """What is written to the upstream before there is one."""

    def __init__(self, head: bytes) -> None:
        self.heads = [head]

    def write(self, head: bytes) -> None:
        self.heads.append(head)

    def close(self) -> None:
        pass


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    async with await loop.create_server(Client, "0.0.0.0", port, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
