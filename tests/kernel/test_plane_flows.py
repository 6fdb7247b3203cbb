"""Datagrams relayed in the data plane: three of a flow, many flows, and those that have to go."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from pathlib import Path

import pytest
from kernel.flows import Proxy, Seen, seen, serve_origin
from kernel.proxying import FAMILIES, WILDCARD
from kernel.test_datagram import (
    DNS,
    ask,
    client_of,
    intercept,
    v4_and_v6,
)

import lusca_comm as lc
from lusca_comm.lab import Topology, wait_for


@v4_and_v6
@pytest.mark.parametrize(
    ("spoof", "divert"),
    [(False, True), (False, False), (True, True)],  # answers to a spoofed flow need the rule
    ids=["relayed", "relayed, no divert rule", "spoofed"],
)
def test_three_datagrams_of_a_flow_all_arrive_and_are_answered(
    three_hosts: Topology, family: int, spoof: bool, divert: bool
) -> None:
    net = three_hosts
    intercept(net.router, divert=divert)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, policy=[("spoof",)] if spoof else None)
    source = net.client_ip[family] if spoof else net.router_origin_ip[family]
    with client_of(net, family, net.origin_ip[family]) as client:
        ports = set()
        for data in (b"one", b"two", b"three"):
            got = seen(ask(client, data))
            assert (got.host, got.data) == (source, data)
            ports.add(got.port)
        assert len(ports) == 1
        burst = [b"%d" % number for number in range(100)]
        for data in burst:
            client.send(data)
        assert [seen(client.recv(100)).data for _ in burst] == burst
    totals = proxy.until(datagrams=206)
    assert (totals.accepted, totals.relayed, totals.dropped) == (1, 1, 0)
    assert totals.up == sum(map(len, burst)) + 11
    assert totals.live == 1


@v4_and_v6
def test_without_the_rule_the_proxy_sees_nothing(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    serve_origin(net, family)
    proxy = Proxy(net.router, family, policy=[("spoof",)])
    with client_of(net, family, net.origin_ip[family]) as client:
        assert seen(ask(client, b"x")) == Seen(*client.getsockname()[:2], b"x")
    assert proxy.totals() == lc.Totals(*[0] * len(lc.Totals._fields))


@v4_and_v6
def test_the_clients_port_too(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, policy=[("spoof",)], keep_port=True)
    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"two", b"three"):
            assert seen(ask(client, data)) == Seen(*client.getsockname()[:2], data)
    proxy.until(datagrams=6)


@v4_and_v6
@pytest.mark.parametrize("kept", [True, False])
def test_a_port_that_cannot_be_kept_gives_way(
    three_hosts: Topology, family: int, kept: bool
) -> None:
    """One below the ports that are anybody's."""
    net = three_hosts
    intercept(net.router)
    net.router.sysctl("net.ipv4.ip_unprivileged_port_start", DNS)
    serve_origin(net, family)
    capabilities = ("CAP_NET_RAW", *(("CAP_NET_BIND_SERVICE",) if kept else ()))
    Proxy(net.router, family, policy=[("spoof",)], keep_port=True, capabilities=capabilities)
    with net.client.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.bind((WILDCARD[family], 7))
        client.connect((net.origin_ip[family], DNS))
        got = seen(ask(client, b"x"))
    assert got.host == net.client_ip[family]
    assert (got.port == 7) is kept


@v4_and_v6
@pytest.mark.parametrize("capability", ["CAP_NET_RAW", "CAP_NET_ADMIN"])
def test_with_one_capability_beside_the_port(
    three_hosts: Topology, family: int, capability: str
) -> None:
    """An answer leaves from port 53."""
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    capabilities = (capability, "CAP_NET_BIND_SERVICE")
    proxy = Proxy(net.router, family, policy=[("spoof",)], capabilities=capabilities)
    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"two", b"three"):
            assert seen(ask(client, data)).host == net.client_ip[family]
    proxy.until(datagrams=6)


@v4_and_v6
def test_without_the_capability_for_the_port(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router)
    proxy = Proxy(net.router, family, capabilities=("CAP_NET_RAW",), tell=True)
    with client_of(net, family, net.origin_ip[family]) as client:
        client.send(b"x")
        assert proxy.recv() == ("connect", 0, 0, errno.EACCES, "client")


