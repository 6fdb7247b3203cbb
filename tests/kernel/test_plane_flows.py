"""Datagrams relayed in the data plane: the topology and the rules of test_datagram.py.

The origin answers with whom it saw. Its answer reaches a client only from where the client sent to:
the client's socket is connected.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import threading
from typing import Any, NamedTuple

import pytest
from kernel.proxying import FAMILIES, WILDCARD
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
from lusca_comm.lab import Channel, Host, Process, Topology, wait_for

FLAGS = lc.COMM_TPROXY_LCL | lc.COMM_REUSEADDR


class Seen(NamedTuple):
    """Whom the origin saw."""

    host: str
    port: int
    data: bytes


def origin_process(channel: Channel, family: int, port: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((WILDCARD[family], port))
        channel.send("ready")
        while True:
            data, peer = sock.recvfrom(65536)
            if data != b"mute":
                sock.sendto(f"{peer[0]} {peer[1]} ".encode() + data, peer)


def serve_origin(net: Topology, family: int, port: int = DNS) -> Process[None]:
    process = net.origin.start(origin_process, family, port)
    assert process.recv() == "ready"
    return process


def seen(answer: bytes) -> Seen:
    host, port, data = answer.split(b" ", 2)
    return Seen(host.decode(), int(port), data)


def proxy_process(
    channel: Channel, address: Any, options: Any, answer: str, dualstack: bool
) -> None:
    """`answer`: what is said to every question; "hold": nothing until the test says so."""
    reactor = lc.default_reactor
    held: list[lc.FlowQuestion] = []

    def decide(questions: list[lc.FlowQuestion]) -> None:
        held.extend(questions)
        for question in questions:
            channel.send((question.data, question.peer, question.original, question.engine))
        if answer != "hold":
            release(answer)

    def release(how: str) -> None:
        for question in held:
            if how == "deny":
                question.deny()
            else:
                to = None if how in ("relay", "spoof") else (question.original[0], int(how))
                question.relay(to, spoof=how == "spoof")
        held.clear()

    def told(result: lc.RelayResult) -> None:
        channel.send((result.end, result.up, result.down, result.errno, result.side))

    if answer:
        options["decide"] = decide
    if options.pop("tell", False):
        options["on_done"] = told
    sock = lc.comm_open(socket.SOCK_DGRAM, 0, address, flags=FLAGS, dualstack=dualstack)
    listener = lc.intercept_flows(sock, **options)
    commands = {
        "totals": lambda: channel.send(reactor.plane.totals()),
        "close": listener.close,
        "drain": reactor.plane.drain,
        "stop": reactor.plane.stop,
    }
    reactor.plane.on_drained = lambda: channel.send("drained")

    def listen_to_the_test() -> None:
        while True:
            said = channel.recv()
            if isinstance(said, list):
                lc.call_soon_threadsafe(listener.set_policy, said)
            elif said in commands:
                lc.call_soon_threadsafe(commands[said])
            else:
                lc.call_soon_threadsafe(release, said)

    threading.Thread(target=listen_to_the_test, daemon=True).start()
    channel.send("ready")
    lc.run()


class Proxy:
    """What the test knows of it."""

    def __init__(
        self,
        host: Host,
        family: int,
        answer: str = "",
        dualstack: bool = False,
        capabilities: Any = None,
        **options: Any,
    ) -> None:
        address = ("::" if dualstack else WILDCARD[family], options.pop("port", PORT))
        self.process = host.start(
            proxy_process, address, options, answer, dualstack, capabilities=capabilities
        )
        assert self.recv() == "ready"

    def recv(self) -> Any:
        return self.process.recv()

    def say(self, what: Any) -> None:
        self.process.send(what)

    def totals(self) -> lc.Totals:
        self.say("totals")
        got: lc.Totals = self.recv()
        return got

    def until(self, **wanted: int) -> lc.Totals:
        last: list[lc.Totals] = []

        def reached() -> bool:
            last[:] = [self.totals()]
            return all(getattr(last[0], name) == value for name, value in wanted.items())

        wait_for(reached, what=f"{wanted}")
        return last[0]


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
        client.settimeout(5)
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
    """What a flow's socket has received is sent on before it is closed."""
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, max_flows=4, policy=[("spoof",)])
    turns, dice = 10, random.Random(1)
    with contextlib.ExitStack() as stack:
        to = net.origin_ip[family]
        clients = [stack.enter_context(client_of(net, family, to)) for _ in range(40)]
        for turn in range(1, turns + 1):
            for client in dice.sample(clients, len(clients)):
                client.send(b"mute")
                client.send(b"mute")
            proxy.until(datagrams=turn * 2 * len(clients))
    totals = proxy.totals()
    assert (totals.dropped, totals.failed, totals.live) == (0, 0, 4)
    assert totals.evicted == totals.relayed - 4 >= len(clients) - 4


@v4_and_v6
def test_an_idle_flow_ends_and_its_client_is_served_again(
    three_hosts: Topology, family: int
) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    proxy = Proxy(net.router, family, idle=0.05, tell=True)
    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"twos"):
            answer = ask(client, data)
            assert proxy.recv() == ("idle", len(data), len(answer), 0, "")
    proxy.until(live=0, relayed=2)


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
    proxy = Proxy(net.router, family, idle=1, tell=True)
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
        client.settimeout(5)
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
        idle=0.05,
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
