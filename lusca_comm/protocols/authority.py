"""The authority of an http URI: what stands in Host, in the target of CONNECT, and behind ``//``.

It is a label that rules and caches go by, so it has one spelling here, and what two readers could
understand differently is refused: user information, percent-encoding, names that resolvers take for
addresses (``0x7f.1``, ``2130706433``).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NamedTuple

__all__ = ["LONGEST", "Authority", "canonical", "parse_authority"]

LONGEST = 260  # bytes: a name of 253, its dot, a port

_SHAPE = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._-]{1,254})(?::([0-9]{0,5}))?")
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label that inet_aton(3) takes for a number


class Authority(NamedTuple):
    """A host and a port."""

    host: str
    """Lower case, without a last dot; an address without brackets, as inet_ntop(3) spells it."""
    port: int | None
    """None: the scheme's."""
    literal: bool
    """Whether the host is an address."""

    def spell(self, default: int = 80) -> bytes:
        """As it stands in a URI; a port that is the `default` is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = self.port if self.port is not None else default
        return (host if port == default else f"{host}:{port}").encode()


def canonical(address: str) -> str:
    """The one spelling of a numeric address, which has no zone; a v4-mapped one is IPv4.

    Raises ValueError where it is none.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


def parse_authority(text: bytes) -> Authority | None:
    """``host``, ``host:port``, ``[address]:port``; None where it is malformed (RFC 9110, 4.2)."""
    return _parsed(text) if len(text) <= LONGEST else None


@functools.lru_cache(maxsize=4096)
def _parsed(text: bytes) -> Authority | None:
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        return None
    host = shape[1].decode().lower()
    port = int(shape[2]) if shape[2] else None  # "host:" has the scheme's port, too
    if port is not None and not 1 <= port <= 65535:
        return None
    if host.startswith("["):
        host = host[1:-1]
    else:
        host = host.removesuffix(".")
        if not _NUMBER.fullmatch(host.rpartition(".")[2]):
            return Authority(host, port, False) if _NAME.fullmatch(host) else None
        if ":" in host:
            return None
    try:
        return Authority(canonical(host), port, True)
    except ValueError:
        return None
