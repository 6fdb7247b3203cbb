"""examples/sni_filter.py in a router: what it shows of itself, and clients that are slow, odd, or
not to be told from anybody.

client ---- router (the example) ---- origin
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _sni_lab
import _tls
import hellos
import pytest
import sni_filter
from firewall_peers import ended, shared_hosts, start
from kernel.examples import EXAMPLES, Example, running, shows
from kernel.proxying import FAMILIES
from kernel.test_firewall import removed

from lusca_comm.firewall import Only
from lusca_comm.lab import Channel, Process, Topology, wait_for

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")
DENIED = "TLSV1_ALERT_ACCESS_DENIED"
V4 = socket.AF_INET


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    yield from ended(hosts)


@pytest.fixture
def origin(net: Topology) -> Process[None]:
    addresses = [(net.origin_ip[family], port) for family in FAMILIES for port in (443, 8443)]
    return start(net.origin, _tls.serve, *addresses)


def filtering(
    net: Topology, folder: Path, policy: str, *options: str, **plan: Any
) -> contextlib.AbstractContextManager[Example]:
    file = folder / "policy"
    file.write_text(policy)
    wall: dict[str, Any] = {"ports": ((1, 65535),), "rest": "refuse", **plan}
    return running(net, folder, "sni_filter.py", str(file), *options, **wall)


def verdicts(example: Example) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in example.text().splitlines()]
    return [line for line in lines if "verdict" in line]


def test_it_shows_itself() -> None:
    text = shows("sni_filter.py")
    assert "FAILED" not in text
    assert "dead: nothing gets out" in text


@v4_and_v6
def test_a_hello_in_pieces(
    net: Topology, origin: Process[None], tmp_path: Path, family: int
) -> None:
    """One of several KB, its records in segments of their own: the origin gets every byte."""
    there = (net.origin_ip[family], 443)
    padding = (21, bytes(6000))
    message = hellos.message([padding, hellos.server_name(b"a.test")])
    pieces = [hellos.records(message, 500)[at : at + 700] for at in range(0, 8000, 700)]

    def send() -> bytes:
        with socket.create_connection(there, 10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                sock.sendall(piece)
            return sock.recv(7)

    with filtering(net, tmp_path, f"allow a.test to {there[0]}") as example:
        answer = net.client.run(send)
        (told,) = verdicts(example)
    assert answer[:1] == b"\x15"  # an alert of the origin's: it has no such cipher
    assert origin.recv()[1] in ("a.test", None)
    assert (told["verdict"], told["name"], told["to"]) == ("allow", "a.test", told["original"])


@v4_and_v6
def test_each_kind_of_beginning(
    net: Topology, origin: Process[None], tmp_path: Path, family: int
) -> None:
    """Ends, resets, and time, too, end in a verdict; and the filter goes on."""
    address = net.origin_ip[family]

    def ask(first: bytes, end: bool) -> str:
        with socket.create_connection((address, 443), 10) as sock:
            sock.sendall(first)
            if end:
                sock.shutdown(socket.SHUT_WR)
            try:
                return sock.recv(100).hex()
            except ConnectionResetError:
                return "reset"

    hello = hellos.hello(hellos.server_name(b"a.test"))
    ech = hellos.hello(hellos.server_name(b"a.test"), (0xFE0D, bytes(9)))
    alert = sni_filter.ACCESS_DENIED.hex()
    policy = "deny ech\nallow a.test to 2001:db8:ffff::/48"
    with filtering(net, tmp_path, policy, "--patience", "0.3") as example:
        for first, end, heard, saw, why in (
            (hello, False, alert, "name", ""),
            (ech, False, alert, "name", ""),
            (hellos.hello(), False, alert, "no SNI", ""),
            (b"GET / HTTP/1.1\r\n", False, "reset", "not TLS", ""),
            (b"", False, "reset", "not TLS", "says nothing"),
            (b"", True, "reset", "not TLS", "says nothing"),
            (hello[:-1], False, "reset", "not parsed", "incomplete"),
            (hello[:-1], True, "reset", "not parsed", "incomplete"),
            (hellos.records(b"\2\0\0\1\0"), False, "reset", "not parsed", "message 2"),
            (hellos.hello(hellos.server_name(b"\xff")), False, "reset", "not parsed", "ASCII"),
        ):
            assert net.client.run(ask, first, end) == heard
            told = verdicts(example)[-1]
            assert (told["verdict"], told["saw"]) == ("deny", saw), told
            assert why in told["why"]
        assert verdicts(example)[1]["rule"] == "policy:1: deny ech"
        net.client.run(lambda: socket.create_connection((address, 443)).close())
        assert len(verdicts(example)) >= 10
    assert origin.alive


@v4_and_v6
@pytest.mark.parametrize("mode", ["tproxy", "redirect"])
def test_ports_and_names(
    net: Topology, origin: Process[None], tmp_path: Path, family: int, mode: str
) -> None:
    """In the router's name, and without a privilege where REDIRECT brings it all."""
    address = net.origin_ip[family]
    policy = f"allow .a.test to {address} port 443"
    options = ["--redirect"] if mode == "redirect" else []

    def say(port: int, name: str) -> Any:
        return net.client.run(_tls.say, (address, port), name)

    with filtering(net, tmp_path, policy, *options, mode=mode) as example:
        assert say(443, "x.a.test") == net.router_origin_ip[family]
        assert origin.recv() == (net.router_origin_ip[family], "x.a.test")
        assert say(8443, "x.a.test") == DENIED
        assert say(443, "x.b.test") == DENIED
        assert [told["verdict"] for told in verdicts(example)] == ["allow", "deny", "deny"]
        near = (net.router_client_ip[family], 3129)
        assert net.client.run(_tls.say, near, "x.a.test") == "Connection reset by peer"
        example.says('"event": "refused"')


