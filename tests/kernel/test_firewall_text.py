"""The text of a plan is what nft and ip say of it once it is applied, and does the same."""

from __future__ import annotations

import ipaddress
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from firewall_peers import nothing_left, snapshot
from firewall_plans import PLANS

from lusca_comm.errors import CommError
from lusca_comm.firewall import Exempt, Plan, apply, remove, render, render_commands
from lusca_comm.lab import Host, Lab

needs_nft = pytest.mark.skipif(not shutil.which("nft"), reason="the program nft is not installed")
needs_ip = pytest.mark.skipif(not shutil.which("ip"), reason="the program ip is not installed")
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def sh(host: Host, text: str) -> None:
    for line in text.splitlines():
        host.check_output(line.split())


@needs_nft
@plans
def test_nft_lists_what_the_plan_renders(lab: Lab, plan: Plan) -> None:
    host = lab.host("router")
    with nothing_left(host):
        host.run(apply, plan)
        assert host.check_output(["nft", "list", "table", "inet", plan.name]) == render(plan)
        host.run(remove, plan)


@needs_nft
@plans
def test_nft_takes_the_text_and_lists_it_again(lab: Lab, plan: Plan, tmp_path: Path) -> None:
    host = lab.host("router")
    file = tmp_path / "plan.nft"
    file.write_text(render(plan))
    host.check_output(["nft", "-f", str(file)])
    assert host.check_output(["nft", "list", "ruleset"]) == render(plan)


@needs_ip
@plans
def test_the_ip_commands_do_what_apply_does(lab: Lab, plan: Plan) -> None:
    by_hand, applied = lab.host("one"), lab.host("two")
    parts = [f"{what} {family}" for what in ("routes", "ip rules") for family in (2, 10)]
    before = by_hand.run(snapshot)
    sh(by_hand, render_commands(plan))
    applied.run(apply, plan)
    one, two = by_hand.run(snapshot), applied.run(snapshot)
    assert [one[part] for part in parts] == [two[part] for part in parts]
    sh(by_hand, render_commands(plan, remove=True))
    assert by_hand.run(snapshot) == before


@needs_nft
def test_a_long_list_of_networks_is_one_set(lab: Lab) -> None:
    """Of more elements than one netlink attribute can hold."""
    chance = random.Random(4)
    nets = [
        str(ipaddress.ip_network((chance.getrandbits(bits), length), strict=False))
        for bits, length in ((32, 24), (128, 48))
        for _ in range(3000)
    ]
    plan = Plan(bypass=nets)
    host = lab.host("router")
    with nothing_left(host):
        host.run(apply, plan)
        assert host.check_output(["nft", "list", "table", "inet", plan.name]) == render(plan)
        host.run(remove, plan)


def test_an_unknown_cgroup_is_named(lab: Lab) -> None:
    host = lab.host("router")
    plan = Plan(own=True, exempt=Exempt(cgroups=("no.slice/such.service",)))
    with nothing_left(host), pytest.raises(CommError, match=r"no\.slice/such\.service"):
        host.run(apply, plan)


def test_programs_are_not_needed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(subprocess, "Popen", None)
    host = lab.host("router")
    with nothing_left(host):
        host.run(apply, PLANS["redirect-same-port"])
        host.run(remove, PLANS["redirect-same-port"])
