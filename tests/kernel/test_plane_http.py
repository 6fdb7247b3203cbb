"""HTTP sessions on the real kernel: requests reach whom they were meant for, who sees the client or
the proxy."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from typing import Any

import pytest
from kernel.proxying import FAMILIES, PROXY_PORT, WILDCARD, intercept

import lusca_comm as lc
from lusca_comm.http import Request
from lusca_comm.lab import Channel, Process, Topology

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])
spoofed = pytest.mark.parametrize("spoof", [False, True], ids=["own name", "client's name"])


def http_proxy(channel: Channel, family: int, spoof: bool) -> None:
    """Forwards to the original destination; says what it saw."""
    reactor = lc.default_reactor
    reactor.exception_hook = lambda why, where: channel.send(f"{where}: {why!r}")
    lsock = lc.comm_open(
        address=(WILDCARD[family], PROXY_PORT), flags=lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL
    )
    lc.comm_listen(lsock)

    def decide(requests: list[Request]) -> None:
        for request in requests:
            channel.send(
                (request.state, request.target, request.peer, request.original, request.engine)
            )
            if request.state == "request":
                request.forward(spoof=spoof)
            else:
                request.deny()

    service = lc.http_service(decide)
    service.listen(lsock, on_refused=lambda why: channel.send(("refused", why.errno)))
    channel.send("ready")
    lc.run()


def http_origin(channel: Channel, family: int) -> None:
    """Answers each request with its number on the connection and the peer it came from."""
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((WILDCARD[family], 80))
        listener.listen()
        channel.send("ready")
        while True:
            threading.Thread(target=serve, args=listener.accept(), daemon=True).start()


def serve(conn: socket.socket, peer: Any) -> None:
    with conn, contextlib.suppress(ConnectionError):
        number, got = 0, b""
        while chunk := conn.recv(65536):
            got += chunk
            while b"\r\n\r\n" in got:
                _, _, got = got.partition(b"\r\n\r\n")
                number += 1
                body = f"{number} {peer[0]}".encode()
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def get(family: int, host: str, targets: list[bytes], port: int = 80, source: str = "") -> Any:
    """The bodies of responses to requests on one connection; the errno of what broke it."""
    bodies, got = [], b""
    try:
        with socket.socket(family) as sock:
            sock.settimeout(10)
            if source:
                sock.bind((source, 0))
            sock.connect((host, port))
            mine = sock.getsockname()[:2]
            for target in targets:
                sock.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: origin.example\r\n\r\n")
                while not (b"\r\n\r\n" in got and got.partition(b"\r\n\r\n")[2]):
                    chunk = sock.recv(65536)
                    if not chunk:
                        return bodies, None
                    got += chunk
                bodies.append(got.partition(b"\r\n\r\n")[2].decode())
                got = b""
    except OSError as why:
        return why.errno
    return bodies, mine


def start(net: Topology, family: int, spoof: bool) -> Process[None]:
    origin = net.origin.start(http_origin, family)
    assert origin.recv() == "ready"
    proxy = net.router.start(http_proxy, family, spoof)
    assert proxy.recv() == "ready"
    return proxy


@v4_and_v6
@modes
@spoofed
def test_requests_reach_whom_they_were_meant_for(
    three_hosts: Topology, family: int, mode: str, spoof: bool
) -> None:
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, spoof=spoof)
    proxy = start(net, family, spoof)
    sees = (net.client_ip if spoof else net.router_origin_ip)[family]
    engine = {"tproxy": "tproxy4", "redirect": "netfilter"}[mode]
    there = (net.origin_ip[family], 80)
    for first in (1, 3):  # the second client gets the first one's upstream: same name, same address
        bodies, mine = net.client.run(get, family, there[0], [b"/a", b"/b"])
        assert bodies == [f"{first} {sees}", f"{first + 1} {sees}"]
        for target in (b"/a", b"/b"):
            assert proxy.recv() == ("request", target, mine, there, engine)


@v4_and_v6
def test_without_the_rule_nobody_is_asked(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    proxy = start(net, family, True)
    bodies, _ = net.client.run(get, family, net.origin_ip[family], [b"/a"])
    assert bodies == [f"1 {net.client_ip[family]}"]  # as without a proxy
    # The first thing that the proxy ever hears of is this direct connection, which it resets.
    assert net.client.run(get, family, net.router_client_ip[family], [b"/"], PROXY_PORT) in (
        errno.ECONNRESET,
        errno.EPIPE,
    )
    assert proxy.recv() == ("refused", errno.ELOOP)


def another_address(address: str) -> None:
    """Of the one interface beside lo."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        index = next(number for number, name in socket.if_nameindex() if name != "lo")
        ip.addr("add", index=index, address=address)


@v4_and_v6
@spoofed
def test_upstreams_are_shared_in_the_proxys_name_alone(
    three_hosts: Topology, family: int, spoof: bool
) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, spoof=spoof)
    proxy = start(net, family, spoof)
    first = net.client_ip[family]
    second = first.removesuffix("2") + "3"
    net.client.run(another_address, f"{second}/{24 if family == socket.AF_INET else 64}")
    seen = []
    for source in (first, second, first):
        (body,), mine = net.client.run(get, family, net.origin_ip[family], [b"/"], 80, source)
        assert mine[0] == source
        assert proxy.recv()[2] == mine
        seen.append(body)
    own = net.router_origin_ip[family]
    assert seen == (
        [f"1 {first}", f"1 {second}", f"2 {first}"] if spoof else [f"{i} {own}" for i in (1, 2, 3)]
    )
