"""Going out in the client's name: the port as well, what conntrack makes of it, and every case in
which it cannot be had."""

from __future__ import annotations

import errno
import random
import socket
from typing import Any

import pytest
from kernel.proxying import (
    FAMILIES,
    PROXY_PORT,
    WILDCARD,
    Answer,
    Seen,
    fetch,
    intercept,
    load_nft,
    serve_origin,
    serve_proxy,
)

import lusca_comm as lc
from lusca_comm.lab import Channel, Host, Topology

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])

# linux/tcp.h; the socket module has none of them
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_SEND_QUEUE, REPAIR_OFF_NO_WP = 19, 20, 21, 2, -1


def fetch_with_random_isn(family: int, host: str, seed: int) -> Answer:
    """One exchange whose initial sequence number is not the kernel's.

    All namespaces of one kernel share the secret of secure_tcp_seq, so both legs of a same-port
    spoofed connection would begin at nearly the same number, and conntrack, which takes the two
    for one, would not notice.
    """
    with socket.socket(family) as sock:
        sock.settimeout(2.5)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)
        isn = random.Random(seed).getrandbits(31)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, isn)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_NO_WP)
        answer = Answer()
        try:
            sock.connect((host, 80))
            answer.mine = sock.getsockname()[:2]
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while chunk := sock.recv(65536):
                got += chunk
            source, port, answer.body = got.split(b" ", 2)
            answer.source, answer.port = source.decode(), int(port)
        except OSError as why:
            answer.errno = why.errno or errno.ETIMEDOUT
    return answer


DROP_INVALID = """
table inet guard {
    chain early { type filter hook prerouting priority filter; ct state invalid drop; }
}
"""


def same_port_setup(net: Topology, family: int, mode: str, zone: bool) -> None:
    net.origin.sysctl("net.ipv4.tcp_syncookies", 2)
    extra: dict[str, Any] = {"same_port": zone}
    if zone:
        extra["origin_interfaces"] = (net.origin_link.a_ifname,)
    intercept(net.router, mode=mode, port=PROXY_PORT, spoof=True, **extra)
    load_nft(net.router, DROP_INVALID)
    serve_origin(net, family)


@v4_and_v6
@modes
def test_same_port_in_a_zone_of_its_own(three_hosts: Topology, family: int, mode: str) -> None:
    net = three_hosts
    same_port_setup(net, family, mode, zone=True)
    proxy = serve_proxy(
        net.router, [(WILDCARD[family], PROXY_PORT)], spoof=True, transparent_port=True
    )
    for seed in range(6):
        answer = net.client.run(fetch_with_random_isn, family, net.origin_ip[family], seed)
        seen = proxy.recv()
        assert answer.body == b"hello", (answer, seen)
        assert (answer.source, answer.port) == answer.mine
        assert seen.spoof == (seen.peer, True, "")
        assert seen.engine == ("tproxy4" if mode == "tproxy" else "netfilter")


@v4_and_v6
@modes
def test_same_port_without_a_zone_fails(three_hosts: Topology, family: int, mode: str) -> None:
    """The negative control: conntrack takes both legs for one connection. With TPROXY a connection
    whose numbers happen to fit into each other's windows still goes through."""
    net = three_hosts
    same_port_setup(net, family, mode, zone=False)
    serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)], spoof=True, transparent_port=True)
    for seed in range(40):
        answer = net.client.run(fetch_with_random_isn, family, net.origin_ip[family], seed)
        if answer.errno:
            return
    pytest.fail("forty connections in a row went through")


@v4_and_v6
def test_client_port_that_the_proxy_listens_on(three_hosts: Topology, family: int) -> None:
    """The wildcard listener has that port: another is taken, and comm_spoof says so."""
    net = three_hosts
    intercept(
        net.router,
        port=PROXY_PORT,
        spoof=True,
        same_port=True,
        origin_interfaces=(net.origin_link.a_ifname,),
    )
    serve_origin(net, family)
    proxy = serve_proxy(
        net.router, [(WILDCARD[family], PROXY_PORT)], spoof=True, transparent_port=True
    )
    for port, kept in ((PROXY_PORT, False), (PROXY_PORT + 1, True)):
        answer = net.client.run(fetch, family, net.origin_ip[family], source_port=port)
        seen = proxy.recv()
        assert answer.source == net.client_ip[family]
        assert (answer.port == port) is kept
        assert seen.spoof.kept_port is kept
        assert ("cannot be kept" in seen.spoof.reason) is not kept


