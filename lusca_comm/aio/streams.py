"""A StreamReader and a StreamWriter over a connected socket, there at once.

Loops make transports asynchronously. Until the transport is there, which takes a turn or two of the
loop, the writer has one that only collects.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Iterable
from typing import Any

from ..errors import CommError

__all__ = ["Collecting", "Streams", "abort"]

_READING = ("is_reading", "pause_reading", "resume_reading")
_CALLS = [name for name in dir(asyncio.Transport) if name[0] != "_" and name not in _READING]


class Collecting(asyncio.Transport):
    """What is asked of the transport before it is there; then, for those who kept it, the same as
    the transport."""

    def __init__(self, streams: Streams, sock: socket.socket) -> None:
        super().__init__()
        self.streams = streams
        self.sock = sock
        self.queue: list[bytes] = []
        self.limits: tuple[int | None, int | None] | None = None
        self.reading = True
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

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = high, low

    def get_protocol(self) -> Any:
        """None that hears of its end."""

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pass_on(self, transport: asyncio.Transport) -> None:
        if self.limits is not None:
            transport.set_write_buffer_limits(*self.limits)
        if self.queue and not self.aborted:
            transport.writelines(self.queue)
        self.queue.clear()
        if self.aborted:
            transport.abort()
        elif self.closed:
            transport.close()
        elif self.ended:
            with contextlib.suppress(OSError):  # ENOTCONN: the peer has reset it; the reader tells
                transport.write_eof()
        self._become(transport, _CALLS)
        # FACT: loops begin to read behind connection_made, whether or not it paused the transport.
        self.streams._loop.call_soon(self._read_on, transport)

    def _read_on(self, transport: asyncio.Transport) -> None:
        if not self.reading:
            transport.pause_reading()
        self._become(transport, _READING)

    def _become(self, transport: asyncio.Transport, calls: Iterable[str]) -> None:
        for name in calls:
            setattr(self, name, getattr(transport, name))


class _Writer(asyncio.StreamWriter):
    """Its transport changes once, as by start_tls, which drains first."""

    _transport: asyncio.Transport

    def __init__(self, streams: Streams, *args: Any) -> None:
        super().__init__(*args)
        self._streams = streams

    async def drain(self) -> None:
        await self._streams.made()
        await super().drain()

    async def start_tls(self, sslcontext: ssl.SSLContext, **options: Any) -> None:
        """As that of asyncio, which has it since 3.11; as the first use of the streams also
        before, and with the peer's first bytes not read yet."""
        if not self._streams.begin_tls({"ssl": sslcontext, **options}):
            plain = getattr(super(), "start_tls", None)
            if plain is None:
                raise CommError(
                    errno.ENOTSUP, "start_tls after the first use of the streams needs Python 3.11"
                )
            await plain(sslcontext, **options)
            return
        await self._streams.made()
        if self._streams.failure is not None:
            raise self._streams.failure


class _Protocol(asyncio.StreamReaderProtocol):
    streams: Streams
    _client_connected_cb: Any

    def connection_made(self, transport: Any) -> None:
        # FACT: with a callback it makes a StreamWriter of its own, which from 3.12 on closes the
        # transport when it is dropped.
        callback, self._client_connected_cb = self._client_connected_cb, None
        super().connection_made(transport)
        self._client_connected_cb = callback
        self.streams._begin(transport)

    def eof_received(self) -> bool | None:
        self.streams.ended = True
        return super().eof_received()


def _server_side(_reader: object, _writer: object) -> None:
    """A protocol that has this callback is a server's: StreamWriter.start_tls goes by it."""


def abort(transport: asyncio.BaseTransport) -> None:
    """FACT: a transport of asyncio 3.10 and 3.11 that had something to send when it was closed, and
    has sent it, raises this."""
    with contextlib.suppress(AttributeError):
        transport.abort()  # type: ignore[attr-defined]


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
        self._loop = loop
        self._sock = sock
        self._accepted = accepted
        self._made: asyncio.Future[None] = loop.create_future()
        self._began = False
        self.ended = False
        """The peer's end has come."""
        self._tls: dict[str, Any] = {}
        self.failure: BaseException | None = None
        """Why there is no transport."""
        self.reader = asyncio.StreamReader(limit=limit, loop=loop)
        if first:
            self.reader.feed_data(first)
        protocol = _Protocol(self.reader, _server_side if accepted else None, loop=loop)
        protocol.streams = self
        self._collecting = Collecting(self, sock)
        self.writer = _Writer(self, self._collecting, protocol, self.reader, loop)
        self._opening = loop.create_task(self._open(protocol))
        self._opening.add_done_callback(self._opened)

    async def _open(self, protocol: asyncio.StreamReaderProtocol) -> None:
        """The socket becomes the transport's."""
        self._began = True
        loop, tls = self._loop, self._tls
        if self._accepted or not tls:
            await loop.connect_accepted_socket(lambda: protocol, self._sock, **tls)
        else:
            tls["server_hostname"] = tls.get("server_hostname") or ""
            await loop.create_connection(lambda: protocol, sock=self._sock, **tls)

    def begin_tls(self, tls: dict[str, Any]) -> bool:
        """The transport will be one of TLS, if it is not under way yet."""
        if self._began or self._collecting.queue:
            return False
        self._tls = tls
        return True

    async def made(self) -> None:
        """Waits for the transport, or for its failure."""
        if not self._made.done():
            await asyncio.shield(self._made)

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
        self.failure = why
        if not self._made.done():
            code = getattr(why, "errno", None) or errno.ECONNABORTED
            self.reader.set_exception(ConnectionAbortedError(code, f"no transport: {why!r}"))
            self._made.set_result(None)

    async def transport(self) -> asyncio.Transport:
        """The transport, once it is there. It may be closed by then."""
        await self.made()
        return self.writer._transport

    @property
    def closed(self) -> bool:
        return self.writer.transport.is_closing()
