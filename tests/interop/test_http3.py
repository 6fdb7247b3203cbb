"""examples/udp_relay.py between an HTTP/3 client and an HTTP/3 server, both aioquic's."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interop.web import NAME, Certificates, Program, v4_and_v6

from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Lab, Topology

if importlib.util.find_spec("aioquic") is None:
    pytest.skip("needs aioquic: pip install '.[interop]'", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples/udp_relay.py"
HTTP3 = Path(__file__).with_name("http3.py")
PORT, RELAY = 443, 3130
V4 = socket.AF_INET


class Place:
    def __init__(self, net: Topology, folder: Path) -> None:
        self.net = net
        made = Certificates(folder)
        self.ca = made.ca
        server = [sys.executable, HTTP3, "serve", made.chain, made.key, PORT]
        Program(net.origin, folder / "server", *server).says("^ready")
        # The router forwards nothing: what arrives has gone through the relay.
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            net.router.sysctl(name, 0)

    def fetch(self, family: int, path: str, size: int = 0, *more: str) -> list[dict[str, Any]]:
        """What a client gets that asks four times at once, by one connection."""
        words = [self.ca, self.net.origin_ip[family], PORT, path, size, *more]
        command = [sys.executable, HTTP3, "fetch", *words]
        found: list[dict[str, Any]] = json.loads(
            self.net.client.check_output([str(word) for word in command], timeout=60)
        )
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab:
        folder = tmp_path_factory.mktemp("http3")
        place = Place(lab.three(), folder)
        control = [sys.executable, HTTP3, "fetch", place.ca, place.net.origin_ip[V4], PORT, "/", 0]
        with pytest.raises(subprocess.TimeoutExpired):
            place.net.client.check_output([str(word) for word in control], timeout=2)
        plan = Plan(
            protocols=("udp",),
            ports=(PORT,),
            port=RELAY,
            spoof=True,
            same_port=True,
            interfaces=(place.net.client_link.b_ifname,),
            origin_interfaces=(place.net.origin_link.a_ifname,),
        )
        place.net.router.run(_apply, plan)
        relay = Program(place.net.router, folder / "relay", sys.executable, EXAMPLE, RELAY)
        relay.says("^ready")
        yield place
        assert "Traceback" not in relay.text()


def _apply(plan: Plan) -> None:
    apply(plan)


@v4_and_v6
def test_the_server_sees_the_client(place: Place, family: int) -> None:
    for page in place.fetch(family, "/who"):
        seen = json.loads(page["body"])
        assert page["status"] == "200"
        assert (seen["host"], seen["path"]) == (NAME, "/who")
        assert seen["peer"][0].removeprefix("::ffff:") == place.net.client_ip[family]


@v4_and_v6
def test_megabytes_down(place: Place, family: int) -> None:
    size = 4 << 20
    digest = hashlib.sha256(bytes(range(256)) * (size // 256)).hexdigest()
    for page in place.fetch(family, f"/big/{size}"):
        assert (page["size"], page["sha256"]) == (size, digest)
        assert page["datagrams"] >= 1200  # QUIC's, as they were


@v4_and_v6
def test_megabytes_up(place: Place, family: int) -> None:
    size = 1 << 20
    for page in place.fetch(family, "/up", size):
        seen = json.loads(page["body"])
        assert (seen["size"], seen["sha256"]) == (size, hashlib.sha256(bytes(size)).hexdigest())


@v4_and_v6
def test_a_client_that_moves_to_another_port(place: Place, family: int) -> None:
    """QUIC goes on (RFC 9000, 9): for the relay it is another flow."""
    *before, after = (json.loads(page["body"]) for page in place.fetch(family, "/who", 0, "moves"))
    hosts = {seen["peer"][0].removeprefix("::ffff:") for seen in (*before, after)}
    assert hosts == {place.net.client_ip[family]}
    assert {seen["peer"][1] for seen in before} != {after["peer"][1]}
