"""The parts of nftables rules: each one prints as nft prints it and builds what the kernel takes.

Attributes have the names, and their values the numbers, of
include/uapi/linux/netfilter/nf_tables.h. The forms of the text are those in which ``nft list``
(1.0.6) prints the very expressions built here. Nothing here does I/O.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import struct
from collections.abc import Callable, Iterator
from typing import ClassVar, Final, TypeAlias, Union

Attrs: TypeAlias = tuple[tuple[str, Union[int, str, bytes, frozenset[str], "Attrs"]], ...]
"""Attributes of netlink by name; a value that is attributes itself is a nest."""

Version: TypeAlias = tuple[int, ...]
Value: TypeAlias = tuple[bytes, bytes]
"""The first and the last value of an inclusive range, both as the kernel compares them."""

Element: TypeAlias = tuple[bytes, bool]
"""An element of a set, and whether it ends an interval (which doesn't hold it)."""

_VERDICT: Final = 0
REG1: Final = 1
_REG2: Final = 2
_MARK: Final = 3
_CODES: Final = {"accept": 1, "jump": -3, "return": -5}
WHOLE: Final = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Expr:
    """One expression of nf_tables: its kind, and the attributes of NFTA_EXPR_DATA."""

    name: str
    attrs: Attrs


def expr(name: str, **attrs: int | str | bytes | frozenset[str] | Attrs) -> Expr:
    """``expr("meta", key=3)`` has the attribute NFTA_META_KEY with 3 in it, and so on."""
    prefix = f"NFTA_{name.upper()}_"
    return Expr(name, tuple((prefix + key.upper(), value) for key, value in attrs.items()))


@dataclasses.dataclass(frozen=True)
class AnonymousSet:
    """The set behind ``{ a, b }`` in a rule. ``number`` is unique in its table."""

    number: int
    field: Field
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        return f"__set{self.number}"

    def elements(self) -> tuple[Element, ...]:
        """An interval is its first value and, as an end, the one after its last. As nft does, an
        end at 0 opens the list: the trees of old kernels need it."""
        if not self.field.intervals:
            return tuple((low, False) for low, _ in self.values)
        size = self.field.size
        made = [] if self.values[0][0] == bytes(size) else [(bytes(size), True)]
        for low, high in self.values:
            made.append((low, False))
            after = int.from_bytes(high, "big") + 1
            if after < 1 << 8 * size:
                made.append((after.to_bytes(size, "big"), True))
        return tuple(made)


class Sets:
    """Hands out the numbers of the anonymous sets of one table, in the order of its rules."""

    def __init__(self) -> None:
        self.made: list[AnonymousSet] = []

    def add(self, field: Field, values: tuple[Value, ...]) -> AnonymousSet:
        made = AnonymousSet(len(self.made), field, values)
        self.made.append(made)
        return made


@dataclasses.dataclass(frozen=True)
class Field:
    """Something of a packet that a rule compares.

    ``load`` puts it into register 1. ``type`` is nft's number for its data type, which sets carry
    for nft to print them. ``since``: the oldest kernel, as (major, minor). ``intervals``: it is
    ordered and big-endian, so ranges of it make sense. ``prefixes``: its ranges are networks.
    ``host``: a number in the machine's byte order (nft has interface names for such).
    """

    text: str
    load: tuple[Expr, ...]
    size: int
    type: int
    since: Version
    show: Callable[[Value], str]
    intervals: bool = False
    prefixes: bool = False
    host: bool = False


@dataclasses.dataclass(frozen=True)
class Match:
    """The rule goes on only if the field has one of the values (sorted, apart from each other)."""

    field: Field
    values: tuple[Value, ...]

    @property
    def since(self) -> Version:
        return self.field.since

    @property
    def reason(self) -> str:
        return self.field.text

    def text(self) -> str:
        shown = ", ".join(map(self.field.show, self.values))
        return f"{self.field.text} {shown if len(self.values) == 1 else f'{{ {shown} }}'}"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        yield from self.field.load
        if len(self.values) > 1:
            made = sets.add(self.field, self.values)
            yield expr("lookup", set=made.name, sreg=REG1)
            return
        low, high = self.values[0]
        if low == high:
            yield compare(0, low)
        elif (mask := _prefix_mask(low, high)) is not None and self.field.prefixes:
            yield _bitwise(mask, bytes(len(mask)))
            yield compare(0, low)
        else:
            yield compare(5, low)
            yield compare(3, high)


@dataclasses.dataclass(frozen=True)
class MarkMatch:
    """The packet's mark, under a mask, has this value."""

    mark: int
    mask: int = WHOLE
    since: ClassVar[Version] = (3, 13)
    reason: ClassVar[str] = "meta mark"

    def text(self) -> str:
        if self.mask == WHOLE:
            return f"meta mark {self.mark:#010x}"
        ones = bin(self.mask).count("1")
        if self.mask == WHOLE ^ (WHOLE >> ones):  # the highest bits: nft takes it for a prefix
            return f"meta mark {self.mark:#010x}/{ones}"
        return f"meta mark & {self.mask:#010x} == {self.mark:#010x}"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        del sets
        yield _META_MARK
        if self.mask != WHOLE:
            yield _bitwise(host32(self.mask), bytes(4))
        yield compare(0, host32(self.mark))


@dataclasses.dataclass(frozen=True)
class SetMark:
    """Put these bits into the packet's mark, and keep those outside the mask."""

    mark: int
    mask: int = WHOLE
    since: ClassVar[Version] = (3, 14)
    reason: ClassVar[str] = "meta mark set"

    def text(self) -> str:
        if self.mask == WHOLE:
            return f"meta mark set {self.mark:#010x}"
        kept = WHOLE ^ self.mask | self.mark
        masked = "" if kept == WHOLE else f" & {kept:#010x}"
        return f"meta mark set meta mark{masked} | {self.mark:#010x}"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        del sets
        if self.mask == WHOLE:
            yield _immediate(REG1, host32(self.mark))
        else:
            yield _META_MARK
            yield _bitwise(host32(WHOLE ^ self.mask), host32(self.mark))
        yield expr("meta", key=_MARK, sreg=REG1)


@dataclasses.dataclass(frozen=True)
class Tproxy:
    """Hand the packet to the listener on this port; without a listener the rule ends here."""

    port: int
    version: int | None = None
    """4 or 6, in a rule for one family; it goes with an address."""
    address: str | None = None
    since: ClassVar[Version] = (4, 19)
    reason: ClassVar[str] = "tproxy"

    def text(self) -> str:
        family = {None: "", 4: " ip", 6: " ip6"}[self.version]
        address = self.address or ""
        return f"tproxy{family} to {f'[{address}]' if ':' in address else address}:{self.port}"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        del sets
        port = struct.pack(">H", self.port)
        family = {None: 0, 4: 2, 6: 10}[self.version]  # NFPROTO_IPV4, NFPROTO_IPV6
        if self.address is None:
            yield _immediate(REG1, port)
            yield expr("tproxy", family=family, reg_port=REG1)
            return
        yield _immediate(REG1, ipaddress.ip_address(self.address).packed)
        yield _immediate(_REG2, port)
        yield expr("tproxy", family=family, reg_addr=REG1, reg_port=_REG2)


@dataclasses.dataclass(frozen=True)
class Redirect:
    """NAT to the address of the interface it came in on (loopback for own traffic), this port."""

    port: int
    since: ClassVar[Version] = (5, 2)
    reason: ClassVar[str] = "NAT chains in an inet table"

    def text(self) -> str:
        return f"redirect to :{self.port}"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        del sets
        yield _immediate(REG1, struct.pack(">H", self.port))
        flags = frozenset({"NF_NAT_RANGE_PROTO_SPECIFIED"})
        yield expr("redir", reg_proto_min=REG1, reg_proto_max=REG1, flags=flags)


@dataclasses.dataclass(frozen=True)
class SetZone:
    """Let conntrack keep the packet's connection apart from those of other zones."""

    zone: int
    since: ClassVar[Version] = (4, 11)
    reason: ClassVar[str] = "ct zone set"

    def text(self) -> str:
        return f"ct zone set {self.zone}"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        del sets
        yield _immediate(REG1, struct.pack("=H", self.zone))
        yield expr("ct", key=17, sreg=REG1)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """``accept`` or ``return``, the end of this table's rules for the packet, or ``jump``."""

    word: str
    chain: str | None = None
    since: ClassVar[Version] = (3, 13)
    reason: ClassVar[str] = "nf_tables"

    def text(self) -> str:
        return self.word if self.chain is None else f"{self.word} {self.chain}"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        del sets
        verdict: Attrs = (("NFTA_VERDICT_CODE", _CODES[self.word]),)
        if self.chain is not None:
            verdict = (*verdict, ("NFTA_VERDICT_CHAIN", self.chain))
        yield expr("immediate", dreg=_VERDICT, data=(("NFTA_DATA_VERDICT", verdict),))


@dataclasses.dataclass(frozen=True)
class Reject:
    """Drop the packet, and tell its sender by ICMP that the port is unreachable."""

    since: ClassVar[Version] = (3, 18)
    reason: ClassVar[str] = "reject with icmpx"

    def text(self) -> str:
        return "reject"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        del sets
        yield expr("reject", type=2, icmp_code=1)  # ICMPX_UNREACH, ICMPX_PORT_UNREACH


_META_MARK: Final = expr("meta", dreg=REG1, key=_MARK)

Statement: TypeAlias = Match | MarkMatch | SetMark | Tproxy | Redirect | SetZone | Reject | Verdict


def _data(value: bytes) -> Attrs:
    return (("NFTA_DATA_VALUE", value),)


def _immediate(register: int, value: bytes) -> Expr:
    return expr("immediate", dreg=register, data=_data(value))


def compare(operator: int, value: bytes) -> Expr:
    return expr("cmp", sreg=REG1, op=operator, data=_data(value))


def _bitwise(mask: bytes, flip: bytes) -> Expr:
    data = {"mask": _data(mask), "xor": _data(flip)}
    return expr("bitwise", sreg=REG1, dreg=REG1, len=len(mask), **data)


def host32(number: int) -> bytes:
    return struct.pack("=I", number)


def _prefix_mask(low: bytes, high: bytes) -> bytes | None:
    """The mask of the one prefix that is exactly this range, if there is one."""
    first, last = int.from_bytes(low, "big"), int.from_bytes(high, "big")
    varying = first ^ last
    if varying & (varying + 1) or first & varying or last & varying != varying:
        return None
    return ((1 << 8 * len(low)) - 1 - varying).to_bytes(len(low), "big")
