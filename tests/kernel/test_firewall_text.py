"""The text of a plan is what nft and ip say of it once it is applied, and does the same."""

from __future__ import annotations

import errno
import ipaddress
import random
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from firewall_peers import FAMILIES, in_force, nothing_left, shared_hosts, snapshot
from firewall_plans import PLANS

from lusca_comm.errors import CommError
from lusca_comm.firewall import Exempt, Plan, apply, kernel, remove, render, render_commands
from lusca_comm.lab import Host, Topology

needs_nft = pytest.mark.skipif(not shutil.which("nft"), reason="the program nft is not installed")
needs_ip = pytest.mark.skipif(not shutil.which("ip"), reason="the program ip is not installed")
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
ROUTING = {render_commands(plan): (name, plan) for name, plan in PLANS.items()}
hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")


@pytest.fixture
def host(hosts: Topology) -> Host:
    return hosts.router


@needs_nft
@plans
def test_nft_lists_what_the_plan_renders(host: Host, plan: Plan) -> None:
    with nothing_left(host), in_force(host, plan):
        assert host.check_output(["nft", "list", "ruleset"]) == render(plan)


@needs_nft
@plans
def test_nft_takes_the_text_and_lists_it_again(host: Host, plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.nft"
    file.write_text(render(plan))
    commands = f"nft -f {file}; nft list ruleset; nft delete table inet {plan.name}"
    assert host.check_output(["sh", "-ec", commands]) == render(plan)


@needs_ip
@pytest.mark.parametrize(
    ("name", "plan"), ROUTING.values(), ids=[name for name, _ in ROUTING.values()]
)
def test_the_ip_commands_do_what_apply_does(host: Host, name: str, plan: Plan) -> None:
    parts = [f"{what} {family}" for what in ("routes", "ip rules") for family in FAMILIES]
    with nothing_left(host):
        host.check_output(["sh", "-ec", render_commands(plan)])
        by_hand = host.run(snapshot)
        host.check_output(["sh", "-ec", render_commands(plan, remove=True)])
    with in_force(host, plan):
        applied = host.run(snapshot)
    assert [by_hand[part] for part in parts] == [applied[part] for part in parts]


def long_list() -> Plan:
    chance = random.Random(4)
    nets = [
        str(ipaddress.ip_network((chance.getrandbits(bits), length), strict=False))
        for bits, length in ((32, 24), (128, 48))
        for _ in range(3000)
    ]
    return Plan(bypass=nets)


@needs_nft
def test_a_long_list_of_networks_is_one_set(host: Host) -> None:
    """Of more elements than one netlink attribute can hold."""
    plan = long_list()
    with nothing_left(host), in_force(host, plan):
        assert host.check_output(["nft", "list", "ruleset"]) == render(plan)


def test_more_than_a_socket_sends_at_once_is_named(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_LARGEST_BATCH", 1 << 17)
    # The one that ordinary users have too; it only can make the buffer smaller.
    monkeypatch.setattr(kernel, "_SO_SNDBUFFORCE", socket.SO_SNDBUF)
    with nothing_left(host), pytest.raises(CommError, match=r"net\.core\.wmem_max") as caught:
        host.run(apply, long_list())
    assert caught.value.errno == errno.EMSGSIZE


def test_an_unknown_cgroup_is_named(host: Host) -> None:
    plan = Plan(own=True, exempt=Exempt(cgroups=("no.slice/such.service",)))
    with nothing_left(host), pytest.raises(CommError, match=r"no\.slice/such\.service"):
        host.run(apply, plan)


def test_programs_are_not_needed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(subprocess, "Popen", None)
    with nothing_left(host):
        host.run(apply, PLANS["redirect-same-port"])
        host.run(remove, PLANS["redirect-same-port"])
