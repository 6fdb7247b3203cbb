"""The plan as one nftables table, ``inet NAME``: its chains and rules, and their text.

:func:`render` gives exactly what ``nft list table inet NAME`` prints once it is applied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from . import checks, fields
from .plan import FAMILIES, Owners, Plan
from .skip import PROTOCOLS, Protocol, Skip
from .statements import (
    MarkMatch,
    Match,
    Redirect,
    Reject,
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
    return Table(plan.name, (*_intercepting(plan, cgroup), *_refusing(plan, cgroup)))


def _intercepting(plan: Plan, cgroup: Callable[[str], int]) -> list[Chain]:
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
                *_mark_own(plan, cgroup),
            )
            chains.append(Chain("output", Hook("route", "output", "mangle"), rules))
        return chains
    if plan.spoof:
        chains.append(Chain("divert", mangle, tuple(_divert(plan))))
    if plan.forwarded:
        caught = _redirect(plan, "forwarded traffic", _where(plan.interfaces))
        rules = (*_one_family(plan), *_spared(plan), *caught)
        chains.append(Chain("prerouting", Hook("nat", "prerouting", "dstnat"), rules))
    if plan.own:
        caught = (
            rule
            for owner in _owners(plan.only, cgroup) or [()]
            for rule in _redirect(plan, "own traffic", owner)
        )
        rules = (*_one_family(plan), *_exempt(plan, cgroup), *_spared(plan, own=True), *caught)
        chains.append(Chain("output", Hook("nat", "output", "-100"), rules))
    return chains


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
    yield from _bypassed(plan, plan.protocols, own)


def _bypassed(plan: Plan, protocols: Sequence[Protocol], own: bool) -> Iterator[Rule]:
    for family in plan.families:
        if networks := plan.networks(family):
            yield Rule((fields.addresses("daddr", networks), RETURN), "bypassed networks")
    for skip in plan.skips:
        if skip.version is None or f"ipv{skip.version}" in plan.families:
            for matches in () if own and skip.interface else _skipped(skip, protocols):
                yield Rule((*matches, RETURN), "bypassed")


def _skipped(skip: Skip, protocols: Sequence[Protocol]) -> Iterator[tuple[Statement, ...]]:
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
    for protocol, ports in skip.transport(protocols):
        if ports and protocol:
            yield *matches, fields.destination_port(protocol, ports)
        elif protocol:
            yield *matches, fields.l4proto(protocol)
        else:
            yield tuple(matches)


def _exempt(plan: Plan, cgroup: Callable[[str], int]) -> Iterator[Rule]:
    for owner in _owners(plan.exempt, cgroup):
        yield Rule((*owner, RETURN), "the proxy's own connections")


def _owners(owners: Owners, cgroup: Callable[[str], int]) -> list[tuple[Statement, ...]]:
    """A match for each kind; any one of them counts."""
    found: list[tuple[Statement, ...]] = []
    if owners.mark is not None:
        found.append((MarkMatch(owners.mark),))
    if owners.uids:
        found.append((fields.skuid(owners.uids),))
    if owners.gids:
        found.append((fields.skgid(owners.gids),))
    for group in owners.cgroups:
        if isinstance(group, str):
            found.append((fields.cgroup_path(group, cgroup(group)),))
        else:
            found.append((fields.classid(group),))
    return found


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


def _mark_own(plan: Plan, cgroup: Callable[[str], int]) -> Iterator[Rule]:
    why = "own traffic: back in through lo"
    mark = SetMark(plan.mark, plan.bits)
    for owner in _owners(plan.only, cgroup) or [()]:
        for protocol in plan.protocols:
            ports = fields.destination_port(protocol, plan.port_ranges(protocol))
            # Without the direction, a server's answers to a client port in `ports` would match.
            yield Rule((*owner, fields.original_direction(), ports, mark), why)


def _redirect(plan: Plan, why: str, where: tuple[Statement, ...] = ()) -> Iterator[Rule]:
    for protocol in plan.protocols:
        ports = fields.destination_port(protocol, plan.port_ranges(protocol))
        yield Rule((*where, ports, Redirect(plan.port)), why)


def _where(interfaces: Sequence[str]) -> tuple[Match, ...]:
    return (fields.iifname(interfaces),) if interfaces else ()


def _refusing(plan: Plan, cgroup: Callable[[str], int]) -> Iterator[Chain]:
    """What is intercepted never gets to the forward hook; on the output hook it has the mark, or
    a local address since the NAT."""
    if plan.rest == "pass":
        return
    # Not the other way round: what conntrack does not know has no direction, and is refused.
    answers = Rule((fields.reply_direction(), RETURN), "answers")
    why = "neither intercepted nor bypassed"
    if plan.forwarded:
        refuse = Rule((*_where(plan.interfaces), Reject()), why)
        rules = (answers, *_let_pass(plan, own=False), refuse)
        yield Chain("refuse_forwarded", Hook("filter", "forward", "filter"), rules)
    if plan.own:
        mine = Rule((MarkMatch(plan.mark, plan.bits), RETURN), "on its way back in through lo")
        local = Rule((fields.address_type("daddr", ["local"]), RETURN), "stays on this machine")
        refused = [Rule((*owner, Reject()), why) for owner in _owners(plan.only, cgroup)]
        spared = (answers, *_exempt(plan, cgroup), *(mine,) * plan.routed, local)
        rules = (*spared, *_let_pass(plan, own=True), *refused)
        yield Chain("refuse_own", Hook("filter", "output", "filter"), rules)


def _let_pass(plan: Plan, own: bool) -> Iterator[Rule]:
    """All that is bypassed, of any protocol."""
    yield from _bypassed(plan, PROTOCOLS, own)
    if ports := checks.ranges("bypass_ports", plan.bypass_ports):
        for protocol in PROTOCOLS:
            yield Rule((fields.destination_port(protocol, ports), RETURN), "bypassed ports")


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
