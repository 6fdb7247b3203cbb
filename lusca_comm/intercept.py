"""Inbound: where an accepted connection was going.

The decision stands in csrc/engines.c (:c:func:`lc_original`); here are the override by name, the
guard against a listener that would connect to itself, and the words for every failure.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from typing import Any, NamedTuple

from . import engines
from ._shim import ffi, lib
from .address import Address, descriptor, from_shim, spell
from .errors import CommError, NotIntercepted

__all__ = ["Interception", "original_destination"]


class Interception(NamedTuple):
    """Where a connection was going, and who told."""

    address: Address
    """``(host, port)``; for a link-local IPv6 address the 4-tuple."""
    engine: str
    """The engine that answered: "tproxy4", "netfilter", "sockname", ..."""
    translated: bool
    """The destination had been rewritten by NAT; False where the packets still carried it."""


# Every listening address of this process, by port: what must never be connected to in the belief
# that it is an original destination. Weak, because a listener may belong to anybody.
_listeners: dict[int, dict[weakref.ref[socket.socket], Address]] = {}


def remember_listener(sock: socket.socket) -> None:
    """Notes where `sock` is bound. A socket without an internet address is of no concern."""
    local = ffi.new("struct lc_addr *")
    if lib.lc_local(sock.fileno(), local) < 0 or local.port == 0:
        return
    port = local.port

    def forget(ref: weakref.ref[socket.socket]) -> None:
        _listeners[port].pop(ref, None)

    address = from_shim(local)
    assert address is not None
    _listeners.setdefault(port, {})[weakref.ref(sock, forget)] = address


# Connections that this process makes under the machine's own name are noted in csrc/plane_guard.c.
# Where the machine's own traffic is intercepted and the proxy is not exempt, they come back as new
# ones.
def connect_noted(fd: int, request: Any, to: Any) -> tuple[int, int]:
    """The errno of connect(2), and what to give to :func:`forget_outgoing`; 0: nothing."""
    code = -lib.lc_trail_connect(fd, request or ffi.NULL, to, _trail)
    return code, _trail[0]


def forget_outgoing(trail: int) -> None:
    lib.lc_trail_remove(trail)


_trail = ffi.new("uint64_t *")


def _is_listener(addr: Any) -> bool:
    """Whether connecting to `addr` from here would reach a listener of this process."""
    here = _listeners.get(addr.port)
    if not here:
        return False
    host = from_shim(addr)
    wildcards = ("0.0.0.0", "::")
    bound = [
        at[0] for ref, at in list(here.items()) if (s := ref()) is not None and s.fileno() >= 0
    ]
    if host is None or not any(b in wildcards or b == host[0] for b in bound):
        return False
    own = lib.lc_own(ffi.addressof(addr))
    if own < 0:
        raise _not_asked(-own)
    return bool(own)


def _not_asked(code: int) -> CommError:
    return CommError(
        code,
        f"asking the kernel whose address it is failed: {os.strerror(code)}: AF_NETLINK sockets "
        "must be allowed (systemd: RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK)",
    )


def _failure(code: int, engine: str | None, origin: Any) -> CommError:
    """The error of a lookup that gave no answer."""
    me, peer = spell(from_shim(origin.local)), spell(from_shim(origin.peer))
    if code == errno.ENOTCONN:
        return CommError(code, "not a connected socket: ask the one that comm_accept returned")
    if code in (errno.EBADF, errno.ENOTSOCK):
        return CommError(code, f"no socket to ask: {os.strerror(code)}")
    if origin.local.family == 0:
        return CommError(code, f"no internet socket: {os.strerror(code)}")
    if code == errno.ENOENT:
        if engine == "tproxy4":
            cause = "the listener has no IP_TRANSPARENT: open it with COMM_TPROXY_LCL"
        elif origin.nat_errno == errno.ENOPROTOOPT:
            cause = "conntrack is not there to be asked: `modprobe nf_conntrack`"
        elif origin.nat_errno == errno.ENOENT:
            cause = (
                "a direct connection, or one that conntrack does not know (NOTRACK, or a zone on "
                "the client's leg)"
            )
        else:
            cause = "a direct connection: no rule matched it (`nft list ruleset`)"
        return NotIntercepted(code, f"{peer} -> {me} was not intercepted: {cause}")
    if code == errno.ENOPROTOOPT and engine == "netfilter":
        return CommError(
            code, "SO_ORIGINAL_DST knows TCP only, and needs conntrack: `modprobe nf_conntrack`"
        )
    if code == errno.ENOTSUP:
        return NotIntercepted(code, f"engine {engine!r} tells no original destinations here")
    if engine is None:
        return _not_asked(code)
    why = engines.reason_of(engine, code)
    return CommError(code, f"engine {engine!r} cannot tell of {peer} -> {me}: {why}")


def refusal(code: int, engine: str | None, peer: Any, local: Any) -> CommError:
    """Why a listener of the plane reset the connection from `peer`, which arrived at `local`."""
    if code == errno.ELOOP:
        return NotIntercepted(
            code,
            f"{spell(from_shim(peer))} -> {spell(from_shim(local))} is a loop: a listener of this "
            "process was called by its own name, or the process's own connection was intercepted "
            "(exempt it from the rules by mark, uid or cgroup)",
        )
    origin = ffi.new("struct lc_origin *")
    origin.local, origin.peer = local, peer
    return _failure(code, engine, origin)


def _ask(fd: int, row: int, origin: Any) -> CommError | None:
    err = lib.lc_original(fd, row, origin)
    if err < 0:
        asked = origin.engine if row < 0 else row
        return _failure(-err, None if asked < 0 else engines.name_of(asked), origin)
    if row >= 0 and not origin.translated and engines.name_of(row) not in ("tproxy4", "sockname"):
        # A NAT engine that answers with the socket's own address speaks of a direct connection.
        return _failure(errno.ENOENT, None, origin)
    return None


def original_destination(sock: Any, *, engine: str | None = None) -> Interception:
    """Where the connection on `sock` was going before it was intercepted.

    :param sock: an accepted, connected socket: a ``socket.socket``, an fd, an asyncio transport or
        stream writer, or anything else with ``fileno()`` or ``get_extra_info("socket")``.
    :param engine: ask this engine alone. "sockname" trusts getsockname(2), which ipfw fwd,
        divert-to and AnyIP routes need, and which nothing on the socket can confirm.
    :raises NotIntercepted: a direct connection, or one that no engine knows; also where the
        answer is a listener of this process, or the connection one that this process made itself
        (ELOOP), so that going there would be a loop.
    :raises CommError: the question could not be asked (EBADF, ENOTCONN, a missing device, ...).
    """
    fd = descriptor(sock)
    rows = engines.asked(engine)
    origin = ffi.new("struct lc_origin *")
    failure: CommError | None = None
    for row in rows:
        failure = _ask(fd, row, origin)
        if failure is None:
            break
    if failure is not None:
        raise failure
    name = engines.name_of(origin.engine)
    address = from_shim(origin.original)
    assert address is not None
    if name != "sockname" and origin.own != 0 and _is_listener(origin.original):
        raise NotIntercepted(
            errno.ENOENT,
            f"{spell(from_shim(origin.peer))} -> {spell(address)} was not intercepted: that is a "
            "listener of this process, and going there would be a loop",
        )
    if lib.lc_own_connection(ffi.addressof(origin, "peer"), ffi.addressof(origin, "original")):
        raise NotIntercepted(
            errno.ELOOP,
            f"this process's own connection to {spell(address)} was intercepted: exempt the proxy "
            "from its rules, by the mark of its sockets (comm_open(mark=...)), its uid or cgroup",
        )
    return Interception(address, name, bool(origin.translated))
