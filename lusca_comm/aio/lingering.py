"""The orderly end of a connection whose peer may still be sending.

Closing a socket with unread bytes, or with one that bytes still come to, resets the connection, and
what was sent and has not arrived is lost. So the end is sent, and what comes is read and dropped
until the peer's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from .._shim import lib
from .planes import reset
from .waiting import Readable

__all__ = ["LINGER", "Lingering", "dropped"]

LINGER = 10.0  # seconds, as comm_lingering_close
_CHUNK = 65536


class Lingering:
    """The end of a socket that has no transport."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._waiting: Readable | None = None

    async def over(self) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                waits = self._expects_more()  # after it, the end itself is unsent
                self._sock.shutdown(socket.SHUT_WR)  # ENOTCONN: the peer has just reset it
                if waits:
                    await asyncio.wait_for(self._drop(), LINGER)
        finally:
            self._sock.close()

    def reset(self) -> None:
        """Ends it now. Idempotent."""
        if self._waiting is not None:
            self._waiting.end()
        if self._sock.fileno() >= 0:
            reset(self._sock.detach())

    def _expects_more(self) -> bool:
        try:
            return self._sock.recv(_CHUNK) != b""
        except BlockingIOError:
            return bool(lib.lc_unsent(self._sock.fileno()))

    async def _drop(self) -> None:
        more = True
        while more:
            self._waiting = Readable(self._loop, self._sock, 1)
            more = await self._waiting.wait() and self._sock.recv(_CHUNK) != b""


class _Dropping(asyncio.Protocol):
    """In the place of a transport's protocol."""

    def __init__(self, transport: Any) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.before = transport.get_protocol()
        transport.set_protocol(self)

    def pause_writing(self) -> None:
        self.before.pause_writing()

    def resume_writing(self) -> None:
        self.before.resume_writing()

    def eof_received(self) -> bool:
        self._end()
        return True  # what is not sent yet goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self.before.connection_lost(exc)

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def dropped(transport: Any, reader: asyncio.StreamReader) -> None:
    """Waits for the peer's end. `reader`, which somebody may be reading, is at its own."""
    dropping = _Dropping(transport)
    reader.feed_eof()
    if not transport.is_reading():
        transport.resume_reading()
    await asyncio.wait_for(dropping.over, LINGER)
