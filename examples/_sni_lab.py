"""What ``sni_filter.py --lab`` shows: a sandbox that reaches what it may, by name, and no more."""

from __future__ import annotations

import encodings.idna  # noqa: F401  # for names: as another user there may be no way to it
import json
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _lab import FAMILIES, Stage
from _tls import say, serve

from lusca_comm.firewall import Only, Plan, remove
from lusca_comm.lab import Channel, Host, Process, Topology

POLICY = """
deny   bad.good.example
allow  .good.example                            # and every other name below it
allow  not-tls         to 198.51.100.2 port 25  # a mail server, which speaks first
"""
HOSTS = """
127.0.0.1      localhost
198.51.100.2   good.example www.good.example
2001:db8:2::2  good.example www.good.example
::1            rebound.good.example
127.0.0.1      rebound.good.example
"""
DENIED = "TLSV1_ALERT_ACCESS_DENIED"
EVERY_PORT = ((1, 65535),)
SANDBOX = 12345  # a user
QUIC = 443


def play(stage: Stage) -> None:
    net = stage.net
    origin = net.origin.start(serve, *((net.origin_ip[family], 443) for family in FAMILIES))
    origin.recv()
    stage.serve(net.origin, mail)
    stage.serve(net.origin, datagrams)
    for family in FAMILIES:  # the control: without a wall there is nothing that does not get out
        address = net.origin_ip[family]
        stage.check(f"no filter: {address}, any name", _says(net.client, address, "x.example"))
        stage.check(f"no filter: {address}, UDP port 443", net.client.run(quic, address) == "")
        origin.recv()
    with tempfile.TemporaryDirectory() as folder:
        policy, hosts = Path(folder, "policy"), Path(folder, "hosts")
        hosts.write_text(HOSTS)  # what the router knows of names, in place of DNS
        net.router.check_output(["mount", "--bind", str(hosts), "/etc/hosts"])
        policy.write_text(POLICY)
        _behind_a_router(stage, policy, origin)
        policy.write_text(POLICY)
        if os.geteuid() or not _has_user(SANDBOX):
            print("the filter on the sandbox's own machine: needs root, to become another user")
        else:
            _on_the_same_machine(stage, policy, origin)


def _behind_a_router(stage: Stage, policy: Path, origin: Process[None]) -> None:
    net = stage.net
    plan = Plan(ports=EVERY_PORT, interfaces=(net.client_link.b_ifname,), spoof=True, rest="refuse")
    program = stage.example(plan, str(policy), "--spoof")
    for family in FAMILIES:
        address, me = net.origin_ip[family], net.client_ip[family]
        _names(stage, net.client, address, origin, sees=me)
    v4 = net.origin_ip[socket.AF_INET]
    stage.check("a mail server of the list, which speaks first", net.client.run(banner, v4) == MAIL)
    stage.said("not-tls")

    for text, told, outcome in (
        (POLICY.replace("allow  .good", "allow  .better"), "new policy", DENIED),
        ("allow everything, please", "stays as it was", DENIED),
        (POLICY, "new policy", ""),
    ):
        policy.write_text(text)
        program.send_signal(signal.SIGHUP)
        stage.said(told)
        found = net.client.run(say, (v4, 443), "good.example")
        stage.check(f"HUP, {told}: {outcome or 'allowed again'}", found == (outcome or me_of(net)))
    origin.recv()
    program.kill()
    program.wait()
    for family in FAMILIES:
        found = net.client.run(say, (net.origin_ip[family], 443), "good.example")
        stage.check("the filter is dead: nothing gets out", found == "Connection refused")
    net.router.run(remove, plan)


