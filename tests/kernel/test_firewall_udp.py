"""Datagrams through the rules of a plan, and what a plan's rows leave alone, by both protocols.

::

    client ---- router (rules, proxy on 3129) ---- origin (servers on 53, 54, 3129)

An nft tproxy rule fails open, so every test asks the proxy what it saw. Both families at once.
"""

from __future__ import annotations

import errno
import functools
import selectors
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from firewall_peers import (
    FAMILIES,
    PORT,
    SO_MARK,
    WILDCARD,
    Address,
    Fetched,
    all_seen,
    ended,
    in_force,
    intercept_on,
    names,
    nothing_left,
    serve_on,
    shared_hosts,
    start,
    transparent,
)
from kernel.proxying import load_nft

import lusca_comm as lc
from lusca_comm.errors import CommError
from lusca_comm.firewall import Exempt, Plan, Skip, apply
from lusca_comm.lab import Channel, Host, Process, Topology

hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")
UDP: dict[str, Any] = {"protocols": ("udp",), "ports": (53,)}
BOTH: dict[str, Any] = {"protocols": ("tcp", "udp"), "ports": (53,)}


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    yield from ended(hosts)


def origin(net: Topology, port: int = 53) -> list[Address]:
    return [(net.origin_ip[family], port) for family in FAMILIES]


def serve_udp(channel: Channel, ports: Sequence[int], name: str) -> None:
    """Answers every datagram with `name`, the peer's address and the datagram."""
    with selectors.DefaultSelector() as waiting:
        for host in WILDCARD:
            for port in ports:
                sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, 2)
                # Without it here too, nobody could answer from another's port 53.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if ":" in host:
                    sock.setsockopt(41, socket.IPV6_V6ONLY, 1)
                sock.bind((host, port))
                waiting.register(sock, selectors.EVENT_READ)
        channel.send("ready")
        while True:
            for key, _ in waiting.select():
                data, peer = key.fileobj.recvfrom(65535)
                key.fileobj.sendto(f"{name} {peer[0]} {peer[1]} ".encode() + data, peer)


def ask(host: Host, *addresses: Address, mark: int = 0, data: bytes = b"hello") -> list[Fetched]:
    """Who answered at each address, what address it saw, and the client's own address."""

    def fetch(address: Address) -> Fetched:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            sock.connect(address)
            sock.send(data)
            name, seen, port, said = sock.recv(65535).split(b" ", 3)
            assert said == data
            return name.decode(), f"{seen.decode()} {port.decode()}", sock.getsockname()[:2]

    return host.run(lambda: [fetch(address) for address in addresses])


def whose(host: Host, *addresses: Address, mark: int = 0) -> list[str]:
    return [name for name, _, _ in ask(host, *addresses, mark=mark)]


seen_by = functools.partial(all_seen, asking=ask)
"""Asserts that the proxy saw each datagram, and who answered."""


def answer_udp(channel: Channel, mark: int | None) -> None:
    """The proxy: answers itself, and tells the channel the client and where it wanted to go."""

    def on_readable(sock: Any, data: Any) -> None:
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, on_readable)
        while (got := lc.comm_udp_recvfrom(sock)) is not None:
            channel.send((got.peer, got.original))
            lc.comm_udp_reply(got, f"proxy {got.peer[0]} {got.peer[1]} ".encode() + got.data)

    lc.default_reactor.exception_hook = lambda why, where: channel.send(f"{where}: {why!r}")
    for host in WILDCARD:
        sock = lc.comm_open(
            socket.SOCK_DGRAM,
            0,
            (host, PORT),
            flags=lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL,
            mark=mark,
        )
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, on_readable)
    channel.send("ready")
    lc.run()


def answer_on(host: Host, mark: int | None = None) -> Process[None]:
    return start(host, answer_udp, mark)


