"""Receiving and sending datagrams, one or many in a call, with the addresses that recvfrom(2) and
sendto(2) leave out. No loop: a reactor and an asyncio server each have a :class:`DatagramIO`."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ._shim import ffi, lib
from .address import Address, from_shim, spell, to_shim
from .errors import CommError

__all__ = ["BATCH", "Datagram", "DatagramIO"]

BATCH: int = lib.LC_BATCH
"""Datagrams that one call takes at most."""

_SIZE = 65535  # no datagram is longer
_ADDRESS = ffi.sizeof("struct lc_addr")
_LAYOUT = struct.Struct(f"=ii{_ADDRESS}s{_ADDRESS}s")
assert _LAYOUT.size == ffi.sizeof("struct lc_datagram")
_KNOWN = 4096  # addresses whose tuples are kept
_UNTOLD = (errno.ENOENT, errno.ENOTSUP, errno.ENOPROTOOPT, errno.ENXIO)


class _Fields(NamedTuple):
    data: bytes
    peer: Address
    original: Address | None


class Datagram(_Fields):
    """A datagram: ``data``; ``peer``, who sent it; and ``original``, where it was going, None where
    it was sent to the socket that received it.

    On Linux a datagram that a REDIRECT or DNAT rule sent to the listener looks just like that:
    nothing tells where it was going. Only TPROXY rules do for UDP.
    """

    listener: Any = None
    """The socket that received it."""
    _arrived: bytes | None = None  # the own address from which the listener itself answers

    @classmethod
    def _of(
        cls, data: bytes, peer: Any, original: Address | None, listener: Any, arrived: bytes | None
    ) -> Datagram:
        made = cls(data, peer, original)
        made.listener, made._arrived = listener, arrived
        return made


class Taken(NamedTuple):
    """What one call brought from one descriptor. Addresses are as the shim has them."""

    fd: int
    data: bytes
    error: int
    """errno: there is no datagram."""
    peer: bytes
    original: bytes


class DatagramIO:
    """The buffers of one loop."""

    def __init__(self, calls: dict[str, int]) -> None:
        self._calls = calls
        self._batch: Any = None
        self._addresses: dict[bytes, Address] = {}
        self._peer = ffi.new("struct lc_addr *")
        self._original = ffi.new("struct lc_addr *")
        self._one: Any = None
        self._parcels: Any = None

    # -- receiving -----------------------------------------------------------------------------

    def take(self, fd: int) -> Taken | None:
        """The next datagram of `fd`, or None. Raises CommError."""
        if self._one is None:
            self._one = ffi.new("char[]", _SIZE)
        self._calls["read"] += 1
        n = lib.lc_recv(fd, self._one, _SIZE, self._peer, self._original)
        if n == -errno.EAGAIN:
            return None
        if n < 0:
            raise CommError(-n, f"receiving: {os.strerror(-n)}")
        data = ffi.buffer(self._one, n)[:]
        return Taken(fd, data, 0, ffi.buffer(self._peer)[:], ffi.buffer(self._original)[:])

    def take_many(self, fds: Sequence[int], most: int) -> list[Taken]:
        """What waits on `fds`, in one call: `most` datagrams or :data:`BATCH`, whichever is less,
        a share from each. An error of a descriptor is in the list too."""
        if self._batch is None:
            batch = lib.lc_batch_new()
            if batch == ffi.NULL:
                raise MemoryError("no memory for a batch of datagrams")
            self._batch = ffi.gc(batch, lib.lc_batch_free)
            self._told = ffi.buffer(lib.lc_batch_datagrams(batch), BATCH * _LAYOUT.size)
            self._bytes = ffi.buffer(lib.lc_batch_bytes(batch), BATCH * lib.LC_STRIDE)
        self._calls["read"] += 1
        n = lib.lc_recv_many(self._batch, ffi.new("int[]", fds), len(fds), most)
        told, content, start, got = self._told[: n * _LAYOUT.size], self._bytes, 0, []
        for fd, size, peer, original in _LAYOUT.iter_unpack(told):
            data = content[start : start + size] if size > 0 else b""
            got.append(Taken(fd, data, -size if size < 0 else 0, peer, original))
            start += lib.LC_STRIDE
        return got

    def address(self, raw: bytes) -> Any:
        """The tuple of an address in the shim's form; None where there is none."""
        try:
            return self._addresses[raw]
        except KeyError:
            pass
        address = from_shim(ffi.from_buffer("struct lc_addr *", raw))
        if address is not None:
            if len(self._addresses) >= _KNOWN:
                self._addresses.clear()
            self._addresses[raw] = address
        return address

    def where(
        self, fd: int, intercept: bool, peer: bytes, original: bytes
    ) -> tuple[Address | None, bytes | None]:
        """Where a datagram that the listener `fd` received was going, and the address of this
        machine's from which the listener answers, where it does so itself."""
        if original[0] == 0:
            return None, None
        there = ffi.from_buffer("struct lc_addr *", original)
        if intercept:
            return self._translated(fd, there, peer), original
        return (None, original) if is_own(fd, there) else (self.address(original), None)

    @staticmethod
    def _translated(fd: int, arrived: Any, peer: bytes) -> Address | None:
        """What the NAT engines say of a datagram that arrived at `arrived`; None: nothing.

        Raises CommError where one could not be asked.
        """
        origin = ffi.new("struct lc_origin *")
        who = ffi.from_buffer("struct lc_addr *", peer)
        err = lib.lc_original_of(fd, -1, arrived, who, origin)
        if -err in _UNTOLD:
            return None
        if err < 0:
            raise CommError(-err, f"where {spell(from_shim(who))} was going: {os.strerror(-err)}")
        return from_shim(origin.original)

    # -- sending -------------------------------------------------------------------------------

    def send(self, fd: int, to: Address, data: Any, source: bytes | None = None) -> int:
        """One datagram, from `source` where one is given. Raises CommError."""
        self._calls["write"] += 1
        content = ffi.from_buffer("char[]", memoryview(data))
        whence = ffi.NULL if source is None else ffi.from_buffer("struct lc_addr *", source)
        sent = int(lib.lc_send(fd, content, len(content), to_shim(to), whence))
        if sent < 0:
            raise send_error(-sent, to)
        return sent

    def send_many(self, parcels: Iterable[tuple[int, Any]]) -> tuple[int, int]:
        """Each ``(descriptor of a connected socket, data)``, at most :data:`BATCH` of them; what a
        socket does not take is lost. How many went, and their bytes."""
        if self._parcels is None:
            self._parcels = ffi.new("struct lc_parcel[]", BATCH)
        kept, n, out = [], 0, self._parcels
        for fd, data in parcels:
            content = ffi.from_buffer("char[]", data)
            kept.append(content)
            parcel = out[n]
            parcel.fd, parcel.bytes, parcel.size = fd, content, len(content)
            n += 1
        if n == 0:
            return 0, 0
        self._calls["write"] += 1
        went = lib.lc_send_many(out, n)
        return went, sum(max(out[i].sent, 0) for i in range(n))


