"""What a data plane does with a connection, by where it was going: rows, the first that matches."""

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


class Rule(NamedTuple):
    """One row of a policy."""

    action: str
    """"relay" under the machine's own name, "spoof" in the client's, "deny" with a reset, "ask"
    (``decide`` is called)."""
    network: str = ""
    """Of the original destination: "198.51.100.0/24", "2001:db8::/32", one address; "": any."""
    ports: int | tuple[int, int] = (0, 65535)
    """One port, or the first and the last of a range."""


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
        if rule.network:
            try:
                network = ipaddress.ip_network(rule.network)
            except ValueError as why:
                raise CommError(errno.EINVAL, str(why)) from why
            row.family, row.bits = network.version, network.prefixlen
            ffi.memmove(row.ip, network.network_address.packed, network.max_prefixlen // 8)
    return out, len(rows)
