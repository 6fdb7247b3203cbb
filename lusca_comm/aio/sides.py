"""What a relay takes over: a socket, or a transport with what its reader and its buffer hold."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any, Protocol

from .._shim import lib
from ..address import descriptor
from ..errors import CommError
from ..handover import check_plain
from .planes import reset
from .streams import Collecting, abort

__all__ = ["Side", "SocketSide", "TransportSide", "check_transport", "side_of"]


class Side(Protocol):
    """One side of a relay that is about to begin."""

    _keeps: bool
    """It can be what it was, after a relay that gives it back."""

    def _relayable(self) -> bool:
        """Whether it may hold bytes, so that it has to settle. Raises TypeError, CommError where
        it can't be relayed: EBADF also where a transport is closing and has not told why, which it
        does in the loop's next turn."""

    async def _settle(self) -> bytes:
        """Waits until all that was written to it is in the kernel. From then on nothing reads it;
        what was read and not fetched is returned. Raises OSError where the connection is broken."""

    def _give(self) -> int:
        """The descriptor, which is the caller's from now on."""

    def _give_trail(self) -> int:
        """Of the loop guard, which is the caller's from now on; 0: none."""

    def _take_back(self, sock: socket.socket, unread: bytes) -> object:
        """A relay gives it back: what the user gets. `unread` stands before what `sock` has."""

    def reset(self) -> None: ...


class SocketSide:
    _keeps = True

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def _relayable(self) -> bool:
        check_plain(self._sock)
        if self._sock.fileno() < 0:
            raise CommError(errno.EBADF, f"{self._sock!r} is closed")
        return False

    async def _settle(self) -> bytes:
        return b""

    def _give(self) -> int:
        sock = self._sock
        sock.settimeout(0)
        self._kind = sock.family, sock.type, sock.proto
        return sock.detach()

    def _give_trail(self) -> int:
        return 0

    def _take_back(self, sock: socket.socket, unread: bytes) -> object:
        """The very object that was handed over."""
        assert not unread
        self._sock.__init__(*self._kind, sock.detach())  # type: ignore[misc]
        self._sock.settimeout(0)
        return self._sock

    def reset(self) -> None:
        if self._sock.fileno() >= 0:
            reset(self._sock.detach())


class _Emptied(asyncio.Protocol):
    """In the place of a transport's protocol: tells when its buffer is empty, or that it broke."""

    def __init__(self, transport: Any) -> None:
        self.waiting: asyncio.Future[None] | None = None
        self.lost: Exception | None = None
        self.before: asyncio.BaseProtocol | None = transport.get_protocol()
        self.transport = transport
        transport.set_protocol(self)

    def exception(self) -> Exception | None:
        """As that of a StreamReader."""
        return self.lost

    async def empty(self) -> None:
        """Raises OSError."""
        if self.transport.is_closing():
            await asyncio.sleep(0)  # the reason is told in this turn
        else:
            # Has resume_writing called at 0, and not before.
            self.transport.set_write_buffer_limits(0)
            if self.transport.get_write_buffer_size():
                self.waiting = asyncio.get_running_loop().create_future()
                await self.waiting
        if self.transport.is_closing():
            raise self.lost or ConnectionAbortedError(errno.ECONNABORTED, "closed meanwhile")

    def _wake(self) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)

    def resume_writing(self) -> None:
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self._wake()
        if self.before is not None:
            self.before.connection_lost(exc)


class TransportSide:
    """:param reader: where the transport belongs to a pair of streams."""

    _keeps = False

    def __init__(self, transport: Any, reader: asyncio.StreamReader | None = None) -> None:
        self._transport = transport
        self._reader = reader
        self._told: asyncio.StreamReader | _Emptied | None = reader
        """Hears what broke the transport."""

    def _relayable(self) -> bool:
        if self._told is None and self._transport.is_closing():
            self._told = _Emptied(self._transport)
        check_transport(self._transport, self._told)
        return True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing reads it, and after an exception it goes on. What a bare transport gave its
        protocol before it settles would not be relayed."""
        transport = self._transport
        if not transport.is_reading():
            yield
            return
        transport.pause_reading()
        try:
            yield
        except BaseException:
            transport.resume_reading()
            raise

    async def made(self) -> None:
        """Waits for the transport itself."""
        if isinstance(self._transport, Collecting):
            self._transport = await self._transport.streams.transport()

    def check_room(self, room: int | None) -> None:
        """Of what it holds, nothing can be given back. Raises CommError."""
        reader: Any = self._reader
        if room is not None and reader is not None and len(reader._buffer) > room:
            raise CommError(errno.EINVAL, "its reader holds more than the limit lets through")

    async def _settle(self) -> bytes:
        await self.made()
        transport, reader, told = self._transport, self._reader, self._told
        broken = told.exception() if told is not None else None
        if broken is not None:
            raise broken
        transport.pause_reading()
        await _Emptied(transport).empty()
        if reader is None:
            return b""
        reader.feed_eof()
        held = await reader.read()
        transport.pause_reading()  # a reader that becomes empty has it go on
        return held

    def _give(self) -> int:
        # The connection lives on in another descriptor; closing one of two says nothing to a peer.
        fd = os.dup(descriptor(self._transport))
        os.set_blocking(fd, False)
        abort(self._transport)
        return fd

    def _give_trail(self) -> int:
        return 0

    def _take_back(self, sock: socket.socket, unread: bytes) -> object:
        assert not unread
        return sock

    def reset(self) -> None:
        with contextlib.suppress(CommError):
            lib.lc_abort(descriptor(self._transport))
        abort(self._transport)


def check_transport(transport: Any, told: asyncio.StreamReader | _Emptied | None) -> None:
    """:param told: knows what broke the transport: one that was broken ends a relay, one that was
    closed can't begin it. Raises TypeError, CommError."""
    if transport.get_extra_info("sslcontext") is not None:
        raise TypeError(f"{transport!r} is TLS: a relay moves bytes as they are")
    if transport.is_closing() and (told is None or told.exception() is None):
        raise CommError(errno.EBADF, f"{transport!r} is closed")


def side_of(thing: Any) -> Side:
    """Of a connection, a socket, a transport, or ``(reader, writer)``. Raises TypeError,
    CommError."""
    if hasattr(thing, "_give_trail"):
        side: Side = thing
        return side
    if isinstance(thing, tuple) and len(thing) == 2:
        reader, writer = thing
        if isinstance(reader, asyncio.StreamReader) and isinstance(writer, asyncio.StreamWriter):
            return TransportSide(writer.transport, reader)
    if isinstance(thing, asyncio.StreamReader | asyncio.StreamWriter):
        raise TypeError("streams come as (reader, writer): the reader may hold bytes already")
    if isinstance(thing, Collecting):
        return TransportSide(thing, thing.streams.reader)
    if hasattr(thing, "get_protocol"):  # uvloop's transports are none of asyncio's classes
        return TransportSide(thing)
    return SocketSide(thing)