@v4_and_v6
def test_privileged_client_port(three_hosts: Topology, family: int) -> None:
    """A port below 1024 needs CAP_NET_BIND_SERVICE; without it another port, told by comm_spoof."""
    net = three_hosts

    def opened(channel: Channel) -> lc.Spoof:
        flags = lc.COMM_REUSEADDR | lc.COMM_TPROXY_REM | lc.COMM_TRANSPARENT_PORT
        return lc.comm_spoof(lc.comm_open(address=(net.client_ip[family], 700), flags=flags))

    bare = net.router.start(opened, capabilities={"CAP_NET_RAW"}).result()
    assert (bare.address, bare.kept_port) == ((net.client_ip[family], 0), False)
    assert "Permission denied" in bare.reason
    able = net.router.start(opened, capabilities={"CAP_NET_RAW", "CAP_NET_BIND_SERVICE"}).result()
    assert able == ((net.client_ip[family], 700), True, "")


def connect_twice(channel: Channel, source: Any, there: Any) -> list[tuple[Any, ...]]:
    """The same 4-tuple, twice at the same time, by two sockets opened alike."""
    flags = lc.COMM_REUSEADDR | lc.COMM_TPROXY_REM | lc.COMM_TRANSPARENT_PORT
    out: list[tuple[Any, ...]] = []

    def connected(sock: socket.socket, status: int, fd: int) -> None:
        keepalive = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        same_fd = sock.fileno() == fd
        out.append((status, lc.comm_spoof(sock), same_fd, lc.comm_get_tos(sock), keepalive))
        lc.stop()

    socks = []
    for _ in range(2):
        sock = lc.comm_open(address=source, flags=flags)
        lc.comm_set_tos(sock, 0x20)
        lc.comm_set_keepalive(sock, 77, 5, 20)
        socks.append(sock)
        lc.comm_connect(sock, there, connected, sock.fileno(), timeout=5)
        lc.run()
    return out


@v4_and_v6
def test_identical_connection_gets_another_port(three_hosts: Topology, family: int) -> None:
    """connect says EADDRNOTAVAIL: a fresh socket under the same number, its options set again."""
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, spoof=True)
    serve_origin(net, family)
    source, there = (net.client_ip[family], 44444), (net.origin_ip[family], 80)
    first, second = net.router.start(connect_twice, source, there).result()
    assert first == (lc.COMM_OK, (source, True, ""), True, 0x20, 77)
    status, spoof, same_fd, tos, keepalive = second
    assert (status, same_fd, tos, keepalive) == (lc.COMM_OK, True, 0x20, 77)
    assert spoof.address[0] == source[0]
    assert spoof.address[1] not in (0, source[1])
    assert not spoof.kept_port
    assert "exists already" in spoof.reason


@v4_and_v6
def test_port_zero_shares_ports_between_destinations(three_hosts: Topology, family: int) -> None:
    """With IP_BIND_ADDRESS_NO_PORT the limit is per 4-tuple: more sockets than ports, to two
    destinations."""
    net = three_hosts
    net.router.sysctl("net.ipv4.ip_local_port_range", "50000 50009")
    intercept(net.router, port=PROXY_PORT, spoof=True)
    for port in (80, 81):
        serve_origin(net, family, port)

    def open_many(channel: Channel) -> tuple[int, int]:
        done: list[int] = []
        ports = set()

        def connected(sock: socket.socket, status: int, _data: Any) -> None:
            done.append(status)
            ports.add(lc.comm_local_port(sock))
            lc.stop()

        held = []
        for port in (80, 81):
            for _ in range(5):
                sock = lc.comm_open(
                    address=(net.client_ip[family], 9),
                    flags=lc.COMM_REUSEADDR | lc.COMM_TPROXY_REM,
                )
                held.append(sock)
                lc.comm_connect(sock, (net.origin_ip[family], port), connected, timeout=5)
                lc.run()
        assert done == [lc.COMM_OK] * 10
        return len(held), len(ports)

    sockets, ports = net.router.start(open_many).result()
    assert sockets == 10
    assert ports < 10


