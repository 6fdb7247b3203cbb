"""Rules of what is left alone: names in every form, the compiled rules beside plain ones, and what
each of the three places makes of them."""

from __future__ import annotations

import errno
import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import CommError
from lusca_comm._shim import lib
from lusca_comm.address import Address, shim_of
from lusca_comm.bypass import Bypass, BypassRule, host_name
from lusca_comm.firewall import Plan, Skip
from lusca_comm.policy import table


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com.", "example.com"),
        (b"Example.COM", "example.com"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("B\u00dcCHER.example", "xn--bcher-kva.example"),
        ("b\u00fccher\u3002example\u3002", "xn--bcher-kva.example"),
        ("_dns.resolver.arpa", "_dns.resolver.arpa"),
        ("localhost", "localhost"),
        ("1.2.3.4a", "1.2.3.4a"),
        (f"{'a' * 63}.b", f"{'a' * 63}.b"),
    ],
)
def test_a_name_has_one_form(name: str | bytes, one: str) -> None:
    assert host_name(name) == host_name(one) == one
    rule = BypassRule(name=f"*.{name if isinstance(name, str) else name.decode()}")
    assert rule.name == f"*.{one}"


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "a..b", ".a", "a b", "a/b", "*.a", "192.0.2.1", "[::1]", "::1", "a:80"),
        *("x" * 64, "a\n", "a\x00b", "\u00fc" * 70, "\ud800", ".".join(["a" * 60] * 5)),
        "b\u00fccher.example".encode(),
    ],
)
def test_what_is_no_name(name: str | bytes) -> None:
    with pytest.raises(ValueError):
        host_name(name)
    bypass = Bypass([BypassRule(name=".com"), BypassRule(name="a")])
    assert bypass.match(None, None, name=name) is None


@pytest.mark.parametrize("name", ["", "*", "*.", "*example.com", "a.*.com", "**.com", "1.1.1.1", 7])
def test_what_is_no_pattern(name: Any) -> None:
    with pytest.raises(CommError, match=r"bypass: a name such as example\.com") as caught:
        BypassRule(name=name)
    assert caught.value.errno == errno.EINVAL


def test_other_rules_that_make_no_sense() -> None:
    for values, text in (
        ({}, "of everything"),
        ({"name": "a", "ports": (0,)}, "ports"),
        ({"name": "a", "interface": "lan0"}, "only the firewall sees an interface"),
    ):
        with pytest.raises(CommError, match=text):
            BypassRule(**values)  # type: ignore[arg-type]
    for row, text in ((Skip(interface="lan0"), "only the firewall"), ("10.0.0.1/8", "a network")):
        with pytest.raises(CommError, match=text):
            Bypass([row])


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("example.com", ["example.com", "Example.com."], ["a.example.com", "com", "xexample.com"]),
        ("*.example.com", ["a.example.com", "a.b.example.com"], ["example.com", "aexample.com"]),
        (".example.com", ["example.com", "a.b.EXAMPLE.com."], ["aexample.com", "example.com.a"]),
        ("*.com", ["a.com", "b.a.com"], ["com", "com.a"]),
        ("*.b\u00fccher.example", ["a.xn--bcher-kva.example"], ["xn--bcher-kva.example"]),
    ],
)
def test_patterns(pattern: str, inside: list[str], outside: list[str]) -> None:
    bypass = Bypass([BypassRule(name=pattern)])
    for name in inside:
        assert bypass.match(None, None, name=name)
        assert bypass.match(None, None, name=host_name(name).encode())
    for name in outside:
        assert not bypass.match(None, None, name=name)
    assert not bypass.match(None, None)


# Few of each, so that they meet.
HOST = st.sampled_from(
    ["10.0.0.0", "10.0.0.1", "10.128.0.0", "192.0.2.1", "a00::", "a00::1", "2001:db8::1"]
)
PORT = st.sampled_from([1, 52, 53, 54, 443, 65535])
MARK = st.sampled_from([1, 0x10, 0x11, 0xF0000000])
LABELS = st.lists(st.sampled_from(["a", "b", "com"]), min_size=1, max_size=4).map(".".join)
NAME = st.tuples(st.sampled_from(["", "*.", "."]), LABELS).map("".join)


@st.composite
def network(draw: st.DrawFn, version: int) -> str:
    host = draw(HOST.filter(lambda host: (":" in host) == (version == 6)))
    bits = draw(st.sampled_from([0, 1, 8, 9, 32]) | st.integers(0, 32 if version == 4 else 128))
    return str(ipaddress.ip_network((host, bits), strict=False))


