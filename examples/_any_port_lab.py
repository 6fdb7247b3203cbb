"""What ``any_port_relay.py --lab`` shows: servers that speak first, and servers that wait."""

from __future__ import annotations

import selectors
import socket

import _tls
from _lab import FAMILIES, Stage

from lusca_comm.firewall import Plan
from lusca_comm.lab import Channel

SSH, MAIL, HTTP, TLS, OTHER = 22, 25, 80, 443, 7000
GREETINGS = {SSH: "SSH-2.0-server\r\n", MAIL: "220 mail.example ESMTP\r\n", HTTP: "", OTHER: ""}
"""What the servers say before they hear anything."""


def serve(channel: Channel) -> None:
    """Each greets, hears a line, and says whom it sees."""
    with selectors.DefaultSelector() as waiting:
        for port in GREETINGS:
            sock = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
            waiting.register(sock, selectors.EVENT_READ, port)
        channel.send("ready")
        while True:
            for key, _ in waiting.select():
                sock, peer = key.fileobj.accept()  # type: ignore[union-attr]
                with sock, sock.makefile("rwb") as stream:
                    stream.write(GREETINGS[key.data].encode())
                    stream.flush()
                    stream.readline()
                    stream.write(peer[0].removeprefix("::ffff:").encode())


def ask(address: str, port: int, says: str) -> list[str]:
    """A client's talk with a server: waits for its greeting if it has one, then speaks."""
    with socket.create_connection((address, port), 10) as sock, sock.makefile("rwb") as stream:
        heard = [stream.readline().decode()] if GREETINGS[port] and not says else []
        stream.write(says.encode() or b"QUIT\r\n")
        stream.flush()
        return heard + stream.read().decode().splitlines(keepends=True)


def play(stage: Stage) -> None:
    net = stage.net
    stage.serve(net.origin, serve)
    stage.serve(net.origin, _tls.serve, *((net.origin_ip[family], TLS) for family in FAMILIES))
    control = net.client.run(ask, net.origin_ip[FAMILIES[0]], MAIL, "")
    stage.check("no relay: the mail server greets", control[0] == GREETINGS[MAIL])
    plan = Plan(ports=((1, 65535),), interfaces=(net.client_link.b_ifname,), spoof=True)
    program = stage.example(plan, "--spoof")
    for family in FAMILIES:
        address, me = net.origin_ip[family], net.client_ip[family]
        for port, says, protocol, what in (
            (MAIL, "", "server-first", "a mail client, which waits for its server"),
            (SSH, "SSH-2.0-client\r\n", "ssh", "an SSH client, which does not"),
            (SSH, "", "server-first", "an SSH client that does"),
            (HTTP, "GET / HTTP/1.1\r\n", "http/1", "HTTP"),
            (OTHER, "well, well\r\n", "unknown", "something else"),
        ):
            found = net.client.run(ask, address, port, says)
            greeting = [GREETINGS[port]] if GREETINGS[port] else []
            line = stage.said(f"{port} {protocol}")
            stage.check(f"{address} port {port}: {what}", found == [*greeting, me] and line)
        found_tls = net.client.run(_tls.say, (address, TLS), "www.example")
        stage.said(f"{TLS} tls")
        stage.check(f"{address} port {TLS}: TLS", found_tls == me)
    program.terminate()
    stage.check("it ends in order", program.wait() == 0)
