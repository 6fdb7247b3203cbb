"""Policy files: what a line means, and that every bad line is told of."""

from __future__ import annotations

import errno
import ipaddress
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import CommError, Rule
from lusca_comm.policy import table
from lusca_comm.policy_file import parse_policy

EVERY = (0, 65535)
PORT = st.integers(0, 65535)
RANGE = st.tuples(PORT, PORT).map(lambda pair: (min(pair), max(pair)))
NETWORK = st.one_of(
    st.just(""),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 95)),
)


@pytest.mark.parametrize(
    ("line", "rules"),
    [
        ("relay 198.51.100.0/24 80", [Rule("relay", "198.51.100.0/24", 80)]),
        ("spoof 0.0.0.0/0", [Rule("spoof", "0.0.0.0/0", EVERY)]),
        ("deny 2001:db8::1", [Rule("deny", "2001:db8::1/128", EVERY)]),
        ("deny 10.0.0.0/255.0.0.0", [Rule("deny", "10.0.0.0/8", EVERY)]),
        ("deny", [Rule("deny", "", EVERY)]),
        (
            "  relay\tany  80,8000-8010 # two",
            [Rule("relay", "", 80), Rule("relay", "", (8000, 8010))],
        ),
        ("relay any 80\r", [Rule("relay", "", 80)]),
        ("deny from 192.0.2.0/24", [Rule("deny", "", EVERY, "192.0.2.0/24")]),
        ("relay any from 2001:db8::1", [Rule("relay", "", EVERY, "2001:db8::1/128")]),
        ("relay ::/0 80 from any mark 1", [Rule("relay", "::/0", 80, "", 1)]),
        ("relay mark 0x10/0xf0", [Rule("relay", "", EVERY, "", (0x10, 0xF0))]),
        ("# deny any", []),
        ("", []),
    ],
)
def test_a_line(line: str, rules: list[Rule]) -> None:
    assert parse_policy(line) == rules
    assert parse_policy(f"{line}\n".encode()) == rules


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("allow any", "'allow' is none of relay, spoof, deny"),
        ("ask any", "'ask' is none of"),  # nobody is there to be asked
        ("relay example.org", "'example.org' does not appear to be"),
        ("relay 80", "'80' does not appear to be an IPv4 or IPv6 network; or 'any'"),
        ("relay 10.0.0.1/8", "has host bits set"),
        ("relay ::ffff:10.0.0.0/104", "mapped addresses are seen as IPv4: 10.0.0.0/8"),
        ("relay any http", "ports 'http': numbers from 0 to 65535"),
        ("relay any 65536", "ports '65536': "),
        ("relay any 80,", "ports '': "),
        ("relay any -80", "ports '-80': "),
        ("relay any 90-80", "ports '90-80': the first is above the last"),
        ("relay any \u0663", "numbers from 0 to 65535"),
        ("relay any 80, 443", "'443' is too much"),
        ("relay from 10.0.0.0/8 80", "'80' is too much"),
        ("relay mark 1 from 10.0.0.0/8", "'from' is too much"),
        ("relay any 80 from", "'from': and then?"),
        ("relay from 10.0.0.1/8", "has host bits set"),
        ("relay from ::ffff:10.0.0.0/104", "mapped addresses are seen as IPv4"),
        ("relay mark 0", "'0': MARK or MARK/MASK"),
        ("relay mark 0x11/0xf0", "the mark within the mask"),
        ("relay mark 0x1ffffffff", "MARK or MARK/MASK"),
    ],
)
def test_a_line_that_makes_no_sense(line: str, text: str) -> None:
    with pytest.raises(CommError) as caught:
        parse_policy(f"deny any 81\n{line}\n", "mine")
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value.strerror).startswith("mine:2: ")
    assert text in str(caught.value.strerror)


def test_all_bad_lines_are_told_of() -> None:
    with pytest.raises(CommError) as caught:
        parse_policy("nonsense\ndeny any\nmore\n\nrelay any x\n", "p")
    starts = [line.split(" ")[0] for line in str(caught.value.strerror).splitlines()]
    assert starts == ["p:1:", "p:3:", "p:5:"]


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(CommError, match="p:2: not UTF-8"):
        parse_policy(b"deny any\n\xff\n", "p")
    assert parse_policy(b"\xef\xbb\xbfdeny") == [Rule("deny")]  # what some editors put first


def masked(network: object) -> str:
    if network == "":
        return "any"
    assert isinstance(network, tuple)
    address, bits = network
    kept = int(address) >> (address.max_prefixlen - bits) << (address.max_prefixlen - bits)
    return f"{type(address)(kept)}/{bits}"


def written(
    network: object, ports: list[int | tuple[int, int]], source: object, mark: tuple[int, int]
) -> str:
    listed = ",".join(
        str(port) if isinstance(port, int) else "{}-{}".format(*port) for port in ports
    )
    behind = "" if source == "" else f" from {masked(source)}"
    behind += " mark {:#x}/{:#x}".format(*mark) if mark[1] else ""
    return f"{masked(network)} {listed}{behind}"


BITS = st.integers(0, 0xFFFFFFFF)
MARK = st.just((0, 0)) | st.tuples(BITS, BITS).map(
    lambda pair: (pair[0] & pair[1], pair[1])
).filter(lambda mark: mark[0])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["relay", "spoof", "deny"]),
            NETWORK,
            st.lists(PORT | RANGE, min_size=1, max_size=4),
            NETWORK,
            MARK,
        )
    )
)
def test_what_is_written_is_what_the_plane_gets(
    lines: list[tuple[str, object, list[int | tuple[int, int]], object, tuple[int, int]]],
) -> None:
    rules = parse_policy("\n".join(f"{action} {written(*rest)}" for action, *rest in lines))
    assert [(rule.action, rule.ports) for rule in rules] == [
        (action, port) for action, _, ports, _, _ in lines for port in ports
    ]
    rows, count = table(rules, "deny")
    assert count == len(rules) + 1
    meant = [line for line in lines for _ in line[2]]
    for row, (_, network, _, source, mark) in zip(rows, meant, strict=False):
        assert in_row(row.family, row.bits, row.ip) == masked(network)
        assert in_row(row.source_family, row.source_bits, row.source) == masked(source)
        assert (row.mark, row.mask) == mark


def in_row(family: int, bits: int, ip: Any) -> str:
    if not family:
        return "any"
    return f"{ipaddress.ip_address(bytes(ip)[: 4 if family == 4 else 16])}/{bits}"


@given(st.text() | st.binary())
def test_anything_is_rules_or_told_of_by_line(text: str | bytes) -> None:
    complaints: list[str] = []
    try:
        table(parse_policy(text, "p"), "deny")
    except CommError as why:
        complaints = str(why.strerror).split("\n")
    assert [line for line in complaints if not re.match(r"p:\d+: ", line)] == []
