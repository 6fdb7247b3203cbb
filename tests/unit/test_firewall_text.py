"""Texts of the plans against files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from firewall_plans import PLANS

from lusca_comm.firewall import Plan, iptables, render, render_commands
from lusca_comm.firewall.nftables import table
from lusca_comm.firewall.plan import FAMILIES, Family

VECTORS = Path(__file__).parents[1] / "vectors" / "firewall"


def golden(name: str, text: str) -> None:
    """With LUSCA_COMM_WRITE_VECTORS set the files are written anew; look at the diff then."""
    file = VECTORS / name
    if os.environ.get("LUSCA_COMM_WRITE_VECTORS"):
        file.write_text(text)
    assert file.read_text() == text


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_nftables_text(plan: Plan, request: pytest.FixtureRequest) -> None:
    golden(f"{request.node.callspec.id}.nft", render(plan))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_routing_commands(plan: Plan, request: pytest.FixtureRequest) -> None:
    golden(f"{request.node.callspec.id}.ip", render_commands(plan))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_iptables_text(plan: Plan, family: Family, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id.removesuffix(f"-{family}")
    text = iptables.render(plan, family)
    golden(f"{name}.{family}.iptables", text + iptables.render(plan, family, remove=True))


def test_there_is_no_vector_without_a_plan() -> None:
    assert {file.name.partition(".")[0] for file in VECTORS.iterdir()} == set(PLANS)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_comments_fit_into_the_kernels_user_data(plan: Plan) -> None:
    for chain in table(plan).chains:
        for rule in chain.rules:
            assert 0 < len(rule.comment) <= 128  # NFTNL_UDATA_COMMENT_MAXLEN
