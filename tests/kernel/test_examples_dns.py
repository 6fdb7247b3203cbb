"""examples/dns_interceptor.py in a router, and what resolvers do to it.

client ---- router (the example) ---- origin (a resolver that misbehaves as it is told)
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns_message as dns
import pytest
from _dns_lab import TABLE, ask, ask_by_tcp, query_for, resolver, told
from firewall_peers import ended, in_force, shared_hosts, start
from kernel.examples import Example, shows
from kernel.proxying import FAMILIES

from lusca_comm.firewall import Exempt, Plan
from lusca_comm.lab import Channel, Process, Topology

PORT = 3153
V4 = socket.AF_INET
PLAN: dict[str, Any] = {"protocols": ("tcp", "udp"), "ports": (53,), "port": PORT}
v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    yield from ended(hosts)


@contextlib.contextmanager
def running(net: Topology, folder: Path, *options: str, **plan: Any) -> Iterator[Example]:
    table = folder / "hosts"
    table.write_text(TABLE)
    example = Example(
        net.router,
        folder,
        "dns_interceptor.py",
        "--port",
        str(PORT),
        "--hosts",
        str(table),
        *options,
    )
    try:
        with in_force(net.router, Plan(**PLAN, **plan)):
            yield example
    finally:
        example.stop()


def test_it_shows_itself() -> None:
    text = shows("dns_interceptor.py")
    assert text.count("\nok ") == 13
    assert "FAILED" not in text


@v4_and_v6
@pytest.mark.parametrize("spoof", [True, False])
def test_whom_the_resolver_sees(
    net: Topology, tmp_path: Path, family: socket.AddressFamily, spoof: bool
) -> None:
    origin = start(net.origin, resolver)
    there, kind = net.origin_ip[family], dns.A if family == V4 else dns.AAAA
    sees = (net.client_ip if spoof else net.router_origin_ip)[family]
    with running(net, tmp_path, *["--spoof"] * spoof, spoof=spoof):
        assert net.client.run(ask, there, "a.test", kind) == (0, False, [sees])
        assert origin.recv() == ("a.test", sees, "udp")
        found = net.client.run(ask_by_tcp, there, ["b.test", "c.test"], kind)
        assert found == {0: (0, False, [sees]), 1: (0, False, [sees])}
        assert {origin.recv() for _ in "bc"} == {("b.test", sees, "tcp"), ("c.test", sees, "tcp")}
    # The control: without the rules the resolver answers for names of the table, too.
    mine = net.client_ip[family]
    assert net.client.run(ask, there, "www.table.test", kind) == (0, False, [mine])
    assert origin.recv() == ("www.table.test", mine, "udp")


def test_another_resolver_and_the_machines_own_queries(net: Topology, tmp_path: Path) -> None:
    """Its own are exempt by the mark; the other is of the other family."""
    origin = start(net.origin, resolver)
    there, six = net.origin_ip[V4], net.origin_ip[socket.AF_INET6]
    sees = net.router_origin_ip[socket.AF_INET6]
    options = ("--mark", "0x539", "--resolver", six, "--spoof")
    with running(net, tmp_path, *options, own=True, exempt=Exempt(mark=0x539)):
        for host in (net.client, net.router):
            assert host.run(ask, there, "a.test", dns.AAAA) == (0, False, [sees])
            assert origin.recv() == ("a.test", sees, "udp")
            found = host.run(ask_by_tcp, there, ["b.test", "ads.test"], dns.AAAA)
            assert found == {0: (0, False, [sees]), 1: (dns.NXDOMAIN, False, [])}
            assert origin.recv() == ("b.test", sees, "tcp")


def test_another_table_while_it_runs(net: Topology, tmp_path: Path) -> None:
    start(net.origin, resolver)
    there, mine = net.origin_ip[V4], net.router_origin_ip[V4]
    with running(net, tmp_path) as example:
        assert net.client.run(ask, there, "www.table.test", dns.A)[2] == ["198.51.100.7"]
        for text, said, found in (
            ("192.0.2.9 www.table.test", "table read", ["192.0.2.9"]),
            ("nonsense", "the table stays as it was", ["192.0.2.9"]),
            ("", "table read", [mine]),
        ):
            (tmp_path / "hosts").write_text(text)
            before = example.text().count(said)
            os.kill(example.process.pid, signal.SIGHUP)
            while example.text().count(said) == before:
                example.says(said)
            assert net.client.run(ask, there, "www.table.test", dns.A)[2] == found


def liar(channel: Channel, family: int) -> None:
    """Answers a query with what somebody would make up, before the right answer; and tells the
    channel number and port of the query."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock, socket.socket(family, 2) as other:
        sock.bind(("", 53))
        other.bind(("", 54))
        channel.send("ready")
        while True:
            message, peer = sock.recvfrom(65535)
            query = dns.parse_query(message)
            assert query is not None
            right = dns.answer(query, 0, [dns.ipaddress.ip_address("192.0.2.1")])
            lie = dns.answer(query, 0, [dns.ipaddress.ip_address("192.0.2.66")])
            other.sendto(lie, peer)  # from another port
            for at in (0, 13):  # another number; another name
                sock.sendto(lie[:at] + bytes([lie[at] ^ 1]) + lie[at + 1 :], peer)
            sock.sendto(lie[:2] + bytes([lie[2] & 0x7F]) + lie[3:], peer)  # no answer at all
            sock.sendto(right, peer)
            channel.send((query.id, peer[1]))


