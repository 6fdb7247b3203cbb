"""The engine table seen from Python: what is there, what is chosen, and why.

An engine is one kernel mechanism (csrc/engine_*.c). Which one answers is decided per connection in
C; the environment variable ``LUSCA_COMM_ENGINE`` (a name, or several separated by commas) overrides
that for every ability the named engines have.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from ._shim import ffi, lib
from .errors import CommError

__all__ = ["Engine", "engines", "named", "spoofer"]

_ABILITIES = {
    "lookup": lib.LC_CAN_LOOKUP,
    "listen": lib.LC_CAN_LISTEN,
    "spoof": lib.LC_CAN_SPOOF,
    "tcp": lib.LC_CAN_TCP,
    "udp": lib.LC_CAN_UDP,
    "ipv4": lib.LC_CAN_V4,
    "ipv6": lib.LC_CAN_V6,
    "named only": lib.LC_NAMED_ONLY,
}

# (the kernel's SIOCGNATL, measured on FreeBSD 14)
_PANICS = (
    "on a stock FreeBSD kernel its lookup (SIOCGNATL) panics the machine, because "
    "ipf_nat_lookupredir leaves fin_main_soft unset: "
)

_SAYS = {
    ("netfilter", errno.ENOPROTOOPT): "the kernel has no conntrack: `modprobe nf_conntrack`",
    ("tproxy2", errno.ENOPROTOOPT): "the kernel has no IP_TPROXY (Balabit's cttproxy patch)",
    ("tproxy2", errno.EINVAL): "the kernel's cttproxy is not of version 2.0",
    ("tproxy4", errno.ENOPROTOOPT): "the kernel has no IP_TRANSPARENT (Linux 2.6.28 or newer)",
    ("pf", errno.ENXIO): "there is no /dev/pf: `kldload pf`, on NetBSD `modload pf`",
    ("pf", errno.EACCES): "/dev/pf is root's: open the listener before privileges are dropped",
    ("pf", errno.E2BIG): "more than one state fits (`pfctl -s state`)",
    ("ipfilter", errno.ECANCELED): "not even probed unless LUSCA_COMM_ENGINE names it",
    ("ipfilter", errno.ENXIO): "there is no /dev/ipnat: `kldload ipl`, on NetBSD `modload ipl`",
    ("ipfilter", errno.EACCES): "/dev/ipnat is root's: open the listener before privileges are "
    "dropped",
}


class Engine(NamedTuple):
    """One row of the table."""

    name: str
    row: int
    abilities: frozenset[str]
    """Of lookup, listen, spoof, tcp, udp, ipv4, ipv6; "named only": never chosen by itself."""
    errno: int
    """0 where the engine works on this machine, else what its probe answered."""

    @property
    def reason(self) -> str:
        """Why the engine is absent; "" where it works."""
        return reason_of(self.name, self.errno)


def reason_of(name: str, code: int) -> str:
    """What `code`, an errno, means where the engine `name` says it; "" for 0."""
    if code == 0:
        return ""
    if code == errno.ENOTSUP:
        return "not a mechanism of this system"
    why = _SAYS.get((name, code), os.strerror(code))
    if name == "ipfilter" and ffi.string(lib.lc_system()) == b"freebsd":
        return _PANICS + why
    return why


_NAMES: tuple[str, ...] = tuple(
    ffi.string(lib.lc_engine_name(row)).decode() for row in range(lib.lc_engine_count())
)
_ROWS: dict[str, int] = {name: row for row, name in enumerate(_NAMES)}
_CAN: tuple[int, ...] = tuple(lib.lc_engine_abilities(row) for row in range(len(_NAMES)))


def name_of(row: int) -> str:
    return _NAMES[row]


def row_of(name: str) -> int:
    """Raises CommError (EINVAL) for a name that is no engine's."""
    try:
        return _ROWS[name]
    except (KeyError, TypeError):
        raise CommError(errno.EINVAL, f"no engine {name!r}: one of {', '.join(_NAMES)}") from None


