"""What a data plane does with a connection, by where it was going and who began it: rows, the first
that matches."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Sequence
from typing import Any, NamedTuple

from ._shim import ffi, lib
from .errors import CommError

__all__ = ["Rule"]

ACTIONS = {
    "relay": lib.LC_RELAY,
    "spoof": lib.LC_SPOOF,
    "deny": lib.LC_DENY,
    "ask": lib.LC_ASK,
}


_WHOLE = 0xFFFFFFFF


class Rule(NamedTuple):
    """One row of a policy."""

    action: str
    """"relay" under the machine's own name, "spoof" in the client's, "deny" with a reset, "ask"
    (``decide`` is called)."""
    network: str = ""
    """Of the original destination: "198.51.100.0/24", "2001:db8::/32", one address; "": any."""
    ports: int | tuple[int, int] = (0, 65535)
    """One port, or the first and the last of a range."""
    source: str = ""
    """Of the client: a network, as above."""
    mark: int | tuple[int, int] | None = None
    """The accepted socket's SO_MARK, whole or (mark, mask): that of the client's packet, where
    Linux has ``net.ipv4.tcp_fwmark_accept=1``, which TPROXY does not get along with. None: any."""


def table(rules: Sequence[Rule | tuple[Any, ...]], otherwise: str) -> tuple[Any, int]:
    """``struct lc_rule[]`` of `rules` and a last row for what is left, and its length.

    Raises CommError (EINVAL) for a row that makes no sense.
    """
    rows = [Rule(*rule) for rule in rules] + [Rule(otherwise)]
    out = ffi.new("struct lc_rule[]", len(rows))
    for rule, row in zip(rows, out, strict=True):
        if rule.action not in ACTIONS:
            raise CommError(errno.EINVAL, f"{rule.action!r}: one of {', '.join(ACTIONS)}")
        row.action = ACTIONS[rule.action]
        low, high = (rule.ports, rule.ports) if isinstance(rule.ports, int) else rule.ports
        if not 0 <= low <= high <= 65535:
            raise CommError(errno.EINVAL, f"{rule.ports!r} is no port and no range of ports")
        row.low, row.high = low, high
        row.family, row.bits = _network(rule.network, row.ip)
        row.source_family, row.source_bits = _network(rule.source, row.source)
        row.mark, row.mask = _mark(rule.mark)
    return out, len(rows)


def _network(text: str, ip: Any) -> tuple[int, int]:
    """Family and prefix length; the address goes into `ip`."""
    if not text:
        return 0, 0
    try:
        network = ipaddress.ip_network(text)
    except ValueError as why:
        raise CommError(errno.EINVAL, str(why)) from why
    ffi.memmove(ip, network.network_address.packed, network.max_prefixlen // 8)
    return network.version, network.prefixlen


def _mark(given: int | tuple[int, int] | None) -> tuple[int, int]:
    if given is None:
        return 0, 0
    mark, mask = (given, _WHOLE) if isinstance(given, int) else given
    # 0 is what has no mark, or none that is known.
    if not (0 < mark <= mask <= _WHOLE and mark & mask == mark):
        raise CommError(errno.EINVAL, f"{given!r}: a mark from 1 to {_WHOLE:#x}, within its mask")
    return mark, mask
