"""Addresses that a proxy must not be talked into, because only its own machine has them."""

from __future__ import annotations

import functools
import ipaddress

from .authority import canonical

__all__ = ["may_reach"]


@functools.lru_cache(maxsize=4096)
def may_reach(address: str) -> bool:
    """False for loopback, unspecified, link-local (cloud metadata is there), multicast and
    broadcast addresses."""
    ip = ipaddress.ip_address(canonical(address))
    return not (
        ip.is_loopback
        or ip.is_unspecified
        or ip.is_link_local
        or ip.is_multicast
        or (ip.packed[:1] == b"\0" and ip.version == 4)
        or ip.packed == b"\xff\xff\xff\xff"
    )