def test_datagrams_meet_the_proxy_while_the_plan_is_in_force(net: Topology) -> None:
    start(net.origin, serve_udp, (53,), "origin")
    proxy = answer_on(net.router)
    with nothing_left(net.router):
        assert whose(net.client, *origin(net)) == ["origin", "origin"]
        with in_force(net.router, Plan(**UDP)):
            seen_by(net.client, proxy, *(3 * origin(net)))
        assert whose(net.client, *origin(net)) == ["origin", "origin"]


def test_what_the_plan_does_not_name_is_left_alone(net: Topology) -> None:
    start(net.origin, serve_udp, (53, 54, PORT), "origin")
    start(net.router, serve_udp, (53,), "router")
    serve_on(net.origin, 53, name="origin")
    proxy = answer_on(net.router)
    near = [(net.router_client_ip[family], 53) for family in FAMILIES]
    with in_force(net.router, Plan(**UDP)):
        others = whose(net.client, *origin(net, 54), *origin(net, PORT), *near)
        assert others == ["origin"] * 4 + ["router"] * 2
        assert names(net.client, *origin(net)) == ["origin"] * 2  # TCP
        assert whose(net.router, *origin(net)) == ["origin"] * 2
        seen_by(net.client, proxy, *origin(net))


def test_both_protocols_with_ports_of_their_own(net: Topology) -> None:
    start(net.origin, serve_udp, (53, 54), "origin")
    serve_on(net.origin, 53, 54, name="origin")
    streams, datagrams = intercept_on(net.router, "tproxy"), answer_on(net.router)
    with in_force(net.router, Plan(protocols=("tcp", "udp"), ports=(54,), udp_ports=(53,))):
        all_seen(net.client, streams, *origin(net, 54))
        seen_by(net.client, datagrams, *origin(net, 53))
        assert names(net.client, *origin(net, 53)) == ["origin", "origin"]
        assert whose(net.client, *origin(net, 54)) == ["origin", "origin"]


def test_without_a_transparent_socket_they_go_to_the_real_server(net: Topology) -> None:
    start(net.origin, serve_udp, (53,), "origin")
    start(net.router, serve_udp, (PORT,), "router")
    with in_force(net.router, Plan(**UDP)):
        assert whose(net.client, *origin(net)) == ["origin", "origin"]


def test_datagrams_in_fragments(net: Topology) -> None:
    """Whole again before the rules see them, and whole at the client."""
    start(net.origin, serve_udp, (53,), "origin")
    proxy = answer_on(net.router)
    for size in (1472, 1473, 9000, 65000):
        with in_force(net.router, Plan(**UDP)):
            seen_by(net.client, proxy, *origin(net), data=bytes(size))
    assert [name for name, _, _ in ask(net.client, *origin(net), data=bytes(9000))] == 2 * [
        "origin"
    ]


@pytest.mark.parametrize("forwarded", [False, True])
def test_own_datagrams_meet_the_proxy_unless_they_are_exempt(
    net: Topology, forwarded: bool
) -> None:
    start(net.origin, serve_udp, (53,), "origin")
    start(net.router, serve_udp, (53,), "router")
    proxy = answer_on(net.router, mark=0x539)
    plan = Plan(**UDP, own=True, forwarded=forwarded, exempt=Exempt(mark=0x539))
    local = [(net.router_client_ip[family], 53) for family in FAMILIES]
    with in_force(net.router, plan):
        seen_by(net.router, proxy, *(2 * origin(net)))
        assert whose(net.router, *origin(net), mark=0x539) == ["origin", "origin"]
        assert whose(net.router, *local) == ["router", "router"]
        assert whose(net.client, *local) == ["router", "router"]
        if forwarded:
            seen_by(net.client, proxy, *origin(net))
        else:
            assert whose(net.client, *origin(net)) == ["origin", "origin"]


