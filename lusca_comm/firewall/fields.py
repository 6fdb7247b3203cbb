"""What of a packet the rules compare: nftables' names, how to load it, and how values look.

Each function makes one :class:`.statements.Match`. Numbers are those of
include/uapi/linux/netfilter/nf_tables.h and of nft's data types (``nft describe``), which sets
carry so that nft can print them.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from .checks import Network, PortRange
from .statements import REG1, Expr, Field, Match, Value, compare, expr, host32

_Order = Literal["big", "little"]
_HOST: Final[_Order] = sys.byteorder
_TRANSPORT: Final = 2
_NETWORK: Final = 1


def _meta(key: int) -> Expr:
    return expr("meta", dreg=REG1, key=key)


def _payload(base: int, offset: int, size: int) -> Expr:
    return expr("payload", dreg=REG1, base=base, offset=offset, len=size)


def _socket(key: int, **more: int) -> Expr:
    return expr("socket", key=key, dreg=REG1, **more)


def _number(order: _Order) -> Callable[[Value], str]:
    return lambda value: str(int.from_bytes(value[0], order))


def _word(words: dict[str, int], order: _Order) -> Callable[[Value], str]:
    names = {number: word for word, number in words.items()}
    return lambda value: names[int.from_bytes(value[0], order)]


def _show_name(value: Value) -> str:
    return f'"{value[0].rstrip(bytes(1)).decode()}"'


def _show_ports(value: Value) -> str:
    low, high = (int.from_bytes(end, "big") for end in value)
    return f"{low}" if low == high else f"{low}-{high}"


def _show_network(value: Value) -> str:
    low, high = value
    varying = int.from_bytes(low, "big") ^ int.from_bytes(high, "big")
    length = "" if not varying else f"/{8 * len(low) - varying.bit_length()}"
    return f"{ipaddress.ip_address(low)}{length}"


_PROTOCOLS: Final = {"tcp": 6, "udp": 17}
_FAMILIES: Final = {"ipv4": 2, "ipv6": 10}
_TYPES: Final = {"unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5}

_IIFNAME: Final = Field("iifname", (_meta(6),), 16, 41, (3, 13), _show_name, host=True)
_OIFNAME: Final = Field("oifname", (_meta(7),), 16, 41, (3, 13), _show_name, host=True)
_NFPROTO: Final = Field("meta nfproto", (_meta(15),), 1, 2, (3, 14), _word(_FAMILIES, "big"))
_L4PROTO: Final = Field("meta l4proto", (_meta(16),), 1, 12, (3, 14), _word(_PROTOCOLS, "big"))
_SKUID: Final = Field("meta skuid", (_meta(10),), 4, 24, (3, 13), _number(_HOST), host=True)
_SKGID: Final = Field("meta skgid", (_meta(11),), 4, 25, (3, 13), _number(_HOST), host=True)
_CLASSID: Final = Field("meta cgroup", (_meta(23),), 4, 4, (3, 19), _number(_HOST), host=True)
_DIRECTION: Final = Field(
    "ct direction",
    (expr("ct", dreg=REG1, key=1),),
    1,
    27,
    (3, 13),
    _word({"original": 0, "reply": 1}, "big"),
)
_TYPE: Final = {
    which: Field(
        f"fib {which} type",
        (expr("fib", dreg=REG1, result=3, flags=flag),),
        4,
        38,
        (4, 10),
        _word(_TYPES, _HOST),
        host=True,
    )
    for which, flag in (("saddr", 1), ("daddr", 2))
}
_TRANSPARENT: Final = Field("socket transparent", (_socket(0),), 1, 39, (4, 18), _number("big"))
_WILDCARD: Final = Field("socket wildcard", (_socket(2),), 1, 39, (5, 11), _number("big"))
_OFFSETS: Final = {"saddr": (12, 8), "daddr": (16, 24)}
_ADDRESS: Final = {
    (which, version): Field(
        f"{'ip' if version == 4 else 'ip6'} {which}",
        (
            _meta(15),
            compare(0, bytes([_FAMILIES[f"ipv{version}"]])),
            _payload(_NETWORK, offset, 4 if version == 4 else 16),
        ),
        4 if version == 4 else 16,
        7 if version == 4 else 8,
        (3, 14),
        _show_network,
        intervals=True,
        prefixes=True,
    )
    for which, offsets in _OFFSETS.items()
    for version, offset in zip((4, 6), offsets, strict=True)
}


def _port(protocol: str, which: str, offset: int) -> Field:
    load = (_meta(16), compare(0, bytes([_PROTOCOLS[protocol]])), _payload(_TRANSPORT, offset, 2))
    return Field(f"{protocol} {which}", load, 2, 13, (3, 14), _show_ports, intervals=True)


def _same(field: Field, values: Iterable[bytes]) -> Match:
    """A match of single values, in the order in which nft prints them: as numbers."""
    order = _HOST if field.host else "big"
    ordered = sorted(set(values), key=lambda value: int.from_bytes(value, order))
    return Match(field, tuple((value, value) for value in ordered))


def iifname(names: Iterable[str]) -> Match:
    return _same(_IIFNAME, (name.encode().ljust(16, b"\0") for name in names))


def oifname(names: Iterable[str]) -> Match:
    return _same(_OIFNAME, (name.encode().ljust(16, b"\0") for name in names))


def nfproto(family: str) -> Match:
    return _same(_NFPROTO, [bytes([_FAMILIES[family]])])


def l4proto(protocol: str) -> Match:
    return _same(_L4PROTO, [bytes([_PROTOCOLS[protocol]])])


def skuid(uids: Iterable[int]) -> Match:
    return _same(_SKUID, map(host32, uids))


def skgid(gids: Iterable[int]) -> Match:
    return _same(_SKGID, map(host32, gids))


def classid(number: int) -> Match:
    return _same(_CLASSID, [host32(number)])


def cgroup_path(path: str, identity: int) -> Match:
    """``identity``: the inode number of the cgroup's directory; the text doesn't need it."""
    level = path.count("/") + 1
    field = Field(
        f"socket cgroupv2 level {level}",
        (_socket(3, level=level),),
        8,
        46,
        (5, 13),
        lambda _: f'"{path}"',
        host=True,
    )
    return _same(field, [struct.pack("=Q", identity)])


def original_direction() -> Match:
    """The packet goes the way of its connection's first one."""
    return _same(_DIRECTION, [b"\0"])


