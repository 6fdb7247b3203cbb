"""The sockets of this network namespace that take what is new, as the kernel tells anybody:
sock_diag(7).

Numbers: include/uapi/linux/inet_diag.h, include/net/tcp_states.h.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lusca_comm.firewall.plan import Protocol

__all__ = ["Listener", "listeners"]

# A UDP socket without a peer is in the state "close".
_WAITING = {"tcp": (socket.IPPROTO_TCP, 10), "udp": (socket.IPPROTO_UDP, 7)}
_SOCKOPT = 22
# struct inet_diag_sockopt is bit fields: the sixth, from whichever end the compiler begins.
_TRANSPARENT = 1 << 5 if sys.byteorder == "little" else 1 << 2


@dataclass(frozen=True)
class Listener:
    """One such socket. ``families``: whose connections or datagrams it takes."""

    host: str
    port: int
    families: tuple[str, ...]
    transparent: bool | None
    """Whether IP_TRANSPARENT is set; None where the kernel (before 5.10) does not tell."""


def listeners(port: int, protocol: Protocol = "tcp") -> list[Listener]:
    """Every socket that listens on the TCP port, or has the UDP port and no peer."""
    from pyroute2 import DiagSocket

    with DiagSocket() as diag:
        return [
            listener
            for family in (socket.AF_INET, socket.AF_INET6)
            for listener in _of_family(diag, family, protocol)
            if listener.port == port
        ]


def _of_family(diag: Any, family: int, protocol: Protocol) -> Iterator[Listener]:
    number, state = _WAITING[protocol]
    for found in diag.get_sock_stats(family=family, states=1 << state, protocol=number):
        host = found["idiag_src"]
        both = host == "::" and found.get_attr("INET_DIAG_SKV6ONLY") == 0
        own = "ipv4" if family == socket.AF_INET else "ipv6"
        yield Listener(
            host,
            found["idiag_sport"],
            ("ipv4", "ipv6") if both else (own,),
            _transparent(found),
        )


def _transparent(found: Any) -> bool | None:
    for slot in found["attrs"]:
        # pyroute2 0.9.7 has no name for INET_DIAG_SOCKOPT: it keeps the bytes, header and all.
        if slot.nla["header"]["type"] == _SOCKOPT:
            return bool(slot.nla.data[slot.nla.offset + 4] & _TRANSPARENT)
    return None
