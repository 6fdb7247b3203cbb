"""A whole listener in the data plane, on the real kernel: policy, questions, spoofing, loops."""

from __future__ import annotations

import errno
import socket
import threading
from typing import Any

import pytest
from kernel.proxying import FAMILIES, PROXY_PORT, WILDCARD, fetch, intercept, serve_origin

import lusca_comm as lc
from lusca_comm import Question, Rule
from lusca_comm.firewall import Exempt
from lusca_comm.lab import Channel, Host, Process, Topology

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
NETWORK = {socket.AF_INET: "198.51.100.0/24", socket.AF_INET6: "2001:db8:2::/64"}
MARK = 0x100
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


def plane_proxy(
    channel: Channel,
    family: int,
    policy: list[Rule] | None,
    answer: str,
    to: Any,
    flags: int,
    options: dict[str, Any],
) -> None:
    """Relays by `policy` until it is killed; says what it was asked and what ended. A message to
    it is another policy, or "totals"."""
    reactor = lc.default_reactor
    reactor.exception_hook = lambda why, where: channel.send(f"{where}: {why!r}")
    lsock = lc.comm_open(address=(WILDCARD[family], PROXY_PORT), flags=lc.COMM_REUSEADDR | flags)
    lc.comm_listen(lsock)

    def decide(questions: list[Question]) -> None:
        for question in questions:
            channel.send(("asked", question.peer, question.original, question.engine))
            if answer == "take":
                sock = question.take()
                lc.comm_write(sock, b"0.0.0.0 0 from python")
                lc.comm_lingering_close(sock)
            elif answer == "deny":
                question.deny()
            elif answer == "raise":
                raise ValueError("decide failed")
            elif answer == "later":
                lc.comm_add_event(0.01, lambda q: q.relay(), question)
            else:
                question.relay(to, spoof=answer == "spoof")

    def on_done(result: lc.RelayResult) -> None:
        channel.send((result.end, result.errno, result.up, result.client is not None))
        if result.client is not None:
            lc.comm_reset_close(result.client)

    told_of = options.pop("told_of", "on_done")
    listener = lc.intercept_relay(
        lsock, policy=policy, decide=decide if answer else None, **{told_of: on_done}, **options
    )

    def told(said: Any) -> None:
        if said == "totals":
            channel.send(reactor.plane.totals())
        elif said == "close":
            listener.close()
            channel.send("closed")
        else:
            listener.set_policy(said)
            channel.send("set")

    def hear() -> None:
        while True:
            lc.call_soon_threadsafe(told, channel.recv())

    threading.Thread(target=hear, daemon=True).start()
    channel.send("ready")
    lc.run()


def serve(
    host: Host,
    family: int,
    policy: list[Rule] | None = None,
    answer: str = "",
    to: Any = None,
    flags: int = lc.COMM_TPROXY_LCL,
    **options: Any,
) -> Process[None]:
    process = host.start(plane_proxy, family, policy, answer, to, flags, options)
    assert process.recv() == "ready"
    return process


@v4_and_v6
@modes
@pytest.mark.parametrize("action", ["relay", "spoof"])
def test_without_python(three_hosts: Topology, family: int, mode: str, action: str) -> None:
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, spoof=action == "spoof")
    serve_origin(net, family)
    proxy = serve(net.router, family, [Rule(action)])
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert answer.body == b"hello"
    sees = net.client_ip if action == "spoof" else net.router_origin_ip
    assert answer.source == sees[family]
    assert proxy.recv() == ("eof", 0, 5, False)
    proxy.send("totals")
    totals = proxy.recv()
    assert (totals.accepted, totals.relayed, totals.ended, totals.live) == (1, 1, 1, 0)


@v4_and_v6
def test_failures_alone_are_told(three_hosts: Topology, family: int) -> None:
    """Port 81 refuses. The relay before it has ended by then, and nothing was said of it."""
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, ports=(80, 81))
    serve_origin(net, family)
    proxy = serve(net.router, family, [Rule("relay")], told_of="on_failed")
    assert net.client.run(fetch, family, net.origin_ip[family]).body == b"hello"
    assert net.client.run(fetch, family, net.origin_ip[family], 81).errno == errno.ECONNRESET
    assert proxy.recv() == ("connect", errno.ECONNREFUSED, 0, True)
    proxy.send("totals")
    totals = proxy.recv()
    assert (totals.accepted, totals.relayed, totals.failed) == (2, 1, 1)


