"""Connecting out, from whatever address the socket was opened with."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from . import intercept, spoof
from ._shim import ffi, lib
from .address import Address, descriptor, shim_of
from .constants import (
    COMM_ERR_CLOSING,
    COMM_ERR_CONNECT,
    COMM_OK,
    COMM_SELECT_WRITE,
    COMM_TIMEOUT,
)
from .errors import CommError
from .fdtable import Entry
from .reactor.timers import Timer, seconds_of
from .sockets import Sockets

__all__ = ["Connects"]

ConnectCallback = Callable[[Any, int, Any], object]
"""``callback(sock, status, data)``."""


class _Connect:
    """A connect under way. It ends once: by success, failure, time or closing."""

    __slots__ = ("callback", "data", "ended", "entry", "loop", "timer", "to")

    def __init__(
        self, loop: Connects, entry: Entry, to: Any, callback: ConnectCallback, data: Any
    ) -> None:
        self.loop = loop
        self.entry = entry
        self.to = to
        self.callback = callback
        self.data = data
        self.timer: Timer | None = None
        self.ended = False

    def on_writable(self, _sock: Any, _data: Any) -> None:
        code = outcome(self.entry.fd, self.to)
        if code == errno.EINPROGRESS:
            self.loop._arm(self.entry, COMM_SELECT_WRITE, self.on_writable)
        else:
            self.failed(code) if code else self.end(COMM_OK)

    def over(self) -> None:
        """connect(2) succeeded at once. The peer may have reset it since, and whoever is told
        COMM_OK and asks comm_error then would take that away from a relay."""
        if not self.ended:
            self.on_writable(None, None)

    def failed(self, code: int, status: int = COMM_ERR_CONNECT) -> None:
        if not self.ended:
            self.entry.error = code
            self.end(status)

    def timed_out(self) -> None:
        self.failed(errno.ETIMEDOUT, COMM_TIMEOUT)

    def end(self, status: int) -> None:
        if self.ended:
            return
        self.ended = True
        if self.timer is not None:
            self.loop.timers.cancel(self.timer)
        if status != COMM_ERR_CLOSING:
            del self.entry.pending["connect"]
            if self.entry.write_handler is not None:
                self.loop._arm(self.entry, COMM_SELECT_WRITE, None)
        self.callback(self.entry.sock, status, self.data)


class Connects(Sockets):
    """A loop that connects."""

    def comm_connect(
        self,
        sock: Any,
        address: Address,
        callback: ConnectCallback,
        data: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Connects `sock` to `address` and calls ``callback(sock, status, data)``, never before
        this call has returned. It takes the write slot of :meth:`comm_set_select`.

        status: COMM_OK; COMM_ERR_CONNECT, and :meth:`comm_error` has the errno; COMM_TIMEOUT after
        `timeout` seconds; COMM_ERR_CLOSING where the socket was closed meanwhile. The socket stays
        open in every case but the last.

        A socket opened with COMM_TRANSPARENT_PORT whose very connection (the same 4-tuple) exists
        already gets another port; :meth:`comm_spoof` tells.

        :raises CommError: EINVAL for an address that is none, EALREADY while a connect is under
            way, EBUSY in the middle of a relay, EBADF; never for what the network does.
        """
        if not callable(callback):
            raise TypeError(f"callback {callback!r} is not callable")
        if timeout is not None:
            seconds_of(timeout, "timeout")
        to = shim_of(address)
        entry = self._entry(sock)
        self._refuse_while(entry, "connect", "write", "relay", "lingering close")
        self._unblock(entry)
        connect = _Connect(self, entry, to, callback, data)
        entry.error = 0
        code = self._begin_connect(entry, to)
        entry.pending["connect"] = connect.end
        if code == errno.EINPROGRESS:
            self._arm(entry, COMM_SELECT_WRITE, connect.on_writable)
            if timeout is not None:
                connect.timer = self.timers.schedule(time.monotonic() + timeout, connect.timed_out)
        elif code in (0, errno.EISCONN):
            self._ready.append((connect.over, ()))
        else:
            self._ready.append((connect.failed, (code,)))

    def _begin_connect(self, entry: Entry, to: Any) -> int:
        """0, or the errno of connect(2)."""
        self.system_calls["connect"] += 1
        request = entry.request
        if entry.outgoing is not None:
            intercept.forget_outgoing(entry.outgoing)
            entry.outgoing = None
        code = _connect(entry, to)
        if code == errno.EADDRNOTAVAIL and request is not None and request.address.port:
            if not request.flags & lib.LC_TRANSPARENT_PORT:
                return code
            try:
                # The number gets another open file: the poller must not know the old one.
                self._set_interest(entry, 0)
                entry.spoof_reason = spoof.port_reopened(entry.fd, request)
            except OSError as why:
                return why.errno or errno.EADDRNOTAVAIL
            self._touch(entry)
            code = _connect(entry, to)
        return code

    def comm_error(self, sock: Any) -> int:
        """The errno of the last failure on `sock`, 0 where there was none."""
        fd, entry = descriptor(sock), self.table.find(sock)
        if entry is not None and (entry.error or "connect" in entry.pending):
            return entry.error  # reading SO_ERROR would take the outcome away from the connect
        err = int(lib.lc_error(fd))
        if err < 0:
            raise CommError(-err)
        if entry is not None:
            entry.error = err
        return err


def _connect(entry: Entry, to: Any) -> int:
    if entry.flags & lib.LC_TPROXY_REM:
        if entry.request is None:
            return -int(lib.lc_connect(entry.fd, to))
        return -int(lib.lc_connect_as(entry.fd, entry.request, to))
    code, trail = intercept.connect_noted(entry.fd, entry.request, to)
    entry.outgoing = trail or None
    return code


def outcome(fd: int, to: Any) -> int:
    """How the connect on `fd` ended: an errno, 0, or EINPROGRESS where it has not.

    A peer is there once it has succeeded. Else SO_ERROR tells, but it is 0 before the end too, and
    an event can be spurious; then connect(2) is asked again: EISCONN, EALREADY, or what went wrong.
    """
    if lib.lc_peer(fd, _scratch) == 0:
        return 0
    err = -int(lib.lc_error(fd)) or int(lib.lc_connect(fd, to))
    if -err in (errno.EALREADY, errno.EINPROGRESS):
        return errno.EINPROGRESS
    return 0 if -err == errno.EISCONN else abs(err)


_scratch = ffi.new("struct lc_addr *")
