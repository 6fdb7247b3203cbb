"""Policy files: what a line means, and that every bad line is told of."""

from __future__ import annotations

import errno
import re

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


def written(network: object, ports: list[int | tuple[int, int]]) -> str:
    if network == "":
        where = "any"
    else:
        assert isinstance(network, tuple)
        address, bits = network
        masked = int(address) >> (address.max_prefixlen - bits) << (address.max_prefixlen - bits)
        where = f"{type(address)(masked)}/{bits}"
    listed = ",".join(
        str(port) if isinstance(port, int) else "{}-{}".format(*port) for port in ports
    )
    return f"{where} {listed}"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["relay", "spoof", "deny"]),
            NETWORK,
            st.lists(PORT | RANGE, min_size=1, max_size=4),
        )
    )
)
def test_what_is_written_is_what_the_plane_gets(
    lines: list[tuple[str, object, list[int | tuple[int, int]]]],
) -> None:
    rules = parse_policy("\n".join(f"{action} {written(*rest)}" for action, *rest in lines))
    assert [(rule.action, rule.ports) for rule in rules] == [
        (action, port) for action, _, ports in lines for port in ports
    ]
    rows, count = table(rules, "deny")
    assert count == len(rules) + 1
    networks = [network for _, network, ports in lines for _ in ports]
    for row, network in zip(rows, networks, strict=False):
        if network == "":
            assert row.family == 0
        else:
            assert isinstance(network, tuple)
            address, bits = network
            assert (row.family, row.bits) == (address.version, bits)
            inside = int.from_bytes(bytes(row.ip)[: address.max_prefixlen // 8], "big")
            shift = address.max_prefixlen - bits
            assert inside == int(address) >> shift << shift


@given(st.text() | st.binary())
def test_anything_is_rules_or_told_of_by_line(text: str | bytes) -> None:
    complaints: list[str] = []
    try:
        table(parse_policy(text, "p"), "deny")
    except CommError as why:
        complaints = str(why.strerror).split("\n")
    assert [line for line in complaints if not re.match(r"p:\d+: ", line)] == []