def ask_often(there: str, count: int) -> tuple[list[Any], tuple[int, int]]:
    """The answers to the same query, all from one socket; its number and the socket's port."""
    with socket.socket(V4, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect((there, 53))
        found = []
        for _ in range(count):
            sock.send(query_for("a.test", dns.A, 7))
            found.append(told(sock.recv(65535)))
        return found, (7, sock.getsockname()[1])


def test_what_is_made_up_does_not_get_in(net: Topology, tmp_path: Path) -> None:
    origin = start(net.origin, liar, V4)
    with running(net, tmp_path, "--spoof", spoof=True):
        found, own = net.client.run(ask_often, net.origin_ip[V4], 20)
    assert found == [(0, False, ["192.0.2.1"])] * 20
    seen = [origin.recv() for _ in range(20)]
    assert own not in seen
    assert len({number for number, _ in seen}) > 15  # of 65536, by chance
    assert len({port for _, port in seen}) > 15


def test_a_resolver_that_is_not_there(net: Topology, tmp_path: Path) -> None:
    with running(net, tmp_path):
        assert net.client.run(ask, net.origin_ip[V4], "a.test", dns.A) == (dns.SERVFAIL, False, [])
        with pytest.raises(ConnectionResetError):
            net.client.run(ask_by_tcp, net.origin_ip[V4], ["a.test"], dns.A)
        # What needs no resolver is answered all the same.
        found = net.client.run(ask_by_tcp, net.origin_ip[V4], ["www.table.test"], dns.A)
        assert found == {0: (0, False, ["198.51.100.7"])}


def leaver(channel: Channel, answers: int) -> None:
    """Closes each connection after so many answers, the last of them in half where it is 0.5."""
    with socket.create_server(("", 53)) as listener:
        channel.send("ready")
        while True:
            sock, _ = listener.accept()
            with sock, sock.makefile("rb") as stream:
                message = stream.read(int.from_bytes(stream.read(2), "big"))
                query = dns.parse_query(message)
                assert query is not None
                reply = dns.answer(query, 0, [dns.ipaddress.ip_address("192.0.2.1")])
                whole = len(reply).to_bytes(2, "big") + reply
                sock.sendall(whole if answers else whole[:20])
            channel.send(query.name)


def ask_one_by_one(there: str, names: list[str]) -> list[Any]:
    """By one connection, each when the one before was answered."""
    found: list[Any] = []
    with socket.create_connection((there, 53), 10) as sock, sock.makefile("rb") as stream:
        for name in names:
            query = query_for(name, dns.A, 7)
            sock.sendall(struct.pack(">H", len(query)) + query)
            size = stream.read(2)
            found.append(told(stream.read(int.from_bytes(size, "big"))) if size else None)
    return found


def test_a_resolver_that_closes_is_connected_again(net: Topology, tmp_path: Path) -> None:
    origin: Process[None] = start(net.origin, leaver, 1)
    with running(net, tmp_path):
        names = ["a.test", "www.table.test", "b.test"]
        client = net.client.start(asks_when_told, net.origin_ip[V4], names)
        for name in names:
            assert client.recv()[0] == 0
            if "table" not in name:
                assert origin.recv() == name
            client.send("next")


def asks_when_told(channel: Channel, there: str, names: list[str]) -> None:
    with socket.create_connection((there, 53), 10) as sock, sock.makefile("rb") as stream:
        for name in names:
            query = query_for(name, dns.A, 7)
            sock.sendall(struct.pack(">H", len(query)) + query)
            channel.send(told(stream.read(int.from_bytes(stream.read(2), "big"))))
            channel.recv(20)


def test_a_signal_ends_it_and_the_connections_that_wait(net: Topology, tmp_path: Path) -> None:
    with running(net, tmp_path) as example:
        client = net.client.start(asks_when_told, net.origin_ip[V4], ["www.table.test"] * 2)
        assert client.recv()[0] == 0
        example.stop()


def test_half_an_answer_is_none(net: Topology, tmp_path: Path) -> None:
    origin: Process[None] = start(net.origin, leaver, 0)
    with running(net, tmp_path):
        with pytest.raises(ConnectionResetError):
            net.client.run(ask_one_by_one, net.origin_ip[V4], ["a.test"])
        assert origin.recv() == "a.test"
