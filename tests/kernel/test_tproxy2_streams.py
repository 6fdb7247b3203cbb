"""tproxy2, emulated: sockets that connect from, and listen on, what is not this machine's."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from emulators.tproxy2 import kernel, nat
from emulators.tproxy2.calls import ask
from kernel.proxying import serve_origin
from kernel.tproxy2 import (
    FOREIGN,
    OPEN,
    V4,
    connected,
    exchange,
    foreign_behind_the_client,
    needs_nft,
    spoofed,
    under,
)

import lusca_comm as lc
from lusca_comm.lab import Channel, Host, Topology, wait_for

pytestmark = needs_nft


@pytest.fixture
def net(three_hosts: Topology) -> Topology:
    return foreign_behind_the_client(three_hosts)


def installed(host: Host) -> list[str]:
    """The elements in the supervisor's maps."""
    listing = host.check_output([nat.program() or "nft", "list", "table", "ip", "tproxy2"])
    return [line for line in listing.splitlines() if "elements" in line]


# -- connecting ---------------------------------------------------------------------------------


def both_ends(channel: Channel, source: Any, *origins: Any) -> list[Any]:
    """Connections from one foreign address and port: what comm_spoof says and the origin sees."""
    told = []
    for origin in origins:
        sock = spoofed(source, flags=lc.COMM_TRANSPARENT_PORT)
        before = lc.comm_spoof(sock)
        assert before == (source, True, "")
        assert connected(sock, origin) == lc.COMM_OK
        told.append((lc.comm_spoof(sock), origin, sock))
    return [(spoof, origin, exchange(sock)) for spoof, origin, sock in told]


def test_one_foreign_port_to_two_origins(net: Topology) -> None:
    serve_origin(net, V4, 80)
    serve_origin(net, V4, 81)
    source, host = (FOREIGN, 4000), net.origin_ip[V4]
    program = under(net.router, both_ends, source, (host, 80), (host, 81))
    for spoof, _, seen in program.result():
        assert spoof == (source, True, "")
        assert seen == [FOREIGN, "4000"]


def test_the_very_same_connection_gets_another_port(net: Topology) -> None:
    serve_origin(net, V4)
    source, origin = (FOREIGN, 4000), (net.origin_ip[V4], 80)
    first, second = under(net.router, both_ends, source, origin, origin).result()
    assert first[0] == (source, True, "")
    assert first[2] == [FOREIGN, "4000"]
    (host, port), kept, reason = second[0]
    assert (host, kept) == (FOREIGN, False)
    assert "4000 cannot be kept" in reason
    assert second[2] == [FOREIGN, str(port)]
    assert port not in (0, 4000)


def reuse(channel: Channel, source: Any, *origins: Any) -> list[Any]:
    """Two connections from one foreign port, the second when the first is closed; then one from
    their local port, unspoofed. To an origin each: conntrack remembers connections that are over.
    """
    told: list[Any] = []
    flags = lc.COMM_NONBLOCKING | lc.COMM_TPROXY_REM | lc.COMM_TRANSPARENT_PORT
    for origin in origins[:2]:
        sock = lc.comm_open(socket.SOCK_STREAM, 0, source, flags=flags)
        assert connected(sock, origin) == lc.COMM_OK
        told.append((sock.getsockname(), lc.comm_local_port(sock), lc.comm_spoof(sock)))
        lc.comm_reset_close(sock)
    channel.send("closed")
    channel.recv()
    sock = lc.comm_open(socket.SOCK_STREAM, 0, told[-1][0], flags=OPEN)
    assert connected(sock, origins[2]) == lc.COMM_OK
    return [*told, exchange(sock)]


