"""Datagrams that were meant for somebody else, and answers in that somebody's name.

TPROXY tells where a datagram was going in a control message (ip(7), IP_RECVORIGDSTADDR). The answer
leaves from there: through a socket bound to the original destination and CONNECTED to the client.
Unconnected, it would take other clients' datagrams to that destination. From then on the kernel
delivers what else the client sends there to this socket, not to the listener; so listener and flow
sockets are one readiness object: the flows stand in a poller of their own, whose descriptor is
ready when the listener's read slot shall be.

Where the datagram had been translated, or came to the listener itself, the answer leaves from the
listener, and from the address at which the datagram arrived.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import OrderedDict, deque
from typing import Any, NamedTuple, TypeAlias

from . import spoof
from ._shim import ffi, lib
from .address import Address, from_shim, spell, to_shim
from .constants import COMM_INTERCEPT, COMM_REUSEADDR, COMM_TPROXY_LCL
from .errors import CommError
from .fdtable import Entry
from .reactor.poller import READ
from .reactor.timers import Timer
from .relay import Relays

__all__ = ["Datagram", "Datagrams"]

_SIZE = 65535  # no datagram is longer
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

Key: TypeAlias = tuple[Address, Address]
"""Client and original destination."""


class _Fields(NamedTuple):
    data: bytes
    peer: Address
    original: Address | None


class Datagram(_Fields):
    """A datagram: ``data``; ``peer``, who sent it; and ``original``, where it was going, None where
    it was sent to the socket that received it."""

    listener: Any = None
    """The socket that received it."""
    _arrived: Any = None  # the address on this machine from which the listener itself answers


class Flows:
    """The sockets that answer for one listener: a bounded table, the longest unused first."""

    def __init__(self, loop: Datagrams, listener: Entry) -> None:
        self.loop = loop
        self.listener = listener
        self._flows: OrderedDict[Key, tuple[socket.socket, float]] = OrderedDict()
        self._keys: dict[int, Key] = {}
        self._turns: deque[int] = deque()  # descriptors to ask for the next datagram
        self._timer = Timer(None, self._expire, ())
        self._open_poller()

    def __len__(self) -> int:
        return len(self._flows)

    def _open_poller(self) -> None:
        self._poller = self.loop._make_poller()
        note = f"flows of {self.listener.note or self.listener.fd}"
        fd = self._poller.fileno()
        self.entry = self.loop.table.add(self._poller, fd, note=note)
        self.entry.parent = self.listener
        for fd in self._keys:
            self._poller.set(fd, 0, READ)

    def receive(self) -> Datagram | None:
        """The next datagram of listener and flows, in turns."""
        turns, asked = self._turns, False
        while True:
            if not turns:
                if asked:
                    return None
                asked = True
                turns.append(self.listener.fd)
                turns.extend(fd for fd, _ in self._poller.poll(0))
            fd = turns[0]
            if fd == self.listener.fd:
                got = self.loop._receive(self.listener)
            else:
                got = self._receive_flow(fd) if fd in self._keys else None
            if got is not None:
                turns.rotate(-1)
                return got
            turns.popleft()

    def _receive_flow(self, fd: int) -> Datagram | None:
        key = self._keys[fd]
        try:
            # The peer is asked for: what came before the socket was connected may be another's.
            got = self.loop._take(fd)
        except CommError:  # the client is gone, as an ICMP message said
            self._drop(key)
            return None
        if got is None:
            return None
        data, peer, _ = got
        self._use(key)
        self.listener.bytes_in += len(data)
        datagram = Datagram(data, peer, key[1])
        datagram.listener = self.listener.sock
        return datagram

    def send(self, peer: Address, original: Address, data: Any) -> int:
        key = (peer, original)
        flow = self._flows.get(key)
        sock = self._open(key) if flow is None else flow[0]
        self._use(key)
        try:
            return sock.send(data)
        except ConnectionRefusedError:
            # What an ICMP message said of an earlier answer; this one has not been sent yet.
            return sock.send(data)

    def _open(self, key: Key) -> socket.socket:
        while len(self._flows) >= self.loop.max_flows:
            self._make_room()
        try:
            sock = self._connected(key)
        except CommError as why:
            if why.errno not in _OUT_OF_DESCRIPTORS or not self._flows:
                raise
            self._make_room()
            sock = self._connected(key)
        self._poller.set(sock.fileno(), 0, READ)
        if not self._flows:
            self.loop.timers.move(self._timer, time.monotonic() + self.loop.flow_idle)
        self._flows[key] = sock, 0.0
        self._keys[sock.fileno()] = key
        return sock

    def _connected(self, key: Key) -> socket.socket:
        peer, original = key
        listener = self.listener.sock
        mark = listener.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) if _HAS_MARK else 0
        flags = COMM_REUSEADDR | COMM_TPROXY_LCL
        request = spoof.request_for(
            socket.SOCK_DGRAM, 0, original, None, flags, 0, mark or None, None, False
        )
        try:
            fd, _ = spoof.open_socket(request, False)
        except CommError as why:
            if why.errno != errno.EADDRINUSE:
                raise
            text = f"answering from {spell(original)}, a port that the listener has: {_REUSE}"
            raise CommError(errno.EADDRINUSE, text) from why
        family = socket.AF_INET6 if request.family == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM, 0, fileno=fd)
        sock.setblocking(False)
        err = lib.lc_connect_as(fd, request, to_shim(peer))
        if err < 0:
            sock.close()
            text = f"answering {spell(peer)} from {spell(original)}: {os.strerror(-err)}"
            raise CommError(-err, text)
        return sock

    def _use(self, key: Key) -> None:
        self._flows[key] = self._flows[key][0], time.monotonic()
        self._flows.move_to_end(key)

    def _make_room(self) -> None:
        """The longest unused goes; one in which a datagram waits only where all have one."""
        idle = (key for key, (sock, _) in self._flows.items() if not _unread(sock))
        self._drop(next(idle, None) or next(iter(self._flows)))

    def _expire(self) -> None:
        now = time.monotonic()
        for key, (sock, used) in list(self._flows.items()):
            if used + self.loop.flow_idle > now:
                break
            if _unread(sock):
                self._use(key)
            else:
                self._drop(key)
        if self._flows:
            _, used = next(iter(self._flows.values()))
            self.loop.timers.move(self._timer, used + self.loop.flow_idle)

    def _drop(self, key: Key) -> None:
        sock, _ = self._flows.pop(key)
        del self._keys[sock.fileno()]
        self._poller.set(sock.fileno(), READ, 0)
        sock.close()

    def after_fork(self) -> None:
        """The inner poller, too, is the parent's."""
        self.entry.closing = True
        self.loop.table.remove(self.entry)
        self._poller.close()
        self._turns.clear()
        self._open_poller()
        self.loop._touch(self.entry)

    def close(self, _status: int = 0) -> None:
        self.loop.timers.cancel(self._timer)
        self.loop._forget(self.entry)
        self.entry.closing = True
        self.loop.table.remove(self.entry)
        self._poller.close()
        for sock, _ in self._flows.values():
            sock.close()
        self._flows.clear()
        self._keys.clear()


