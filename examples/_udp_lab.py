"""What ``udp_relay.py --lab`` shows: datagrams of every size, to any port and back, in order."""

from __future__ import annotations

import contextlib
import selectors
import socket

from _lab import FAMILIES, Stage

from lusca_comm.firewall import Plan
from lusca_comm.lab import Channel

PORTS = (443, 4433, 51820)
# QUIC's smallest and usual ones; what fills a frame; and what goes in fragments.
SIZES = (0, 1, 1200, 1350, 1452, 1472, 1500, 9000, 65000)
BURST = 500


def server(channel: Channel) -> None:
    """Sends every datagram back, behind the address that it came from."""
    with selectors.DefaultSelector() as waiting:
        for family in FAMILIES:
            for port in PORTS:
                sock = socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
                waiting.register(sock, selectors.EVENT_READ, sock)
        channel.send("ready")
        while True:
            for key, _ in waiting.select():
                data, peer = key.data.recvfrom(65535)
                key.data.sendto(f"{peer[0]} {peer[1]} ".encode() + data, peer)


def exchange(there: tuple[str, int], size: int) -> tuple[str, str]:
    """One datagram there and back: whom the server saw, and who that should have been."""
    with _connected(there) as sock:
        data = bytes(number % 251 for number in range(size))
        sock.send(data)
        host, port, back = sock.recv(65535).split(b" ", 2)
        mine = sock.getsockname()
        assert back == data, "another datagram"
        return f"{host.decode()} {port.decode()}", f"{mine[0]} {mine[1]}"


def burst(there: tuple[str, int], size: int) -> tuple[int, bool]:
    """How many of many come back, a few on the way at a time, and whether they do so in order."""
    found = []
    with _connected(there) as sock:
        for number in range(BURST):
            sock.send(number.to_bytes(4, "big") + bytes(size - 4))
            if number >= 16:
                found.append(_number(sock))
        with contextlib.suppress(TimeoutError):
            while len(found) < BURST:
                found.append(_number(sock))
    return len(found), found == sorted(found)


def _number(sock: socket.socket) -> int:
    return int.from_bytes(sock.recv(65535).split(b" ", 2)[2][:4], "big")


def _connected(there: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in there[0] else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect(there)
    return sock


def nobody_answers(there: tuple[str, int]) -> bool:
    with _connected(there) as sock:
        sock.settimeout(0.3)
        sock.send(b"hello")
        with contextlib.suppress(OSError):
            return not sock.recv(100)
    return True


def play(stage: Stage) -> None:
    net = stage.net
    net.origin.start(server).recv()
    # The router forwards nothing from here on: what arrives has gone through the relay.
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        net.router.sysctl(name, 0)
    for family in FAMILIES:
        host = net.origin_ip[family]
        stage.check(f"{host}: no way there", net.client.run(nobody_answers, (host, 443)))
    plan = Plan(
        protocols=("udp",),
        ports=((1, 65535),),
        port=3130,
        interfaces=(net.client_link.b_ifname,),
        spoof=True,
        same_port=True,
        origin_interfaces=(net.origin_link.a_ifname,),
    )
    stage.example(plan, "3130")
    for family in FAMILIES:
        host = net.origin_ip[family]
        for port in PORTS:
            saw, mine = net.client.run(exchange, (host, port), 1200)
            stage.check(f"{host} port {port} saw {saw}, the client", saw == mine)
        for size in SIZES:
            saw, mine = net.client.run(exchange, (host, 443), size)
            stage.check(f"{size} bytes there and back", saw == mine)
        count, ordered = net.client.run(burst, (host, 443), 1350)
        stage.check(
            f"{BURST} of QUIC's size: {count} are back, in order", count == BURST and ordered
        )
