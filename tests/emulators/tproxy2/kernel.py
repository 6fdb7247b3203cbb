"""The option's state machine, without a socket in it.

Source of every answer: net/ipv4/netfilter/ip_tproxy_core.c of cttproxy 2.0.6, built with NAT
reservations (CONFIG_IP_NF_NAT_NRES). The kernel finds an assignment by protocol, local address and
local port, and so does this; it asks the capability first, then the socket.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

OPTION: Final = 11274
VERSION, ASSIGN, UNASSIGN, QUERY, FLAGS, ALLOC, CONNECT = range(7)
ITP_CONNECT: Final = 1
ITP_LISTEN: Final = 2
ITP_ESTABLISHED: Final = 4
ITP_ONCE: Final = 0x10000
ITP_MARK: Final = 0x20000
ITP_APPLIED: Final = 0x40000
ITP_UNIDIR: Final = 0x80000
FULL_VERSION: Final = 0x02000006
SIZE: Final = 12
_SHORTEST: Final = 8

Address: TypeAlias = tuple[str, int]
NOWHERE: Final[Address] = ("0.0.0.0", 0)


def number(op: int, value: int = 0) -> bytes:
    """``struct in_tproxy`` with a version or flags in it."""
    return struct.pack("=II4x", op, value)


def address(op: int, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """``struct in_tproxy`` with an address in it."""
    return struct.pack("=I4s", op, ipaddress.IPv4Address(host).packed) + struct.pack(">H2x", port)


def number_in(data: bytes) -> int:
    return int(struct.unpack_from("=I", data, 4)[0])


def address_in(data: bytes) -> Address:
    return str(ipaddress.IPv4Address(data[4:8])), struct.unpack_from(">H", data, 8)[0]


@dataclass(frozen=True)
class Socket:
    """What the option's handler sees of a socket. ``protocol``: "tcp", "udp", or another's."""

    cookie: int
    protocol: str
    local: Address = NOWHERE
    remote: Address = NOWHERE
    connected: bool = False
    reuse: bool = False


Key: TypeAlias = tuple[str, Address]
"""The protocol and the local address of a socket."""


@dataclass
class Assignment:
    """The kernel's ``ip_tproxy_sockref``."""

    protocol: str
    local: Address
    foreign: Address
    sockets: set[int] = field(default_factory=set)
    mark_only: bool = False
    connect_only: bool = False
    remote: Address = NOWHERE
    connects: bool = False
    listens: bool = False
    once: bool = False
    unidir: bool = False
    # For which remote address NAT reserves the foreign one; NOWHERE: for all. None: it does not.
    reserved: Address | None = None

    @property
    def key(self) -> Key:
        return self.protocol, self.local


class Answer(NamedTuple):
    """``code``: 0 or an errno. ``data``: what getsockopt writes, whatever the code."""

    code: int
    data: bytes


