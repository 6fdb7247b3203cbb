"""Texts of the plans against files, and netlink's formats."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from firewall_plans import PLANS
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm.firewall import Plan, iptables, render, render_commands
from lusca_comm.firewall.netlink import Attrs, holds, pack, unpack
from lusca_comm.firewall.nftables import table
from lusca_comm.firewall.plan import FAMILIES, Family
from lusca_comm.firewall.transaction import parts

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


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_offset_in_a_rule_leads_to_the_expression_there(plan: Plan) -> None:
    for part in parts(table(plan)):
        frame = part.message.encode(1)
        place = 0
        for expr in part.exprs:
            # The kernel points at the list element, 4 bytes of header before the expression.
            place = frame.index(pack([(1, expr.encode())]), place)
            assert part.stumbled(place) == expr
            place += 4
        assert part.stumbled(None) is None
        assert part.stumbled(0) is None
        assert part.stumbled(len(frame)) is None


leaves = st.tuples(st.integers(1, 200), st.binary(max_size=9))
attrs = st.recursive(
    st.lists(leaves, max_size=4),
    lambda inner: st.lists(
        st.one_of(leaves, st.tuples(st.integers(1, 200), inner)), min_size=1, max_size=4
    ),
    max_leaves=12,
)


@given(attrs)
def test_what_was_sent_is_in_what_comes_back(sent: Attrs) -> None:
    assert holds(pack(sent), sent)


@given(st.lists(leaves, max_size=4, unique_by=lambda leaf: leaf[0]), leaves, st.randoms())
def test_other_attributes_and_another_order_do_not_matter_but_values_do(
    sent: list[tuple[int, bytes]], more: tuple[int, bytes], chance: object
) -> None:
    answer = [leaf for leaf in sent if leaf[0] != more[0]]
    assert holds(pack([more, *reversed(answer)]), answer)
    assert not holds(pack(answer), [*answer, more])
    assert not holds(pack([*answer, (more[0], more[1] + b"x")]), [*answer, more])


@given(st.binary(max_size=60))
def test_any_bytes_can_be_unpacked(data: bytes) -> None:
    assert all(len(value) <= len(data) for _, value in unpack(data))
