"""The iptables text: both kinds of iptables take it, it intercepts, and it goes without a trace."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest
from firewall_peers import FAMILIES, fetch, intercept_on, relay_on, serve_on
from firewall_plans import PLANS

from lusca_comm.firewall import Exempt, Plan, iptables, render_commands
from lusca_comm.firewall.plan import FAMILIES as NAMES
from lusca_comm.firewall.plan import Family
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
families = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


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
        for family in plan.families:
            text = iptables.render(plan, family, remove)
            self.run(family, "restore", "--noflush", "--test", text=text)
            self.run(family, "restore", "--noflush", text=text)


def route(host: Host, plan: Plan) -> None:
    for line in render_commands(plan).splitlines():
        host.check_output(line.split())


@kinds
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_iptables_restore_takes_the_text_and_takes_it_away(
    lab: Lab, kind: str, plan: Plan, tmp_path: Path
) -> None:
    tables = Tables(lab.host("router"), kind, tmp_path)
    if plan.exempt.uids and lab.rootless:  # the owner match takes the namespace's users only
        exempt = dataclasses.replace(plan.exempt, uids=(0,))
        plan = dataclasses.replace(plan, exempt=exempt)
    other = "*mangle\n:other - [0:0]\n-A PREROUTING -j other\nCOMMIT\n"
    tables.run("ipv4", "restore", "--noflush", text=other)
    before = tables.save()
    assert len(before) == 2
    tables.load(plan)
    assert any(plan.name in line for line in tables.save())
    tables.load(plan, remove=True)
    assert tables.save() == before


@kinds
@families
@modes
def test_forwarded_and_own_traffic_meet_the_proxy(
    three_hosts: Topology, kind: str, mode: str, family: int, tmp_path: Path
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, 81, name="origin")
    serve_on(net.router, family, 80, name="router")
    proxy = intercept_on(net.router, family, mode)
    tables = Tables(net.router, kind, tmp_path)
    plan = Plan(mode=mode, own=True, exempt=Exempt(mark=0x539))
    tables.load(plan)
    route(net.router, plan)
    for host in (net.client, net.router):
        name, _, own = host.run(fetch, there)
        assert name == "proxy"
        assert proxy.recv() == (own, there)
    assert net.router.run(fetch, there, mark=0x539)[0] == "origin"
    assert net.client.run(fetch, (there[0], 81))[0] == "origin"
    assert net.client.run(fetch, (net.router_client_ip[family], 80))[0] == "router"
    tables.load(plan, remove=True)
    assert net.client.run(fetch, there)[0] == "origin"


@kinds
@families
@modes
def test_same_port_spoofing(
    three_hosts: Topology, kind: str, mode: str, family: int, tmp_path: Path
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, name="origin")
    proxy = relay_on(net.router, family, mode, same_port=True)
    plan = Plan(mode=mode, spoof=True, same_port=True)
    Tables(net.router, kind, tmp_path).load(plan)
    route(net.router, plan)
    for _ in range(3):
        name, seen, own = net.client.run(fetch, there)
        assert (name, seen) == ("origin", f"{own[0]} {own[1]}")
        assert proxy.recv() == (own, there)


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


def test_a_cgroup_path_is_quoted() -> None:
    plan = Plan(own=True, exempt=Exempt(cgroups=("a slice/b", 17)))
    text = iptables.render(plan, "ipv4")
    assert '-m cgroup --path "a slice/b" -j RETURN' in text
    assert "-m cgroup --cgroup 17 -j RETURN" in text
    assert iptables.render(Plan(families=("ipv6",)), "ipv4") == ""
    assert iptables.oldest_kernel(plan) == ((4, 5), "the cgroup match with --path")
    assert iptables.oldest_kernel(Plan(mode="redirect"))[0] == (3, 7)
    assert iptables.oldest_kernel(Plan(families=("ipv4",)))[0] == (2, 6, 31)
