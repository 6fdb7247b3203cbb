"""Sockets and their ownership: open, take over, listen, accept."""

from __future__ import annotations

import errno
import math
import os
import socket
import time
from typing import Any, NamedTuple

from . import engines, intercept, spoof
from ._shim import ffi, lib
from .address import Address, descriptor, from_shim
from .closing import Closing
from .constants import (
    ALL_FLAGS,
    COMM_INTERCEPT,
    COMM_NOCLOEXEC,
    COMM_REUSEADDR,
    COMM_REUSEPORT,
    COMM_TPROXY_LCL,
    COMM_TPROXY_REM,
    COMM_TRANSPARENT_PORT,
)
from .datagram_io import tell_original
from .errors import CommError
from .fdtable import Entry
from .reactor.timers import Timer, seconds_of

__all__ = ["Accepted", "Sockets"]

# Tells socket.socket() that the descriptor is non-blocking already, whatever the default time-out.
_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)
_BACKLOG = 65535  # the kernel lowers it to its maximum: net.core.somaxconn, kern.ipc.somaxconn
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_ACCEPT = 0.1


class Accepted(NamedTuple):
    """A connection that comm_accept took."""

    sock: socket.socket
    peer: Address | None
    """The client, ``(host, port)``; None where the socket is no internet socket."""
    me: Address | None
    """The local address; under TPROXY that is where the client was going."""


