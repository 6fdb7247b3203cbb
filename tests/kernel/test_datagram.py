"""UDP by TPROXY on the real kernel: where datagrams were going, and answers in that name.

    client 192.0.2.2 ---- 192.0.2.1 router 198.51.100.1 ---- 198.51.100.2 origin
           2001:db8:1::2            (proxy)                  2001:db8:2::2

The client's sockets are connected, so they take answers only from where they sent to. The origin
answers too, in other words: an nft tproxy rule fails OPEN.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from typing import Any

import pytest
from kernel.proxying import FAMILIES, WILDCARD, load_nft

import lusca_comm as lc
from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Channel, Host, Lab, Process, Topology, wait_for

PORT = 3130
DNS = 53

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])


def intercept(host: Host, port: int = PORT, divert: bool = True) -> None:
    plan = Plan(protocols=("udp",), port=port, ports=(DNS,))

    def run() -> None:
        apply(plan)

    host.run(run)
    if not divert:
        load_nft(host, f"flush chain inet {plan.name} divert")


class Proxy:
    """Answers every datagram with "proxy" and its content, and tells the test all about it."""

    def __init__(self, channel: Channel, mute: bool = False, batched: bool = False) -> None:
        self.channel = channel
        self.mute = mute
        self.on_readable = self.one_by_one if not batched else self.in_batches

    def one_by_one(self, sock: socket.socket, _data: Any) -> None:
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, self.on_readable)
        while (got := lc.comm_udp_recvfrom(sock)) is not None:
            self.channel.send((got.data, got.peer, got.original))
            if not self.mute:
                lc.comm_udp_reply(got, b"proxy " + got.data)

    def in_batches(self, sock: socket.socket, _data: Any) -> None:
        lc.comm_set_select(sock, lc.COMM_SELECT_READ, self.on_readable)
        while got := lc.comm_udp_recvmany(sock):
            for one in got:
                self.channel.send((one.data, one.peer, one.original))
            answers = [(one, b"proxy " + one.data) for one in got]
            assert lc.comm_udp_replymany(answers) == len(got)


def proxy_process(
    channel: Channel,
    address: Any,
    flags: int = lc.COMM_TPROXY_LCL | lc.COMM_REUSEADDR,
    dualstack: bool = False,
    max_flows: int = 512,
    flow_idle: float = 60.0,
    mute: bool = False,
    batched: bool = False,
    inherited: bool = False,
) -> None:
    proxy, reactor = Proxy(channel, mute, batched), lc.default_reactor
    reactor.exception_hook = lambda why, where: channel.send(f"{where}: {why!r}")
    reactor.max_flows, reactor.flow_idle = max_flows, flow_idle
    if inherited:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_DGRAM)
        bound.bind(address)
        sock = lc.comm_fdopen(bound, flags=flags)
    else:
        sock = lc.comm_open(
            socket.SOCK_DGRAM, 0, address, flags=flags, dualstack=dualstack, note="dns"
        )
    lc.comm_set_select(sock, lc.COMM_SELECT_READ, proxy.on_readable)

    def tell() -> None:
        flows = reactor.table.find(sock).flows
        channel.send(0 if flows is None else len(flows))

    def listen_to_the_test() -> None:
        while channel.recv() == "how many flows":
            lc.call_soon_threadsafe(tell)

    threading.Thread(target=listen_to_the_test, daemon=True).start()
    channel.send("ready")
    lc.run()


def serve_proxy(host: Host, address: Any, **options: Any) -> Process[None]:
    process = host.start(proxy_process, address, **options)
    assert process.recv() == "ready"
    return process


def origin_process(channel: Channel, family: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((WILDCARD[family], DNS))
        channel.send("ready")
        while True:
            data, peer = sock.recvfrom(65536)
            sock.sendto(b"origin " + data, peer)


def serve_origin(net: Topology, family: int) -> None:
    assert net.origin.start(origin_process, family).recv() == "ready"


def client_of(net: Topology, family: int, to: str, port: int = DNS) -> socket.socket:
    sock = net.client.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.connect((to, port))
    return sock


def ask(sock: socket.socket, data: bytes) -> bytes:
    sock.send(data)
    return sock.recv(65536)


@v4_and_v6
@pytest.mark.parametrize("divert", [True, False], ids=["divert rule", "tproxy alone"])
@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "in batches"])
def test_three_datagrams_of_a_flow_all_arrive_and_are_answered(
    three_hosts: Topology, family: int, divert: bool, batched: bool
) -> None:
    """From the second on they arrive at the socket that answered the first."""
    net = three_hosts
    intercept(net.router, divert=divert)
    serve_origin(net, family)
    proxy = serve_proxy(net.router, (WILDCARD[family], PORT), batched=batched)
    there = (net.origin_ip[family], DNS)
    with client_of(net, family, there[0]) as client:
        me = client.getsockname()[:2]
        for data in (b"one", b"two", b"three"):
            assert ask(client, data) == b"proxy " + data
            assert proxy.recv() == (data, me, there)
        burst = {b"%d" % number for number in range(10)}
        for data in burst:
            client.send(data)
        assert {client.recv(100) for _ in burst} == {b"proxy " + data for data in burst}
        assert {proxy.recv() for _ in burst} == {(data, me, there) for data in burst}
        proxy.send("how many flows")
        assert proxy.recv() == 1


@v4_and_v6
def test_without_the_rule_the_origin_answers(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    serve_origin(net, family)
    serve_proxy(net.router, (WILDCARD[family], PORT))
    with client_of(net, family, net.origin_ip[family]) as client:
        assert ask(client, b"x") == b"origin x"


@v4_and_v6
def test_without_the_flag_the_origin_answers(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router)
    serve_origin(net, family)
    serve_proxy(net.router, (WILDCARD[family], PORT), flags=lc.COMM_REUSEADDR)
    with client_of(net, family, net.origin_ip[family]) as client:
        assert ask(client, b"x") == b"origin x"


def test_a_dual_stack_listener_tells_both_families(three_hosts: Topology) -> None:
    net = three_hosts
    intercept(net.router)
    proxy = serve_proxy(net.router, ("::", PORT), dualstack=True)
    for family in FAMILIES:
        with client_of(net, family, net.origin_ip[family]) as client:
            for data in (b"a", b"b"):
                assert ask(client, data) == b"proxy " + data
                me = client.getsockname()[:2]
                assert proxy.recv() == (data, me, (net.origin_ip[family], DNS))


@v4_and_v6
def test_a_listener_that_was_passed_on_tells_too(three_hosts: Topology, family: int) -> None:
    """As systemd would."""
    net = three_hosts
    intercept(net.router)
    proxy = serve_proxy(net.router, (WILDCARD[family], PORT), inherited=True)
    there = (net.origin_ip[family], DNS)
    with client_of(net, family, there[0]) as client:
        for data in (b"one", b"two", b"three"):
            assert ask(client, data) == b"proxy " + data
            assert proxy.recv() == (data, client.getsockname()[:2], there)


@v4_and_v6
@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "in batches"])
def test_clients_of_one_destination_do_not_get_in_each_others_way(
    three_hosts: Topology, family: int, batched: bool
) -> None:
    net = three_hosts
    intercept(net.router)
    proxy = serve_proxy(net.router, (WILDCARD[family], PORT), batched=batched)
    there = (net.origin_ip[family], DNS)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(net, family, there[0])) for _ in range(8)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d from %d" % (turn, number))
        for turn in range(3):
            for number, client in enumerate(clients):
                assert client.recv(100) == b"proxy %d from %d" % (turn, number)
    seen = [proxy.recv() for _ in range(24)]
    assert {original for _, _, original in seen} == {there}
    assert len({peer for _, peer, _ in seen}) == 8


@v4_and_v6
@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "in batches"])
def test_more_clients_than_flows(three_hosts: Topology, family: int, batched: bool) -> None:
    net = three_hosts
    intercept(net.router)
    proxy = serve_proxy(net.router, (WILDCARD[family], PORT), max_flows=2, batched=batched)
    with contextlib.ExitStack() as stack:
        to = net.origin_ip[family]
        clients = [stack.enter_context(client_of(net, family, to)) for _ in range(5)]
        for data in (b"one", b"two", b"three"):
            for client in clients:
                assert ask(client, data) == b"proxy " + data
                assert proxy.recv()[0] == data
    proxy.send("how many flows")
    assert proxy.recv() == 2


@v4_and_v6
def test_an_idle_flow_is_closed_and_its_client_served_again(
    three_hosts: Topology, family: int
) -> None:
    net = three_hosts
    intercept(net.router)
    proxy = serve_proxy(net.router, (WILDCARD[family], PORT), flow_idle=0.05)

    def flows() -> Any:
        proxy.send("how many flows")
        return proxy.recv()

    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"two"):
            assert ask(client, data) == b"proxy " + data
            assert proxy.recv()[0] == data
            wait_for(lambda: flows() == 0, what="the flow to be closed")


@v4_and_v6
def test_listener_on_the_port_that_is_intercepted(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router, port=DNS)
    proxy = serve_proxy(net.router, (WILDCARD[family], DNS))
    there = (net.origin_ip[family], DNS)
    with client_of(net, family, there[0]) as client:
        for data in (b"one", b"two", b"three"):
            assert ask(client, data) == b"proxy " + data
            assert proxy.recv()[2] == there


def test_listener_on_that_port_without_reuse_is_told_so(three_hosts: Topology) -> None:
    net = three_hosts
    intercept(net.router, port=DNS)
    proxy = serve_proxy(net.router, ("0.0.0.0", DNS), flags=lc.COMM_TPROXY_LCL)
    with client_of(net, socket.AF_INET, net.origin_ip[socket.AF_INET]) as client:
        client.send(b"x")
        assert proxy.recv()[0] == b"x"
        said = proxy.recv()
        assert "COMM_REUSEADDR" in said
        assert f"CommError({errno.EADDRINUSE}" in said


@v4_and_v6
def test_a_port_that_another_program_has_is_told_so(three_hosts: Topology, family: int) -> None:
    """A resolver on the router itself, for one. Nobody else can answer from its port."""
    net = three_hosts
    intercept(net.router)
    proxy = serve_proxy(net.router, (WILDCARD[family], PORT))
    with net.router.socket(family, socket.SOCK_DGRAM) as held:
        held.bind((WILDCARD[family], DNS))
        with client_of(net, family, net.origin_ip[family]) as client:
            client.send(b"x")
            assert proxy.recv()[0] == b"x"
            said = proxy.recv()
    assert f"CommError({errno.EADDRINUSE}" in said
    assert "another program has on every address, without SO_REUSEADDR: ss -lnup" in said


@v4_and_v6
@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "in batches"])
def test_a_datagram_to_the_listener_itself_was_not_intercepted(
    three_hosts: Topology, family: int, batched: bool
) -> None:
    """And the answer leaves from the one of its addresses that the client knows."""
    net = three_hosts
    intercept(net.router)
    proxy = serve_proxy(net.router, (WILDCARD[family], PORT), batched=batched)
    for to in (net.router_client_ip[family], net.router_origin_ip[family]):
        with client_of(net, family, to, PORT) as client:
            assert ask(client, b"hello") == b"proxy hello"
            assert proxy.recv() == (b"hello", client.getsockname()[:2], None)
    proxy.send("how many flows")
    assert proxy.recv() == 0


def test_a_client_that_is_gone_takes_its_flow_along(three_hosts: Topology) -> None:
    """Its host answers with an ICMP message (port unreachable), which is no error of the rest."""
    net, family = three_hosts, socket.AF_INET
    intercept(net.router)
    proxy = serve_proxy(net.router, ("0.0.0.0", PORT))
    with client_of(net, family, net.origin_ip[family]) as client:
        for data in (b"one", b"two"):
            client.send(data)
        client.shutdown(socket.SHUT_RDWR)
    with client_of(net, family, net.origin_ip[family]) as client:
        assert ask(client, b"three") == b"proxy three"
    seen = [proxy.recv() for _ in range(3)]
    assert {data for data, _, _ in seen} == {b"one", b"two", b"three"}


REDIRECT = """
table inet datagrams {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    udp dport {dns} redirect to :{port}
  }}
}}
"""


@v4_and_v6
def test_redirect_tells_nothing_and_is_taken_for_nothing(
    three_hosts: Topology, family: int
) -> None:
    """Not for an interception: where it was going is not to be had, and nobody makes it up."""
    net = three_hosts
    rules = REDIRECT.format(dns=DNS, port=PORT)
    load_nft(net.router, rules)
    proxy = serve_proxy(net.router, (WILDCARD[family], PORT))
    with client_of(net, family, net.origin_ip[family]) as client:
        assert ask(client, b"x") == b"proxy x"  # conntrack turns the listener's answer round
        assert proxy.recv() == (b"x", client.getsockname()[:2], None)


def redirected() -> list[str]:
    said = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        calls = (
            lambda: lc.comm_open(socket.SOCK_DGRAM, 0, ("0.0.0.0", PORT), flags=lc.COMM_INTERCEPT),
            lambda: lc.comm_fdopen(bound, flags=lc.COMM_INTERCEPT),
            lambda: lc.comm_fdopen(bound.fileno(), flags=lc.COMM_INTERCEPT),
        )
        for call in calls:
            with pytest.raises(lc.CommError) as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP
            said.append(str(caught.value))
    return said


def test_a_listener_fed_by_redirect_is_refused_and_told_what_works(lab: Lab) -> None:
    for said in lab.host("router").run(redirected):
        assert "TPROXY" in said
        assert "lusca-comm rules" in said


def no_rights() -> tuple[int | None, str]:
    with pytest.raises(lc.CommError) as caught:
        lc.comm_open(socket.SOCK_DGRAM, 0, ("0.0.0.0", PORT), flags=lc.COMM_TPROXY_LCL)
    return caught.value.errno, str(caught.value)


def test_the_missing_capability_is_named(three_hosts: Topology) -> None:
    code, text = three_hosts.router.run(no_rights, capabilities=())
    assert code == errno.EPERM
    assert "CAP_NET_ADMIN" in text
