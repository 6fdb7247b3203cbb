"""Flows in the data plane: their listener's end, descriptors, the machine's own traffic."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import pytest
from kernel.flows import FLAGS, Proxy, seen, serve_origin
from kernel.proxying import WILDCARD
from kernel.test_datagram import (
    DNS,
    PORT,
    ask,
    client_of,
    intercept,
    v4_and_v6,
)

import lusca_comm as lc
from lusca_comm.firewall import Exempt, Plan, apply
from lusca_comm.lab import Channel, Host, Topology


def test_out_of_descriptors_the_longest_unused_goes(three_hosts: Topology) -> None:
    net, family = three_hosts, socket.AF_INET
    intercept(net.router)
    serve_origin(net, family)
    proxy = net.router.start(crowded_process, WILDCARD[family])
    assert proxy.recv() == "ready"
    with contextlib.ExitStack() as stack:
        to = net.origin_ip[family]
        clients = [stack.enter_context(client_of(net, family, to)) for _ in range(20)]
        for _ in range(2):
            for client in clients:
                assert seen(ask(client, b"x")).data == b"x"
    proxy.send("totals")
    totals = proxy.recv()
    assert totals.failed == 0
    assert totals.evicted >= 30 - totals.live
    assert totals.live < 20


def crowded_process(channel: Channel, host: str) -> None:
    """With descriptors for a few flows."""
    import os
    import resource

    sock = lc.comm_open(socket.SOCK_DGRAM, 0, (host, PORT), flags=FLAGS)
    lc.intercept_flows(sock)
    top = os.dup(0)
    os.close(top)
    resource.setrlimit(resource.RLIMIT_NOFILE, (top + 15, top + 15))
    channel.send("ready")
    channel.recv()
    channel.send(lc.default_reactor.plane.totals())


@v4_and_v6
def test_close_stop_and_drain(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, idle=2, tell=True)
    to = net.origin_ip[family]
    with client_of(net, family, to) as client, client_of(net, family, to) as other:
        assert seen(ask(client, b"one")).data == b"one"
        proxy.say("close")
        assert seen(ask(client, b"two")).data == b"two"  # flows under way go on
        proxy.say("drain")
        assert proxy.recv()[0] == "idle"
        assert proxy.recv() == "drained"
        other.send(b"mute")
    assert proxy.totals().live == 0


@v4_and_v6
def test_stop_ends_flows_and_questions(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    policy = [("ask", net.origin_ip[family], (1, 1000), "", None), ("relay",)]
    proxy = Proxy(net.router, family, "hold", policy=policy, tell=True)
    with client_of(net, family, net.origin_ip[family]) as client:
        client.send(b"asked")
        assert proxy.recv()[0] == b"asked"
        proxy.say("stop")
        assert proxy.recv()[0] == "killed"


def own_traffic(host: Host) -> None:
    plan = Plan(
        port=PORT, protocols=["udp"], ports=[DNS], own=True, forwarded=False, exempt=Exempt(mark=7)
    )
    host.run(apply, plan)


@v4_and_v6
def test_the_machines_own_datagrams_and_the_planes_exempt_by_mark(
    three_hosts: Topology, family: int
) -> None:
    net = three_hosts
    own_traffic(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, mark=7)
    with net.router.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect((net.origin_ip[family], DNS))
        for data in (b"one", b"two", b"three"):
            got = seen(ask(client, data))
            assert (got.host, got.data) == (net.router_origin_ip[family], data)
            assert got.port != client.getsockname()[1]
    proxy.until(relayed=1, datagrams=6, looped=0)


@v4_and_v6
def test_the_planes_own_datagrams_are_not_relayed_for_ever(
    three_hosts: Topology, family: int
) -> None:
    """The negative control: without the mark what the plane sends comes back to it."""
    net = three_hosts
    own_traffic(net.router)
    proxy = Proxy(net.router, family)
    with net.router.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((net.origin_ip[family], DNS))
        for _ in range(3):
            client.send(b"x")
        totals = proxy.until(relayed=1, looped=3, datagrams=3, dropped=3)
    assert totals.live == 1


def no_flows() -> list[tuple[int | None, str]]:
    told = []

    def refused(sock: Any, **options: Any) -> None:
        with pytest.raises(lc.CommError) as caught:
            lc.intercept_flows(sock, **options)
        told.append((caught.value.errno, str(caught.value)))

    here = ("127.0.0.1", 0)
    good = lc.comm_open(socket.SOCK_DGRAM, 0, ("0.0.0.0", PORT), flags=FLAGS)
    refused(lc.comm_open(socket.SOCK_DGRAM, 0, here, flags=lc.COMM_DOBIND))
    refused(lc.comm_open(socket.SOCK_STREAM, 0, here, flags=FLAGS))
    refused(good, max_flows=0)
    refused(good, idle=-1)
    refused(good, policy=[("relay", "", (0, 65535), "", 7)])
    return told


def test_what_is_no_listener_for_flows_is_refused(three_hosts: Topology) -> None:
    untold, stream, none, negative, marked = three_hosts.router.run(no_flows)
    assert untold[0] == errno.EINVAL
    assert "COMM_TPROXY_LCL" in untold[1]
    assert "lusca-comm rules" in untold[1]
    assert stream[0] == errno.EPROTOTYPE
    assert {none[0], negative[0], marked[0]} == {errno.EINVAL}


def without_reactor(channel: Channel, host: str) -> None:
    from lusca_comm.intercept_flows import intercept_flows

    plane, ends = lc.Plane(), []
    sock = lc.comm_open(socket.SOCK_DGRAM, 0, (host, PORT), flags=FLAGS)
    listener = intercept_flows(
        plane,
        sock,
        decide=lambda questions: [question.relay() for question in questions],
        on_done=ends.append,
        idle=1,
    )
    channel.send("ready")
    while not ends:
        plane.run_completions(1)
    channel.send(ends[0].end)
    listener.close()
    plane.close()


def test_without_a_reactor(three_hosts: Topology) -> None:
    net, family = three_hosts, socket.AF_INET
    intercept(net.router)
    serve_origin(net, family)
    proxy = net.router.start(without_reactor, WILDCARD[family])
    assert proxy.recv() == "ready"
    with client_of(net, family, net.origin_ip[family]) as client:
        assert seen(ask(client, b"x")).data == b"x"
    assert proxy.recv() == "idle"
    proxy.result()
