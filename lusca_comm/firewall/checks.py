"""The checks that a plan's values pass, each one CommError(EINVAL) that names the field."""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

from lusca_comm.errors import CommError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
PortRange: TypeAlias = tuple[int, int]
WHOLE_MARK: Final = 0xFFFFFFFF


def bad(text: str) -> CommError:
    return CommError(errno.EINVAL, f"firewall plan: {text}")


def assign(target: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(target, name, value)


def sequence(field: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise bad(f"{field}: a sequence, not {value!r}")
    return tuple(value)


def number(field: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise bad(f"{field}: a number from {low} to {high}, not {value!r}")


def mark(field: str, mark: Any, mask: Any) -> int:
    """The mask, whole if there is none."""
    number(f"{field}mark", mark, 1, WHOLE_MARK)
    if mask is None:
        return WHOLE_MARK
    number(f"{field}mask", mask, 1, WHOLE_MARK)
    if mark & ~mask:
        raise bad(f"{field}mark {mark:#x} has bits outside its mask {mask:#x}")
    return int(mask)


def choice(field: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise bad(f"{field}: one of {', '.join(allowed)}, not {value!r}")


def path(field: str, group: str) -> None:
    # The quoted string of nftables has no escapes; the kernel's levels are single path parts.
    parts = group.split("/")
    if not re.fullmatch(r'[^"\x00-\x1f\x7f]+', group) or not all(parts) or {".", ".."} & {*parts}:
        raise bad(f"{field}: a path such as 'system.slice/proxy.service', not {group!r}")


def table_name(name: Any) -> None:
    # 16: it begins the names of iptables chains, which have at most 28 bytes (man iptables).
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,15}", name):
        raise bad(f"name {name!r}: a letter, then letters, digits and _, at most 16")


def names(field: str, value: Any) -> tuple[str, ...]:
    given = sequence(field, value)
    for name in given:
        # IFNAMSIZ is 16 with the NUL. The kernel refuses "/", ":" and white space; "*" is a
        # wildcard and '"' and "\\" are quoting to nft.
        if (
            not isinstance(name, str)
            or not re.fullmatch(r'[^\s/:"*\\\x00-\x1f\x7f]{1,15}', name, re.ASCII)
            or len(name.encode()) > 15
            or name in (".", "..")
        ):
            raise bad(f"{field}: interface names of at most 15 bytes, not {name!r}")
        if name == "lo":
            raise bad(f"{field}: lo carries the machine's own traffic; own=True is for that")
    return tuple(sorted(set(given)))


def listener(field: str, value: Any, of: Callable[[str], Any]) -> str | None:
    if value is None:
        return None
    try:
        address = of(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None or getattr(address, "scope_id", None):
        raise bad(f"{field}: a numeric address, not {value!r}")
    return None if address.is_unspecified else str(address)


def networks(values: tuple[Any, ...]) -> tuple[Network, ...]:
    nets: list[Network] = []
    for value in values:
        try:
            if isinstance(value, (bool, int, bytes)):
                raise ValueError
            nets.append(ipaddress.ip_network(value))
        except ValueError:
            raise bad(
                f"bypass: a network such as 10.0.0.0/8 or 2001:db8::/32, not {value!r}"
            ) from None
    v4 = [net for net in nets if isinstance(net, ipaddress.IPv4Network)]
    v6 = [net for net in nets if isinstance(net, ipaddress.IPv6Network)]
    return (*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6))


def ranges(field: str, value: Any) -> tuple[PortRange, ...]:
    pairs = []
    for item in sequence(field, value):
        first, last = item if isinstance(item, tuple) and len(item) == 2 else (item, item)
        number(field, first, 1, 65535)
        number(field, last, 1, 65535)
        if first > last:
            raise bad(f"{field}: {first} to {last} runs backwards")
        pairs.append((first, last))
    merged: list[PortRange] = []
    for first, last in sorted(pairs):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def subtract(ranges: tuple[PortRange, ...], holes: tuple[PortRange, ...]) -> tuple[PortRange, ...]:
    for low, high in holes:
        ranges = tuple(
            piece
            for first, last in ranges
            for piece in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if piece[0] <= piece[1]
        )
    return ranges