@pytest.mark.parametrize("kind", ["uids", "gids"])
def test_own_datagrams_are_exempt_by_their_owner(net: Topology, kind: str) -> None:
    """Everything in the lab is uid 0 and gid 0. (An ordinary user's lab has one user alone.)"""
    start(net.origin, serve_udp, (53,), "origin")
    serve_on(net.origin, 53, name="origin")
    datagrams, streams = answer_on(net.router, mark=7), intercept_on(net.router, "tproxy")
    for owner in (0, 12345):
        exempt = Exempt(mark=7, **{kind: (owner,)})
        with in_force(net.router, Plan(**BOTH, own=True, exempt=exempt)):
            if owner:
                seen_by(net.router, datagrams, *origin(net))
                all_seen(net.router, streams, *origin(net))
            else:
                assert whose(net.router, *origin(net)) == ["origin", "origin"]
                assert names(net.router, *origin(net)) == ["origin", "origin"]


MARKING = """
table inet marks {
  chain prerouting {
    type filter hook prerouting priority raw; policy accept;
    meta l4proto { tcp, udp } meta mark set 0x213
  }
}
"""


def rows(net: Topology, inside: bool) -> dict[str, list[Skip]]:
    """Rows that the client's traffic to the origin's port 53 matches, or misses by one of their
    parts."""
    near, far = ("192.0.2.0/24", "2001:db8:1::/64"), ("198.51.100.0/24", "2001:db8:2::2/128")
    other = ("192.0.3.0/24", "2001:db8:3::/64")
    lan, wan = net.client_link.b_ifname, net.origin_link.a_ifname
    return {
        "source": [Skip(source=one) for one in (near if inside else far)],
        "destination": [Skip(destination=one) for one in (far if inside else near)],
        "both networks": [
            Skip(source=one, destination=two)
            for one, two in zip(near, far if inside else other, strict=True)
        ],
        "ports": [Skip(ports=((50, 53), 60) if inside else ((50, 52), 54))],
        "network and ports": [
            Skip(destination=one, ports=(53 if inside else 54,), mark=0x213) for one in far
        ],
        "mark": [Skip(mark=0x213 if inside else 0x212)],
        "bits of the mark": [Skip(mark=0x10 if inside else 0x20, mask=0xF0)],
        "interface": [Skip(interface=lan if inside else wan)],
    }


@pytest.mark.parametrize(
    "kind",
    [
        "source",
        "destination",
        "both networks",
        "ports",
        "network and ports",
        "mark",
        "bits of the mark",
        "interface",
    ],
)
def test_a_row_keeps_its_packets_from_the_proxy_and_no_others(net: Topology, kind: str) -> None:
    start(net.origin, serve_udp, (53,), "origin")
    serve_on(net.origin, 53, name="origin")
    datagrams, streams = answer_on(net.router), intercept_on(net.router, "tproxy")
    if "mark" in kind or "ports" in kind:
        load_nft(net.router, MARKING)
    with in_force(net.router, Plan(**BOTH, bypass=rows(net, inside=True)[kind])):
        assert whose(net.client, *origin(net)) == ["origin", "origin"]
        assert names(net.client, *origin(net)) == ["origin", "origin"]
    with in_force(net.router, Plan(**BOTH, bypass=rows(net, inside=False)[kind])):
        seen_by(net.client, datagrams, *origin(net))
        all_seen(net.client, streams, *origin(net))
    if "mark" in kind or "ports" in kind:
        net.router.check_output(["nft", "delete", "table", "inet", "marks"])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_row_of_one_protocol(net: Topology, protocol: Any) -> None:
    start(net.origin, serve_udp, (53,), "origin")
    serve_on(net.origin, 53, name="origin")
    datagrams, streams = answer_on(net.router), intercept_on(net.router, "tproxy")
    for ports in ((), (53,)):
        with in_force(net.router, Plan(**BOTH, bypass=(Skip(protocol=protocol, ports=ports),))):
            if protocol == "udp":
                assert whose(net.client, *origin(net)) == ["origin", "origin"]
                all_seen(net.client, streams, *origin(net))
            else:
                assert names(net.client, *origin(net)) == ["origin", "origin"]
                seen_by(net.client, datagrams, *origin(net))


