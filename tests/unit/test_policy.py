"""Which row of a policy the C takes, beside a model of it in Python."""

from __future__ import annotations

import errno
import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import CommError, Rule
from lusca_comm._shim import lib
from lusca_comm.address import Address, shim_of
from lusca_comm.policy import ACTIONS, table

# Few of each, so that they meet.
HOST = st.sampled_from(
    ["10.0.0.0", "10.0.0.1", "10.0.128.0", "11.0.0.0", "a00::", "a00::1", "2001:db8::", "::"]
)
PORT = st.sampled_from([0, 1, 52, 53, 54, 65535])
MARK = st.sampled_from([0, 1, 0x10, 0x11, 0x80000000, 0xFFFFFFFF])


@st.composite
def network(draw: st.DrawFn) -> str:
    host = ipaddress.ip_address(draw(HOST))
    bits = draw(st.sampled_from([0, 7, 8, 9, 31, 32]) | st.integers(0, host.max_prefixlen))
    return str(ipaddress.ip_network((host, bits), strict=False))


@st.composite
def mark(draw: st.DrawFn) -> int | tuple[int, int] | None:
    value, mask = draw(MARK), draw(MARK)
    return draw(st.sampled_from([None, value or None, (value & mask, mask) if value & mask else 1]))


RULE = st.builds(
    Rule,
    st.sampled_from(sorted(ACTIONS)),
    st.just("") | network(),
    PORT | st.tuples(PORT, PORT).map(lambda pair: (min(pair), max(pair))),
    st.just("") | network(),
    mark(),
)


def fits(rule: Rule, client: Address, original: Address, mark: int) -> bool:
    low, high = rule.ports if isinstance(rule.ports, tuple) else (rule.ports, rule.ports)
    wanted = rule.mark if isinstance(rule.mark, tuple) else (rule.mark or 0, 0xFFFFFFFF)
    return (
        low <= original[1] <= high
        and (not rule.network or within(original, rule.network))
        and (not rule.source or within(client, rule.source))
        and (rule.mark is None or mark & wanted[1] == wanted[0])
    )


def within(address: Address, network: str) -> bool:
    return ipaddress.ip_address(address[0]) in ipaddress.ip_network(network)


@given(st.lists(RULE, max_size=4), st.tuples(HOST, PORT), st.tuples(HOST, PORT), MARK)
def test_the_first_row_that_fits(
    rules: list[Rule], client: Address, original: Address, mark: int
) -> None:
    rows, count = table(rules, "ask")
    found = lib.lc_judge(rows, count, shim_of(client), shim_of(original), mark)
    meant = next((rule.action for rule in rules if fits(rule, client, original, mark)), "ask")
    assert found == ACTIONS[meant]


def test_what_no_row_fits_is_denied() -> None:
    rows, count = table([Rule("relay", "10.0.0.0/8")], "relay")
    there = shim_of(("192.0.2.1", 80))
    assert lib.lc_judge(rows, count - 1, there, there, 0) == lib.LC_DENY
    assert lib.lc_judge(rows, count, there, there, 0) == lib.LC_RELAY


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (("allow",), "'allow': one of"),
        (("relay", "10.0.0.1/8"), "host bits"),
        (("relay", "", (0, 65535), "10.0.0.1/8"), "host bits"),
        (("relay", "", (0, 65535), "client"), "'client'"),
        (("relay", "", 65536), "no port"),
        (("relay", "", 0, "", 0), "a mark from 1"),
        (("relay", "", 0, "", (2, 1)), "within its mask"),
        (("relay", "", 0, "", (1, 1 << 32)), "within its mask"),
    ],
)
def test_a_row_that_makes_no_sense(rule: Any, text: str) -> None:
    with pytest.raises(CommError, match=text) as caught:
        table([rule], "deny")
    assert caught.value.errno == errno.EINVAL
