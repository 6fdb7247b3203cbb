"""What the tests of other people's proxies share: an origin that answers HTTP and HTTPS with whom
it saw, a client (curl), and rules that go again.

    client 192.0.2.2 ---- 192.0.2.1 router 198.51.100.1 ---- 198.51.100.2 origin
           2001:db8:1::2            (proxy)                  2001:db8:2::2
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import pytest

from lusca_comm.firewall import Plan, apply, remove
from lusca_comm.lab import Channel, Host, Lab, Topology, wait_for

FAMILIES = (socket.AF_INET, socket.AF_INET6)
HTTP, HTTPS = 80, 443
NAME = "origin.test"
ADAPTERS = Path(__file__).parents[2] / "examples/adapters"

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


class Certificates:
    """A certification authority of one's own, and what it says of ``origin.test``."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.key, self.chain = (folder / name for name in ("ca.pem", "key.pem", "own.pem"))
        ca_key = folder / "ca-key.pem"
        self._make("-keyout", ca_key, "-out", self.ca, "-subj", "/CN=the origin's CA")
        names = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}")
        signed = ("-CA", self.ca, "-CAkey", ca_key, "-addext", "basicConstraints=CA:FALSE")
        self._make("-keyout", self.key, "-out", self.chain, *names, *signed)

    @staticmethod
    def _make(*options: Any) -> None:
        kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        subprocess.run(
            ["openssl", "req", *kind, "-days", "2", *options], check=True, capture_output=True
        )

    def serve(self, net: Topology) -> Path:
        """An origin on the ports HTTP and HTTPS of both families for as long as the lab lasts. What
        a client has to trust."""
        addresses = dict(net.origin_ip)
        assert net.origin.start(_origin, addresses, self.chain, self.key).recv() == "ready"
        return self.ca


class _Page(BaseHTTPRequestHandler):
    """Answers with what the origin sees, as JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        seen = {"peer": self.client_address[0], "host": self.headers["Host"], "path": self.path}
        self._answer(json.dumps(seen).encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _V4(ThreadingHTTPServer):
    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks for the host's name, and nobody answers


class _V6(_V4):
    address_family = socket.AF_INET6


def _origin(channel: Channel, address: dict[int, str], chain: Path, key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    for port in (HTTP, HTTPS):
        for kind in (_V4, _V6):
            server = kind((address[kind.address_family], port), _Page)
            if port == HTTPS:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
    channel.send("ready")
    threading.Event().wait()


def curl(net: Topology, family: int, scheme: str = "http", *options: Any, path: str = "/") -> str:
    """The body that the client gets from ``origin.test``. CalledProcessError where it fails."""
    port = HTTPS if scheme == "https" else HTTP
    ip = net.origin_ip[family]
    where = f"{NAME}:{port}:{f'[{ip}]' if family == socket.AF_INET6 else ip}"
    command = ["curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "20", "--resolve", where]
    return net.client.check_output([*command, *options, f"{scheme}://{NAME}{path}"])


@contextlib.contextmanager
def intercepted(host: Host, **plan: Any) -> Iterator[None]:
    """Rules in `host` for as long as it takes."""
    made = Plan(ports=(HTTP, HTTPS), **plan)

    def begin() -> None:
        apply(made)

    host.run(begin)
    try:
        yield
    finally:
        host.run(remove, made)


class Program:
    """A program in a host, and what it says."""

    def __init__(self, host: Host, log: Path, *command: Any, **options: Any) -> None:
        self._log = log
        with log.open("wb") as out:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HOME": str(log.parent)}
            self.process = host.popen(
                [str(word) for word in command],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                **options,
            )

    def text(self) -> str:
        return self._log.read_text()

    def said(self, pattern: str) -> bool:
        """Whether a line so far matches the regular expression."""
        return re.search(pattern, self.text(), re.MULTILINE) is not None

    def says(self, pattern: str) -> None:
        """Waits until one does."""
        wait_for(lambda: self.said(pattern), 60, f"{pattern!r} in {self._log}")


class Place:
    """The three hosts with an origin, and in the router a proxy on each of some ports."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.net, self.folder = lab.three(), folder
        self.origin_ca = Certificates(folder).serve(self.net)
        self.proxies: dict[int, Program] = {}

    def start(self, commands: Mapping[int, Sequence[Any]], **options: Any) -> None:
        """Starts a program for each port, and waits until it listens there."""
        for port, command in commands.items():
            log = self.folder / str(port)
            self.proxies[port] = Program(self.net.router, log, *command, **options)
        for port in commands:
            self.net.router.wait_listening(port, timeout=60)


def installed(name: str, package: str) -> str:
    """The path of a program that a Python package has put beside this interpreter."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"needs {package}: pip install '.[interop]'", allow_module_level=True)
    return str(path)
