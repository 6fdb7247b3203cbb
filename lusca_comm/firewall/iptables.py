"""The plan for iptables-restore and ip6tables-restore, for kernels that nftables' form is too new
for.

The same rules in the same order as :mod:`.nftables`, in chains of their own that the built-in
ones jump to, so that they can be taken away without touching others. Two differences lie in the
kernel: the TPROXY target drops a new connection when nothing with IP_TRANSPARENT listens (nft's
lets it pass), and the ``socket`` match leaves wildcard listeners out by itself. Text only; the
routing is :func:`.routing.render_commands`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import checks
from .plan import Family, Owners, Plan, PortRange
from .skip import PROTOCOLS, Protocol, Skip
from .statements import Version

__all__ = ["oldest_kernel", "render"]

_MULTIPORT = 15
"""Ports in one multiport match; a range takes two (include/uapi/linux/netfilter/xt_multiport.h)."""


def render(plan: Plan, family: Family, remove: bool = False) -> str:
    """What ``iptables-restore --noflush`` (``ip6tables-restore`` for "ipv6") takes to apply the
    plan, or with ``remove`` to take it away again; "" if the plan leaves the family alone."""
    there = family in plan.families
    tables = {
        "raw": _raw(plan) if there and plan.same_port else {},
        "mangle": _mangle(plan, family) if there and plan.routed else {},
        "nat": _nat(plan, family) if there and plan.mode == "redirect" else {},
        "filter": _filter(plan, family) if plan.rest == "refuse" else {},
    }
    text = ""
    for table, chains in tables.items():
        used = {name: rules for name, rules in chains.items() if rules}
        if used:
            make = _remove if remove else _apply
            lines = "".join(f"{line}\n" for line in make(plan.name, used))
            text += f"*{table}\n{lines}COMMIT\n"
    return text


def oldest_kernel(plan: Plan) -> tuple[Version, str]:
    """The oldest Linux that has every match and target of this plan, and the one that needs it."""
    six = "ipv6" in plan.families
    groups = (*plan.exempt.cgroups, *plan.only.cgroups) if plan.own else ()
    needs: dict[str, tuple[Version, bool]] = {
        "the addrtype match": ((2, 6, 25), True),
        "the addrtype match for IPv6": ((2, 6, 39), six),
        "the socket match with --transparent": ((2, 6, 31), plan.routed),
        "NAT for IPv6": ((3, 7), six and plan.mode == "redirect"),
        "CT --zone": ((2, 6, 34), plan.same_port),
        "the cgroup match": ((3, 14), bool(groups)),
        "the cgroup match with --path": ((4, 5), any(isinstance(one, str) for one in groups)),
    }
    return max((version, part) for part, (version, used) in needs.items() if used)


Chains = dict[str, list[str]]
_HOOKS = {"in": "PREROUTING", "forward": "FORWARD", "out": "OUTPUT"}


def _apply(name: str, chains: Chains) -> Iterator[str]:
    for end in chains:
        yield f":{name}_{end} - [0:0]"
    for end, rules in chains.items():
        for rule in rules:
            yield rule if rule.startswith("#") else f"-A {name}_{end} {rule}"
    for end in chains:
        if end in _HOOKS:
            yield f"-I {_HOOKS[end]} -j {name}_{end}"


def _remove(name: str, chains: Chains) -> Iterator[str]:
    for end in chains:
        if end in _HOOKS:
            yield f"-D {_HOOKS[end]} -j {name}_{end}"
    for end in chains:
        yield f"-F {name}_{end}"
    for end in chains:
        yield f"-X {name}_{end}"


def _raw(plan: Plan) -> Chains:
    zone = f"-j CT --zone {plan.zone}"
    inward, outward = ["-m addrtype --dst-type LOCAL -j RETURN"], []
    outward.append("-m addrtype --src-type LOCAL -j RETURN")
    for protocol in plan.protocols:
        sources = [f"-i {name} -p {protocol}" for name in plan.origin_interfaces]
        targets = [f"-o {name} -p {protocol}" for name in plan.origin_interfaces]
        inward += [
            f"{match} -m socket --transparent {zone}"
            for match in sources or _ports(protocol, "sport", plan.port_ranges(protocol))
        ]
        outward += [
            f"{match} {zone}"
            for match in targets or _ports(protocol, "dport", plan.port_ranges(protocol))
        ]
    return {
        "in": ["# from the origin to a spoofed address", *inward],
        "out": ["# to the origin, spoofed", *outward],
    }


def _mangle(plan: Plan, family: Family) -> Chains:
    mark = f"{plan.mark:#x}/{plan.bits:#x}"
    inward = ["# packets of connections the proxy has"]
    inward += [f"-p {one} -m socket --transparent -j {plan.name}_divert" for one in plan.protocols]
    chains = {"divert": [f"-j MARK --set-xmark {mark}", "-j ACCEPT"], "in": inward}
    if plan.mode == "redirect":
        return chains
    listen = plan.listen4 if family == "ipv4" else plan.listen6
    address = f" --on-ip {listen}" if listen else ""
    tproxy = f"-j TPROXY --on-port {plan.port}{address} --tproxy-mark {mark}"
    if plan.own:
        inward.append("# own traffic, marked on its way out")
        inward += [f"-i lo -m mark --mark {mark} {match} {tproxy}" for match in _wanted(plan)]
        chains["out"] = [
            *_exempt(plan),
            *_spared(plan, family, own=True),
            "# own traffic: back in through lo",
            *(
                f"{owner}{match} -m conntrack --ctdir ORIGINAL -j MARK --set-xmark {mark}"
                for owner in _owners(plan.only) or [""]
                for match in _wanted(plan)
            ),
        ]
    if plan.forwarded:
        inward += [*_spared(plan, family), "# forwarded traffic"]
        inward += [f"{where}{match} {tproxy}" for where in _where(plan) for match in _wanted(plan)]
    return chains


def _nat(plan: Plan, family: Family) -> Chains:
    chains: Chains = {}
    target = f"-j REDIRECT --to-ports {plan.port}"
    if plan.forwarded:
        rules = [f"{where}{match} {target}" for where in _where(plan) for match in _wanted(plan)]
        chains["in"] = [*_spared(plan, family), "# forwarded traffic", *rules]
    if plan.own:
        owners = _owners(plan.only) or [""]
        rules = [f"{owner}{match} {target}" for owner in owners for match in _wanted(plan)]
        chains["out"] = [*_exempt(plan), *_spared(plan, family, own=True), "# own traffic", *rules]
    return chains


def _filter(plan: Plan, family: Family) -> Chains:
    chains: Chains = {}
    answers = ["# answers", "-m conntrack --ctdir REPLY -j RETURN"]
    passed = list(_bypassed(plan, family, PROTOCOLS, own=False))
    if ports := checks.ranges("bypass_ports", plan.bypass_ports):
        matches = [match for one in PROTOCOLS for match in _ports(one, "dport", ports)]
        passed += ["# bypassed ports", *(f"{match} -j RETURN" for match in matches)]
    refused = "# neither intercepted nor bypassed"
    if plan.forwarded:
        rules = [f"{where}-j REJECT" for where in _where(plan)]
        chains["forward"] = [*answers, *passed, refused, *rules]
    if plan.own:
        mark = f"{plan.mark:#x}/{plan.bits:#x}"
        mine = ["# on its way back in through lo", f"-m mark --mark {mark} -j RETURN"]
        local = ["# stays on this machine", "-m addrtype --dst-type LOCAL -j RETURN"]
        rules = [f"{owner}-j REJECT" for owner in _owners(plan.only)]
        spared = [*answers, *_exempt(plan), *mine * plan.routed, *local]
        chains["out"] = [*spared, *passed, refused, *rules]
    return chains


def _where(plan: Plan) -> Sequence[str]:
    return [f"-i {name} " for name in plan.interfaces] or [""]


def _wanted(plan: Plan) -> list[str]:
    return [m for one in plan.protocols for m in _ports(one, "dport", plan.port_ranges(one))]


def _spared(plan: Plan, family: Family, own: bool = False) -> Iterator[str]:
    yield "# this machine's own addresses"
    # For IPv6 the match refuses BROADCAST, and several words mean all of them, not any.
    types = ("LOCAL,BROADCAST,ANYCAST,MULTICAST",)
    for word in types if family == "ipv4" else ("LOCAL", "ANYCAST", "MULTICAST"):
        yield f"-m addrtype --dst-type {word} -j RETURN"
    yield from _bypassed(plan, family, plan.protocols, own)


def _bypassed(
    plan: Plan, family: Family, protocols: Sequence[Protocol], own: bool
) -> Iterator[str]:
    if networks := plan.networks(family):
        yield "# bypassed networks"
        yield from (f"-d {network} -j RETURN" for network in networks)
    skipped = [
        f"{match}-j RETURN"
        for skip in plan.skips
        if skip.version is None or f"ipv{skip.version}" == family
        for match in (() if own and skip.interface else _skipped(skip, protocols))
    ]
    yield from ("# bypassed", *skipped) if skipped else ()


def _skipped(skip: Skip, protocols: Sequence[Protocol]) -> Iterator[str]:
    source, destination = skip.networks
    words = {
        "-i": skip.interface,
        "-s": source,
        "-d": destination,
        "-m mark --mark": None if skip.mark is None else f"{skip.mark:#x}/{skip.bits:#x}",
    }
    matches = "".join(f"{word} {value} " for word, value in words.items() if value is not None)
    for protocol, ports in skip.transport(protocols):
        if ports and protocol:
            yield from (f"{matches}{match} " for match in _ports(protocol, "dport", ports))
        else:
            yield f"{matches}-p {protocol} " if protocol else matches


def _exempt(plan: Plan) -> Iterator[str]:
    if owners := _owners(plan.exempt):
        yield "# the proxy's own connections"
        yield from (f"{owner}-j RETURN" for owner in owners)


def _owners(owners: Owners) -> list[str]:
    """A match for each; any one of them counts."""
    found = [] if owners.mark is None else [f"-m mark --mark {owners.mark:#x} "]
    found += [f"-m owner --uid-owner {uid} " for uid in owners.uids]
    found += [f"-m owner --gid-owner {gid} " for gid in owners.gids]
    for group in owners.cgroups:
        which = f'--path "{group}"' if isinstance(group, str) else f"--cgroup {group}"
        found.append(f"-m cgroup {which} ")
    return found


def _ports(protocol: str, which: str, ranges: Sequence[PortRange]) -> list[str]:
    """The matches for these ports: one, or several where one can't hold them all."""
    words = [f"{low}" if low == high else f"{low}:{high}" for low, high in ranges]
    if len(words) == 1:
        return [f"-p {protocol} --{which} {words[0]}"]
    groups: list[list[str]] = [[]]
    for word in words:
        if sum(1 + (":" in one) for one in (*groups[-1], word)) > _MULTIPORT:
            groups.append([])
        groups[-1].append(word)
    return [f"-p {protocol} -m multiport --{which}s {','.join(group)}" for group in groups]