def reply_direction() -> Match:
    return _same(_DIRECTION, [b"\1"])


def address_type(which: Literal["saddr", "daddr"], types: Iterable[str]) -> Match:
    """What this machine's routing tables say the address is: ``local`` and so on."""
    return _same(_TYPE[which], (host32(_TYPES[word]) for word in types))


def transparent() -> Match:
    """A socket here has this connection (or listens for it) and has IP_TRANSPARENT."""
    return _same(_TRANSPARENT, [b"\1"])


def wildcard() -> Match:
    """That socket listens on a wildcard address. No match at all for a socket in TIME_WAIT or
    before its third handshake packet: asking for "not a wildcard" would lose those."""
    return _same(_WILDCARD, [b"\1"])


def addresses(
    which: Literal["saddr", "daddr"], networks: Sequence[Network], known: bool = False
) -> Match:
    """Networks of one family, sorted, none empty. ``known``: a match before this one has made sure
    of the family, which nft then doesn't ask for again."""
    field = _ADDRESS[which, networks[0].version]
    if known:
        field = dataclasses.replace(field, load=field.load[2:])
    ends = ((net.network_address.packed, net.broadcast_address.packed) for net in networks)
    return Match(field, tuple(ends))


def destination_port(protocol: str, ranges: Sequence[PortRange]) -> Match:
    return Match(_port(protocol, "dport", 2), _pack_ports(ranges))


def source_port(protocol: str, ranges: Sequence[PortRange]) -> Match:
    return Match(_port(protocol, "sport", 0), _pack_ports(ranges))


def _pack_ports(ranges: Sequence[PortRange]) -> tuple[Value, ...]:
    return tuple((struct.pack(">H", low), struct.pack(">H", high)) for low, high in ranges)
