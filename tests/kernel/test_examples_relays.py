"""examples/any_port_relay.py and proxy_header_relay.py in a router."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _any_port_lab
import _proxy_header_lab
import pytest
from firewall_peers import ended, shared_hosts, start
from kernel.examples import EXAMPLES, running, shows
from kernel.proxying import FAMILIES, fetch

from lusca_comm.lab import Channel, Topology
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


def stay(channel: Channel, address: str, port: int) -> None:
    """A client that is greeted, and waits."""
    with socket.create_connection((address, port), 10) as sock:
        channel.send(sock.recv(100).decode())
        sock.recv(1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_what_it_relays(
    net: Topology, tmp_path: Path, number: signal.Signals
) -> None:
    start(net.origin, _any_port_lab.serve)
    mail = _any_port_lab.MAIL
    with running(net, tmp_path, "any_port_relay.py", ports=(mail,)) as example:
        client = net.client.start(stay, net.origin_ip[socket.AF_INET], mail)
        assert client.recv() == _any_port_lab.GREETINGS[mail]
        example.process.send_signal(number)
        assert example.process.wait(20) == 0
        with pytest.raises(ConnectionResetError):
            client.result()


# Runs an example that is sent SIGTERM by its own "ready", before it does anything else.
READY_THEN_TERM = """
import runpy, signal, sys

class Out:
    def write(self, text):
        if "ready" in text:
            signal.raise_signal(signal.SIGTERM)

    def flush(self):
        pass

sys.stdout = Out()
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "options",
    [
        ["any_port_relay.py"],
        ["proxy_header_relay.py"],
        ["sni_filter.py", "/dev/null"],
        ["dns_interceptor.py"],
        ["udp_relay.py"],
    ],
    ids=lambda options: options[0],
)
def test_one_that_is_ready_can_be_told_to_end(net: Topology, options: list[str]) -> None:
    name, *more = options
    program = net.router.popen(
        [sys.executable, "-c", READY_THEN_TERM, EXAMPLES / name, *more],
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["any_port_relay.py", "--mark", "-1"], "--mark: invalid mark value: '-1'"),
        (["any_port_relay.py", "--mark", "x"], "--mark: invalid mark value: 'x'"),
        (["any_port_relay.py", "--limit", "nan"], "--limit: invalid seconds value: 'nan'"),
        (["sni_filter.py", "--patience", "-1", "x"], "--patience: invalid seconds value: '-1'"),
        (["udp_relay.py", "--mark", "0x100000000"], "--mark: invalid mark value: '0x100000000'"),
        (["udp_relay.py", "--policy", "/no/file"], "/no/file: No such file or directory"),
        (["dns_interceptor.py", "--hosts", "/no/file"], "/no/file: No such file or directory"),
        (["dns_interceptor.py", "--resolver", "a.example"], "invalid address value: 'a.example'"),
    ],
)
def test_what_makes_no_sense(options: list[str], said: str) -> None:
    """One line, and nothing of Python's."""
    name, *rest = options
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *rest],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=20,
    )
    assert done.returncode in (1, 2)
    assert said in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stdout