@v4_and_v6
def test_a_burst_before_the_flow_has_a_socket_arrives_whole_and_in_order(
    three_hosts: Topology, family: int
) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    Proxy(net.router, family)
    burst = [b"%d" % number for number in range(50)]
    with contextlib.ExitStack() as stack:
        to = net.origin_ip[family]
        clients = [stack.enter_context(client_of(net, family, to)) for _ in range(4)]
        for data in burst:
            for client in clients:
                client.send(data)
        for client in clients:
            assert [seen(client.recv(100)).data for _ in burst] == burst


def test_one_listener_for_both_families(three_hosts: Topology) -> None:
    net = three_hosts
    intercept(net.router)
    proxy = Proxy(net.router, 0, dualstack=True, policy=[("spoof",)])
    for family in FAMILIES:
        serve_origin(net, family)
        with client_of(net, family, net.origin_ip[family]) as client:
            for data in (b"a", b"b"):
                assert seen(ask(client, data)).host == net.client_ip[family]
    assert proxy.totals().relayed == 2


@v4_and_v6
def test_clients_and_flows_do_not_mix(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family)
    with contextlib.ExitStack() as stack:
        to = net.origin_ip[family]
        clients = [stack.enter_context(client_of(net, family, to)) for _ in range(50)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d from %d" % (turn, number))
        ports = set()
        for number, client in enumerate(clients):
            got = [seen(client.recv(100)) for _ in range(3)]
            assert [one.data for one in got] == [
                b"%d from %d" % (turn, number) for turn in range(3)
            ]
            assert len({one.port for one in got}) == 1
            ports.add(got[0].port)
        assert len(ports) == 50
    proxy.until(relayed=50, datagrams=300, live=50)


@v4_and_v6
def test_more_clients_than_flows(three_hosts: Topology, family: int) -> None:
    """The longest unused goes, and its client is served again as a new flow."""
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, max_flows=2, tell=True)
    with contextlib.ExitStack() as stack:
        to = net.origin_ip[family]
        a, b, c = (stack.enter_context(client_of(net, family, to)) for _ in range(3))
        for client in (a, b, a, c):  # b goes
            assert seen(ask(client, b"x")).data == b"x"
        assert proxy.recv() == ("evicted", 1, pytest.approx(1, abs=60), 0, "")
        assert seen(ask(a, b"y")).data == b"y"  # still there
        totals = proxy.totals()
        assert (totals.relayed, totals.evicted, totals.live) == (3, 1, 2)
        assert seen(ask(b, b"z")).data == b"z"  # c goes
        assert proxy.recv()[0] == "evicted"
    assert proxy.totals().evicted == 2


@v4_and_v6
def test_however_often_flows_have_to_go_every_datagram_goes_on(
    three_hosts: Topology, family: int
) -> None:
    """What a flow's socket has received is sent on before it is closed. The proxy stands still
    until all of a turn lies there: a datagram whose socket is closed between the rule and the
    lookup is lost in the kernel."""
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, max_flows=4, policy=[("spoof",)])
    turns, dice = 10, random.Random(1)
    with contextlib.ExitStack() as stack:
        to = net.origin_ip[family]
        clients = [stack.enter_context(client_of(net, family, to)) for _ in range(40)]
        for turn in range(1, turns + 1):
            first, *others = [*clients, *clients]
            dice.shuffle(others)
            with proxy.standing_still():
                first.send(b"mute")
                one = wait_for(lambda: net.router.run(queued), what="one datagram")
                for client in others:
                    client.send(b"mute")
                wait_for(lambda all=one * 80: net.router.run(queued) == all, what="all of a turn")
            proxy.until(datagrams=turn * 80)
    totals = proxy.totals()
    assert (totals.dropped, totals.failed, totals.live) == (0, 0, 4)
    assert totals.evicted == totals.relayed - 4 >= len(clients) - 4


def queued() -> int:
    """Bytes of memory that what waits in UDP sockets takes (proc_pid_net(5)): as many for each
    datagram of one size."""
    lines = [
        line.split()
        for table in ("udp", "udp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    return sum(int(line[4].split(":")[1], 16) for line in lines)


@v4_and_v6
def test_an_idle_flow_ends_and_its_client_is_served_again(
    three_hosts: Topology, family: int
) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, idle=1, tell=True)
    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"twos"):
            answer = ask(client, data)
            assert proxy.recv() == ("idle", len(data), len(answer), 0, "")
    proxy.until(live=0, relayed=2)
