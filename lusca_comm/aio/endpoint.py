"""One connection, as it is used: streams, a look ahead, an orderly end, or the way into a relay."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from types import TracebackType
from typing import TypeVar

from .. import intercept
from .._shim import lib
from ..address import Address, descriptor, spell
from ..errors import CommError
from .lingering import Lingering, dropped
from .planes import reset
from .sides import TransportSide, check_transport
from .streams import Streams, abort
from .waiting import Readable

__all__ = ["Endpoint"]

_CLOSED = "it was closed"
RELAYED = "it was relayed"
_Self = TypeVar("_Self", bound="Endpoint")


class Endpoint:
    """A connected socket. It is closed once: by :meth:`close`, :meth:`reset`, the end of a relay,
    or the end of ``async with``."""

    _accepted = False
    _limit = 65536  # of the StreamReader

    _loop: asyncio.AbstractEventLoop
    # Most connections never get others than these.
    _sock: socket.socket | None = None
    _streams: Streams | None = None
    _side: TransportSide
    _unread = b""  # read, and given back by a relay
    _peeking: Readable | None = None
    _lingering: Lingering | None = None
    _trail = 0
    _gone = ""  # why there is no socket any more

    @property
    def peer(self) -> Address:
        """The other end: ``(host, port)``; for a link-local IPv6 address the 4-tuple."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """It is closed, detached, or in a relay."""
        if self._gone:
            return True
        return self._streams is not None and self._streams.closed

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {spell(self.peer)}{' closed' if self.closed else ''}>"

    def fileno(self) -> int:
        """The descriptor, for the ``comm_set_`` calls and their like; -1: it is closed."""
        if self._gone:
            return -1
        if self._streams is not None:
            sock = self._streams.writer.get_extra_info("socket")
            return -1 if sock is None else int(sock.fileno())
        return self._descriptor()

    @property
    def reader(self) -> asyncio.StreamReader:
        """Made at first use, together with :attr:`writer`."""
        return self._opened().reader

    @property
    def writer(self) -> asyncio.StreamWriter:
        """Made at first use, together with :attr:`reader`."""
        return self._opened().writer

    async def peek(self, n: int, *, least: int = 1) -> bytes:
        """The first `n` bytes at most, which stay to be read: as soon as `least` are there.

        Fewer than `least` mean that the stream has ended behind them, or that no more fit into the
        kernel's buffer; b"" is the end. A time limit: ``asyncio.wait_for(conn.peek(5), 0.3)``;
        nothing is lost by it.

        :raises CommError: EBUSY once the reader or the writer is used, and while another peek
            waits; EBADF it is closed, also while this waits; what broke the connection.
        """
        if n < 1:
            raise CommError(errno.EINVAL, f"peek at {n} bytes")
        if self._peeking is not None:
            raise CommError(errno.EBUSY, "another peek is waiting")
        least, enough = max(1, min(least, n)), False
        while True:
            if self._streams is not None:
                raise CommError(errno.EBUSY, "peek comes before the reader and the writer are used")
            sock, before = self._socket(), self._unread
            got = _look(sock, before, n)
            if got is None and len(before) >= least:
                return before
            if got is not None and (enough or len(got) >= least):
                return got
            # The kernel counts: it is readable once so many are there, or no more will come.
            self._peeking = Readable(self._loop, sock, least - len(before))
            try:
                enough = await self._peeking.wait()
            finally:
                self._peeking = None

    async def close(self) -> None:
        """The orderly end: what was written is sent, then the end of the stream. Where the peer
        still sends, that is read and dropped until its end, for 10 seconds at most: closing at once
        would reset the connection, and the peer could lose what it has not read yet. Idempotent.
        """
        if self._gone:
            return
        streams = self._streams
        if streams is None:
            self._lingering = Lingering(self._loop, self._given_up())
            ending = self._lingering.over()
        else:
            ending = self._close(streams)
        self._gone = _CLOSED
        self._forget_trail()
        await ending

    @staticmethod
    async def _close(streams: Streams) -> None:
        try:
            transport = await streams.transport()
            if not transport.is_closing() and transport.can_write_eof():
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    transport.write_eof()  # ENOTCONN: the peer has just reset it
                    if not streams.ended:
                        await dropped(transport, streams.reader)
            streams.writer.close()
            with contextlib.suppress(OSError):
                await streams.writer.wait_closed()
        finally:
            abort(streams.writer.transport)

    def reset(self) -> None:
        """Closes the connection by a reset, now. Idempotent."""
        streams = self._streams
        if streams is not None:
            if not self._gone:
                with contextlib.suppress(CommError):
                    lib.lc_abort(descriptor(streams.writer))
            abort(streams.writer.transport)
        elif self._lingering is not None:
            self._lingering.reset()
        elif not self._gone:
            self._abort()
        self._gone = self._gone or _CLOSED
        self._forget_trail()

    def detach(self) -> socket.socket:
        """The socket, which is the caller's from now on, non-blocking.

        :raises CommError: EBUSY after the reader or the writer was used.
        """
        if self._streams is not None:
            raise CommError(errno.EBUSY, "its reader and writer are in use")
        if self._unread:
            raise CommError(errno.EBUSY, "bytes of it were read already: use its reader")
        sock = self._given_up()
        self._gone = "it was detached"
        self._forget_trail()
        return sock

    async def __aenter__(self: _Self) -> _Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        _why: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        """:meth:`close`; after an exception :meth:`reset`."""
        if kind is not None:
            self.reset()
        await self.close()

    # -- the socket ----------------------------------------------------------------------------

    def _socket(self) -> socket.socket:
        if self._gone or self._sock is None:
            raise CommError(errno.EBADF, f"no connection: {self._gone}")
        return self._sock

    def _descriptor(self) -> int:
        return self._socket().fileno()

    def _given_up(self) -> socket.socket:
        """The socket, for somebody else or its end: nobody waits for it any more."""
        sock, self._sock = self._socket(), None
        if self._peeking is not None:
            self._peeking.end()
        return sock

    def _opened(self) -> Streams:
        if self._streams is None:
            sock, first = self._given_up(), self._unread
            self._unread = b""
            self._streams = Streams(self._loop, sock, first, self._limit, self._accepted)
        return self._streams

    def _abort(self) -> None:
        reset(self._given_up().detach())

    def _forget_trail(self) -> None:
        if self._trail:
            intercept.forget_outgoing(self._trail)
            self._trail = 0

    # -- as a side of a relay: sides.Side ------------------------------------------------------

    _keeps = True

    def _relayable(self) -> bool:
        if self._gone:
            raise CommError(errno.EBADF, f"no connection: {self._gone}")
        if self._streams is None:
            return self._unread != b""
        check_transport(self._streams.writer.transport, self._streams.reader)
        return True

    async def _settle(self) -> bytes:
        if self._streams is None:
            return self._unread
        self._side = TransportSide(self._streams.writer.transport, self._streams.reader)
        return await self._side._settle()

    def _give(self) -> int:
        if self._streams is not None:
            given = self._side._give()
            self._streams = None
            del self._side
        else:
            given = self._given_up().detach()
        self._gone, self._unread = RELAYED, b""
        return given

    def _give_trail(self) -> int:
        trail, self._trail = self._trail, 0
        return trail

    def _take_back(self, sock: socket.socket, unread: bytes) -> object:
        self._sock, self._unread, self._gone = sock, unread, ""
        return self


def _look(sock: socket.socket, before: bytes, n: int) -> bytes | None:
    """The first `n` bytes at most, of which `before` were read already; None: there are none yet.

    Raises CommError."""
    if len(before) >= n:
        return before[:n]
    try:
        return before + sock.recv(n - len(before), socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError as why:
        raise CommError(why.errno or errno.EIO, f"peek: {why.strerror}") from why
