"""The plan as one nftables table, ``inet NAME``: its chains and rules, and their text.

:func:`render` gives exactly what ``nft list table inet NAME`` prints once it is applied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from . import fields
from .plan import FAMILIES, Plan
from .skip import Skip
from .statements import (
    MarkMatch,
    Match,
    Redirect,
    SetMark,
    SetZone,
    Statement,
    Tproxy,
    Verdict,
    Version,
)

__all__ = ["Chain", "Rule", "Table", "oldest_kernel", "render", "table"]

ACCEPT = Verdict("accept")
RETURN = Verdict("return")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Statements in order, and in a few words what they are for (at most 128 bytes)."""

    statements: tuple[Statement, ...]
    comment: str

    def text(self) -> str:
        return " ".join(part.text() for part in self.statements) + f' comment "{self.comment}"'


@dataclasses.dataclass(frozen=True)
class Hook:
    """Where a base chain hangs. ``kind``: filter, nat or route; ``priority``: nft's name for it."""

    kind: str
    hook: str
    priority: str

    @property
    def since(self) -> Version:
        """In inet tables, chains of type nat and route exist since 5.2."""
        return (3, 14) if self.kind == "filter" else (5, 2)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A chain with its rules; without a hook, one that rules jump to."""

    name: str
    hook: Hook | None
    rules: tuple[Rule, ...]

    def text(self) -> str:
        lines = [rule.text() for rule in self.rules]
        if at := self.hook:
            head = f"type {at.kind} hook {at.hook} priority {at.priority}; policy accept;"
            lines.insert(0, head)
        return f"\tchain {self.name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


@dataclasses.dataclass(frozen=True)
class Table:
    """The table ``inet NAME``."""

    name: str
    chains: tuple[Chain, ...]

    def text(self) -> str:
        return f"table inet {self.name} {{\n{chr(10).join(c.text() for c in self.chains)}}}\n"


def render(plan: Plan) -> str:
    """The table as nftables text, as nft (1.0.6) lists it and as ``nft -f`` takes it."""
    return table(plan).text()


def oldest_kernel(plan: Plan) -> tuple[Version, str]:
    """The oldest Linux that has everything in this plan's table, as (major, minor), and what
    needs it."""
    needs: list[tuple[Version, str]] = []
    for chain in table(plan).chains:
        if chain.hook:
            needs.append((chain.hook.since, f"{chain.hook.kind} chains in an inet table"))
        for rule in chain.rules:
            needs += [(part.since, part.reason) for part in rule.statements]
    return max(needs, key=lambda need: need[0])


def table(plan: Plan, cgroup: Callable[[str], int] = lambda _: 0) -> Table:
    """The table. ``cgroup`` gives the kernel's number for a path; the text doesn't need it."""
    mangle = Hook("filter", "prerouting", "mangle")
    chains: list[Chain] = []
    if plan.same_port:
        chains += _zones(plan)
    if plan.mode == "tproxy":
        chains.append(Chain("divert", None, tuple(_divert(plan))))
        chains.append(Chain("prerouting", mangle, tuple(_tproxy(plan))))
        if plan.own:
            rules = (
                *_one_family(plan),
                *_exempt(plan, cgroup),
                *_spared(plan, own=True),
                *_mark_own(plan),
            )
            chains.append(Chain("output", Hook("route", "output", "mangle"), rules))
        return Table(plan.name, tuple(chains))
    if plan.spoof:
        chains.append(Chain("divert", mangle, tuple(_divert(plan))))
    if plan.forwarded:
        caught = _redirect(plan, "forwarded traffic", _where(plan.interfaces))
        rules = (*_one_family(plan), *_spared(plan), *caught)
        chains.append(Chain("prerouting", Hook("nat", "prerouting", "dstnat"), rules))
    if plan.own:
        caught = _redirect(plan, "own traffic")
        rules = (*_one_family(plan), *_exempt(plan, cgroup), *_spared(plan, own=True), *caught)
        chains.append(Chain("output", Hook("nat", "output", "-100"), rules))
    return Table(plan.name, tuple(chains))


def _one_family(plan: Plan) -> Iterator[Rule]:
    for family in FAMILIES:
        if family not in plan.families:
            yield Rule((fields.nfproto(family), RETURN), f"{family} is not in the plan")


def _divert(plan: Plan) -> Iterator[Rule]:
    for protocol in plan.protocols:
        l4proto = fields.l4proto(protocol)
        yield Rule((l4proto, fields.wildcard(), RETURN), "not for a socket that only listens")
        yield Rule(
            (l4proto, fields.transparent(), SetMark(plan.mark, plan.bits), ACCEPT),
            "packets of connections the proxy has",
        )


def _spared(plan: Plan, own: bool = False) -> Iterator[Rule]:
    types = ("local", "broadcast", "anycast", "multicast")
    yield Rule((fields.address_type("daddr", types), RETURN), "this machine's own addresses")
    for family in plan.families:
        if networks := plan.networks(family):
            yield Rule((fields.addresses("daddr", networks), RETURN), "bypassed networks")
    for skip in plan.skips:
        if skip.version is None or f"ipv{skip.version}" in plan.families:
            for matches in () if own and skip.interface else _skipped(plan, skip):
                yield Rule((*matches, RETURN), "bypassed")


def _skipped(plan: Plan, skip: Skip) -> Iterator[tuple[Statement, ...]]:
    matches: list[Statement] = []
    if skip.interface is not None:
        matches.append(fields.iifname([skip.interface]))
    if skip.mark is not None:
        matches.append(MarkMatch(skip.mark, skip.bits))
    source, destination = skip.networks
    if source is not None:
        matches.append(fields.addresses("saddr", [source]))
    if destination is not None:
        matches.append(fields.addresses("daddr", [destination], known=source is not None))
    for protocol, ports in skip.transport(plan.protocols):
        if ports and protocol:
            yield *matches, fields.destination_port(protocol, ports)
        elif protocol:
            yield *matches, fields.l4proto(protocol)
        else:
            yield tuple(matches)


def _exempt(plan: Plan, cgroup: Callable[[str], int]) -> Iterator[Rule]:
    why = "the proxy's own connections"
    if plan.exempt.mark is not None:
        yield Rule((MarkMatch(plan.exempt.mark), RETURN), why)
    if plan.exempt.uids:
        yield Rule((fields.skuid(plan.exempt.uids), RETURN), why)
    if plan.exempt.gids:
        yield Rule((fields.skgid(plan.exempt.gids), RETURN), why)
    for group in plan.exempt.cgroups:
        if isinstance(group, str):
            yield Rule((fields.cgroup_path(group, cgroup(group)), RETURN), why)
        else:
            yield Rule((fields.classid(group), RETURN), why)


def _tproxy(plan: Plan) -> Iterator[Rule]:
    yield from _one_family(plan)
    yield Rule((Verdict("jump", "divert"),), "first: what is the proxy's already")
    if plan.own:
        marked = (fields.iifname(["lo"]), MarkMatch(plan.mark, plan.bits))
        for rule in _handed(plan):
            yield Rule((*marked, *rule, ACCEPT), "own traffic, marked on its way out")
    if plan.forwarded:
        yield from _spared(plan)
        inward = _where(plan.interfaces)
        for rule in _handed(plan):
            yield Rule((*inward, *rule, SetMark(plan.mark, plan.bits), ACCEPT), "forwarded traffic")


def _handed(plan: Plan) -> Iterator[tuple[Statement, ...]]:
    """To the listener: one rule for both families, unless an address makes them differ."""
    for protocol in plan.protocols:
        ports = fields.destination_port(protocol, plan.port_ranges(protocol))
        if plan.listen4 is None and plan.listen6 is None:
            yield ports, Tproxy(plan.port)
            continue
        for family in plan.families:
            address = plan.listen4 if family == "ipv4" else plan.listen6
            yield fields.nfproto(family), ports, Tproxy(plan.port, int(family[-1]), address)


def _mark_own(plan: Plan) -> Iterator[Rule]:
    for protocol in plan.protocols:
        ports = fields.destination_port(protocol, plan.port_ranges(protocol))
        mark = SetMark(plan.mark, plan.bits)
        # Without the direction, a server's answers to a client port in `ports` would match.
        yield Rule((fields.original_direction(), ports, mark), "own traffic: back in through lo")


def _redirect(plan: Plan, why: str, where: tuple[Match, ...] = ()) -> Iterator[Rule]:
    for protocol in plan.protocols:
        ports = fields.destination_port(protocol, plan.port_ranges(protocol))
        yield Rule((*where, ports, Redirect(plan.port)), why)


def _where(interfaces: Sequence[str]) -> tuple[Match, ...]:
    return (fields.iifname(interfaces),) if interfaces else ()


def _zones(plan: Plan) -> Iterator[Chain]:
    """The origin's leg in a conntrack zone of its own: the same packets in both directions.

    Spoofed is what carries an address that is not this machine's. On the way out the socket can't
    be asked: what TIME_WAIT answers has been sent from a socket of the kernel's own.
    """
    inward, outward = [], []
    for protocol in plan.protocols:
        l4proto = fields.l4proto(protocol)
        source: tuple[Match, ...] = (fields.source_port(protocol, plan.port_ranges(protocol)),)
        target: tuple[Match, ...] = (fields.destination_port(protocol, plan.port_ranges(protocol)),)
        if plan.origin_interfaces:
            source = (fields.iifname(plan.origin_interfaces), l4proto)
            target = (fields.oifname(plan.origin_interfaces), l4proto)
        zone = SetZone(plan.zone)
        inward.append(Rule((l4proto, fields.wildcard(), RETURN), "not for a listening socket"))
        inward.append(Rule((*source, fields.transparent(), zone), "from the origin, spoofed"))
        outward.append(Rule((*target, zone), "to the origin, spoofed"))
    local = "this machine's own addresses"
    daddr = Rule((fields.address_type("daddr", ["local"]), RETURN), local)
    saddr = Rule((fields.address_type("saddr", ["local"]), RETURN), local)
    raw_in, raw_out = Hook("filter", "prerouting", "raw"), Hook("filter", "output", "raw")
    yield Chain("origin_in", raw_in, (*_one_family(plan), daddr, *inward))
    yield Chain("origin_out", raw_out, (*_one_family(plan), saddr, *outward))
