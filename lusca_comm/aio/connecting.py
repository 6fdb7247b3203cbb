"""Connecting out: at once by ``await``, or together with relaying, in the data plane."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from .. import intercept, spoof
from .._shim import ffi, lib
from ..address import Address, from_shim, shim_of, spell
from ..connect import outcome
from ..constants import COMM_REUSEADDR, COMM_TPROXY_REM, COMM_TRANSPARENT_PORT
from ..errors import CommError
from ..handover import connect_request, milliseconds
from ..reactor.timers import seconds_of
from ..sockets import stream_of
from ..spoof import Spoof
from .endpoint import Endpoint
from .planes import LoopPlane
from .waiting import writable

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Connecting", "Upstream", "connect"]


Answer = tuple["Connection", int, Any, int]
"""Whose question, an action, ``struct lc_addr`` or None, and milliseconds."""


class Upstream(Endpoint):
    """A connection that was made."""

    _spoof: Spoof | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        made: Connecting,
        request: Any,
        reason: str,
        trail: int,
    ) -> None:
        """:param request: what `sock` was opened by; None: as `made` has it.
        :param reason: why its source is not all that was asked for."""
        self._loop = loop
        self._sock = sock
        self._made = made
        self._request = request
        self._reason = reason
        self._trail = trail

    @property
    def peer(self) -> Address:
        """Where it goes."""
        return self._made.to

    def _answer(self, client: Any) -> Answer | None:
        """As that of :class:`Connecting`, where nobody has touched either end."""
        if self._gone or self._streams is not None or self._unread:
            return None
        if getattr(client, "_asked", None) is None or client._gone:
            return None
        return client, lib.LC_JOIN, None, -1

    def _hand(self) -> tuple[int, int]:
        """The descriptor, and what the loop guard has of it; both the caller's from now on."""
        return self._give(), self._give_trail()

    def _given_back(self, _loop: asyncio.AbstractEventLoop, sock: socket.socket) -> object:
        return self._take_back(sock, b"")

    def _take_back(self, sock: socket.socket, unread: bytes) -> object:
        super()._take_back(sock, unread)
        conn = self._made._conn
        if conn is not None and conn._over:
            self.reset()
        return self

    @property
    def spoof(self) -> Spoof:
        """What it really got as its source.

        :raises CommError: EBADF where it is asked for the first time after the connection's end.
        """
        if self._spoof is None:
            self._spoof = self._seen()
        return self._spoof

    def _seen(self) -> Spoof:
        if self._gone:
            raise CommError(errno.EBADF, f"no connection: {self._gone}")
        local, request = ffi.new("struct lc_addr *"), self._request or self._made._request()[0]
        lib.lc_seen(self.fileno(), request, local)
        if not request.flags & COMM_TPROXY_REM:
            return Spoof(from_shim(local), False, "not asked for")
        kept = request.flags & COMM_TRANSPARENT_PORT and request.address.port == local.port != 0
        return Spoof(from_shim(local), bool(kept), self._reason)


class Connecting:
    """A connection that has not been made. ``await`` makes it; :meth:`Connection.relay` and
    :func:`lusca_comm.aio.relay` hand it to the data plane, where it is made and relayed in one
    step."""

    __slots__ = ("_begun", "_conn", "_flags", "_mark", "_source", "_timeout", "_to")

    def __init__(
        self,
        to: Address | None,
        source: Address | None,
        spoof: bool,
        keep_port: bool,
        mark: int | None,
        timeout: float | None,
        conn: Connection | None = None,
    ) -> None:
        """:param conn: has what is None here."""
        flags = COMM_REUSEADDR
        if spoof:
            flags |= COMM_TPROXY_REM | (COMM_TRANSPARENT_PORT if keep_port else 0)
            if source is None and conn is None:
                raise CommError(errno.EINVAL, "spoof=True needs the source to go by")
        elif keep_port:
            raise CommError(errno.EINVAL, "keep_port goes with spoof=True")
        if timeout is not None and seconds_of(timeout, "timeout") < 0:
            raise CommError(errno.EINVAL, "times are not negative")
        self._to = to
        self._source = source
        self._flags = flags
        self._mark = mark
        self._timeout = timeout
        self._conn = conn
        self._begun = False

    def __await__(self) -> Generator[Any, None, Upstream]:
        return self._connect().__await__()

    def _begin(self) -> None:
        if self._begun:
            raise RuntimeError("this connection was made already")
        self._begun = True

    def _answer(self, client: object) -> Answer | None:
        """Where the answer to the question that `client` still is can say all there is to say."""
        conn = self._conn
        if (
            conn is None
            or conn is not client
            or conn._asked is None
            or conn._gone
            or self._source is not None
            or self._mark is not None
            or self._flags & COMM_TRANSPARENT_PORT
        ):
            return None
        self._begin()
        action = lib.LC_SPOOF if self._flags & COMM_TPROXY_REM else lib.LC_RELAY
        to = None if self._to is None else shim_of(self._to)
        return conn, action, to, milliseconds(self._timeout)

    def request(self) -> tuple[Any, Any, int]:
        """``struct lc_open``, ``struct lc_addr`` and milliseconds, once.

        Raises CommError; RuntimeError at the second time."""
        self._begin()
        return *self._request(), milliseconds(self._timeout)

    def _request(self) -> tuple[Any, Any]:
        mark, conn = self._mark, self._conn
        if conn is None:
            return connect_request(self._source, self.to, self._flags, mark)
        if self._source is not None or self._to is not None or mark is not None:
            mark = conn._server._mark if mark is None else mark
            return connect_request(self.source, self.to, self._flags, mark)
        # What the plane told goes back as it is.
        ends = conn._question.ends
        request = ffi.new("struct lc_open *", conn._server._request(self._flags))
        request.family = ends[1].family
        if self._flags & COMM_TPROXY_REM:
            request.address = ends[0]
        return request, ends + 1

    @property
    def to(self) -> Address:
        if self._to is None:
            assert self._conn is not None
            return self._conn.original
        return self._to

    @property
    def source(self) -> Address | None:
        if self._source is None and self._conn is not None and self._flags & COMM_TPROXY_REM:
            return self._conn.peer
        return self._source

    def failure(self, code: int) -> CommError:
        """What the plane, which tells an errno, could have said."""
        text = f"connecting to {spell(self.to)}"
        if self._flags & COMM_TPROXY_REM and self.source is not None:
            text += f" as {self.source[0]}"
        if code in (errno.EPERM, errno.EACCES) and self._flags & COMM_TPROXY_REM:
            return CommError(code, f"{text} needs {spoof.CAPABILITY}")
        return CommError(code, f"{text}: {os.strerror(code)}")

    def _hand(self) -> tuple[int, int]:
        """As that of :class:`Upstream`: there is nothing yet."""
        return -1, 0

    def _given_back(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> Upstream:
        """What the plane made."""
        return self._made(Upstream(loop, sock, self, None, "", 0))

    def _made(self, upstream: Upstream) -> Upstream:
        """It is closed where the handler whose it would be has ended."""
        if self._conn is not None:
            self._conn._keep(upstream)
        return upstream

    async def _connect(self) -> Upstream:
        upstream = self._made(await self._connected())
        if upstream._gone:
            raise CommError(errno.EBADF, "the handler of its connection has ended")
        return upstream

    async def _connected(self) -> Upstream:
        loop = asyncio.get_running_loop()
        request, to, timeout = self.request()
        family = socket.AF_INET6 if request.family == 6 else socket.AF_INET
        if self._conn is None or self._flags & COMM_TRANSPARENT_PORT:
            return await self._connect_here(loop, request, to, family)
        plane = LoopPlane.of(loop)
        plane.use()
        made = await plane.connect(request, to, timeout, family)
        if made.end != "connected":
            raise self.failure(made.errno or errno.ECANCELED)
        return Upstream(loop, made.upstream, self, None, "", made.data)

    async def _connect_here(
        self, loop: asyncio.AbstractEventLoop, request: Any, to: Any, family: int
    ) -> Upstream:
        """Without a data plane; and where a port could not be kept, the reason is known."""
        fd, reason = spoof.open_socket(request, False)
        sock = stream_of(fd, family)
        trail = 0
        try:
            if not self._flags & COMM_TPROXY_REM:
                code, trail = intercept.connect_noted(fd, request, to)
            else:
                code = -lib.lc_connect_as(fd, request, to)
            if code == errno.EADDRNOTAVAIL and request.flags & COMM_TRANSPARENT_PORT:
                reason = spoof.port_reopened(fd, request)
                code = -lib.lc_connect_as(fd, request, to)
            if code == errno.EINPROGRESS:
                code = await self._outcome(loop, fd, to)
            if code:
                raise self.failure(code)
            return Upstream(loop, sock, self, request, reason, trail)
        except BaseException:
            sock.close()
            if trail:
                intercept.forget_outgoing(trail)
            raise

    async def _outcome(self, loop: asyncio.AbstractEventLoop, fd: int, to: Any) -> int:
        due = None if self._timeout is None else loop.time() + self._timeout
        while True:
            if not await writable(loop, fd, due):
                return errno.ETIMEDOUT
            code = outcome(fd, to)
            if code != errno.EINPROGRESS:
                return code


def connect(
    to: Address,
    *,
    source: Address | None = None,
    spoof: bool = False,
    keep_port: bool = False,
    mark: int | None = None,
    timeout: float | None = 30,
) -> Connecting:
    """A connection to `to`, from whatever address: ``upstream = await connect(...)``.

    For programs that have a server of their own. The upstream is the caller's to close: ``async
    with``, or :meth:`~lusca_comm.aio.Endpoint.close`.

    :param to: ``(host, port)``, the host numeric.
    :param source: the address to connect from, ``(host, port)``; None: the machine's. Port 0: the
        kernel's choice.
    :param spoof: `source` is not the machine's own, but the client's: its host counts, and its
        port with `keep_port`, where it can be had (``upstream.spoof`` tells).
    :param mark: SO_MARK of the socket.
    :param timeout: seconds to connect in (ETIMEDOUT); None: the kernel's.
    :raises CommError: when awaited, with the errno of what failed: ECONNREFUSED, ETIMEDOUT, EPERM
        the missing capability, ...
    """
    return Connecting(to, source, spoof, keep_port, mark, timeout)
