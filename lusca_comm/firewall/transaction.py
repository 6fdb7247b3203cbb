"""A table as the messages of one nftables transaction, and what to find when it is read back.

Names and numbers: include/uapi/linux/netfilter/nf_tables.h; attributes as pyroute2 takes them.
Pure.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

from .nftables import Chain, Hook, Rule, Table
from .statements import AnonymousSet, Attrs, Element, Expr, Sets

Kind: TypeAlias = Literal["table", "chain", "rule", "set", "setelem"]
Named: TypeAlias = list[tuple[str, Any]]

_HOOKS: Final = {"prerouting": 0, "forward": 2, "output": 3}
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0}
_ACCEPT: Final = 1
_END: Final = 1
_ELEMENTS_AT_ONCE: Final = 500
"""An attribute has at most 64 KiB; an IPv6 element takes 44 bytes."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One message of the transaction. ``create`` is ``add`` of what must not be there yet."""

    command: Literal["create", "add", "del"]
    kind: Kind
    attrs: Named


def parts(table: Table) -> Iterator[Part]:
    """Create the table and everything in it. A table of that name that exists is an error."""
    yield Part("create", "table", [("NFTA_TABLE_NAME", table.name)])
    for chain in table.chains:
        yield Part("create", "chain", _chain(table, chain))
    sets = Sets()
    for chain in table.chains:
        for rule in chain.rules:
            known = len(sets.made)
            exprs = [expr for part in rule.statements for expr in part.expressions(sets)]
            for made in sets.made[known:]:
                yield from _set(table, made)
            yield Part("add", "rule", _rule(table, chain, rule, exprs))


def delete_table(name: str) -> Part:
    return Part("del", "table", [("NFTA_TABLE_NAME", name)])


def holds(answer: Any, sent: Named) -> bool:
    """Whether a message, or an attribute, that pyroute2 decoded has every attribute of `sent`
    with its value, whatever else it has: the kernel adds handles and defaults.

    pyroute2 gives a name to some numbers; here they are compared as numbers.
    """
    found = {slot.name: slot for slot in answer["attrs"]}
    return all(name in found and _is(found[name], value) for name, value in sent)


def _is(slot: Any, value: Any) -> bool:
    if isinstance(value, dict):
        return holds(slot.nla, value["attrs"])
    if isinstance(value, list):
        return len(slot.value) == len(value) and all(
            holds(have, want["attrs"]) for have, want in zip(slot.value, value, strict=True)
        )
    return value in (slot.value, slot.nla["value"])


def same_rules(parts: Iterable[Part], listed: Sequence[Any]) -> bool:
    """Whether the rules listed are those of the parts, one by one."""
    rules = [part for part in parts if part.kind == "rule"]
    return len(rules) == len(listed) and all(
        holds(answer, part.attrs) for part, answer in zip(rules, listed, strict=True)
    )


def elements(parts: Iterable[Part]) -> dict[str, list[Element]]:
    """What the parts put into each set, sorted."""
    found: dict[str, list[Element]] = {}
    for part in parts:
        if part.kind == "setelem":
            attrs = dict(part.attrs)
            made = [_element_of(item) for item in attrs["NFTA_SET_ELEM_LIST_ELEMENTS"]]
            found.setdefault(attrs["NFTA_SET_ELEM_LIST_SET"], []).extend(made)
    return {name: sorted(filled) for name, filled in found.items()}


def listed_elements(answers: Iterable[Any]) -> list[Element]:
    """The elements in the kernel's answers about one set, sorted."""
    return sorted(
        _element_of(item)
        for answer in answers
        for item in answer.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ()
    )


def _element_of(item: Any) -> Element:
    attrs = {slot[0]: slot[1] for slot in item["attrs"]}
    value = next(slot[1] for slot in attrs["NFTA_SET_ELEM_KEY"]["attrs"])
    return value, attrs.get("NFTA_SET_ELEM_FLAGS", 0) == _END


def _chain(table: Table, chain: Chain) -> Named:
    named: Named = [("NFTA_CHAIN_TABLE", table.name), ("NFTA_CHAIN_NAME", chain.name)]
    return named + _hook(chain.hook) if chain.hook else named


def _hook(hook: Hook) -> Named:
    priority = _PRIORITIES.get(hook.priority)
    number = int(hook.priority) if priority is None else priority
    where = [("NFTA_HOOK_HOOKNUM", _HOOKS[hook.hook]), ("NFTA_HOOK_PRIORITY", number)]
    return [
        ("NFTA_CHAIN_HOOK", {"attrs": where}),
        ("NFTA_CHAIN_POLICY", _ACCEPT),
        ("NFTA_CHAIN_TYPE", hook.kind),
    ]


def _set(table: Table, made: AnonymousSet) -> Iterator[Part]:
    flags = {"NFT_SET_ANONYMOUS", "NFT_SET_CONSTANT"}
    if made.field.intervals:
        flags.add("NFT_SET_INTERVAL")
    content = made.elements()
    order = struct.pack("=I", 1 if made.field.host else 2)  # nft reads it
    attrs: Named = [
        ("NFTA_SET_TABLE", table.name),
        ("NFTA_SET_NAME", made.name),
        ("NFTA_SET_FLAGS", flags),
        ("NFTA_SET_KEY_TYPE", made.field.type),
        ("NFTA_SET_KEY_LEN", made.field.size),
        ("NFTA_SET_DESC", {"attrs": [("NFTA_SET_DESC_SIZE", len(content))]}),
        ("NFTA_SET_ID", made.number),
        ("NFTA_SET_USERDATA", [("NFTNL_UDATA_SET_KEYBYTEORDER", order)]),
    ]
    yield Part("create", "set", attrs)
    for start in range(0, len(content), _ELEMENTS_AT_ONCE):
        some = [_element(element) for element in content[start : start + _ELEMENTS_AT_ONCE]]
        attrs = [
            ("NFTA_SET_ELEM_LIST_TABLE", table.name),
            ("NFTA_SET_ELEM_LIST_SET", made.name),
            ("NFTA_SET_ELEM_LIST_ELEMENTS", some),
        ]
        yield Part("add", "setelem", attrs)


def _element(element: Element) -> dict[str, Named]:
    value, end = element
    attrs: Named = [("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", value)]})]
    return {"attrs": [*attrs, ("NFTA_SET_ELEM_FLAGS", _END)] if end else attrs}


def _rule(table: Table, chain: Chain, rule: Rule, exprs: Iterable[Expr]) -> Named:
    return [
        ("NFTA_RULE_TABLE", table.name),
        ("NFTA_RULE_CHAIN", chain.name),
        ("NFTA_RULE_EXPRESSIONS", [_expr(expr) for expr in exprs]),
        ("NFTA_RULE_USERDATA", rule.comment),
    ]


def _expr(expr: Expr) -> dict[str, Named]:
    named: Named = [("NFTA_EXPR_NAME", expr.name)]
    return {"attrs": [*named, ("NFTA_EXPR_DATA", _nest(expr.attrs))] if expr.attrs else named}


def _nest(attrs: Attrs) -> dict[str, Named]:
    return {
        "attrs": [
            (name, _nest(value) if isinstance(value, tuple) else value) for name, value in attrs
        ]
    }
