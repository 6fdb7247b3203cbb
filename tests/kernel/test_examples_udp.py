"""examples/udp_relay.py in a router.

client ---- router (the example; it forwards nothing) ---- origin (sends everything back)
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _udp_lab import exchange, nobody_answers, server
from firewall_peers import ended, in_force, shared_hosts, start
from kernel.examples import Example, shows
from kernel.proxying import FAMILIES

from lusca_comm.firewall import Plan
from lusca_comm.lab import Topology

PORT = 3130
v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])


@pytest.fixture(name="hosts", scope="module")
def _hosts() -> Iterator[Topology]:
    for net in shared_hosts():
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            net.router.sysctl(name, 0)
        yield net


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    yield from ended(hosts)


@contextlib.contextmanager
def running(net: Topology, folder: Path, *options: str, **plan: Any) -> Iterator[Example]:
    start(net.origin, server)
    example = Example(net.router, folder, "udp_relay.py", str(PORT), *options)
    made = Plan(protocols=("udp",), ports=((1, 65535),), port=PORT, **plan)
    try:
        with in_force(net.router, made):
            yield example
    finally:
        example.stop()


def test_it_shows_itself() -> None:
    text = shows("udp_relay.py")
    assert text.count("ok     ") == 2 * (1 + 3 + 9 + 1)
    assert "FAILED" not in text


@v4_and_v6
def test_under_the_machines_own_name(net: Topology, tmp_path: Path, family: int) -> None:
    with running(net, tmp_path, "--no-spoof"):
        saw, mine = net.client.run(exchange, (net.origin_ip[family], 443), 1200)
    assert saw.split()[0] == net.router_origin_ip[family]
    assert mine.split()[0] == net.client_ip[family]


@v4_and_v6
def test_a_policy(net: Topology, tmp_path: Path, family: int) -> None:
    file = tmp_path / "policy"
    file.write_text("deny any 443\nrelay any 4433\n")
    with running(net, tmp_path, "--policy", str(file), spoof=True):
        host = net.origin_ip[family]
        assert net.client.run(nobody_answers, (host, 443))
        saw, mine = net.client.run(exchange, (host, 4433), 1200)
        assert saw.split()[0] == net.router_origin_ip[family]
        saw, mine = net.client.run(exchange, (host, 51820), 1200)
        assert saw.split()[0] == mine.split()[0] == net.client_ip[family]


def test_an_idle_flow_ends_and_is_told(net: Topology, tmp_path: Path) -> None:
    host = net.origin_ip[socket.AF_INET]
    with running(net, tmp_path, "--idle", "1", spoof=True) as example:
        for _ in range(2):
            saw, mine = net.client.run(exchange, (host, 443), 1200)
            assert saw.split()[0] == mine.split()[0]
        size = 1200 + len(f"{saw} ")
        example.says(f"1200 bytes up, {size} down: idle")