def test_a_control_group_of_the_same_machine(
    net: Topology, origin: Process[None], tmp_path: Path
) -> None:
    """Whoever is in it, or below, is filtered, and nobody else: the filter for one."""
    if os.geteuid():
        pytest.skip("a cgroup is made by root only")
    there, router = (net.origin_ip[V4], 443), net.router
    mounted, group = tmp_path / "cgroup", f"lusca-comm-test-{os.getpid()}"
    mounted.mkdir()
    router.check_output(["mount", "-t", "cgroup2", "none", str(mounted)])
    inner = mounted / group / "inner"
    router.run(inner.mkdir, parents=True)

    def say(path: Path, name: str) -> str:
        (path / "cgroup.procs").write_text("0")
        return _tls.say(there, name)

    plan: dict[str, Any] = {"mode": "redirect", "own": True, "only": Only(cgroups=(group,))}
    try:
        policy = f"allow .a.test to {there[0]}"
        with filtering(net, tmp_path, policy, "--redirect", forwarded=False, **plan) as example:
            assert router.run(say, inner, "x.a.test") == net.router_origin_ip[V4]
            assert router.run(say, inner, "b.test") == DENIED
            assert len(verdicts(example)) == 2
            assert router.run(say, mounted, "b.test") == net.router_origin_ip[V4]
            assert len(verdicts(example)) == 2
    finally:
        for directory in (inner, inner.parent):
            wait_for(lambda: router.run(removed, directory), what="an empty cgroup")  # noqa: B023
        router.check_output(["umount", str(mounted)])


def test_an_address_that_is_not_there(net: Topology, tmp_path: Path) -> None:
    """The client of an allowed name hears of it, and the filter goes on."""
    with filtering(net, tmp_path, "allow a.test to 198.51.100.0/24") as example:
        for port in (81, 82):
            answer = net.client.run(_tls.say, (net.origin_ip[V4], port), "a.test")
            assert answer == "Connection reset by peer"
        wait_for(lambda: example.text().count("unreachable") == 2)
        assert "Connection refused" in example.text()


@v4_and_v6
def test_where_a_name_leads_is_judged_as_where_a_client_goes(
    net: Topology, origin: Process[None], tmp_path: Path, family: int
) -> None:
    """Whoever has an allowed name may point it at what the policy keeps from its clients, or at
    the router, which can be reached from itself as from nowhere else."""
    there, own = net.origin_ip[family], net.router_origin_ip[family]
    near = (_sni_lab.elsewhere(there), 443)
    (tmp_path / "hosts").write_text(f"{there} inner.a.test outer.a.test\n{own} own.a.test\n")
    net.router.check_output(["mount", "--bind", str(tmp_path / "hosts"), "/etc/hosts"])
    policy = f"allow outer.a.test\ndeny any to {there}\nallow .a.test"
    own_server = start(net.router, _tls.serve, (own, 443))
    try:
        with filtering(net, tmp_path, policy) as example:
            assert net.client.run(_tls.say, near, "outer.a.test") == own
            assert origin.recv() == (own, "outer.a.test")
            for name, why in (("inner", f"leads to {there}"), ("own", f"has {own}, where nobody")):
                assert net.client.run(_tls.say, near, f"{name}.a.test") == DENIED
                told = verdicts(example)[-1]
                assert (told["verdict"], told["to"]) == ("deny", None)
                assert why in told["why"]
            assert told["rule"] == "policy:3: allow .a.test"
    finally:
        net.router.check_output(["umount", "/etc/hosts"])
    assert own_server.alive


def test_a_client_that_is_silent_on_many_connections_leaves_room_for_others(
    net: Topology, origin: Process[None], tmp_path: Path
) -> None:
    v4, v6 = (net.origin_ip[family] for family in FAMILIES)
    policy = f"allow a.test to {v4}\nallow a.test to {v6}"

    def silent(channel: Channel) -> None:
        socks = [socket.create_connection((v4, 443), 10) for _ in range(sni_filter.UNDECIDED)]
        channel.send(len(socks))
        channel.recv()

    with filtering(net, tmp_path, policy, "--patience", "100") as example:
        many = net.client.start(silent)
        many.recv()

        def refused() -> bool:
            answer = net.client.run(_tls.say, (v4, 443), "a.test")
            return answer == "Connection reset by peer"

        wait_for(refused)  # once all of them were accepted
        example.says("256 connections without a verdict")
        assert net.client.run(_tls.say, (v6, 443), "a.test") == net.router_origin_ip[FAMILIES[1]]
        many.send("enough")
        many.result()
        wait_for(lambda: not refused())


def test_connections_that_were_allowed_outlive_the_policy(
    net: Topology, origin: Process[None], tmp_path: Path
) -> None:
    there = (net.origin_ip[V4], 443)
    with filtering(net, tmp_path, f"allow a.test to {there[0]}") as example:
        with net.client.socket() as sock:
            sock.settimeout(10)
            sock.connect(there)
            with _tls.context(server=False).wrap_socket(sock, server_hostname="a.test") as tls:
                (tmp_path / "policy").write_text("deny any")
                example.process.send_signal(signal.SIGHUP)
                example.says("new policy")
                assert net.client.run(_tls.say, there, "a.test") == DENIED
                assert tls.recv(100).decode() == net.router_origin_ip[V4]


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["policy"], 1, "policy:2: 'permit' is none of allow, deny"),
        (["nowhere"], 1, "No such file"),
        ([], 2, "POLICY, or --lab"),
    ],
)
def test_it_does_not_begin_without_a_policy(
    tmp_path: Path, options: list[str], status: int, text: str
) -> None:
    (tmp_path / "policy").write_text("allow a.test\npermit b.test\n")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "sni_filter.py", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr
