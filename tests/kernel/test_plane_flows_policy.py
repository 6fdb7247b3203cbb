"""Flows in the data plane: what is relayed, denied, asked about, and what is no flow."""

from __future__ import annotations

import errno
import socket

import pytest
from kernel.flows import Proxy, seen, serve_origin
from kernel.test_datagram import (
    DNS,
    PORT,
    ask,
    client_of,
    intercept,
    v4_and_v6,
)

import lusca_comm as lc
from lusca_comm.lab import Topology


@v4_and_v6
@pytest.mark.parametrize("answer", ["relay", "spoof"])
def test_questions_and_what_waits_meanwhile(
    three_hosts: Topology, family: int, answer: str
) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, "hold")
    there = (net.origin_ip[family], DNS)
    burst = [b"%d" % number for number in range(80)]
    with client_of(net, family, there[0]) as client:
        for data in burst:
            client.send(data)
        assert proxy.recv() == (b"0", client.getsockname()[:2], there, "tproxy4")
        proxy.until(dropped=16)  # 64 wait
        proxy.say(answer)
        got = [seen(client.recv(100)) for _ in range(64)]
        assert [one.data for one in got] == burst[:64]
        source = net.client_ip if answer == "spoof" else net.router_origin_ip
        assert {one.host for one in got} == {source[family]}
        assert seen(ask(client, b"on")).data == b"on"
    proxy.until(asked=1, relayed=1, datagrams=130)


@v4_and_v6
def test_an_answer_may_name_another_place(three_hosts: Topology, family: int) -> None:
    """The client hears of it from where it sent to."""
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family, 5353)
    proxy = Proxy(net.router, family, "5353")
    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"two", b"three"):
            assert seen(ask(client, data)).data == data
        assert proxy.recv()[0] == b"one"
    assert proxy.totals().relayed == 1


@v4_and_v6
@pytest.mark.parametrize("how", ["rule", "answer"])
def test_what_is_denied_is_dropped(three_hosts: Topology, family: int, how: str) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    if how == "rule":
        proxy = Proxy(net.router, family, policy=[("deny",)])
    else:
        proxy = Proxy(net.router, family, "deny", idle=0.2)
    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"two", b"three"):
            client.send(data)
        totals = proxy_denied(proxy, how)
        assert totals.relayed == totals.datagrams == 0
        if how == "answer":  # idle, then asked again
            client.send(b"four")
            assert proxy.recv()[0] == b"four"
        else:
            proxy.say([("relay",)])
            proxy.until(dropped=3)
            assert seen(ask(client, b"four")).data == b"four"


def proxy_denied(proxy: Proxy, how: str) -> lc.Totals:
    if how == "rule":
        return proxy.until(denied=3, dropped=3, live=0)
    assert proxy.recv()[0] == b"one"
    totals = proxy.until(live=0, ended=1)
    assert (totals.asked, totals.denied) == (1, 1)
    return totals


@v4_and_v6
def test_a_policy_by_network_and_port_and_client(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    rules = [("deny", "", (1, 52)), ("spoof", net.origin_ip[family], DNS, net.client_ip[family])]
    proxy = Proxy(net.router, family, policy=[*rules, ("deny",)])
    with client_of(net, family, net.origin_ip[family]) as client:
        assert seen(ask(client, b"x")).host == net.client_ip[family]
    assert proxy.totals().denied == 0


@v4_and_v6
def test_a_datagram_to_the_listener_itself_is_dropped(three_hosts: Topology, family: int) -> None:
    """It would be relayed to the listener, and so for ever."""
    net = three_hosts
    intercept(net.router)
    proxy = Proxy(net.router, family)
    with client_of(net, family, net.router_client_ip[family], PORT) as client:
        client.send(b"x")
        totals = proxy.until(failed=1, dropped=1)
    assert (totals.relayed, totals.live) == (0, 0)


@v4_and_v6
def test_a_listener_on_the_port_that_is_intercepted(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router, port=DNS)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, port=DNS)
    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"two", b"three"):
            assert seen(ask(client, data)).data == data
    assert proxy.totals().relayed == 1


@v4_and_v6
def test_an_upstream_that_is_not_there_yet(three_hosts: Topology, family: int) -> None:
    """What ICMP says of it ends nothing: once it is there the same flow goes on."""
    net = three_hosts
    intercept(net.router)
    proxy = Proxy(net.router, family)
    with client_of(net, family, net.origin_ip[family]) as client:
        for number in range(5):
            client.send(b"lost %d" % number)
        proxy.until(relayed=1, up=30)
        serve_origin(net, family)
        for data in (b"one", b"two", b"three"):
            assert seen(ask(client, data)).data == data
    totals = proxy.totals()
    assert (totals.relayed, totals.failed) == (1, 0)


@v4_and_v6
def test_no_route_is_told(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router)
    kind = "unreachable"
    version = "-4" if family == socket.AF_INET else "-6"
    target = net.origin_ip[family]
    command = ["ip", version, "route", "add", kind, target, "metric", "0"]
    net.router.popen(command).wait()
    proxy = Proxy(net.router, family, tell=True)
    with client_of(net, family, target) as client:
        client.send(b"x")
        end, up, down, code, side = proxy.recv()
    assert (end, up, down, side) == ("connect", 0, 0, "upstream")
    assert code in (errno.EHOSTUNREACH, errno.ENETUNREACH)
    assert proxy.totals().failed == 1
