"""What ``proxy_header_relay.py --lab`` shows: a server that sees the relay and knows the client."""

from __future__ import annotations

import socket
from typing import Any

from _lab import FAMILIES, Stage

from lusca_comm.firewall import Plan, remove
from lusca_comm.lab import Channel
from lusca_comm.protocols.proxy_header import parse


def serve(channel: Channel) -> None:
    """Answers each connection with who the header says it is; tells the channel who connected,
    the header, and what followed it."""
    with socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        channel.send("ready")
        while True:
            sock, peer = listener.accept()
            with sock:
                data = b""
                while (got := parse(data)) is None or not data[got[1] :].endswith(b"\n"):
                    data += sock.recv(1000)
                header, size = got
                channel.send((peer[0].removeprefix("::ffff:"), header, data[size:]))
                sock.sendall(f"you are {header.source[0]}".encode() if header.source else b"who?")


def ask(address: tuple[str, int]) -> tuple[Any, str]:
    """The client's own address, and what it hears."""
    with socket.create_connection(address, 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        return sock.getsockname()[:2], sock.recv(100).decode()


def play(stage: Stage) -> None:
    net = stage.net
    origin = net.origin.start(serve)
    origin.recv()
    plan = Plan(interfaces=(net.client_link.b_ifname,))
    for version in (1, 2):
        program = stage.example(plan, "--version", str(version))
        for family in FAMILIES:
            there = (net.origin_ip[family], 80)
            me, heard = net.client.run(ask, there)
            peer, header, rest = origin.recv()
            what = f"{there[0]}, version {version}"
            stage.check(
                f"{what}: the server is connected to by {peer}",
                peer == net.router_origin_ip[family],
            )
            stage.check(
                f"{what}: the header says {header.source} to {header.destination}",
                (header.version, header.source, header.destination) == (version, me, there),
            )
            stage.check(f"{what}: the request is behind it", rest == b"GET / HTTP/1.1\r\n")
            stage.check(f"{what}: the client hears: {heard}", heard == f"you are {me[0]}")
            stage.said("up 16 down")
        program.terminate()
        stage.check("it ends in order", program.wait() == 0)
        net.router.run(remove, plan)
