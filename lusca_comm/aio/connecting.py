"""Connecting out: at once by ``await``, or together with relaying, in the data plane."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Generator
from typing import Any

from .. import intercept, spoof
from .._shim import ffi, lib
from ..address import Address, from_shim, spell
from ..connect import outcome
from ..constants import COMM_REUSEADDR, COMM_TPROXY_REM, COMM_TRANSPARENT_PORT
from ..errors import CommError
from ..plane import connect_request, milliseconds
from ..reactor.timers import seconds_of
from ..sockets import socket_of
from .endpoint import Endpoint
from .waiting import writable

__all__ = ["Connecting", "Upstream", "connect"]


class Upstream(Endpoint):
    """A connection that was made."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        to: Address,
        spoofed: spoof.Spoof,
        trail: int,
    ) -> None:
        super().__init__(loop)
        self._sock = sock
        self._trail = trail
        self._peer = to
        self._spoof = spoofed

    @property
    def peer(self) -> Address:
        """Where it goes."""
        return self._peer

    @property
    def spoof(self) -> spoof.Spoof:
        """What it really got as its source."""
        return self._spoof


class Connecting(Awaitable[Upstream]):
    """A connection that has not been made. ``await`` makes it; :meth:`Connection.relay` and
    :func:`lusca_comm.aio.relay` hand it to the data plane, where it is made and relayed in one
    step."""

    __slots__ = ("_begun", "_flags", "_mark", "_owner", "_source", "_timeout", "_to")

    def __init__(
        self,
        to: Address,
        source: Address | None,
        spoof: bool,
        keep_port: bool,
        mark: int | None,
        timeout: float | None,
        owner: list[Upstream] | None = None,
    ) -> None:
        flags = COMM_REUSEADDR
        if spoof:
            flags |= COMM_TPROXY_REM | (COMM_TRANSPARENT_PORT if keep_port else 0)
            if source is None:
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
        self._owner = owner
        self._begun = False

    def __await__(self) -> Generator[Any, None, Upstream]:
        return self._connect().__await__()

    def request(self) -> tuple[Any, Any, int]:
        """``struct lc_open``, ``struct lc_addr`` and milliseconds, once.

        Raises CommError; RuntimeError at the second time."""
        if self._begun:
            raise RuntimeError("this connection was made already")
        self._begun = True
        request, to = connect_request(self._source, self._to, self._flags, self._mark)
        return request, to, milliseconds(self._timeout)

    def failure(self, code: int) -> CommError:
        """What the plane, which tells an errno, could have said."""
        text = f"connecting to {spell(self._to)}"
        if self._flags & COMM_TPROXY_REM and self._source is not None:
            text += f" as {self._source[0]}"
        if code in (errno.EPERM, errno.EACCES) and self._flags & COMM_TPROXY_REM:
            return CommError(code, f"{text} needs {spoof.CAPABILITY}")
        return CommError(code, f"{text}: {os.strerror(code)}")

    def upstream(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> Upstream:
        """What the plane made, given back."""
        request, _ = connect_request(self._source, self._to, self._flags, self._mark)
        return Upstream(loop, sock, self._to, _got(sock, request, ""), 0)

    async def _connect(self) -> Upstream:
        loop = asyncio.get_running_loop()
        request, to, _ = self.request()
        fd, reason = spoof.open_socket(request, False)
        sock = socket_of(fd)
        trail = 0
        try:
            code = -lib.lc_connect_as(fd, request, to)
            if code == errno.EADDRNOTAVAIL and request.flags & COMM_TRANSPARENT_PORT:
                reason = spoof.port_reopened(fd, request)
                code = -lib.lc_connect_as(fd, request, to)
            if code in (0, errno.EINPROGRESS) and not self._flags & COMM_TPROXY_REM:
                trail = intercept.remember_outgoing(fd, to) or 0
            if code == errno.EINPROGRESS:
                code = await self._outcome(loop, fd, to)
            if code:
                raise self.failure(code)
            upstream = Upstream(loop, sock, self._to, _got(sock, request, reason), trail)
        except BaseException:
            sock.close()
            if trail:
                intercept.forget_outgoing(trail)
            raise
        if self._owner is not None:
            self._owner.append(upstream)
        return upstream

    async def _outcome(self, loop: asyncio.AbstractEventLoop, fd: int, to: Any) -> int:
        due = None if self._timeout is None else loop.time() + self._timeout
        while True:
            if not await writable(loop, fd, due):
                return errno.ETIMEDOUT
            code = outcome(fd, to)
            if code != errno.EINPROGRESS:
                return code


def _got(sock: socket.socket, request: Any, reason: str) -> spoof.Spoof:
    local = ffi.new("struct lc_addr *")
    lib.lc_seen(sock.fileno(), request, local)
    if not request.flags & COMM_TPROXY_REM:
        return spoof.Spoof(from_shim(local), False, "not asked for")
    kept = request.flags & COMM_TRANSPARENT_PORT and request.address.port == local.port != 0
    return spoof.Spoof(from_shim(local), bool(kept), reason)


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
