"""The plan's checks: what is natural is taken, what is wrong gives one clear error."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import itertools
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm.errors import CommError
from lusca_comm.firewall import Exempt, Only, Plan, Skip, oldest_kernel, render, render_commands
from lusca_comm.firewall.checks import ranges, subtract

ports = st.integers(1, 65535)
pairs = st.tuples(ports, ports).map(lambda pair: (min(pair), max(pair)))
items = st.lists(st.one_of(ports, pairs), max_size=8)

OWN: dict[str, Any] = {"own": True, "exempt": Exempt(uids=(13,))}
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("mode", {"mode": "divert"}),
    ("port", {"port": 0}),
    ("port", {"port": 65536}),
    ("port", {"port": "3129"}),
    ("port", {"port": True}),
    ("ports", {"ports": ()}),
    ("ports", {"ports": 80}),
    ("ports", {"ports": "80"}),
    ("ports", {"ports": (0,)}),
    ("ports", {"ports": ((90, 80),)}),
    ("ports", {"ports": ((80, 90, 100),)}),
    ("nothing is left", {"ports": (80,), "bypass_ports": ((1, 100),)}),
    ("families", {"families": ()}),
    ("families", {"families": ("inet",)}),
    ("families", {"families": "ipv4"}),
    ("protocols", {"protocols": ("sctp",)}),
    ("mode tproxy does", {"mode": "redirect", "protocols": ("tcp", "udp")}),
    ("protocols without udp", {"udp_ports": (53,)}),
    ("udp_ports", {"protocols": ("udp",), "udp_ports": 53}),
    ("nothing is left", {"protocols": ("tcp", "udp"), "udp_ports": (53,), "bypass_ports": (53,)}),
    ("lead packets back", {"bypass": (Skip(mark=0x41),)}),
    ("forwarded is False", {**OWN, "forwarded": False, "bypass": (Skip(interface="lan0"),)}),
    ("interfaces", {"interfaces": "eth0"}),
    ("interfaces", {"interfaces": ("sixteen-letters-",)}),
    ("interfaces", {"interfaces": ("eth*",)}),
    ("interfaces", {"interfaces": ('a"b',)}),
    ("interfaces", {"interfaces": ("",)}),
    ("interfaces", {"interfaces": (7,)}),
    ("own=True", {"interfaces": ("lo",)}),
    ("forwarded", {"forwarded": 1}),
    ("nothing to intercept", {"forwarded": False}),
    ("forwarded is False", {"forwarded": False, "own": True, "interfaces": ("eth0",)}),
    ("endlessly", {"own": True}),
    ("an Only", {"own": True, "only": Exempt(mark=1)}),
    ("own=True", {"only": Only(mark=1)}),
    ("only.mark 0x40", {"own": True, "only": Only(mark=0x40)}),
    ("rest", {"rest": "drop"}),
    ("cut off", {**OWN, "rest": "refuse"}),
    ("bypass", {"bypass": ("10.0.0.1/8",)}),
    ("bypass", {"bypass": ("example.org",)}),
    ("bypass", {"bypass": (7,)}),
    ("bypass", {"bypass": "10.0.0.0/8"}),
    ("listen4", {"listen4": "::1"}),
    ("listen4", {"listen4": "localhost"}),
    ("listen6", {"listen6": "127.0.0.1"}),
    ("listen6", {"listen6": "fe80::1%eth0"}),
    ("families without ipv6", {"listen6": "::1", "families": ("ipv4",)}),
    ("REDIRECT goes", {"mode": "redirect", "listen4": "127.0.0.1"}),
    ("spoof=True", {"same_port": True}),
    ("same_port=True", {"spoof": True, "origin_interfaces": ("wan",)}),
    (
        "tell the two legs apart",
        {"spoof": True, "same_port": True, "interfaces": ("a",), "origin_interfaces": ("a",)},
    ),
    ("zone", {"zone": 65536}),
    ("mark", {"mark": 0}),
    ("mark", {"mark": 1 << 32}),
    ("outside its mask", {"mark": 0x41, "mask": 0x40}),
    ("table", {"table": 0}),
    ("the system's own", {"table": 254}),
    ("name", {"name": ""}),
    ("name", {"name": "two words"}),
    ("name", {"name": "a" * 17}),
    ("Exempt", {"exempt": 7}),
    ("lead packets back", {"exempt": Exempt(mark=0x41)}),
]


@pytest.mark.parametrize(("text", "values"), WRONG, ids=[str(values) for _, values in WRONG])
def test_a_wrong_value_is_one_clear_error(text: str, values: dict[str, Any]) -> None:
    with pytest.raises(CommError, match=text) as caught:
        Plan(**values)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "values",
    [
        {"mark": 0},
        {"mark": "1"},
        {"uids": 13},
        {"uids": (-1,)},
        {"uids": ("proxy",)},
        {"gids": ("proxy",)},
        {"cgroups": "system.slice"},
        {"cgroups": ("/system.slice",)},
        {"cgroups": ("a/../b",)},
        {"cgroups": ('a"b',)},
        {"cgroups": ("",)},
        {"cgroups": (0,)},
    ],
    ids=str,
)
def test_a_wrong_exemption_is_one_clear_error(values: dict[str, Any]) -> None:
    for kind, name in ((Exempt, "exempt"), (Only, "only")):
        with pytest.raises(CommError, match=name) as caught:
            kind(**values)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a Skip of everything", {}),
        ("a network such as", {"source": "client"}),
        ("a network such as", {"destination": "10.0.0.1/8"}),
        ("two families", {"source": "10.0.0.0/8", "destination": "::1"}),
        ("ports", {"ports": (0,)}),
        ("ports", {"ports": 53}),
        ("protocol", {"protocol": "icmp"}),
        ("a number from 1", {"mark": 0}),
        ("outside its mask", {"mark": 3, "mask": 2}),
        ("a mask without a mark", {"mask": 2}),
        ("interface", {"interface": "eth*"}),
        ("own=True", {"interface": "lo"}),
    ],
    ids=str,
)
def test_a_wrong_row_is_one_clear_error(text: str, values: dict[str, Any]) -> None:
    with pytest.raises(CommError, match=text) as caught:
        Skip(**values)
    assert caught.value.errno == errno.EINVAL


def test_rows_and_networks_of_a_plan_are_told_apart() -> None:
    row = Skip(source="10.0.0.0/8", ports=[53, 54], mark=1, mask=0xFFFFFFFF)
    assert row == Skip(source=ipaddress.ip_network("10.0.0.0/8"), ports=((53, 54),), mark=1)
    plan = Plan(bypass=(row, "10.0.0.0/9", row, "10.128.0.0/9"))
    assert plan.skips == (row,)
    assert plan.networks("ipv4") == (ipaddress.ip_network("10.0.0.0/8"),)
    assert plan == dataclasses.replace(plan) == pickle.loads(pickle.dumps(plan))


def test_ports_of_udp_are_those_of_tcp_unless_it_has_others() -> None:
    both: dict[str, Any] = {"protocols": ("udp", "tcp"), "ports": ((50, 60),)}
    assert Plan(**both).port_ranges("udp") == ((50, 60),)
    plan = Plan(**both, udp_ports=(52, 53), bypass_ports=(53,))
    assert plan.port_ranges("udp") == ((52, 52),)
    assert plan.port_ranges("tcp") == ((50, 52), (54, 60))


def test_a_plan_is_a_value() -> None:
    one = Plan(ports=[443, 80], bypass=["10.0.0.0/8"], interfaces=["b", "a", "b"])
    two = Plan(
        ports=((80, 80), (443, 443)),
        bypass=(ipaddress.ip_network("10.0.0.0/8"),),
        interfaces=("a", "b"),
    )
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert dataclasses.replace(one) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.port = 1  # type: ignore[misc]


def test_wildcard_listeners_need_no_naming() -> None:
    assert Plan(listen4="0.0.0.0", listen6="::") == Plan()


@given(items, items)
def test_port_ranges_are_the_ports_less_the_bypassed(
    wanted: list[int | tuple[int, int]], bypassed: list[int | tuple[int, int]]
) -> None:
    def as_set(given: list[int | tuple[int, int]]) -> set[int]:
        whole = ((item, item) if isinstance(item, int) else item for item in given)
        return {port for first, last in whole for port in range(first, last + 1)}

    result = subtract(ranges("ports", wanted), ranges("bypass_ports", bypassed))
    assert as_set(list(result)) == as_set(wanted) - as_set(bypassed)
    ends = [end for pair in result for end in pair]
    assert ends == sorted(ends)
    for (_, last), (first, _) in itertools.pairwise(result):
        assert last + 1 < first  # apart, and not even touching


def some(value: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(value, max_size=4).map(tuple)


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.floats(), some(st.text())
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Plan)]), anything)
def test_any_value_of_any_field_gives_a_plan_that_renders_or_the_clear_error(
    field: str, value: Any
) -> None:
    try:
        plan = Plan(**{field: value})
    except CommError:
        with pytest.raises(CommError, match="firewall plan") as caught:
            Plan(**{field: value})
        assert caught.value.errno == errno.EINVAL
    else:
        assert render(plan).startswith(f"table inet {plan.name} {{\n")


networks = st.one_of(
    st.builds(
        lambda bits, length: str(ipaddress.ip_network((bits, length), strict=False)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda bits, length: str(ipaddress.ip_network((bits, length), strict=False)),
        st.integers(2**32, 2**128 - 1),
        st.integers(0, 128),
    ),
)


@given(st.lists(networks, max_size=8), networks)
def test_bypassed_networks_cover_the_same_addresses(given: list[str], probe: str) -> None:
    plan = Plan(bypass=given)
    kept = [net for family in ("ipv4", "ipv6") for net in plan.networks(family)]  # type: ignore
    address = ipaddress.ip_network(probe)[0]
    assert any(address in net for net in kept) == any(
        address in ipaddress.ip_network(net) for net in given
    )
    assert not any(one.overlaps(two) for one in kept for two in kept if one != two)  # type: ignore


def test_notes_say_what_the_rules_cannot_do() -> None:
    def about(word: str, **values: Any) -> bool:
        return any(word in note for note in Plan(**values).notes())

    assert about("IP_TRANSPARENT")
    assert not about("IP_TRANSPARENT", mode="redirect")
    assert not about("IP_TRANSPARENT", rest="refuse")
    assert about("mark 0x40/0x40")
    assert about("connections to port 3129", mode="redirect")
    udp: dict[str, Any] = {"protocols": ("udp",)}
    assert about("must be connected", **udp)
    assert about("give interfaces", **udp)
    assert not about("give interfaces", interfaces=("lan",), **udp)
    assert about("MASQUERADE", spoof=True)
    assert not about("MASQUERADE")
    wide: dict[str, Any] = {"ports": ((1, 65535),)}
    assert about("give interfaces", **wide)
    assert not about("give interfaces", interfaces=("lan",), **wide)
    assert not about("give interfaces", mode="redirect", **wide)
    assert about("give origin_interfaces", spoof=True, same_port=True, **wide)
    assert not about(
        "give origin_interfaces",
        spoof=True,
        same_port=True,
        origin_interfaces=("wan",),
        **wide,
    )


def test_the_oldest_kernel_is_that_of_the_newest_part() -> None:
    assert oldest_kernel(Plan()) == ((5, 11), "socket wildcard")
    assert oldest_kernel(Plan(mode="redirect"))[0] == (5, 2)
    group = Exempt(cgroups=("system.slice/proxy.service",))
    version, part = oldest_kernel(Plan(mode="redirect", own=True, exempt=group))
    assert version == (5, 13)
    assert "cgroupv2" in part


def test_routing_is_for_packets_to_foreign_addresses_only() -> None:
    assert render_commands(Plan(mode="redirect")) == ""
    assert render_commands(Plan(families=("ipv4",), mark=2, mask=3)) == (
        "ip -4 route add local default dev lo table 3129\n"
        "ip -4 rule add priority 100 fwmark 0x2/0x3 lookup 3129\n"
    )
    undo = render_commands(Plan(mode="redirect", spoof=True, mask=0xFFFFFFFF), remove=True)
    assert undo.splitlines() == [
        "ip -6 rule del priority 100 fwmark 0x40 lookup 3129",
        "ip -6 route del local default dev lo table 3129",
        "ip -4 rule del priority 100 fwmark 0x40 lookup 3129",
        "ip -4 route del local default dev lo table 3129",
    ]