class Kernel:
    """Every assignment of one network namespace.

    ``chosen(key)``: the port that NAT gave to the connection of this local address, None while
    there is none. ``forget(key)``: conntrack's entries of it are to go.
    """

    def __init__(
        self,
        chosen: Callable[[Key], int | None] = lambda _: None,
        forget: Callable[[Key], object] = lambda _: None,
        ports: range = range(32768, 61000),
    ) -> None:
        self.assignments: dict[Key, Assignment] = {}
        self._chosen = chosen
        self._forget = forget
        self._ports = ports
        self._next = 0

    def setsockopt(self, sock: Socket, may: bool, data: bytes) -> int:
        """0 or an errno. ``may``: the caller has CAP_NET_ADMIN."""
        if sock.protocol not in ("tcp", "udp") or len(data) < _SHORTEST:
            return errno.EINVAL
        data = data[:SIZE].ljust(SIZE, b"\0")
        (op,) = struct.unpack_from("=I", data)
        if op == VERSION:
            return _version(number_in(data))
        if op == ASSIGN:
            return self._assign(sock, may, address_in(data))
        on_assigned: dict[int, Callable[[Assignment], int]] = {
            UNASSIGN: lambda found: self._unassign(sock, found),
            FLAGS: lambda found: self._flags(sock, found, number_in(data)),
            ALLOC: self._alloc,
            CONNECT: lambda found: _connect(found, address_in(data)),
        }
        if op not in on_assigned:
            return errno.ENOPROTOOPT
        found = self.find(sock)
        return errno.ENOENT if found is None else on_assigned[op](found)

    def getsockopt(self, sock: Socket, data: bytes) -> Answer:
        if sock.protocol not in ("tcp", "udp") or len(data) < _SHORTEST:
            return Answer(errno.EINVAL, data)
        size = min(len(data), SIZE)
        (op,) = struct.unpack_from("=I", data)
        if op == VERSION:
            return Answer(0, number(op, FULL_VERSION)[:size])
        if op not in (QUERY, FLAGS):
            return Answer(errno.ENOPROTOOPT, data[:size])
        found = self.find(sock)
        if found is None:
            return Answer(errno.ENOENT, data[:size])
        chosen = self._chosen(found.key) if found.connects else None
        if op == FLAGS:
            applied = ITP_APPLIED if chosen is not None else 0
            return Answer(0, number(op, _flags_of(found) | applied)[:size])
        if chosen is not None and found.foreign[1] == 0:
            found.foreign = found.foreign[0], chosen
        return Answer(0, address(op, *found.foreign)[:size])

    def closed(self, cookie: int) -> None:
        """The socket is gone: what it held is free."""
        for found in [*self.assignments.values()]:
            self._drop(found, cookie)

    def find(self, sock: Socket) -> Assignment | None:
        found = self.assignments.get((sock.protocol, sock.local))
        if found is None or NOWHERE in (found.remote, sock.remote):
            return found
        return found if found.remote == sock.remote else None

    def _assign(self, sock: Socket, may: bool, foreign: Address) -> int:
        if not may:
            return errno.EPERM
        host, port = sock.local
        if sock.connected or host == NOWHERE[0] or port == 0:
            return errno.EINVAL
        self._release(sock)
        if (found := self.assignments.get((sock.protocol, sock.local))) is not None:
            if foreign != NOWHERE:
                return errno.EEXIST
            found.sockets.add(sock.cookie)
            return 0
        new = Assignment(sock.protocol, sock.local, foreign, {sock.cookie})
        if foreign[0] == NOWHERE[0]:
            new.mark_only, new.foreign = True, sock.local
        elif foreign[1]:
            others = self._same_foreign(new)
            if others and not sock.reuse:
                return errno.EADDRINUSE
            new.connect_only = any(
                not other.mark_only and other.remote == NOWHERE for other in others
            )
            if not sock.reuse and not self._reserve(new, NOWHERE):
                return errno.EINVAL
        self.assignments[new.key] = new
        return 0

    def _unassign(self, sock: Socket, found: Assignment) -> int:
        # A connection that a listener accepted has its local address, and finds its assignment.
        self._drop(found, sock.cookie)
        return 0

    def _flags(self, sock: Socket, found: Assignment, flags: int) -> int:
        if found.mark_only:
            return 0
        code = 0
        wanted = flags & (ITP_CONNECT | ITP_LISTEN | ITP_ESTABLISHED)
        if wanted == ITP_LISTEN and found.connect_only:
            code, wanted = errno.EINVAL, 0
        if wanted == ITP_ESTABLISHED and found.remote == NOWHERE:
            code = errno.EINVAL
        found.connects = wanted in (ITP_CONNECT, ITP_ESTABLISHED)
        found.listens = wanted in (ITP_LISTEN, ITP_ESTABLISHED)
        found.once, found.unidir = bool(flags & ITP_ONCE), bool(flags & ITP_UNIDIR)
        if wanted and found.protocol == "udp":
            self._forget(found.key)
        reserves = found.connects and found.foreign[1] and sock.reuse
        if reserves and not self._reserve(found, found.remote):
            return errno.EINVAL
        return code

    def _alloc(self, found: Assignment) -> int:
        if found.mark_only:
            return 0
        if found.foreign[1]:
            return errno.EINVAL
        host = found.foreign[0]
        for _ in self._ports:
            found.foreign = host, self._ports[self._next % len(self._ports)]
            self._next += 1
            if not self._same_foreign(found) and self._reserve(found, found.remote):
                return 0
        found.foreign = host, 0
        return errno.EFAULT

    def _same_foreign(self, one: Assignment) -> list[Assignment]:
        return [
            other
            for other in self.assignments.values()
            if other is not one and (other.protocol, other.foreign) == (one.protocol, one.foreign)
        ]

    def _reserve(self, one: Assignment, remote: Address) -> bool:
        """Whether the foreign address was free for connections to ``remote``; it is taken now."""
        for other in (one, *self._same_foreign(one)):
            held = other.reserved
            if held is not None and (NOWHERE in (held, remote) or held == remote):
                return False
        one.reserved = remote
        return True

    def _release(self, sock: Socket) -> None:
        """A connect that failed took the socket's port from it, and the assignment with that."""
        for found in [*self.assignments.values()]:
            if found.key != (sock.protocol, sock.local):
                self._drop(found, sock.cookie)

    def _drop(self, found: Assignment, cookie: int) -> None:
        if cookie not in found.sockets:
            return
        found.sockets.remove(cookie)
        if not found.sockets:
            del self.assignments[found.key]
            if found.protocol == "udp":
                self._forget(found.key)


def _version(wanted: int) -> int:
    major, minor = wanted >> 24, wanted >> 16 & 0xFF
    return 0 if (major, minor) == (2, 0) else errno.EINVAL


def _connect(found: Assignment, remote: Address) -> int:
    if not found.mark_only and remote[0] != NOWHERE[0] and remote[1]:
        found.remote = remote
    return 0


def _flags_of(found: Assignment) -> int:
    flags = 0
    if found.connects and found.listens:
        flags = ITP_ESTABLISHED
    elif found.connects:
        flags = ITP_CONNECT
    elif found.listens:
        flags = ITP_LISTEN
    bits = {ITP_UNIDIR: found.unidir, ITP_ONCE: found.once, ITP_MARK: found.mark_only}
    return flags | sum(bit for bit, on in bits.items() if on)