def is_own(fd: int, address: Any) -> bool:
    """Whether a datagram to `address` was meant for the socket `fd` itself."""
    local = ffi.new("struct lc_addr *")
    if lib.lc_local(fd, local) < 0 or local.port != address.port:
        return False
    bound: Any = from_shim(local)
    if bound[0] not in ("0.0.0.0", "::"):
        return bool(bound == from_shim(address))
    return bool(lib.lc_own(address) == 1)


def send_error(code: int, to: Address | None) -> CommError:
    mend = {errno.EAGAIN: ": wait for COMM_SELECT_WRITE"}.get(code, "")
    return CommError(code, f"sending to {spell(to)}: {os.strerror(code)}{mend}")


def tell_original(sock: socket.socket) -> None:
    """Has a socket that exists tell where its datagrams were going. Raises CommError."""
    err = lib.lc_tell_original(sock.fileno())
    if err < 0:
        raise CommError(-err, f"asking where datagrams were going: {os.strerror(-err)}")


def check_datagrams(sock: Any) -> None:
    """Raises CommError (EPROTOTYPE) where `sock` is a socket, and none for datagrams."""
    if getattr(sock, "type", socket.SOCK_DGRAM) != socket.SOCK_DGRAM:
        raise CommError(errno.EPROTOTYPE, f"descriptor {sock.fileno()} is no datagram socket")