class Sockets(Closing):
    """A loop that opens and accepts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._held: list[Entry] = []  # listeners that wait for a free descriptor
        self._retry = Timer(None, self._let_go, ())
        self._accepted = ffi.new("struct lc_accepted *")

    def comm_open(
        self,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
        address: Address | None = None,
        *,
        family: int | None = None,
        flags: int = 0,
        tos: int = 0,
        note: str = "",
        mark: int | None = None,
        device: str | None = None,
        dualstack: bool = False,
        spoof_fallback: bool = False,
    ) -> socket.socket:
        """A non-blocking socket, bound to `address` where one is given (the wildcard with port 0
        only with COMM_DOBIND or an interception flag).

        :param type: SOCK_STREAM or SOCK_DGRAM.
        :param address: ``(host, port)`` with a numeric host, or Python's IPv6 4-tuple. "::" takes
            IPv6 only, unless `dualstack`. With COMM_TPROXY_REM alone it is the client's address,
            and its port counts only with COMM_TRANSPARENT_PORT.
        :param family: AF_INET or AF_INET6; else that of `address`. An IPv4 address on an AF_INET6
            socket is mapped.
        :param flags: a sum of ``COMM_`` flags.
        :param tos: the type-of-service byte; 0 leaves the system's.
        :param note: what the descriptor table shows.
        :param mark: SO_MARK, which firewall and routing rules see.
        :param device: the interface to use (SO_BINDTODEVICE).
        :param spoof_fallback: with COMM_TPROXY_REM, rather an unspoofed socket than none;
            :meth:`comm_spoof` says so.
        :raises CommError: with the errno of the step that failed, and what mends it: EPERM the
            missing capability, EADDRNOTAVAIL a foreign address without the flag, EADDRINUSE, ...
        """
        self._check_thread()
        request = spoof.request_for(
            type, proto, address, family, flags, tos, mark, device, dualstack
        )
        fd, reason = spoof.open_socket(request, spoof_fallback)
        self.system_calls["open"] += 1
        number = socket.AF_INET6 if request.family == 6 else socket.AF_INET
        sock = socket.socket(number, type | _NONBLOCK, proto, fileno=fd)
        if not _NONBLOCK:
            sock.settimeout(0)
        entry = self.table.add(sock, fd, flags, note)
        if flags & (COMM_TPROXY_LCL | COMM_TPROXY_REM):
            entry.request, entry.spoof_reason = request, reason
        if type == socket.SOCK_STREAM and flags & (COMM_TPROXY_LCL | COMM_INTERCEPT):
            intercept.remember_listener(sock)
        return sock

    def comm_fdopen(
        self, fd_or_socket: int | socket.socket, *, flags: int = 0, note: str = ""
    ) -> socket.socket:
        """Takes over a socket that exists, such as one that systemd passed; an fd's ownership goes
        to the socket object returned. It is made non-blocking, and `flags` are applied.

        :raises CommError: EBADF, ENOTSOCK; EPERM for an interception flag without the privilege.
        """
        self._check_thread()
        if not isinstance(fd_or_socket, int | socket.socket):
            raise TypeError(f"a descriptor or a socket, not {fd_or_socket!r}")
        if flags & ~ALL_FLAGS or flags & COMM_TRANSPARENT_PORT:
            raise CommError(errno.EINVAL, f"flags {flags:#x} do not fit a socket that exists")
        fd = descriptor(fd_or_socket)
        if self.table.find(fd_or_socket) is not None:
            raise CommError(errno.EEXIST, f"descriptor {fd} is in the table already")
        sock = fd_or_socket if isinstance(fd_or_socket, socket.socket) else socket_of(fd)
        try:
            if sock.type == socket.SOCK_DGRAM:
                spoof.refuse_redirected(flags)
            if flags & COMM_INTERCEPT:
                engines.probe_nat()
            self._apply_flags(sock, flags)
        except BaseException:
            if sock is not fd_or_socket:
                sock.detach()  # the caller keeps what was the caller's
            raise
        sock.settimeout(0)
        self.table.add(sock, fd, flags, note)
        if sock.type == socket.SOCK_STREAM and flags & (COMM_TPROXY_LCL | COMM_INTERCEPT):
            intercept.remember_listener(sock)
        return sock

    @staticmethod
    def _apply_flags(sock: socket.socket, flags: int) -> None:
        if sock.type == socket.SOCK_DGRAM and flags & (COMM_TPROXY_LCL | COMM_INTERCEPT):
            tell_original(sock)
        if flags & COMM_REUSEADDR:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if flags & COMM_REUSEPORT:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if flags & (COMM_TPROXY_LCL | COMM_TPROXY_REM):
            ability = "listen" if flags & COMM_TPROXY_LCL else "spoof"
            spoof.allow(sock.fileno(), engines.spoofer(ability))
        os.set_inheritable(sock.fileno(), bool(flags & COMM_NOCLOEXEC))

    def comm_listen(self, sock: Any, *, defer: float | None = None) -> None:
        """Makes `sock` non-blocking and has it listen, with the longest queue the system allows.

        :param defer: seconds; connections wait in the kernel until their first bytes, where the
            system can do that (TCP_DEFER_ACCEPT, the "dataready" filter). Not for protocols in
            which the server speaks first.
        """
        seconds = 0
        if defer is not None:
            if seconds_of(defer, "defer") < 0:
                raise CommError(errno.EINVAL, "defer is not negative")
            seconds = math.ceil(min(defer, 86400))
        entry = self._entry(sock)
        self._unblock(entry)
        err = lib.lc_listen(entry.fd, entry.request or ffi.NULL, _BACKLOG, seconds)
        if err < 0:
            raise CommError(-err, f"listen: {os.strerror(-err)}")
        if isinstance(entry.sock, socket.socket):
            intercept.remember_listener(entry.sock)

    def comm_accept(self, sock: Any) -> Accepted | None:
        """One connection off the queue, non-blocking and close-on-exec, or None where there is
        none.

        Out of descriptors (EMFILE, ENFILE) it is None too: the listener rests until a descriptor
        is closed, or 100 ms. A connection that broke in the queue is passed over.

        :raises CommError: EINVAL not listening, or a blocking listener; EBADF, ENOTSOCK.
        """
        self._check_thread()
        entry = self.table.living(sock)
        if entry is None:
            if self.table.find(sock) is None:
                self._refuse_blocking(sock)
            entry = self._entry(sock)
        listener = entry.sock
        if isinstance(listener, socket.socket) and listener.gettimeout() != 0:
            self._refuse_blocking(listener)
        out = self._accepted
        err = lib.lc_accept(entry.fd, entry.flags & COMM_NOCLOEXEC, out)
        self.system_calls["accept"] += 1
        if err < 0:
            if err == -errno.EAGAIN:
                return None
            if -err in _OUT_OF_DESCRIPTORS:
                self._hold(entry)
                return None
            text = os.strerror(-err)
            if err == -errno.EINVAL:
                text = "not listening: comm_listen(sock) comes first"
            raise CommError(-err, f"accept: {text}")
        fd = out.fd
        proto = getattr(listener, "proto", 0)
        conn = socket.socket(out.family, socket.SOCK_STREAM | _NONBLOCK, proto, fileno=fd)
        if not _NONBLOCK:
            conn.settimeout(0)
        flags = entry.flags & (COMM_TPROXY_LCL | COMM_INTERCEPT | COMM_NOCLOEXEC)
        self.table.add(conn, fd, flags, entry.note)
        return Accepted(conn, from_shim(out.peer), from_shim(out.me))

    @staticmethod
    def _refuse_blocking(sock: Any) -> None:
        fd = descriptor(sock)
        try:
            blocking = os.get_blocking(fd)
        except OSError as why:
            code = why.errno or errno.EBADF
            raise CommError(code, f"accept: {os.strerror(code)}") from why
        if blocking:
            raise CommError(
                errno.EINVAL, "a blocking listener would stop the loop: comm_listen(sock) first"
            )

    def _hold(self, entry: Entry) -> None:
        if not entry.held:
            entry.held = True
            self._held.append(entry)
            self._touch(entry)
            self.timers.move(self._retry, time.monotonic() + _RETRY_ACCEPT)

    def _let_go(self) -> None:
        self.timers.cancel(self._retry)
        while self._held:
            entry = self._held.pop()
            entry.held = False
            self._touch(entry)

    def _close_entry(self, entry: Entry) -> None:
        super()._close_entry(entry)
        if self._held:
            self._let_go()

    def comm_spoof(self, sock: Any) -> spoof.Spoof:
        """What an outbound socket really got; see :class:`Spoof`."""
        entry = self._entry(sock)
        local = _seen(entry.fd, entry)
        request = entry.request
        if request is None or not entry.flags & COMM_TPROXY_REM:
            return spoof.Spoof(from_shim(local), False, "opened without COMM_TPROXY_REM")
        kept = bool(
            request.flags & COMM_TRANSPARENT_PORT
            and request.address.port
            and request.address.port == local.port
        )
        return spoof.Spoof(from_shim(local), kept, entry.spoof_reason)

    def comm_local_port(self, sock: Any) -> int:
        """The local port, 0 where the socket is not bound."""
        return int(_seen(descriptor(sock), self.table.find(sock)).port)


def _seen(fd: int, entry: Entry | None) -> Any:
    """The socket's own address as others see it. Raises CommError."""
    address = ffi.new("struct lc_addr *")
    if entry is None or entry.request is None:
        err = lib.lc_local(fd, address)
    else:
        err = lib.lc_seen(fd, entry.request, address)
    if err < 0:
        raise CommError(-err)
    return address


def stream_of(fd: int, family: int) -> socket.socket:
    """A socket object that owns `fd`, a stream of the family, non-blocking already: the system need
    not be asked."""
    sock = socket.socket(family, socket.SOCK_STREAM | _NONBLOCK, 0, fileno=fd)
    if not _NONBLOCK:
        sock.settimeout(0)
    return sock


def socket_of(fd: int) -> socket.socket:
    """A socket object that owns `fd`, non-blocking."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as why:
        code = why.errno or errno.EBADF
        raise CommError(code, f"descriptor {fd}: {os.strerror(code)}") from why
    sock.settimeout(0)
    return sock
