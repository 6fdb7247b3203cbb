"""Sockets and their ownership: open, take over, listen, accept, close."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import Any, NamedTuple

from . import engines, intercept, spoof
from ._shim import ffi, lib
from .address import Address, descriptor, from_shim
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
from .errors import CommError
from .fdtable import Entry, Handler
from .reactor.reactor import Loop

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


class Sockets(Loop):
    """A loop that opens, accepts and closes."""

    _held: list[Entry]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._held = []  # listeners that wait for a free descriptor
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
        :param flags: COMM_ flags.
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
        entry = self.table.add(sock, fd, self._polled, flags, note)
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
        if flags & ~ALL_FLAGS or flags & COMM_TRANSPARENT_PORT:
            raise CommError(errno.EINVAL, f"flags {flags:#x} do not fit a socket that exists")
        if flags & COMM_INTERCEPT:
            engines.probe_nat()
        fd = descriptor(fd_or_socket)
        known = self.table.find(fd_or_socket)
        if known is not None:
            raise CommError(errno.EEXIST, f"descriptor {fd} is in the table already")
        if isinstance(fd_or_socket, socket.socket):
            sock = fd_or_socket
        else:
            try:
                sock = socket.socket(fileno=fd)
            except OSError as why:
                code = why.errno or errno.EBADF
                raise CommError(code, f"descriptor {fd}: {os.strerror(code)}") from why
        try:
            self._apply_flags(sock, flags)
        except BaseException:
            if sock is not fd_or_socket:
                sock.detach()  # the caller keeps what was the caller's
            raise
        sock.settimeout(0)
        self.table.add(sock, fd, self._polled, flags, note)
        if sock.type == socket.SOCK_STREAM and flags & (COMM_TPROXY_LCL | COMM_INTERCEPT):
            intercept.remember_listener(sock)
        return sock

    @staticmethod
    def _apply_flags(sock: socket.socket, flags: int) -> None:
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
        entry = self._entry(sock)
        with _borrowed(entry) as s:
            try:
                if defer is not None and hasattr(socket, "TCP_DEFER_ACCEPT"):
                    seconds = max(1, round(defer))
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)
                err = lib.lc_listen(entry.fd, entry.request or ffi.NULL, _BACKLOG)
                if err < 0:
                    raise OSError(-err, os.strerror(-err))
                if defer is not None and hasattr(socket, "SO_ACCEPTFILTER"):
                    arg = struct.pack("16s240s", b"dataready", b"")
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTFILTER, arg)
            except OSError as why:
                code = why.errno or errno.EINVAL
                raise CommError(code, f"listen: {os.strerror(code)}") from why
        if isinstance(entry.sock, socket.socket):
            entry.sock.settimeout(0)
            intercept.remember_listener(entry.sock)

    def comm_accept(self, sock: Any) -> Accepted | None:
        """One connection off the queue, non-blocking and close-on-exec, or None where there is
        none.

        Out of descriptors (EMFILE, ENFILE) it is None too: the listener rests until a descriptor
        is closed, or 100 ms. A connection that broke in the queue is passed over.

        :raises CommError: EINVAL not listening, or a blocking listener; EBADF, ENOTSOCK.
        """
        entry = self.table.find_object(sock)
        if entry is None or entry.fd != descriptor(sock):
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
        conn = socket.socket(out.family, socket.SOCK_STREAM | _NONBLOCK, 0, fileno=fd)
        if not _NONBLOCK:
            conn.settimeout(0)
        flags = entry.flags & (COMM_TPROXY_LCL | COMM_INTERCEPT | COMM_NOCLOEXEC)
        self.table.add(conn, fd, self._polled, flags, entry.note)
        return Accepted(conn, from_shim(out.peer), from_shim(out.me))

    @staticmethod
    def _refuse_blocking(sock: Any) -> None:
        try:
            blocking = os.get_blocking(descriptor(sock))
        except CommError:
            raise
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
            self.comm_add_event(_RETRY_ACCEPT, lambda _: self._let_go())

    def _let_go(self) -> None:
        while self._held:
            entry = self._held.pop()
            entry.held = False
            self._touch(entry)

    def comm_close(self, sock: Any) -> None:
        """Closes `sock`: out of the loop first, then pending operations are told
        COMM_ERR_CLOSING, then the close handlers run, last in first out, then it is closed.
        Select handlers are not called. Idempotent.

        An fd is resolved to the socket object that owns it.

        :raises CommError: EBADF for an open fd that is not in the table: closing it would close
            what somebody else owns.
        """
        entry = self._closing_entry(sock)
        if entry is not None:
            self._close_entry(entry)

    def comm_reset_close(self, sock: Any) -> None:
        """:meth:`comm_close` with a reset (RST), so that the peer knows it was no orderly end."""
        entry = self._closing_entry(sock)
        if entry is not None:
            set_reset(entry)
            self._close_entry(entry)

    def comm_detach(self, sock: Any) -> Any:
        """Takes `sock` out of the table and the loop, and gives it to the caller, open. Pending
        operations are told COMM_ERR_CLOSING; close handlers are forgotten."""
        entry = self._entry(sock)
        self._forget(entry)
        entry.close_handlers.clear()
        self._answer_pending(entry)
        self.table.remove(entry)
        return entry.sock

    def comm_add_close_handler(self, sock: Any, handler: Handler, data: Any = None) -> None:
        """Has ``handler(sock, data)`` called when `sock` is closed.

        :raises CommError: EEXIST where this handler with this data is there already.
        """
        if not callable(handler):
            raise TypeError(f"handler {handler!r} is not callable")
        entry = self._entry(sock)
        if (handler, data) in entry.close_handlers:
            raise CommError(errno.EEXIST, "this close handler is there already")
        entry.close_handlers.append((handler, data))

    def comm_remove_close_handler(self, sock: Any, handler: Handler, data: Any = None) -> None:
        """:raises CommError: ENOENT where it is not there."""
        try:
            self._entry(sock).close_handlers.remove((handler, data))
        except ValueError:
            raise CommError(errno.ENOENT, "no such close handler") from None

    def _closing_entry(self, thing: Any) -> Entry | None:
        """Whose entry to close; None where there is nothing left to do."""
        self._check_thread()
        entry = self.table.find_object(thing)
        if entry is not None:
            if not entry.stale:
                return entry
            self.table.drop_stale(entry)
            return None
        if isinstance(thing, int):
            entry = self.table.entries.get(descriptor(thing))
            if entry is None and _is_open(thing):
                text = f"descriptor {thing} is open but not in the table: its owner closes it"
                raise CommError(errno.EBADF, text)
            return entry
        try:
            entry = self.table.find(thing)
        except CommError:
            return None  # closed already
        return entry if entry is not None else self._entry(thing)

    def _forget(self, entry: Entry) -> None:
        """Out of the poller, while the number is still ours, and out of the loop."""
        if entry.registered:
            self._gone.add(entry.fd)
            with contextlib.suppress(OSError):
                self._set_interest(entry, 0)
        entry.registered = 0
        self._release(entry)

    def _close_entry(self, entry: Entry) -> None:
        if entry.closing:
            return
        self._forget(entry)
        self._answer_pending(entry)
        self.table.remove(entry)
        self.system_calls["close"] += 1
        if isinstance(entry.sock, int):
            with contextlib.suppress(OSError):
                os.close(entry.fd)
        else:
            with contextlib.suppress(OSError):
                entry.sock.close()
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


def set_reset(entry: Entry) -> None:
    """Closing will send RST: SO_LINGER of zero seconds (socket(7))."""
    with contextlib.suppress(OSError), _borrowed(entry) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def _borrowed(entry: Entry) -> Any:
    """A socket object for an entry that may hold an fd or another object with ``fileno()``."""
    if isinstance(entry.sock, socket.socket):
        yield entry.sock
        return
    try:
        sock = socket.socket(fileno=entry.fd)
    except OSError as why:
        code = why.errno or errno.EBADF
        raise CommError(code, f"descriptor {entry.fd}: {os.strerror(code)}") from why
    try:
        yield sock
    finally:
        sock.detach()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