def test_rows_are_for_redirect_and_own_traffic_too(net: Topology) -> None:
    serve_on(net.origin, 53, name="origin")
    proxy = intercept_on(net.router, "redirect")
    four, six = origin(net)
    row = Skip(source="192.0.2.0/24", destination=four[0], ports=(53,), protocol="tcp")
    mine = Skip(source=net.router_origin_ip[socket.AF_INET6], mark=8)
    plan = Plan(mode="redirect", ports=(53,), own=True, exempt=Exempt(mark=7), bypass=(row, mine))
    with in_force(net.router, plan):
        assert names(net.client, four) == ["origin"]
        all_seen(net.client, proxy, six)
        all_seen(net.router, proxy, four, six)
        assert names(net.router, six, mark=8) == ["origin"]
        all_seen(net.router, proxy, four, mark=8)


def spoof_udp(channel: Channel, same_port: bool) -> None:
    """Goes on in the client's name, and brings one answer back."""

    def on_readable(sock: Any, data: Any) -> None:
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, on_readable)
        while (got := lc.comm_udp_recvfrom(sock)) is not None:
            channel.send((got.peer, got.original))
            there = got.original
            with socket.socket(sock.family, socket.SOCK_DGRAM) as up:
                up.settimeout(10)
                up.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                transparent(up)
                up.bind((got.peer[0], got.peer[1] if same_port else 0))
                up.connect(there)
                up.send(got.data)
                lc.comm_udp_reply(got, up.recv(65535))

    lc.default_reactor.exception_hook = lambda why, where: channel.send(f"{where}: {why!r}")
    for host in WILDCARD:
        flags = lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL
        sock = lc.comm_open(socket.SOCK_DGRAM, 0, (host, PORT), flags=flags)
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, on_readable)
    channel.send("ready")
    lc.run()


@pytest.mark.parametrize("same_port", [False, True])
def test_the_origins_answers_to_spoofed_datagrams_come_back_here(
    net: Topology, same_port: bool
) -> None:
    start(net.origin, serve_udp, (53,), "origin")
    proxy = start(net.router, spoof_udp, same_port)
    with in_force(net.router, Plan(**UDP, spoof=True, same_port=same_port)):
        found = seen_by(net.client, proxy, *(3 * origin(net)), name="origin")
    for _, seen, (host, port) in found:
        assert seen.startswith(f"{host} ")
        assert (seen == f"{host} {port}") is same_port


def hold_unconnected(channel: Channel, addresses: Sequence[Address]) -> None:
    """What a proxy must not do: answer from an unconnected socket, and keep it."""
    socks = []
    for address in addresses:
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, 2)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        transparent(sock)
        sock.bind(address)
        socks.append(sock)
    channel.send("ready")
    for sock in socks:
        data, peer = sock.recvfrom(100)
        channel.send((data, peer[:2]))
        sock.sendto(b"thief 0 0 " + data, peer)


def test_an_unconnected_socket_takes_what_is_not_in_the_plan(net: Topology) -> None:
    """The trap of which the plan's notes warn: every client's datagrams to that address, of any
    port, end in it."""
    start(net.origin, serve_udp, (54,), "origin")
    with in_force(net.router, Plan(**UDP)):
        assert whose(net.client, *origin(net, 54)) == ["origin", "origin"]
        thief = start(net.router, hold_unconnected, origin(net, 54))
        for found in ask(net.client, *origin(net, 54)):
            assert found[0] == "thief"
            assert thief.recv() == (b"hello", found[2])


def test_redirect_does_not_take_datagrams(net: Topology) -> None:
    with pytest.raises(CommError, match="mode tproxy does") as caught:
        Plan(**UDP, mode="redirect")
    assert caught.value.errno == errno.EINVAL


def test_a_sysctl_about_connections_does_no_harm(net: Topology) -> None:
    proxy = answer_on(net.router)
    net.router.sysctl("net.ipv4.tcp_fwmark_accept", 1)
    try:
        with in_force(net.router, Plan(**UDP)):
            seen_by(net.client, proxy, *origin(net))
        with pytest.raises(CommError, match="tcp_fwmark_accept"):
            net.router.run(apply, Plan(**BOTH))
    finally:
        net.router.sysctl("net.ipv4.tcp_fwmark_accept", 0)
