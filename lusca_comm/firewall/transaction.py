"""A table as the messages of one nftables transaction, and what to find when it is read back.

Numbers: include/uapi/linux/netfilter/nf_tables.h. Pure.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from .netlink import (
    F_APPEND,
    F_CREATE,
    F_EXCL,
    Attrs,
    Message,
    be32,
    holds,
    pack,
    u32,
    unpack,
    zstr,
)
from .nftables import Chain, Hook, Rule, Table
from .statements import AnonymousSet, Element, Expr, Sets

_NFTABLES: Final = 10 << 8
_INET: Final = struct.pack(">BBH", 1, 0, 0)
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, NEWRULE, GETRULE = 0, 1, 2, 3, 6, 7
NEWSET, NEWSETELEM, GETSETELEM = 9, 12, 13
_HOOKS: Final = {"prerouting": 0, "output": 3}
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "dstnat": -100}
_ANONYMOUS, _CONSTANT, _INTERVAL = 1, 2, 4
_ACCEPT: Final = 1
_END: Final = 1
_COMMENT: Final = 0
_KEY_BYTE_ORDER: Final = 0
_ELEMENTS_AT_ONCE: Final = 500
"""An attribute has at most 64 KiB; an IPv6 element takes 44 bytes."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One message of the transaction. ``what``: for people. ``exprs``: the rule's expressions;
    ``elements``: what is put into the set ``set``."""

    message: Message
    what: str
    set: str = ""
    exprs: tuple[Expr, ...] = ()
    elements: tuple[Element, ...] = ()

    @property
    def is_rule(self) -> bool:
        return self.message.kind == _NFTABLES | NEWRULE

    def stumbled(self, offset: int | None) -> Expr | None:
        """The expression at which the kernel stopped reading, from the offset that it reported."""
        end = 16 + len(self.message.header)
        for kind, value in self.message.attrs:
            start, end = end, end + len(pack([(kind, value)]))
            if kind == 4 and offset is not None and start <= offset < end:
                place = start + 4
                for expr in self.exprs:
                    place += len(pack([(1, expr.encode())]))
                    if offset < place:
                        return expr
        return None


def parts(table: Table) -> Iterator[Part]:
    """Create the table and everything in it. A table of that name that exists is an error."""
    yield Part(_message(NEWTABLE, F_EXCL, ((1, zstr(table.name)),)), f"table inet {table.name}")
    for chain in table.chains:
        yield Part(_message(NEWCHAIN, F_EXCL, _chain(table, chain)), _describe(chain))
    sets = Sets()
    for chain in table.chains:
        for rule in chain.rules:
            known = len(sets.made)
            exprs = tuple(expr for part in rule.statements for expr in part.expressions(sets))
            for made in sets.made[known:]:
                yield from _set(table, made)
            yield _rule(table, chain, rule, exprs)


def delete_table(name: str) -> Message:
    return _message(DELTABLE, 0, ((1, zstr(name)),))


def get_tables() -> Message:
    """The request for every table; :func:`of_table` picks from the answers."""
    return _message(GETTABLE, 0, ())


def get_rules(name: str) -> Message:
    return _message(GETRULE, 0, ((1, zstr(name)),))


def get_elements(name: str, set_name: str) -> Message:
    return _message(GETSETELEM, 0, ((1, zstr(name)), (2, zstr(set_name))))


def of_table(name: str, answers: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """The attributes of those tables, or objects in tables, that are of ``inet NAME``."""
    return [
        body[len(_INET) :]
        for _, body in answers
        if body[:1] == _INET[:1] and holds(body[len(_INET) :], ((1, zstr(name)),))
    ]


def same_rules(parts: Iterable[Part], listed: Sequence[bytes]) -> bool:
    """Whether the rules listed are those of the parts, one by one."""
    rules = [part for part in parts if part.is_rule]
    return len(rules) == len(listed) and all(
        holds(body, part.message.attrs) for part, body in zip(rules, listed, strict=True)
    )


def same_elements(parts: Iterable[Part], answers: Iterable[tuple[int, bytes]]) -> bool:
    """Whether the elements of one set are those that the parts fill it with; in any order."""
    got = []
    for _, body in answers:
        for _, element in unpack(dict(unpack(body[len(_INET) :])).get(3, b"")):
            attrs = dict(unpack(element))
            got.append((dict(unpack(attrs[1]))[1], attrs.get(3, be32(0)) == be32(_END)))
    return sorted(got) == sorted(pair for part in parts for pair in part.elements)


def _message(kind: int, flags: int, attrs: Attrs) -> Message:
    create = F_CREATE if kind in (NEWTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM) else 0
    return Message(_NFTABLES | kind, flags | create, _INET, attrs)


def _chain(table: Table, chain: Chain) -> Attrs:
    named = ((1, zstr(table.name)), (3, zstr(chain.name)))
    return (*named, *_hook(chain.hook)) if chain.hook else named


def _hook(hook: Hook) -> Attrs:
    priority = _PRIORITIES.get(hook.priority)
    number = int(hook.priority) if priority is None else priority
    where = ((1, be32(_HOOKS[hook.hook])), (2, struct.pack(">i", number)))
    return ((4, where), (5, be32(_ACCEPT)), (7, zstr(hook.kind)))


def _describe(chain: Chain) -> str:
    return f"chain {chain.name}" + (f", type {chain.hook.kind}" if chain.hook else "")


def _set(table: Table, made: AnonymousSet) -> Iterator[Part]:
    flags = _ANONYMOUS | _CONSTANT | (_INTERVAL if made.field.intervals else 0)
    elements = made.elements()
    what = f"the set of {made.field.text}"
    named = ((1, zstr(table.name)), (2, zstr(made.name)))
    key = ((4, be32(made.field.type)), (5, be32(made.field.size)))
    size = ((9, ((1, be32(len(elements))),)),)
    order = (13, bytes([_KEY_BYTE_ORDER, 4]) + u32(1 if made.field.host else 2))  # nft reads it
    attrs: Attrs = (*named, (3, be32(flags)), *key, *size, (10, be32(made.number)), order)
    yield Part(_message(NEWSET, F_EXCL, attrs), what)
    for start in range(0, len(elements), _ELEMENTS_AT_ONCE):
        some = elements[start : start + _ELEMENTS_AT_ONCE]
        attrs = (*named, (3, tuple((1, _element(element)) for element in some)))
        yield Part(_message(NEWSETELEM, 0, attrs), what, made.name, elements=some)


def _element(element: Element) -> Attrs:
    value, end = element
    key = (1, ((1, value),))
    return (key, (3, be32(_END))) if end else (key,)


def _rule(table: Table, chain: Chain, rule: Rule, exprs: Sequence[Expr]) -> Part:
    named = ((1, zstr(table.name)), (2, zstr(chain.name)))
    comment = zstr(rule.comment)
    attrs = (
        *named,
        (4, tuple((1, expr.encode()) for expr in exprs)),
        (7, bytes([_COMMENT, len(comment)]) + comment),
    )
    what = f"rule in chain {chain.name}: {rule.text()}"
    return Part(_message(NEWRULE, F_APPEND, attrs), what, exprs=tuple(exprs))
