"""Addresses between Python's tuples and the shim's ``struct lc_addr``.

In: ``(host, port)`` or, for IPv6, ``(host, port, flowinfo, scope_id)``; hosts are numeric, and
``fe80::1%eth0`` is understood. Out: ``(host, port)``; the 4-tuple only where a scope must be kept
(link-local addresses). A v4-mapped IPv6 address comes out as IPv4.
"""

from __future__ import annotations

import errno
import functools
import io
import socket
from typing import Any, TypeAlias

from ._shim import ffi
from .errors import CommError

Address: TypeAlias = tuple[Any, ...]
"""``(host, port)``, or ``(host, port, flowinfo, scope_id)``."""

_MAPPED = b"\x00" * 10 + b"\xff\xff"


def _scope_of(host: str, zone: str) -> int:
    """The interface index that a zone (RFC 4007: a name or a number) stands for."""
    if zone.isascii() and zone.isdigit():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except (OSError, ValueError) as why:
        raise CommError(errno.ENODEV, f"{host!r}: no interface {zone!r}: see `ip link`") from why


def _parse_host(host: str) -> tuple[int, bytes, int]:
    """The family (4 or 6), the packed address and the scope of a numeric host."""
    text, percent, zone = host.partition("%")
    try:
        if ":" not in host:
            return 4, socket.inet_pton(socket.AF_INET, host), 0
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError) as why:
        raise CommError(
            errno.EINVAL, f"{host!r} is not a numeric address: resolve names before the call"
        ) from why
    scope = _scope_of(host, zone) if percent else 0
    if packed.startswith(_MAPPED):
        return 4, packed[12:], 0
    return 6, packed, scope


def to_shim(address: Any, into: Any = None) -> Any:
    """Fills a ``struct lc_addr`` (a new one unless given) from an address tuple.

    Raises TypeError for what is not an address tuple, CommError: EINVAL for a host that is not
    numeric, a port outside 0-65535, or a flow label or scope out of range; ENODEV for a zone that
    is no interface.
    """
    if not isinstance(address, tuple | list) or len(address) not in (2, 4):
        raise TypeError(f"an address is (host, port) or, for IPv6, a 4-tuple; not {address!r}")
    host, port, *rest = address
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"an address is (str, int), not {address!r}")
    if not 0 <= port <= 65535:
        raise CommError(errno.EINVAL, f"port {port} is outside 0-65535")
    family, packed, zone = _parse_host(host)
    flow, scope = rest or (0, 0)
    if not (isinstance(flow, int) and isinstance(scope, int)):
        raise TypeError(f"flow label and scope are numbers, not {address!r}")
    scope = zone or scope
    if not 0 <= flow <= 0xFFFFF or not 0 <= scope <= 0xFFFFFFFF:
        raise CommError(errno.EINVAL, f"flow label or scope is out of range in {address!r}")
    out = ffi.new("struct lc_addr *") if into is None else into
    out.family = family
    out.port = port
    ffi.memmove(out.ip, packed, len(packed))
    if family == 6:
        out.flow, out.scope = flow, scope
    return out


@functools.lru_cache(maxsize=256)
def _kept(address: Address, _types: tuple[type, ...]) -> Any:
    return to_shim(address)


def shim_of(address: Any) -> Any:
    """:func:`to_shim` for a place to go: many connections go to the same few. The structure is
    shared, so nobody writes to it."""
    if type(address) is not tuple:
        return to_shim(address)
    try:
        return _kept(address, tuple(map(type, address)))  # True is equal to 1, and is no port
    except TypeError:
        return to_shim(address)


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


def holder(thing: Any) -> Any:
    """What has the descriptor: `thing` itself, or the socket within an asyncio transport or stream
    writer (``get_extra_info("socket")``). Raises CommError (EBADF) where that is closed."""
    if isinstance(thing, int) or hasattr(thing, "fileno") or not hasattr(thing, "get_extra_info"):
        return thing
    sock = thing.get_extra_info("socket")
    if sock is None:
        raise CommError(errno.EBADF, f"{thing!r} is closed, or has no socket")
    return sock


def descriptor(thing: Any) -> int:
    """The descriptor of a plain fd, of anything with ``fileno()``, or of an asyncio transport or
    stream writer.

    Raises TypeError where there is none, CommError (EBADF) where it is closed.
    """
    if isinstance(thing, int) and not isinstance(thing, bool):
        fd = thing
    else:
        try:
            fd = holder(thing).fileno()
        except (AttributeError, io.UnsupportedOperation):
            raise TypeError(f"no socket in {thing!r}: an fd or an object with fileno()") from None
        except ValueError:  # io objects say so when they are closed
            fd = -1
        if not isinstance(fd, int):
            raise TypeError(f"fileno() of {thing!r} is no number")
    if not 0 <= fd <= 0x7FFFFFFF:
        text = f"{fd} is no descriptor" if fd == thing else f"{thing!r} is closed"
        raise CommError(errno.EBADF, text)
    return fd
