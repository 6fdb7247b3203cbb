"""What a proxy needs of the machine, one finding each. Looks only; changes nothing."""

from __future__ import annotations

import enum
import errno
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lusca_comm as lc
from lusca_comm.address import spell
from lusca_comm.firewall import Plan, kernel, routing, transaction
from lusca_comm.firewall.nftables import table
from lusca_comm.firewall.plan import Family, Protocol

from .sockets import Listener, listeners

__all__ = ["Finding", "State", "examine"]


class State(enum.Enum):
    OK = enum.auto()
    MISSING = enum.auto()
    NOTE = enum.auto()
    UNKNOWN = enum.auto()


class Finding(NamedTuple):
    """``mend``: the command that helps, if there is one."""

    state: State
    text: str
    mend: str = ""


WORK = {
    "lookup": "SO_ORIGINAL_DST tells where a connection was going",
    "listen": "transparent listeners, with the capabilities of this process",
    "spoof": "connections in clients' names, with the capabilities of this process",
    "mark": "connections with a mark, with the capabilities of this process",
    "low port": "ports below 1024, with the capabilities of this process",
}
NAME = {"ipv4": "IPv4", "ipv6": "IPv6"}


def examine(plan: Plan) -> Iterator[Finding]:
    """Everything that this plan needs, in the order in which one would set it up."""
    if sys.platform != "linux":
        raise lc.CommError(errno.ENOSYS, f"doctor knows Linux; this is {sys.platform}")
    yield from _privileges(plan)
    if plan.forwarded:
        yield from _forwarding(plan)
    if plan.routed:
        yield from _routing(plan)
        if plan.forwarded or plan.spoof:
            yield from _marks(plan)
    yield from _rules(plan)
    yield from _listening(plan)


def _privileges(plan: Plan) -> Iterator[Finding]:
    needed = {
        "lookup": plan.mode == "redirect",
        "listen": plan.mode == "tproxy",
        "spoof": plan.spoof,
        "mark": plan.exempt.mark is not None,
        "low port": plan.port < 1024,
    }
    for row in lc.preflight([feature for feature in needed if needed[feature]]):
        what = WORK[row.feature]
        if row.ok:
            yield Finding(State.OK, what)
        else:
            yield Finding(State.MISSING, f"{what}: {row.missing}", row.mend)


def _forwarding(plan: Plan) -> Iterator[Finding]:
    for family in plan.families:
        name = f"net/{family}/" + {"ipv4": "ip_forward", "ipv6": "conf/all/forwarding"}[family]
        if _sysctl(name) == "1":
            yield Finding(State.OK, f"{NAME[family]}: this machine forwards")
        else:
            yield Finding(
                State.MISSING,
                f"{NAME[family]}: this machine is no router: it does not forward",
                f"sysctl -w {name.replace('/', '.')}=1",
            )


def _routing(plan: Plan) -> Iterator[Finding]:
    with kernel.opened() as (_, ip):
        for step in routing.steps(plan):
            what = f"IPv{step.text[1]}: {' '.join(step.text[2:].format('').split())}"
            try:
                there = step.is_in(kernel.routes(ip, step))
            except lc.CommError as why:
                yield Finding(State.MISSING, f"{what}: {why.strerror}")
                continue
            yield Finding(State.OK, what) if there else Finding(State.MISSING, what, step.command)


def _marks(plan: Plan) -> Iterator[Finding]:
    """Settings with which the packet mark decides on the way back to the client, which then ends
    here: nothing is answered (seen on Linux 6.18; src_valid_mark whatever rp_filter is, and
    rp_filter alone does no harm). WireGuard's wg-quick sets src_valid_mark."""
    root = Path("/proc/sys")
    files = []
    if "ipv4" in plan.families:
        files += sorted(root.glob("net/ipv4/conf/*/src_valid_mark"))
    if plan.mode == "tproxy" and "tcp" in plan.protocols:
        files.append(root / "net/ipv4/tcp_fwmark_accept")
    names = [str(file.relative_to(root)) for file in files if file.parent.name != "default"]
    wrong = [name for name in names if _sysctl(name) not in ("", "0")]
    for name in wrong:
        yield Finding(
            State.MISSING,
            f"{name} is on, so what carries the mark is not answered",
            f"sysctl -w {name}=0",
        )
    if not wrong:
        yield Finding(State.OK, "no sysctl keeps marked packets from being answered")


def _rules(plan: Plan) -> Iterator[Finding]:
    what = f"nftables: table inet {plan.name}"
    try:
        with kernel.opened() as (nft, _):
            listed = kernel.listed(nft, "rule", [("NFTA_RULE_TABLE", plan.name)])
        with kernel.opened(kernel.ANY) as (nft, _):
            every = kernel.listed(nft, "rule")
    except lc.CommError as why:
        text = f"{what}: only root can see it" if why.errno == errno.EPERM else str(why)
        yield Finding(State.UNKNOWN, text)
        return
    parts = transaction.parts(table(plan))
    # The kernel's number of a control group is its own; the rest of the rules can be compared.
    same = bool(plan.exempt.cgroups) or transaction.same_rules(parts, listed)
    if not listed:
        yield Finding(State.MISSING, what, "lusca-comm rules --apply, with these options")
    elif same:
        yield Finding(State.OK, what)
    else:
        yield Finding(
            State.MISSING,
            f"{what}: it is there, with other rules than these options give",
            "lusca-comm rules --remove, with its options, and --apply with these",
        )
    if plan.spoof:
        yield from _masquerade(every)


def _masquerade(rules: Iterable[Any]) -> Iterator[Finding]:
    """Of nft and iptables-nft; the old iptables keeps its rules elsewhere."""
    found = set()
    for rule in rules:
        for expr in rule.get_attr("NFTA_RULE_EXPRESSIONS") or ():
            data = expr.get_attr("NFTA_EXPR_DATA")
            if expr.get_attr("NFTA_EXPR_NAME") == "masq" or (
                expr.get_attr("NFTA_EXPR_NAME") == "target"
                and data.get_attr("NFTA_TARGET_NAME") == "MASQUERADE"
            ):
                names = (rule.get_attr(f"NFTA_RULE_{name}") for name in ("TABLE", "CHAIN"))
                found.add(" ".join(names))
    for chain in sorted(found):
        yield Finding(
            State.NOTE,
            f"chain {chain} masquerades: what it does to the proxy's connections undoes spoofing. "
            "Exempt them from it",
        )


def _listening(plan: Plan) -> Iterator[Finding]:
    for protocol in plan.protocols:
        found = listeners(plan.port, protocol)
        for family in plan.families:
            yield _listening_for(plan, family, protocol, found)


def _listening_for(
    plan: Plan, family: Family, protocol: Protocol, found: Iterable[Listener]
) -> Finding:
    here = [listener for listener in found if family in listener.families]
    names = ", ".join(spell((listener.host, listener.port)) for listener in here)
    kind = NAME[family] if protocol == "tcp" else f"{NAME[family]}, UDP"
    if not here:
        return Finding(State.MISSING, f"{kind}: nothing listens on port {plan.port}")
    if plan.mode == "redirect" or any(listener.transparent for listener in here):
        return Finding(State.OK, f"{kind}: the proxy listens on {names}")
    if any(listener.transparent is None for listener in here):
        return Finding(
            State.UNKNOWN,
            f"{kind}: {names} listens; before 5.10 the kernel does not tell whether with "
            "IP_TRANSPARENT",
        )
    return Finding(
        State.MISSING,
        f"{kind}: {names} listens without IP_TRANSPARENT, so connections go to the real server: "
        "open it with COMM_TPROXY_LCL",
    )


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
