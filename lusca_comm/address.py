"""Addresses between Python's tuples and the shim's ``struct lc_addr``.

In: ``(host, port)`` or, for IPv6, ``(host, port, flowinfo, scope_id)``; hosts are numeric, and
``fe80::1%eth0`` is understood. Out: ``(host, port)``; the 4-tuple only where a scope must be kept
(link-local addresses). A v4-mapped IPv6 address comes out as IPv4.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, TypeAlias

from ._shim import ffi
from .errors import CommError

Address: TypeAlias = tuple[Any, ...]
"""``(host, port)``, or ``(host, port, flowinfo, scope_id)``."""

_MAPPED = b"\x00" * 10 + b"\xff\xff"


def _parse_host(host: str) -> tuple[int, bytes, int]:
    """The family (4 or 6), the packed address and the scope of a numeric host."""
    text, percent, zone = host.partition("%")
    scope = 0
    if percent:
        try:
            scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
        except OSError as why:
            text = f"{host!r}: no interface {zone!r}: see `ip link`"
            raise CommError(errno.ENODEV, text) from why
    try:
        if ":" not in text:
            return 4, socket.inet_pton(socket.AF_INET, text), scope
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError) as why:
        raise CommError(
            errno.EINVAL, f"{host!r} is not a numeric address: resolve names before the call"
        ) from why
    if packed.startswith(_MAPPED):
        return 4, packed[12:], 0
    return 6, packed, scope


def to_shim(address: Any, into: Any = None) -> Any:
    """Fills a ``struct lc_addr`` (a new one unless given) from an address tuple.

    Raises TypeError for what is not an address tuple, CommError (EINVAL) for a host that is not
    numeric or a port outside 0-65535.
    """
    if not isinstance(address, tuple | list) or len(address) not in (2, 4):
        raise TypeError(f"an address is (host, port) or, for IPv6, a 4-tuple; not {address!r}")
    host, port, *rest = address
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"an address is (str, int), not {address!r}")
    if not 0 <= port <= 65535:
        raise CommError(errno.EINVAL, f"port {port} is outside 0-65535")
    family, packed, scope = _parse_host(host)
    out = ffi.new("struct lc_addr *") if into is None else into
    out.family = family
    out.port = port
    ffi.memmove(out.ip, packed, len(packed))
    if family == 6:
        try:
            if rest:
                out.flow, out.scope = rest
        except (OverflowError, TypeError) as why:
            text = f"flow label or scope out of range in {address!r}"
            raise CommError(errno.EINVAL, text) from why
        if scope:
            out.scope = scope
    return out


def from_shim(addr: Any) -> Address | None:
    """The tuple of a ``struct lc_addr``; None where the socket has no internet address."""
    if addr.family == 4:
        return socket.inet_ntop(socket.AF_INET, ffi.buffer(addr.ip)[0:4]), addr.port
    if addr.family == 6:
        host = socket.inet_ntop(socket.AF_INET6, ffi.buffer(addr.ip)[0:16])
        return (host, addr.port, addr.flow, addr.scope) if addr.scope else (host, addr.port)
    return None


def spell(address: Address | None) -> str:
    """``host:port`` for messages, with brackets around an IPv6 host."""
    if address is None:
        return "no address"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def descriptor(thing: Any) -> int:
    """The descriptor of a plain fd, of anything with ``fileno()``, or of an asyncio transport,
    writer or other object whose ``get_extra_info("socket")`` knows one.

    Raises TypeError where there is none, CommError (EBADF) where it is closed.
    """
    if isinstance(thing, int) and not isinstance(thing, bool):
        fd = thing
    else:
        if not hasattr(thing, "fileno") and hasattr(thing, "get_extra_info"):
            thing = thing.get_extra_info("socket")
        try:
            fd = thing.fileno()
        except AttributeError:
            raise TypeError(f"no socket in {thing!r}: an fd or an object with fileno()") from None
        except ValueError:  # io objects say so when they are closed
            fd = -1
        if not isinstance(fd, int):
            raise TypeError(f"fileno() of {thing!r} is no number")
    if fd < 0:
        raise CommError(errno.EBADF, f"{thing!r} is closed")
    return fd
