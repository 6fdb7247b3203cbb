"""Connecting out, from whatever address the socket was opened with."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from . import intercept, spoof
from ._shim import ffi, lib
from .address import Address, descriptor, to_shim
from .constants import COMM_ERR_CONNECT, COMM_OK, COMM_SELECT_WRITE, COMM_TIMEOUT
from .errors import CommError
from .fdtable import Entry
from .reactor.timers import Timer
from .sockets import Sockets

__all__ = ["Connects"]

ConnectCallback = Callable[[Any, int, Any], object]
"""``callback(sock, status, data)``."""


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
        this call has returned.

        status: COMM_OK; COMM_ERR_CONNECT, and :meth:`comm_error` has the errno; COMM_TIMEOUT after
        `timeout` seconds; COMM_ERR_CLOSING where the socket was closed meanwhile. The socket stays
        open in every case but the last.

        A socket opened with COMM_TRANSPARENT_PORT whose very connection (the same 4-tuple) exists
        already gets another port; :meth:`comm_spoof` tells.

        :raises CommError: EINVAL for an address that is none, EALREADY while a connect is under
            way, EBADF; never for what the network does.
        """
        if not callable(callback):
            raise TypeError(f"callback {callback!r} is not callable")
        to = to_shim(address)
        entry = self._entry(sock)
        if "connect" in entry.pending:
            raise CommError(errno.EALREADY, f"descriptor {entry.fd} is connecting already")
        timer: Timer | None = None

        def finish(status: int) -> None:
            entry.pending.pop("connect", None)
            if timer is not None:
                self.timers.cancel(timer)
            callback(entry.sock, status, data)

        def fail(code: int, status: int = COMM_ERR_CONNECT) -> None:
            entry.error = code
            if not entry.closing:
                self.comm_set_select(entry.sock, COMM_SELECT_WRITE, None)
            if "connect" in entry.pending:
                finish(status)

        def timed_out() -> None:
            fail(errno.ETIMEDOUT, COMM_TIMEOUT)

        def begun() -> None:
            if "connect" in entry.pending:
                finish(COMM_OK)

        def on_writable(_sock: Any, _data: Any) -> None:
            code = _outcome(entry.fd, to)
            if code == errno.EINPROGRESS:
                self.comm_set_select(entry.sock, COMM_SELECT_WRITE, on_writable)
            elif code:
                fail(code)
            else:
                finish(COMM_OK)

        entry.error = 0
        entry.pending["connect"] = finish
        code = self._begin_connect(entry, to)
        if code == errno.EINPROGRESS:
            self.comm_set_select(entry.sock, COMM_SELECT_WRITE, on_writable)
            if timeout is not None:
                timer = self.timers.schedule(time.monotonic() + timeout, timed_out)
        elif code in (0, errno.EISCONN):
            self._ready.append((begun, ()))
        else:
            self._ready.append((fail, (code,)))

    def _begin_connect(self, entry: Entry, to: Any) -> int:
        """0, or the errno of connect(2)."""
        self.system_calls["connect"] += 1
        request = entry.request
        code = _connect(entry, to)
        if code == errno.EADDRNOTAVAIL and request is not None and request.address.port:
            if not request.flags & lib.LC_TRANSPARENT_PORT:
                return code
            try:
                # The number gets another open file: the poller must not know the old one.
                self._set_interest(entry, 0)
                entry.spoof_reason = spoof.port_reopened(entry.fd, request)
            except CommError as why:
                return why.errno or errno.EADDRNOTAVAIL
            self._touch(entry)
            code = _connect(entry, to)
        if not entry.flags & lib.LC_TPROXY_REM and code in (0, errno.EINPROGRESS):
            entry.outgoing = intercept.remember_outgoing(entry.fd, to)
        return code

    def comm_error(self, sock: Any) -> int:
        """The errno of the last failure on `sock`, 0 where there was none."""
        entry = self.table.find_object(sock) or self.table.find(sock)
        if entry is not None and entry.error:
            return entry.error
        err = int(lib.lc_error(descriptor(sock)))
        if err < 0:
            raise CommError(-err)
        return err


def _connect(entry: Entry, to: Any) -> int:
    if entry.request is None:
        return -int(lib.lc_connect(entry.fd, to))
    return -int(lib.lc_connect_as(entry.fd, entry.request, to))


def _outcome(fd: int, to: Any) -> int:
    """How the connect on `fd` ended: an errno, 0, or EINPROGRESS where it has not.

    SO_ERROR alone is not enough: it is 0 before the end too, and an event can be spurious. Asking
    connect(2) again tells: EISCONN, EALREADY, or what went wrong.
    """
    err = lib.lc_error(fd)
    if err == 0 and lib.lc_peer(fd, _scratch) == -errno.ENOTCONN:
        err = lib.lc_connect(fd, to)
        if -err in (errno.EALREADY, errno.EINPROGRESS):
            return errno.EINPROGRESS
        if -err == errno.EISCONN:
            return 0
    return abs(int(err))


_scratch = ffi.new("struct lc_addr *")