def _on_the_same_machine(stage: Stage, policy: Path, origin: Process[None]) -> None:
    """The sandbox is a user of the router; nobody else on it is filtered."""
    net = stage.net
    plan = Plan(
        mode="redirect",
        own=True,
        forwarded=False,
        ports=EVERY_PORT,
        only=Only(uids=(SANDBOX,)),
        rest="refuse",
    )
    program = stage.example(plan, str(policy), "--redirect")
    for family in FAMILIES:
        address = net.origin_ip[family]
        sandbox = Sandbox(net.router)
        _names(stage, sandbox, address, origin, sees=net.router_origin_ip[family])
        stage.check(f"{address}: another user", _says(net.router, address, "x.example"))
        origin.recv()
    program.terminate()
    program.wait()
    net.router.run(remove, plan)


class Sandbox:
    """Runs functions in a host as the user."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        def as_user() -> Any:
            os.setgroups([])
            os.setresgid(SANDBOX, SANDBOX, SANDBOX)
            os.setresuid(SANDBOX, SANDBOX, SANDBOX)
            return fn(*args)

        return self._host.run(as_user)


def _names(
    stage: Stage, client: Host | Sandbox, address: str, origin: Process[None], sees: str
) -> None:
    """What each name gets at the origin's address, and what the filter tells of it."""
    near = (address, 443)
    for name, outcome, verdict, rule, what in (
        ("www.good.example", sees, "allow", ":3:", "a name of the list"),
        ("GOOD.example", sees, "allow", ":3:", "in any spelling"),
        ("bad.good.example", DENIED, "deny", ":2:", "a name that a line denies"),
        ("good.example.org", DENIED, "deny", "default", "a name that no line has"),
        ("badgood.example", DENIED, "deny", "default", "a name that ends alike"),
        (None, DENIED, "deny", "default", "no name"),
        ("rebound.good.example", DENIED, "deny", ":3:", "a name that leads to the router itself"),
    ):
        found = client.run(say, near, name)
        told = json.loads(stage.said('"verdict"'))
        told_so = (told["verdict"], told["name"]) == (verdict, name or "") and rule in told["rule"]
        stage.check(f"{address}: {what}: {found}", found == outcome and told_so)
        if outcome == sees:
            stage.check("  and the origin was asked for it", origin.recv() == (sees, name))
    stage.check(f"{address}: no TLS: reset", client.run(say_plainly, near) == "reset")
    stage.said("not TLS")
    found = client.run(say, (elsewhere(address), 443), "good.example")
    stage.said("this one")
    stage.check("a name of the list, at a foreign address: goes to the name's own", found == sees)
    stage.check("  and the origin was asked for it", origin.recv() == (sees, "good.example"))
    refused = client.run(quic, address)
    stage.check(f"{address}: UDP port 443 (QUIC): {refused}", refused)


def elsewhere(address: str) -> str:
    return f"{address[:-1]}77"


def me_of(net: Topology) -> str:
    return net.client_ip[socket.AF_INET]


def _says(client: Host, address: str, name: str) -> bool:
    """Whether a server answered, with an address."""
    found: str = client.run(say, (address, 443), name)
    return found.count(".") == 3 or found.count(":") > 1


def _has_user(uid: int) -> bool:
    """Whether this user namespace has it: uid_map, user_namespaces(7)."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(int(first) <= uid < int(first) + int(count) for first, _, count in ranges)


MAIL = "220 mail.example ESMTP"


def mail(channel: Channel) -> None:
    """Speaks first."""
    with socket.create_server(("", 25)) as listener:
        channel.send("ready")
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(MAIL.encode())


def banner(address: str) -> str:
    with socket.create_connection((address, 25), 10) as sock:
        return sock.recv(100).decode()


def datagrams(channel: Channel) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", QUIC))
        channel.send("ready")
        while True:
            sock.sendto(*sock.recvfrom(100))


def quic(address: str) -> str:
    """Why no datagram comes back; "" if one does."""
    with socket.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
    ) as sock:
        sock.settimeout(10)
        try:
            sock.connect((address, QUIC))
            sock.send(b"x")
            sock.recv(10)
        except OSError as why:
            return why.strerror or "silence"
    return ""


def say_plainly(address: tuple[str, int]) -> str:
    with socket.create_connection(address, 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        try:
            return sock.recv(100).decode()
        except ConnectionResetError:
            return "reset"
