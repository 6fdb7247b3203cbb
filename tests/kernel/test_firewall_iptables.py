"""The iptables text: both kinds of iptables take it, it intercepts, and it goes without a trace."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from firewall_peers import (
    FAMILIES,
    Address,
    all_seen,
    ended,
    intercept_on,
    names,
    relay_on,
    serve_on,
    shared_hosts,
    start,
)
from firewall_plans import PLANS
from kernel.test_firewall_refuse import outcomes
from kernel.test_firewall_udp import answer_on, seen_by, serve_udp, whose

from lusca_comm.firewall import Exempt, Plan, Skip, iptables, render_commands
from lusca_comm.firewall.plan import FAMILIES as NAMES
from lusca_comm.firewall.plan import Family, Owners
from lusca_comm.lab import Host, Lab, Topology

KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            not shutil.which(f"iptables-{kind}-restore"),
            reason=f"the program iptables-{kind}-restore is not installed",
        ),
    )
    for kind in ("nft", "legacy")
]
kinds = pytest.mark.parametrize("kind", KINDS)
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])
hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")
EXEMPT = Exempt(mark=0x539)


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    yield from ended(hosts)


def origin(net: Topology, port: int = 80) -> list[Address]:
    return [(net.origin_ip[family], port) for family in FAMILIES]


class Tables:
    """iptables and ip6tables of one kind in one host."""

    def __init__(self, host: Host, kind: str, folder: Path) -> None:
        self.host, self.kind = host, kind
        self.lock = folder / "xtables.lock"

    def run(self, family: Family, what: str, *options: str, text: str = "") -> str:
        six = "6" if family == "ipv6" else ""
        with self.host.popen(
            [f"ip{six}tables-{self.kind}-{what}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XTABLES_LOCKFILE": str(self.lock)},
        ) as program:
            output, complaint = program.communicate(text, timeout=30)
        assert program.returncode == 0, (complaint, text)
        return str(output)

    def save(self) -> list[str]:
        """Rules and chains. Empty built-in tables stay from the first use of a table on."""
        lines = [line for family in NAMES for line in self.run(family, "save").splitlines()]
        return [line for line in lines if line.startswith("-A") or " - [" in line]

    def load(self, plan: Plan, remove: bool = False) -> None:
        for family in NAMES:
            text = iptables.render(plan, family, remove)
            self.run(family, "restore", "--noflush", text=text)


def root(owners: Owners) -> Any:
    uids, gids = ((0,) if ids else () for ids in (owners.uids, owners.gids))
    return dataclasses.replace(owners, uids=uids, gids=gids)


@kinds
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_iptables_restore_takes_the_text_and_takes_it_away(
    net: Topology, kind: str, plan: Plan, tmp_path: Path
) -> None:
    tables = Tables(net.router, kind, tmp_path)
    if os.geteuid():  # the owner match takes the namespace's users and groups only
        plan = dataclasses.replace(plan, exempt=root(plan.exempt), only=root(plan.only))
    other = "*mangle\n:other - [0:0]\n-A PREROUTING -j other\nCOMMIT\n"
    tables.run("ipv4", "restore", "--noflush", text=other)
    before = tables.save()
    assert len(before) == 2
    tables.load(plan)
    assert any(plan.name in line for line in tables.save())
    tables.load(plan, remove=True)
    assert tables.save() == before
    gone = "*mangle\n-D PREROUTING -j other\n-X other\nCOMMIT\n"
    tables.run("ipv4", "restore", "--noflush", text=gone)


@contextlib.contextmanager
def loaded(tables: Tables, plan: Plan) -> Iterator[None]:
    tables.load(plan)
    tables.host.check_output(["sh", "-ec", render_commands(plan)])
    yield
    tables.load(plan, remove=True)
    tables.host.check_output(["sh", "-ec", render_commands(plan, remove=True)])


@kinds
@modes
def test_forwarded_and_own_traffic_meet_the_proxy(
    net: Topology, kind: str, mode: str, tmp_path: Path
) -> None:
    there = origin(net)
    serve_on(net.origin, 80, 81, name="origin")
    serve_on(net.router, 80, name="router")
    proxy = intercept_on(net.router, mode)
    here = [(net.router_client_ip[family], 80) for family in FAMILIES]
    with loaded(Tables(net.router, kind, tmp_path), Plan(mode=mode, own=True, exempt=EXEMPT)):
        for host in (net.client, net.router):
            all_seen(host, proxy, *there)
        assert names(net.router, *there, mark=EXEMPT.mark) == ["origin", "origin"]
        others = names(net.client, *origin(net, 81), *here)
        assert others == ["origin"] * 2 + ["router"] * 2
    assert names(net.client, *there) == ["origin", "origin"]


@kinds
def test_datagrams_meet_the_proxy(net: Topology, kind: str, tmp_path: Path) -> None:
    start(net.origin, serve_udp, (53, 54), "origin")
    proxy = answer_on(net.router, mark=EXEMPT.mark)
    skips = (Skip(source="192.0.2.0/24", destination="198.51.100.0/24", protocol="udp"),)
    plan = Plan(protocols=("udp",), ports=(53,), own=True, exempt=EXEMPT)
    tables = Tables(net.router, kind, tmp_path)
    with loaded(tables, plan):
        for host in (net.client, net.router):
            seen_by(host, proxy, *(2 * origin(net, 53)))
        assert whose(net.router, *origin(net, 53), mark=EXEMPT.mark) == ["origin", "origin"]
        assert whose(net.client, *origin(net, 54)) == ["origin", "origin"]
    with loaded(tables, dataclasses.replace(plan, bypass=skips)):
        four, six = origin(net, 53)
        assert whose(net.client, four) == ["origin"]
        seen_by(net.client, proxy, six)
        seen_by(net.router, proxy, four)


@kinds
@modes
def test_same_port_spoofing(net: Topology, kind: str, mode: str, tmp_path: Path) -> None:
    serve_on(net.origin, 80, name="origin")
    proxy = relay_on(net.router, mode, same_port=True)
    with loaded(Tables(net.router, kind, tmp_path), Plan(mode=mode, spoof=True, same_port=True)):
        found = all_seen(net.client, proxy, *(3 * origin(net)), name="origin")
        assert [seen for _, seen, _ in found] == [f"{own[0]} {own[1]}" for _, _, own in found]


@kinds
def test_many_ports_are_several_rules(lab: Lab, kind: str, tmp_path: Path) -> None:
    ports = (*range(1, 60, 2), *((port, port + 5) for port in range(1000, 1200, 10)))
    plan = Plan(mode="redirect", ports=ports)
    tables = Tables(lab.host("router"), kind, tmp_path)
    tables.load(plan)
    rules = [line for line in tables.save() if "multiport" in line]
    listed = [word for line in rules for word in line.split("--dports ")[1].split()[0].split(",")]
    assert len(rules) > 2 * 2
    assert sorted(listed) == sorted(
        2 * [str(item) if isinstance(item, int) else f"{item[0]}:{item[1]}" for item in ports]
    )


@kinds
def test_the_rest_is_refused(net: Topology, kind: str, tmp_path: Path) -> None:
    """Other ports, and the family that the plan leaves out; not what is bypassed."""
    tables = Tables(net.router, kind, tmp_path)
    serve_on(net.origin, 80, 81, 82, name="origin")
    proxy = intercept_on(net.router, "redirect")
    plan = Plan(mode="redirect", families=("ipv4",), bypass_ports=(82,), rest="refuse")
    tables.load(plan)
    try:
        all_seen(net.client, proxy, origin(net)[0])
        refused = (origin(net, 81)[0], *origin(net)[1:])
        assert outcomes(net.client, *refused) == {errno.ECONNREFUSED}
        assert names(net.client, *origin(net, 82)) == ["origin", "origin"]
    finally:
        tables.load(plan, remove=True)


def test_a_cgroup_path_is_quoted() -> None:
    plan = Plan(own=True, exempt=Exempt(cgroups=("a slice/b", 17)))
    text = iptables.render(plan, "ipv4")
    assert '-m cgroup --path "a slice/b" -j RETURN' in text
    assert "-m cgroup --cgroup 17 -j RETURN" in text
    assert iptables.render(Plan(families=("ipv6",)), "ipv4") == ""
    assert iptables.oldest_kernel(plan) == ((4, 5), "the cgroup match with --path")
    assert iptables.oldest_kernel(Plan(mode="redirect"))[0] == (3, 7)
    assert iptables.oldest_kernel(Plan(families=("ipv4",)))[0] == (2, 6, 31)