@v4_and_v6
def test_no_silent_fallback(three_hosts: Topology, family: int) -> None:
    """Without the privilege: an error; with spoof_fallback an unspoofed socket, and it is told."""
    net = three_hosts
    serve_origin(net, family)

    def without(channel: Channel) -> tuple[str, Any, Any]:
        source = (net.client_ip[family], 0)
        try:
            lc.comm_open(address=source, flags=lc.COMM_TPROXY_REM)
        except lc.CommError as why:
            text = str(why)
        flags = lc.COMM_REUSEADDR | lc.COMM_TPROXY_REM
        sock = lc.comm_open(address=source, flags=flags, spoof_fallback=True)
        lc.comm_connect(sock, (net.origin_ip[family], 80), lambda *a: lc.stop(), timeout=5)
        lc.run()
        return text, lc.comm_spoof(sock), sock.getsockname()[:2]

    text, spoof, mine = net.router.start(without, capabilities=frozenset()).result()
    assert "CAP_NET_RAW" in text
    assert mine[0] == net.router_origin_ip[family]
    assert (spoof.address, spoof.kept_port) == (mine, False)
    assert "not spoofed" in spoof.reason
    assert "CAP_NET_RAW" in spoof.reason


@v4_and_v6
def test_mark_and_device(three_hosts: Topology, family: int) -> None:
    net = three_hosts

    def opened(channel: Channel, **options: Any) -> tuple[int, bytes]:
        try:
            sock = lc.comm_open(family=family, **options)
        except lc.CommError as why:
            return why.errno or 0, why.strerror.encode()
        mark = sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        return mark, sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")

    device = net.origin_link.a_ifname
    assert net.router.start(opened, mark=0xFFFFFFFF - 7, device=device).result() == (
        -8,
        device.encode(),
    )
    code, text = net.router.start(opened, device="nosuch0").result()
    assert (code, b"ip link" in text) == (errno.ENODEV, True)
    code, text = net.router.start(opened, mark=1, capabilities=frozenset()).result()
    assert (code, b"CAP_NET_ADMIN" in text) == (errno.EPERM, True)


# -- endings -----------------------------------------------------------------------------------


def one_connection(channel: Channel, family: int, script: str) -> str:
    """An origin that takes one connection and tells how it ended."""
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((WILDCARD[family], 80))
        listener.listen()
        channel.send("ready")
        conn, _ = listener.accept()
        conn.settimeout(10)
        if script == "half-close first":
            conn.sendall(b"banner")
            conn.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while chunk := conn.recv(65536):
                got += chunk
        except ConnectionResetError:
            return f"{got.decode()} reset"
        return f"{got.decode()} end"


def ending_setup(net: Topology, host: Host, family: int, script: str) -> tuple[Any, Any]:
    intercept(net.router, port=PROXY_PORT, spoof=True)
    origin = host.start(one_connection, family, script)
    assert origin.recv() == "ready"
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)], spoof=True)
    return origin, proxy


@v4_and_v6
def test_half_close_by_the_origin_first(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    origin, proxy = ending_setup(net, net.origin, family, "half-close first")

    def client() -> bytes:
        with socket.create_connection((net.origin_ip[family], 80), 10) as sock:
            got = b""
            while chunk := sock.recv(100):
                got += chunk
            sock.sendall(b"after your end")  # the other direction is still open
            sock.shutdown(socket.SHUT_WR)
            return got

    assert net.client.run(client) == b"banner"
    assert origin.result() == "after your end end"
    assert isinstance(proxy.recv(), Seen)


@v4_and_v6
def test_client_reset_reaches_the_origin_as_a_reset(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    origin, proxy = ending_setup(net, net.origin, family, "")

    def client(channel: Channel) -> None:
        sock = socket.create_connection((net.origin_ip[family], 80), 10)
        sock.sendall(b"so far")
        channel.send("sent")
        channel.recv()
        linger = b"\1\0\0\0\0\0\0\0"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        sock.close()

    process = net.client.start(client)
    assert process.recv() == "sent"
    assert isinstance(proxy.recv(), Seen)
    process.send("reset now")
    assert origin.result().endswith("reset")