class Datagrams(Relays):
    """A loop that sends and receives datagrams."""

    max_flows = 512
    """Sockets that answer in others' names, per listener, at most."""
    flow_idle = 60.0
    """Seconds without a datagram after which such a socket is closed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._peer = ffi.new("struct lc_addr *")
        self._original = ffi.new("struct lc_addr *")
        self._buffer: Any = None

    def comm_udp_sendto(self, sock: Any, address: Address, data: Any) -> int:
        """Sends one datagram: the number of bytes.

        :raises CommError: EAGAIN the buffer is full (wait for COMM_SELECT_WRITE), EMSGSIZE,
            ENETUNREACH, ...
        """
        return self._send(self._datagram_entry(sock), to_shim(address), ffi.NULL, data)

    def comm_udp_recvfrom(self, sock: Any) -> Datagram | None:
        """The next datagram, or None where there is none.

        A listener opened with COMM_TPROXY_LCL tells where each was going, and gets what comes for
        the sockets that answer for it (:meth:`comm_udp_reply`) too.

        :raises CommError: EPROTOTYPE no datagram socket, EBADF, ECONNREFUSED (connected sockets).
        """
        entry = self._datagram_entry(sock)
        return self._receive(entry) if entry.flows is None else entry.flows.receive()

    def comm_udp_reply(self, datagram: Datagram, data: Any) -> int:
        """Answers `datagram` from the address to which it was sent: the number of bytes.

        The first answer in a foreign name opens a socket for this client and that address, which is
        kept for `flow_idle` seconds after its last use; no more than `max_flows` per listener.

        :raises CommError: EBADF the listener was closed, EADDRINUSE it was opened without
            COMM_REUSEADDR and has the port of the original destination, EPERM, EAGAIN, EMSGSIZE.
        """
        listener = getattr(datagram, "listener", None)
        if listener is None:
            raise TypeError("a Datagram that comm_udp_recvfrom returned")
        entry = self._datagram_entry(listener)
        source = ffi.NULL if datagram._arrived is None else datagram._arrived
        if datagram.original is None or source:
            return self._send(entry, to_shim(datagram.peer), source, data)
        if entry.flows is None:
            entry.flows = Flows(self, entry)
            entry.pending["flows"] = entry.flows.close
            self._touch(entry.flows.entry)
        self.system_calls["write"] += 1
        try:
            sent = int(entry.flows.send(datagram.peer, datagram.original, data))
        except CommError:
            raise
        except OSError as why:
            raise _send_error(why.errno or errno.EIO, datagram.peer) from why
        entry.bytes_out += sent
        return sent

    def _datagram_entry(self, thing: Any) -> Entry:
        entry = self._entry(thing)
        kind = getattr(entry.sock, "type", socket.SOCK_DGRAM)
        if kind != socket.SOCK_DGRAM:
            raise CommError(errno.EPROTOTYPE, f"descriptor {entry.fd} is no datagram socket")
        return entry

    def _take(self, fd: int) -> tuple[bytes, Address, Any] | None:
        """Data, peer and, in the shim's form, original destination of one datagram."""
        if self._buffer is None:
            self._buffer = ffi.new("char[]", _SIZE)
        self.system_calls["read"] += 1
        n = lib.lc_recv(fd, self._buffer, _SIZE, self._peer, self._original)
        if n == -errno.EAGAIN:
            return None
        if n < 0:
            raise CommError(-n, f"receiving: {os.strerror(-n)}")
        peer: Any = from_shim(self._peer)
        return ffi.buffer(self._buffer, n)[:], peer, self._original

    def _receive(self, entry: Entry) -> Datagram | None:
        got = self._take(entry.fd)
        if got is None:
            return None
        data, peer, original = got
        entry.bytes_in += len(data)
        where, arrived = from_shim(original), None
        if original.family and (entry.flags & COMM_INTERCEPT or _is_own(entry, original)):
            arrived = ffi.new("struct lc_addr *", original[0])
            where = None
            if entry.flags & COMM_INTERCEPT:
                where = _translated(entry, arrived, self._peer)
        datagram = Datagram(data, peer, where)
        datagram.listener, datagram._arrived = entry.sock, arrived
        return datagram

    def _send(self, entry: Entry, to: Any, source: Any, data: Any) -> int:
        self.system_calls["write"] += 1
        content = ffi.from_buffer("char[]", memoryview(data))
        sent = int(lib.lc_send(entry.fd, content, len(content), to, source))
        if sent < 0:
            raise _send_error(-sent, from_shim(to))
        entry.bytes_out += sent
        return sent