@st.composite
def rule(draw: st.DrawFn, names: bool = True) -> BypassRule:
    version = draw(st.sampled_from([4, 6]))
    values: dict[str, Any] = {
        "source": draw(st.none() | network(version)),
        "destination": draw(st.none() | network(version)),
        "ports": tuple(draw(st.lists(PORT, max_size=2))),
        "protocol": draw(st.sampled_from([None, "tcp", "udp"])),
        "mark": draw(st.none() | MARK),
        "name": draw(st.none() | NAME) if names else None,
    }
    if values["mark"] is not None:
        values["mask"] = draw(st.sampled_from([None, values["mark"], values["mark"] | 0x101]))
    kept = draw(st.sets(st.sampled_from(sorted(values))))
    chosen = {name: value for name, value in values.items() if name in kept and value}
    if "mark" not in chosen:
        chosen.pop("mask", None)
    return BypassRule(**(chosen or {"ports": (1,)}))


def fits(rule: BypassRule, flow: dict[str, Any], name: str | None) -> bool:
    """The rule's words, one by one."""
    (client, _), (there, port) = flow["peer"], flow["original"]
    return (
        (rule.source is None or ipaddress.ip_address(client) in ipaddress.ip_network(rule.source))
        and (
            rule.destination is None
            or ipaddress.ip_address(there) in ipaddress.ip_network(rule.destination)
        )
        and (not rule.ports or any(low <= port <= high for low, high in rule.port_ranges))
        and rule.protocol in (None, flow["protocol"])
        and (rule.mark is None or flow["mark"] & rule.bits == rule.mark)
        and (rule.name is None or (name is not None and named(rule.name, name)))
    )


def named(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    if pattern.startswith("."):
        return name.endswith(pattern) or name == pattern[1:]
    return name == pattern


FLOW = st.fixed_dictionaries(
    {
        "peer": st.tuples(HOST, PORT),
        "original": st.tuples(HOST, PORT),
        "protocol": st.sampled_from(["tcp", "udp"]),
        "mark": st.just(0) | MARK,
    }
)


@given(st.lists(rule(), max_size=8), FLOW, st.none() | LABELS)
def test_the_compiled_rules_are_the_plain_ones(
    rules: list[BypassRule], flow: dict[str, Any], name: str | None
) -> None:
    bypass = Bypass(rules)
    found = bypass.match(**flow, name=name)
    assert found == next((rule for rule in rules if fits(rule, flow, name)), None)
    # needs_name: there is a name that would make the difference.
    without = bypass.match(**flow)
    possible = [rule.name.strip("*.") for rule in rules if rule.name]
    could = any(
        bypass.match(**flow, name=f"{head}{one}") for one in possible for head in ("", "z.")
    )
    assert bypass.needs_name(**flow) == (without is None and could)


@given(st.lists(rule(), max_size=6), FLOW)
def test_the_plane_decides_what_has_no_name(rules: list[BypassRule], flow: dict[str, Any]) -> None:
    bypass = Bypass(rules)
    if flow["protocol"] == "udp":
        flow["mark"] = 0
    rows, count = table(bypass.rules("spoof", flow["protocol"]), "ask")
    peer, original = shim_of(flow["peer"]), shim_of(flow["original"])
    told = lib.lc_judge(rows, count, peer, original, flow["mark"])
    assert told == (lib.LC_ASK if bypass.match(**flow) is None else lib.LC_SPOOF)


@given(st.lists(rule(), max_size=6), FLOW)
def test_the_plan_leaves_out_what_has_no_name(
    rules: list[BypassRule], flow: dict[str, Any]
) -> None:
    bypass = Bypass(rules)
    plan = Plan(protocols=("tcp", "udp"), **bypass.plan_options())
    there = ipaddress.ip_address(flow["original"][0])
    left_out = any(there in net for net in (*plan.networks("ipv4"), *plan.networks("ipv6")))
    plain: dict[str, Any] = {"name": None}
    for skip in plan.skips:
        row = BypassRule(
            **{name: getattr(skip, name) for name in Skip.__dataclass_fields__}, **plain
        )
        left_out = left_out or fits(row, flow, None)
    assert left_out == (bypass.match(**flow) is not None)


def test_what_is_given_is_a_row() -> None:
    net = ipaddress.ip_network("10.0.0.0/8")
    bypass = Bypass(["10.0.0.0/8", net, Skip(ports=(22,)), BypassRule(name="a", ports=[22])])
    assert list(bypass) == [
        BypassRule(destination=net),
        BypassRule(ports=(22,)),
        BypassRule(name="a", ports=(22,)),
    ]
    assert len(bypass) == 3
    assert bypass.plan_options() == {"bypass": (net, Skip(ports=(22,)))}


def test_what_is_not_known_matches_no_rule_about_it() -> None:
    four: Address = ("192.0.2.1", 80)
    bypass = Bypass([BypassRule(source="192.0.2.0/24"), BypassRule(ports=(80,), mark=1)])
    assert bypass.match(four, None)
    assert not bypass.match(None, four)
    assert bypass.match(None, four, mark=1)
    assert not bypass.match(None, None, mark=1)
    assert bypass.match(("::ffff:192.0.2.1", 1), None)
    link_local = Bypass(["fe80::/10"])
    assert link_local.match(None, ("fe80::1%eth0", 80))
