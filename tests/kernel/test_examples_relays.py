"""examples/any_port_relay.py and proxy_header_relay.py in a router."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _any_port_lab
import _proxy_header_lab
import pytest
from firewall_peers import ended, shared_hosts, start
from kernel.examples import running, shows
from kernel.proxying import FAMILIES, fetch

from lusca_comm.lab import Topology
from lusca_comm.protocols.proxy_header import Header

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    yield from ended(hosts)


@pytest.mark.parametrize("name", ["any_port_relay.py", "proxy_header_relay.py"])
def test_it_shows_itself(name: str) -> None:
    assert "FAILED" not in shows(name)


@v4_and_v6
def test_by_redirect(net: Topology, tmp_path: Path, family: int) -> None:
    """In the router's name, by a listener that asks for nothing more."""
    start(net.origin, _any_port_lab.serve)
    plan: dict[str, Any] = {"mode": "redirect", "ports": ((1, 65535),)}
    with running(net, tmp_path, "any_port_relay.py", "--redirect", **plan) as example:
        heard = net.client.run(_any_port_lab.ask, net.origin_ip[family], _any_port_lab.MAIL, "")
        assert heard == ["220 mail.example ESMTP\r\n", net.router_origin_ip[family]]
        example.says("25 server-first up 6 down")


@pytest.mark.parametrize("name", ["any_port_relay.py", "proxy_header_relay.py"])
def test_a_server_that_is_not_there(net: Topology, tmp_path: Path, name: str) -> None:
    """Its client hears of it, and the relay goes on."""
    with running(net, tmp_path, name, ports=(81,)) as example:
        for _ in range(2):
            answer = net.client.run(fetch, socket.AF_INET, net.origin_ip[socket.AF_INET], 81)
            assert answer.errno == errno.ECONNRESET
        assert example.text().count("Connection refused") == 2


@v4_and_v6
def test_a_server_for_all(net: Topology, tmp_path: Path, family: int) -> None:
    """The header says where the client was going, although the connection goes elsewhere."""
    origin = start(net.origin, _proxy_header_lab.serve)
    host = net.origin_ip[family]
    to = f"[{host}]:80" if ":" in host else f"{host}:80"
    with running(net, tmp_path, "proxy_header_relay.py", "--to", to, ports=(8080,)) as example:
        me, heard = net.client.run(_proxy_header_lab.ask, (host, 8080))
        peer, header, rest = origin.recv()
        example.says("up 16 down")
    assert heard == f"you are {net.client_ip[family]}"
    assert peer == net.router_origin_ip[family]
    assert header == Header(me, (host, 8080), tlvs=((5, b"1"),))
    assert rest == b"GET / HTTP/1.1\r\n"


def test_a_client_that_ends_at_once(net: Topology, tmp_path: Path) -> None:
    """It has said nothing, and all of that is relayed."""
    start(net.origin, _any_port_lab.serve)
    there = (net.origin_ip[socket.AF_INET], _any_port_lab.OTHER)

    def end() -> bytes:
        with socket.create_connection(there, 10) as sock:
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(100)

    with running(net, tmp_path, "any_port_relay.py", ports=(there[1],)) as example:
        assert net.client.run(end) == net.router_origin_ip[socket.AF_INET].encode()
        example.says("server-first up 0 down 12 eof")