def test_the_end_of_a_socket_frees_both_its_ports(net: Topology) -> None:
    here, source = net.router_origin_ip[V4], (FOREIGN, 4000)
    origins = [(net.origin_ip[V4], port) for port in (80, 81, 82)]
    for _, port in origins:
        serve_origin(net, V4, port)
    program = under(net.router, reuse, source, *origins)
    assert program.recv() == "closed"
    wait_for(lambda: not installed(net.router), what="the supervisor to hear of it")
    program.send("go on")
    *told, unspoofed = program.result()
    for local, port, spoof in told:
        assert local[0] == here, "the local address is that of the route to the origin"
        assert (port, spoof) == (4000, (source, True, ""))
    assert unspoofed == [here, str(told[-1][0][1])]


def connect_again(channel: Channel, source: Any, *origins: Any) -> Any:
    """One socket, and one origin after the other until one answers."""
    sock = spoofed(source, flags=lc.COMM_TRANSPARENT_PORT)
    statuses = [connected(sock, origin) for origin in origins]
    return statuses, lc.comm_spoof(sock), exchange(sock)


def test_a_socket_that_was_refused_connects_elsewhere(net: Topology) -> None:
    serve_origin(net, V4)
    host, source = net.origin_ip[V4], (FOREIGN, 4000)
    # Refused; then ECONNABORTED, as connect(2) says once to a socket that was reset; no route.
    origins = [(host, 79), (host, 79), ("10.0.0.1", 80), (host, 80)]
    statuses, spoof, seen = under(net.router, connect_again, source, *origins).result()
    assert statuses == [lc.COMM_ERR_CONNECT] * 3 + [lc.COMM_OK]
    assert spoof == (source, True, "")
    assert seen == [FOREIGN, "4000"]


def from_itself(channel: Channel, source: Any, origin: Any) -> Any:
    sock = spoofed(source)
    assert connected(sock, origin) == lc.COMM_OK
    return sock.getsockname(), lc.comm_spoof(sock), exchange(sock)


def test_an_address_of_the_machine_is_just_bound(net: Topology) -> None:
    serve_origin(net, V4)
    here = net.router_client_ip[V4]
    local, spoof, seen = under(net.router, from_itself, (here, 0), (net.origin_ip[V4], 80)).result()
    assert local[0] == here
    assert spoof.address == local
    assert seen == [here, str(local[1])]


def listen_and_connect(channel: Channel, source: Any, origin: Any) -> Any:
    sock = lc.comm_open(
        socket.SOCK_STREAM, 0, source, flags=OPEN | lc.COMM_TPROXY_LCL | lc.COMM_TPROXY_REM
    )
    assert connected(sock, origin) == lc.COMM_OK
    return lc.comm_spoof(sock).address, exchange(sock)


def test_a_listeners_address_may_connect_too(net: Topology) -> None:
    """With LCL the port is bound as given, and REM adds the right to connect from there."""
    serve_origin(net, V4)
    source = (FOREIGN, 4001)
    told, seen = under(net.router, listen_and_connect, source, (net.origin_ip[V4], 80)).result()
    assert told == source
    assert seen == [FOREIGN, "4001"]


def connect_to_ipv6(channel: Channel, source: Any, origin: Any) -> tuple[int, int]:
    sock = spoofed(source)
    return connected(sock, origin), lc.comm_error(sock)


def test_ipv6_cannot_be_reached_from_ipv4(net: Topology) -> None:
    origin = (net.origin_ip[socket.AF_INET6], 80)
    outcome = under(net.router, connect_to_ipv6, (FOREIGN, 0), origin).result()
    assert outcome == (lc.COMM_ERR_CONNECT, errno.EAFNOSUPPORT)


def flags_told(channel: Channel, origin: Any) -> list[int]:
    """FLAGS of a socket of every kind, but for whether NAT has been at work."""
    lcl, rem = lc.COMM_TPROXY_LCL, lc.COMM_TPROXY_REM
    socks = []
    for port, (kind, flags) in enumerate(
        (kind, flags)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        for flags in (lcl, rem, lcl | rem)
    ):
        sock = lc.comm_open(kind, 0, (FOREIGN, 4000 + port), flags=OPEN | flags)
        if flags & rem:
            assert connected(sock, origin) == lc.COMM_OK
        elif kind == socket.SOCK_STREAM:
            lc.comm_listen(sock)
        socks.append(sock)
    told = []
    for sock in socks:
        answer = ask(sock, kernel.number(kernel.FLAGS))
        assert isinstance(answer, bytes), answer
        told.append(kernel.number_in(answer) & ~kernel.ITP_APPLIED)
    return told


