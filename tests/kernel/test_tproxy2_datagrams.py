"""tproxy2, emulated: datagrams out in the client's name, and in to what is not this machine's."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
from emulators.tproxy2 import kernel
from emulators.tproxy2.calls import tell
from kernel.tproxy2 import (
    FOREIGN,
    OPEN,
    V4,
    connected,
    foreign_behind_the_client,
    needs_nft,
    spoofed,
    under,
)

import lusca_comm as lc
from lusca_comm.lab import Channel, Topology

pytestmark = needs_nft


@pytest.fixture
def net(three_hosts: Topology) -> Topology:
    return foreign_behind_the_client(three_hosts)


def datagram_origin(channel: Channel, port: int) -> None:
    """Answers every datagram with the peer that it saw."""
    with socket.socket(V4, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", port))
        channel.send("ready")
        while True:
            _, peer = sock.recvfrom(100)
            sock.sendto(f"{peer[0]} {peer[1]}".encode(), peer)


def datagrams(
    channel: Channel, source: Any, origin: Any, flags: int, connects: bool, unassigns: bool
) -> Any:
    sock = spoofed(source, socket.SOCK_DGRAM, flags)
    if connects:
        assert connected(sock, origin) == lc.COMM_OK
    sock.settimeout(5)
    seen = []
    for _ in range(3):
        if connects:
            sock.send(b"x")
        else:
            sock.sendto(b"x", origin)
        seen.append(sock.recv(100).decode().split(" "))
    told = lc.comm_spoof(sock)
    if unassigns:
        assert tell(sock, kernel.number(kernel.UNASSIGN)) == 0
        sock.sendto(b"x", origin)
        seen.append(sock.recv(100).decode().split(" "))
    return told, seen


def serve_datagrams(net: Topology) -> Any:
    process = net.origin.start(datagram_origin, 53)
    assert process.recv() == "ready"
    return net.origin_ip[V4], 53


@pytest.mark.parametrize("connects", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("keeps", [True, False], ids=["the port too", "any port"])
def test_datagrams_in_the_clients_name(net: Topology, connects: bool, keeps: bool) -> None:
    origin = serve_datagrams(net)
    source = (net.client_ip[V4], 5353)
    flags = lc.COMM_TRANSPARENT_PORT if keeps else 0
    told, seen = under(net.router, datagrams, source, origin, flags, connects, False).result()
    assert {tuple(one) for one in seen} == {(told.address[0], str(told.address[1]))}
    assert told.address[0] == net.client_ip[V4]
    assert (told.address[1] == 5353) is told.kept_port is keeps


def test_datagrams_without_an_assignment(net: Topology) -> None:
    """The control: the same socket, once its assignment is gone."""
    origin = serve_datagrams(net)
    source = (net.client_ip[V4], 5353)
    _, seen = under(net.router, datagrams, source, origin, 0, False, True).result()
    *before, after = (host for host, _ in seen)
    assert set(before) == {net.client_ip[V4]}
    assert after == net.router_client_ip[V4]


def answer_datagrams(channel: Channel, address: Any) -> Any:
    """A listener, and one more socket for the first client: who gets which datagram."""
    lsock = lc.comm_open(socket.SOCK_DGRAM, 0, address, flags=OPEN | lc.COMM_TPROXY_LCL)
    channel.send(lsock.getsockname())
    lsock.settimeout(5)
    first, client = lsock.recvfrom(100)
    lsock.sendto(b"from the listener", client)
    flow = spoofed(address, socket.SOCK_DGRAM, lc.COMM_TRANSPARENT_PORT)
    assert connected(flow, client) == lc.COMM_OK
    flow.send(b"from the flow")
    flow.settimeout(5)
    second = flow.recv(100)
    third, other = lsock.recvfrom(100)
    return (client, first), second, (other, third), lc.comm_spoof(flow)


def two_clients(address: Any, first: int, second: int) -> Any:
    with contextlib.ExitStack() as stack:
        socks = []
        for port in (first, second):
            sock = stack.enter_context(socket.socket(V4, socket.SOCK_DGRAM))
            sock.settimeout(5)
            sock.bind(("0.0.0.0", port))
            socks.append(sock)
        socks[0].sendto(b"one", address)
        answers = [socks[0].recvfrom(100) for _ in range(2)]
        socks[0].sendto(b"two", address)
        socks[1].sendto(b"three", address)
        return answers


def test_datagrams_to_a_foreign_address(net: Topology) -> None:
    """One way in alone: the listener's own answer leaves from its local address. The flow's does
    not, and from then on it gets its client's datagrams."""
    address, client = (FOREIGN, 53), net.client_ip[V4]
    program = under(net.router, answer_datagrams, address)
    local = program.recv()
    answers = net.client.run(two_clients, address, 7001, 7002)
    assert answers == [(b"from the listener", local), (b"from the flow", address)]
    first, second, third, spoof = program.result()
    assert first == ((client, 7001), b"one")
    assert second == b"two"
    assert third == ((client, 7002), b"three")
    assert spoof == (address, True, "")