@v4_and_v6
def test_the_first_rule_that_matches_counts(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    host = net.origin_ip[family]
    intercept(net.router, port=PROXY_PORT, ports=(80, 81, 82))
    for port in (80, 81, 82):
        serve_origin(net, family, port)
    other = "203.0.113.0/24" if family == socket.AF_INET else "2001:db8:ffff::/48"
    policy = [
        Rule("relay", other),
        Rule("deny", NETWORK[family], 81),
        Rule("relay", host, (80, 81)),
        Rule("deny"),
    ]
    proxy = serve(net.router, family, policy)
    assert net.client.run(fetch, family, host, 80).body == b"hello"
    assert proxy.recv()[0] == "eof"
    for port in (81, 82):
        assert net.client.run(fetch, family, host, port).errno == errno.ECONNRESET
    proxy.send([Rule("relay", ports=(81, 82)), Rule("deny")])
    assert proxy.recv() == "set"
    assert net.client.run(fetch, family, host, 80).errno == errno.ECONNRESET
    for port in (81, 82):
        assert net.client.run(fetch, family, host, port).body == b"hello"
        assert proxy.recv()[0] == "eof"
    proxy.send("totals")
    totals = proxy.recv()
    assert (totals.accepted, totals.relayed, totals.denied) == (6, 3, 3)


@v4_and_v6
@pytest.mark.parametrize("answer", ["relay", "spoof", "later", "take", "deny", "raise"])
def test_decide(three_hosts: Topology, family: int, answer: str) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, spoof=True)
    serve_origin(net, family)
    proxy = serve(net.router, family, answer=answer)
    got = net.client.run(fetch, family, net.origin_ip[family])
    what, peer, original, engine = proxy.recv()
    assert (what, original, engine) == ("asked", (net.origin_ip[family], 80), "tproxy4")
    if answer in ("deny", "raise"):
        assert got.errno == errno.ECONNRESET
        if answer == "raise":
            assert "decide failed" in proxy.recv()
        return
    assert peer == got.mine
    if answer == "take":
        assert got.body == b"from python"
        return
    assert got.body == b"hello"
    sees = net.client_ip if answer == "spoof" else net.router_origin_ip
    assert got.source == sees[family]
    assert proxy.recv() == ("eof", 0, 5, False)


def test_decide_sends_it_elsewhere(three_hosts: Topology) -> None:
    net, family = three_hosts, socket.AF_INET
    intercept(net.router, port=PROXY_PORT)
    serve_origin(net, family, 8080)
    proxy = serve(
        net.router, family, [Rule("ask")], answer="relay", to=(net.origin_ip[family], 8080)
    )
    assert net.client.run(fetch, family, net.origin_ip[family]).body == b"hello"
    assert proxy.recv()[0] == "asked"
    assert proxy.recv()[0] == "eof"


@v4_and_v6
def test_an_upstream_that_is_not_there(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT)
    proxy = serve(net.router, family)
    assert net.client.run(fetch, family, net.origin_ip[family]).errno == errno.ECONNRESET
    assert proxy.recv() == ("connect", errno.ECONNREFUSED, 0, True)


@v4_and_v6
@pytest.mark.parametrize("flags", [lc.COMM_TPROXY_LCL, lc.COMM_INTERCEPT], ids=["tproxy", "nat"])
def test_a_direct_connection_is_reset(three_hosts: Topology, family: int, flags: int) -> None:
    """Relaying it would be the listener connecting to itself, for ever."""
    net = three_hosts
    proxy = serve(net.router, family, flags=flags)
    here = net.router_client_ip[family]
    assert net.client.run(fetch, family, here, PROXY_PORT).errno == errno.ECONNRESET
    proxy.send("totals")
    totals = proxy.recv()
    assert (totals.accepted, totals.relayed, totals.looped + totals.failed) == (1, 0, 1)


def test_a_closed_listener_leaves_its_relays(three_hosts: Topology) -> None:
    net, family = three_hosts, socket.AF_INET
    intercept(net.router, port=PROXY_PORT)
    serve_origin(net, family)
    proxy = serve(net.router, family)

    def client(channel: Channel) -> bytes:
        with socket.create_connection((net.origin_ip[family], 80), 10) as sock:
            sock.sendall(b"one ")
            channel.send("connected")
            channel.recv()
            sock.sendall(b"two")
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b"")).split(b" ", 2)[2]

    running = net.client.start(client)
    assert running.recv() == "connected"
    while True:
        proxy.send("totals")
        if proxy.recv().relayed == 1:
            break
    proxy.send("close")
    assert proxy.recv() == "closed"
    running.send("go on")
    assert running.result() == b"one two"
    assert proxy.recv() == ("eof", 0, 7, False)


@v4_and_v6
@modes
@pytest.mark.parametrize("exempt", [True, False])
def test_own_traffic(three_hosts: Topology, family: int, mode: str, exempt: bool) -> None:
    """Without its mark the plane's own connection comes back to it, and goes no further."""
    net = three_hosts
    intercept(
        net.router, mode=mode, port=PROXY_PORT, forwarded=False, own=True, exempt=Exempt(mark=MARK)
    )
    serve_origin(net, family)
    proxy = serve(net.router, family, mark=MARK if exempt else None)
    answer = net.router.run(fetch, family, net.origin_ip[family])
    if exempt:
        assert answer.body == b"hello"
        assert answer.port != answer.mine[1]
    else:
        assert answer.errno == errno.ECONNRESET
    proxy.recv()
    proxy.send("totals")
    totals = proxy.recv()
    assert (totals.accepted, totals.looped) == ((1, 0) if exempt else (2, 1))
