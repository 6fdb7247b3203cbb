"""The listening TCP sockets of this network namespace, as the kernel tells anybody: sock_diag(7).

Numbers: include/uapi/linux/sock_diag.h, inet_diag.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from lusca_comm.firewall.netlink import Message, Netlink, unpack

__all__ = ["Listener", "listeners"]

_SOCK_DIAG, _BY_FAMILY = 4, 20
_LISTEN = 10
_MSG = struct.Struct("=4B")  # family, state, timer, retransmissions; then struct inet_diag_sockid
_MSG_SIZE = 72
_SKV6ONLY, _SOCKOPT = 11, 22
# struct inet_diag_sockopt is bit fields: the sixth, from whichever end the compiler begins.
_TRANSPARENT = 1 << 5 if sys.byteorder == "little" else 1 << 2


@dataclass(frozen=True)
class Listener:
    """One listening socket. ``families``: whose connections it takes."""

    host: str
    port: int
    families: tuple[str, ...]
    transparent: bool | None
    """Whether IP_TRANSPARENT is set; None where the kernel (before 5.10) does not tell."""


def listeners(port: int) -> list[Listener]:
    """Every socket that listens on the TCP port. Raises CommError where the kernel can't tell."""
    with Netlink(_SOCK_DIAG) as diag:
        return [
            listener
            for family in (socket.AF_INET, socket.AF_INET6)
            for listener in _of_family(diag, family)
            if listener.port == port
        ]


def _of_family(diag: Netlink, family: int) -> Iterator[Listener]:
    # inet_diag_req_v2: family, protocol, extensions, padding, states, struct inet_diag_sockid
    request = struct.pack("=4BI", family, socket.IPPROTO_TCP, 0, 0, 1 << _LISTEN) + bytes(48)
    for kind, body in diag.dump(Message(_BY_FAMILY, 0, request, ())):
        if kind != _BY_FAMILY:
            continue
        (port,) = struct.unpack_from(">H", body, _MSG.size)
        size = 4 if family == socket.AF_INET else 16
        host = socket.inet_ntop(family, body[_MSG.size + 4 : _MSG.size + 4 + size])
        attrs = dict(unpack(body[_MSG_SIZE:]))
        options = attrs.get(_SOCKOPT)
        both = host == "::" and attrs.get(_SKV6ONLY) == b"\0"
        own = "ipv4" if family == socket.AF_INET else "ipv6"
        yield Listener(
            host,
            port,
            ("ipv4", "ipv6") if both else (own,),
            bool(options[0] & _TRANSPARENT) if options else None,
        )