def test_the_flags_of_every_kind_of_socket(net: Topology) -> None:
    serve_origin(net, V4)
    assert under(net.router, flags_told, (net.origin_ip[V4], 80)).result() == [
        kernel.ITP_LISTEN,
        kernel.ITP_CONNECT | kernel.ITP_ONCE,
        kernel.ITP_CONNECT | kernel.ITP_ONCE,
        kernel.ITP_LISTEN | kernel.ITP_UNIDIR,
        kernel.ITP_CONNECT,
        kernel.ITP_ESTABLISHED,
    ]


# -- listening ----------------------------------------------------------------------------------


def accept_one(channel: Channel, address: Any, listens: bool) -> Any:
    """A listener on what is not this machine's: what it takes, and what it is told."""
    lsock = lc.comm_open(socket.SOCK_STREAM, 0, address, flags=OPEN | lc.COMM_TPROXY_LCL)
    if listens:
        lc.comm_listen(lsock)
    else:
        lsock.listen()  # the kernel is not told
    channel.send((lsock.getsockname(), lc.comm_local_port(lsock)))
    while (got := lc.comm_accept(lsock)) is None:
        lc.comm_select(10)
    told = (got.peer, got.me, lc.original_destination(got.sock))
    got.sock.settimeout(5)
    got.sock.sendall(got.sock.recv(100).upper())
    lc.comm_close(got.sock)
    return told


def talk(address: Any, text: bytes, timeout: float = 5) -> Any:
    with socket.create_connection(address, timeout=timeout) as sock:
        sock.sendall(text)
        return sock.getsockname(), sock.recv(100)


@pytest.mark.parametrize("port", [80, 0])
def test_listening_on_a_foreign_address(net: Topology, port: int) -> None:
    program = under(net.router, accept_one, (FOREIGN, port), True)
    local, told = program.recv()
    assert local[0] == net.router_client_ip[V4]
    assert told == port if port else told > 0
    mine, answer = net.client.run(talk, (FOREIGN, told), b"hello")
    assert answer == b"HELLO"
    peer, me, there = program.result()
    assert (peer, me) == (mine, local)
    assert there == ((FOREIGN, told), "netfilter", True)


def test_a_listener_that_the_kernel_is_not_told_of(net: Topology) -> None:
    """ASSIGN without FLAGS(ITP_LISTEN): nothing leads to it."""
    program = under(net.router, accept_one, (FOREIGN, 80), False)
    program.recv()
    with pytest.raises(OSError):
        net.client.run(talk, (FOREIGN, 80), b"hello", timeout=1)
    assert program.alive


def two_listeners(channel: Channel, address: Any) -> tuple[int, int]:
    """The second finds the address taken: when it is opened, or when it listens."""
    socks = [
        lc.comm_open(socket.SOCK_STREAM, 0, address, flags=OPEN | lc.COMM_TPROXY_LCL)
        for _ in range(2)
    ]
    lc.comm_listen(socks[0])
    with pytest.raises(lc.CommError) as caught:
        lc.comm_listen(socks[1])
    with pytest.raises(lc.CommError) as unshared:
        lc.comm_open(socket.SOCK_STREAM, 0, address, flags=lc.COMM_NONBLOCKING | lc.COMM_TPROXY_LCL)
    return caught.value.errno or 0, unshared.value.errno or 0


def test_two_listeners_on_one_foreign_address(net: Topology) -> None:
    codes = under(net.router, two_listeners, (FOREIGN, 80)).result()
    assert codes == (errno.EADDRINUSE, errno.EADDRINUSE)