def check_told(name: str) -> None:
    """Raises CommError for an engine that can tell no original destination: EINVAL there is none of
    that name; ENOTSUP it is another system's."""
    found = engine(row_of(name))
    if "lookup" not in found.abilities or found.errno == errno.ENOTSUP:
        raise CommError(errno.ENOTSUP, f"engine {name!r} tells no original destinations here")


def _named() -> list[str]:
    return [name.strip() for name in os.environ.get("LUSCA_COMM_ENGINE", "").split(",")]


def engine(row: int) -> Engine:
    """The row, probed; one that may be harmful only if LUSCA_COMM_ENGINE names it."""
    can = frozenset(name for name, bit in _ABILITIES.items() if _CAN[row] & bit)
    probe = lib.lc_engine_open if _NAMES[row] in _named() else lib.lc_engine_probe
    return Engine(_NAMES[row], row, can, -probe(row))


def engines() -> tuple[Engine, ...]:
    """Every engine in the order in which they are asked, probed on this machine."""
    return tuple(engine(row) for row in range(len(_NAMES)))


def named(ability: str) -> tuple[int, ...]:
    """The rows that LUSCA_COMM_ENGINE names and that have `ability`; () where it names none."""
    rows = tuple(row_of(name) for name in _named() if name)
    return tuple(row for row in rows if _CAN[row] & _ABILITIES[ability])


def asked(name: str | None) -> tuple[int, ...]:
    """The rows to ask where a connection was going: that of `name`; else those that
    LUSCA_COMM_ENGINE names; else (-1,), found out per connection.

    Raises CommError (EINVAL) for a name that is no engine's."""
    return (row_of(name),) if name is not None else named("lookup") or (-1,)


_SPOOFERS: dict[tuple[str | None, str], int] = {}
"""Rows that have worked, by what the environment names: probing takes system calls."""


def spoofer(ability: str) -> int:
    """The row that grants foreign addresses on this machine ("listen" or "spoof").

    Raises CommError: ENOTSUP where no engine does, EMFILE or ENFILE where that cannot be found out.
    """
    wanted = os.environ.get("LUSCA_COMM_ENGINE"), ability
    if wanted in _SPOOFERS:
        return _SPOOFERS[wanted]
    bit = _ABILITIES[ability]
    rows = named(ability) or [
        row for row, can in enumerate(_CAN) if can & bit and not can & lib.LC_NAMED_ONLY
    ]
    found = []
    for row in rows:
        one = engine(row)
        if one.errno == 0:
            _SPOOFERS[wanted] = row
            return row
        if one.errno in (errno.EMFILE, errno.ENFILE):
            raise CommError(one.errno, f"engine {one.name!r} cannot be probed: {one.reason}")
        found.append(one)
    why = "; ".join(f"{one.name}: {one.reason}" for one in found)
    raise CommError(errno.ENOTSUP, f"no engine can {ability} for foreign addresses here ({why})")


def probe_nat() -> None:
    """Opens and probes the NAT engines, so that their devices are open before privileges drop.

    Raises CommError with the engine's errno where none works, or where one is there and may not
    be asked: "sockname" always works on BSD, and would hide that PF cannot be.
    """
    bit, barred = lib.LC_CAN_LOOKUP, lib.LC_CAN_LISTEN | lib.LC_NAMED_ONLY
    chosen = named("lookup")
    found = [
        engine(row)
        for row in chosen or [row for row, can in enumerate(_CAN) if can & bit and not can & barred]
    ]
    closed = not chosen and any(one.errno in (errno.EACCES, errno.EPERM) for one in found)
    if any(one.errno == 0 for one in found) and not closed:
        return
    why = "; ".join(f"{one.name}: {one.reason}" for one in found if one.errno)
    code = next((one.errno for one in found if one.errno not in (0, errno.ENOTSUP)), errno.ENOTSUP)
    raise CommError(code, f"no NAT engine can tell original destinations here ({why})")
