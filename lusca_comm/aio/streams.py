"""A StreamReader and a StreamWriter over a connected socket, there at once.

Loops make transports asynchronously. Until the transport is there, which takes a turn or two of the
loop, the writer has one that only collects.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterable
from typing import Any

__all__ = ["Streams"]


class _Collecting(asyncio.Transport):
    """What is written before the transport is there."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.queue: list[bytes] = []
        self.ended = self.closed = self.aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        with contextlib.suppress(OSError):
            if name == "peername":
                return self.sock.getpeername()
            if name == "sockname":
                return self.sock.getsockname()
        return self.sock if name == "socket" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.queue.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.queue += map(bytes, list_of_data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.queue))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pass_on(self, transport: asyncio.Transport) -> None:
        if self.queue and not self.aborted:
            transport.writelines(self.queue)
        self.queue.clear()
        if self.aborted:
            transport.abort()
        elif self.closed:
            transport.close()
        elif self.ended:
            transport.write_eof()


class _Writer(asyncio.StreamWriter):
    """Its transport changes once, as by start_tls, which drains first."""

    _transport: asyncio.Transport

    def __init__(self, made: asyncio.Future[None], *args: Any) -> None:
        super().__init__(*args)
        self._made = made

    async def drain(self) -> None:
        if not self._made.done():
            await asyncio.shield(self._made)
        await super().drain()


class _Protocol(asyncio.StreamReaderProtocol):
    streams: Streams

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.streams._begin(transport)


def _server_side(_reader: object, _writer: object) -> None:
    """A protocol that has this callback is a server's: StreamWriter.start_tls goes by it."""


class Streams:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        first: bytes,
        limit: int,
        accepted: bool,
    ) -> None:
        """:param first: bytes that the reader has before those of the socket."""
        self._sock = sock
        self._made: asyncio.Future[None] = loop.create_future()
        self.reader = asyncio.StreamReader(limit=limit, loop=loop)
        if first:
            self.reader.feed_data(first)
        protocol = _Protocol(self.reader, _server_side if accepted else None, loop=loop)
        protocol.streams = self
        self._collecting = _Collecting(sock)
        self.writer = _Writer(self._made, self._collecting, protocol, self.reader, loop)
        self._opening = loop.create_task(
            loop.connect_accepted_socket(lambda: protocol, sock)  # the socket is the transport's
        )
        self._opening.add_done_callback(self._opened)

    def _begin(self, transport: asyncio.Transport) -> None:
        self.writer._transport = transport
        self._collecting.pass_on(transport)
        if not self._made.done():
            self._made.set_result(None)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        """Where the loop could make no transport, or was stopped before it did."""
        why = None if task.cancelled() else task.exception()
        if why is None and not task.cancelled():
            return
        self._collecting.abort()
        self._sock.close()
        if not self._made.done():
            code = getattr(why, "errno", None) or errno.ECONNABORTED
            self.reader.set_exception(ConnectionAbortedError(code, f"no transport: {why!r}"))
            self._made.set_result(None)

    async def transport(self) -> asyncio.Transport:
        """The transport, once it is there. It may be closed by then."""
        if not self._made.done():
            await asyncio.shield(self._made)
        return self.writer._transport

    @property
    def closed(self) -> bool:
        return self.writer.transport.is_closing()
