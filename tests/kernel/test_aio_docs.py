"""The proxy of docs/asyncio.md does what the page says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kernel.proxying import FAMILIES, PROXY_PORT, fetch, intercept, serve_origin

from lusca_comm.lab import Topology

DOCS = Path(__file__).parents[2] / "docs" / "asyncio.md"


def talk(family: int, host: str, port: int, words: bytes) -> bytes:
    with socket.create_connection((host, port), 10) as sock:
        sock.sendall(words)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_proxy(three_hosts: Topology, tmp_path: Path, loop: str) -> None:
    net = three_hosts
    program = re.findall(r"```python\n(import asyncio\n.*?)```", DOCS.read_text(), re.S)[0]
    if loop == "uvloop":
        program = program.replace("asyncio.run(", "__import__('uvloop').run(")
    (tmp_path / "proxy.py").write_text(program)
    intercept(net.router, port=PROXY_PORT, ports=(80, 81), spoof=True)
    command = [sys.executable, "-W", "error", str(tmp_path / "proxy.py"), str(PROXY_PORT)]
    proxy = net.router.popen(command, stdout=subprocess.PIPE, text=True)
    try:
        net.router.wait_listening(PROXY_PORT)
        assert proxy.stdout is not None
        for family in FAMILIES:
            origin = net.origin_ip[family]
            serve_origin(net, family)
            answer = net.client.run(fetch, family, origin, 80, b"GET / HTTP/1.0\r\n\r\n")
            assert (answer.source, answer.body[:5]) == (net.client_ip[family], b"GET /")
            line = proxy.stdout.readline()
            assert line.startswith(f"{answer.mine} {(origin, 80)} 18 ")
            assert line.endswith(" eof\n")
            said = net.client.run(talk, family, origin, 80, b"ehlo")
            assert said == b"neither HTTP nor TLS, so what is it?\r\n"
            said = net.client.run(talk, family, origin, 81, b"GET / HTTP/1.0\r\n\r\n")
            assert said.startswith(f"no way to {(origin, 81)}: connecting to".encode())
            assert said.endswith(b": Connection refused\r\n")
            direct = net.router_client_ip[family]
            assert net.client.run(fetch, family, direct, PROXY_PORT).errno
            assert "is a loop" in proxy.stdout.readline()
    finally:
        proxy.kill()
        proxy.wait()
        proxy.stdout.close()