_REUSE = "open it with COMM_REUSEADDR"
_HAS_MARK = hasattr(socket, "SO_MARK")


def _is_own(entry: Entry, address: Any) -> bool:
    """Whether a datagram to `address` was meant for the listener itself."""
    local = ffi.new("struct lc_addr *")
    if lib.lc_local(entry.fd, local) < 0 or local.port != address.port:
        return False
    bound: Any = from_shim(local)
    if bound[0] not in ("0.0.0.0", "::"):
        return bool(bound == from_shim(address))
    return bool(lib.lc_own(address) == 1)


def _translated(entry: Entry, arrived: Any, peer: Any) -> Address | None:
    """What the NAT engines say of a datagram that arrived at `arrived`; None: nothing.

    Raises CommError where one could not be asked.
    """
    origin = ffi.new("struct lc_origin *")
    err = lib.lc_original_of(entry.fd, -1, arrived, peer, origin)
    if err in (-errno.ENOENT, -errno.ENOTSUP, -errno.ENOPROTOOPT, -errno.ENXIO):
        return None
    if err < 0:
        raise CommError(-err, f"where {spell(from_shim(peer))} was going: {os.strerror(-err)}")
    return from_shim(origin.original)


def _unread(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except OSError:
        return False
    return True


def _send_error(code: int, to: Address | None) -> CommError:
    mend = {errno.EAGAIN: ": wait for COMM_SELECT_WRITE"}.get(code, "")
    return CommError(code, f"sending to {spell(to)}: {os.strerror(code)}{mend}")
