"""examples/http_proxy as the tests run it: in the router of a lab, before an origin that says what
it saw, or misbehaves as its path says.

    client 192.0.2.2 ---- 192.0.2.1 router 198.51.100.1 ---- 198.51.100.2 origin
           2001:db8:1::2            3129: intercepted        2001:db8:2::2    port 80
                                    3128: forward
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firewall_peers import shared_hosts
from kernel.proxying import FAMILIES, WILDCARD

import lusca_comm
from lusca_comm.lab import Channel, Host, Process, Topology, wait_for

PROXY = Path(__file__).parents[2] / "examples" / "http_proxy"
INTERCEPT, FORWARD = 3129, 3128
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lusca_comm.__file__).parents[1])}
V4, V6 = FAMILIES
NAME, FORGED = "www.example.org", "forged.example.org"
DEAD = "198.51.100.99"  # on the origin's link, and nobody's
HOSTS = {
    NAME: ("198.51.100.2", "2001:db8:2::2"),
    "deaf.example.org": (DEAD, "198.51.100.2"),
    FORGED: ("203.0.113.9",),
    "loopback.example.org": ("127.0.0.1",),
}
TIMEOUT = 20.0


opened_lab = contextlib.contextmanager(shared_hosts)


def know(host: Host, folder: Path, names: Mapping[str, Sequence[str]] = HOSTS) -> None:
    """`host` resolves `names` so, and no others."""
    path = folder / f"hosts.{host.name}"
    lines = [f"{address} {name}" for name, found in names.items() for address in found]
    path.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")

    def mount() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for source, target in ((path, "/etc/hosts"), (folder / "resolv.conf", "/etc/resolv.conf")):
            flags = ctypes.c_ulong(4096)  # MS_BIND, linux/mount.h
            if libc.mount(bytes(source), os.fsencode(os.path.realpath(target)), None, flags, None):
                raise OSError(ctypes.get_errno(), "mount", target)

    host.run(mount)


# -- the proxy -----------------------------------------------------------------------------------


class Service:
    """The proxy as a process of a host. What it logs are files."""

    def __init__(self, host: Host, folder: Path, *options: str, listen: bool = True) -> None:
        self.said = folder / "said"
        self.access = folder / "access.json"
        where = []
        if listen:
            for name, port in (("--intercept", INTERCEPT), ("--forward", FORWARD)):
                where += [name, f"0.0.0.0:{port}", name, f"[::]:{port}"]
        logs = ["--access-log", str(self.access), "--access-log-format", "json"]
        with self.said.open("wb") as said:
            self.process = host.popen(
                [sys.executable, PROXY, *where, *logs, *options],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=ENVIRONMENT,
            )
        self.says("ready on")

    def says(self, text: str) -> None:
        def there() -> bool:
            assert self.process.poll() is None or text in self.said.read_text(), (
                self.said.read_text()
            )
            return text in self.said.read_text()

        wait_for(there, TIMEOUT, f"{text!r} of the proxy")

    def lines(self) -> list[dict[str, Any]]:
        """The access log, so far as its lines are whole."""
        whole, _, _ = self.access.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def logged(self, count: int = 1) -> list[dict[str, Any]]:
        """The access log, once it has so many lines."""
        wait_for(lambda: len(self.lines()) >= count, TIMEOUT, f"{count} lines in the access log")
        assert len(self.lines()) == count, self.lines()
        return self.lines()

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def end(self) -> None:
        """In order, with nothing said that nobody expects."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(TIMEOUT) == 0, self.said.read_text()
        assert "Traceback" not in self.said.read_text(), self.said.read_text()


# -- the client ----------------------------------------------------------------------------------


def talk(address: Any, *parts: bytes, shut: bool = False, source: str = "") -> bytes:
    """Runs on the client: says it all, from `source`, and gives what comes until the end, or until
    the proxy resets, which it tells as b"RESET" behind it."""
    got = b""
    with socket.create_connection(address, TIMEOUT, (source, 0) if source else None) as sock:
        try:
            for part in parts:
                sock.sendall(part)
            if shut:
                sock.shutdown(socket.SHUT_WR)
            while chunk := sock.recv(65536):
                got += chunk
        except (ConnectionResetError, BrokenPipeError):
            got += b"RESET"
    return got


def get(target: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request that asks for the end of the connection, too."""
    lines = [f"{method} {target} HTTP/{version}", *fields, "Connection: close", "\r\n"]
    return "\r\n".join(lines).encode()


def seen(answer: bytes) -> dict[str, Any]:
    """What the origin saw, of an answer from its path /seen."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    return dict(json.loads(body))


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split(b" ", 2)[1])


# -- the origin ----------------------------------------------------------------------------------


def serve(net: Topology) -> list[Process[None]]:
    processes = [net.origin.start(origin, family, 80) for family in FAMILIES]
    for process in processes:
        assert process.recv() == "ready"
    return processes


def origin(channel: Channel, family: int, port: int) -> None:
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == V6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((WILDCARD[family], port))
        listener.listen(100)
        channel.send("ready")
        while True:
            sock, peer = listener.accept()
            threading.Thread(target=connection, args=(sock, peer), daemon=True).start()


def connection(sock: socket.socket, peer: Any) -> None:
    sock.settimeout(TIMEOUT)
    with contextlib.suppress(OSError, ValueError), sock, sock.makefile("rb") as lines:
        number = 0
        while Exchange(sock, lines, peer, number).run():
            number += 1


class Exchange:
    """One request, answered as its path says."""

    def __init__(self, sock: socket.socket, lines: Any, peer: Any, number: int) -> None:
        self.sock, self.lines, self.peer, self.number = sock, lines, peer, number
        self.fields: list[tuple[str, str]] = []
        self.trailers: list[tuple[str, str]] = []

    def run(self) -> bool:
        start = self.lines.readline().decode("latin-1").split()
        if not start:
            return False
        if start[0] == "PRI":
            self.sock.sendall(b"h2 seen")
            return False
        if len(start) != 3:
            self.sock.sendall(b"seen: " + " ".join(start).encode())
            return False
        self.method, self.target, self.version = start
        self.fields = self.read_fields()
        path = self.target.removeprefix("http://").partition("/")[2] or "seen"
        if self.method == "CONNECT":
            path = "connect"
        name, _, argument = path.partition("?")
        answer = getattr(self, f"do_{name.replace('-', '_')}", self.do_seen)
        return answer(argument) is not False and self.field("connection") != "close"

    def read_fields(self) -> list[tuple[str, str]]:
        found = []
        while line := self.lines.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            found.append((name.lower(), value.strip()))
        return found

    def field(self, name: str) -> str:
        return next((value for key, value in self.fields if key == name), "")

    def body(self) -> bytes:
        if self.field("transfer-encoding") == "chunked":
            whole = b""
            while size := int(self.lines.readline(), 16):
                whole += self.lines.read(size)
                self.lines.readline()
            self.trailers = self.read_fields()
            return whole
        return bytes(self.lines.read(int(self.field("content-length") or 0)))

    def send(self, status: str, body: bytes, *fields: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "\r\n"]
        self.sock.sendall("\r\n".join(lines).encode() + (b"" if self.method == "HEAD" else body))

    def do_seen(self, argument: str) -> None:
        if self.field("expect"):
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.body()
        told = {
            "peer": self.peer[0],
            "port": self.peer[1],
            "number": self.number,
            "start": [self.method, self.target, self.version],
            "fields": self.fields,
            "body": hashlib.sha256(body).hexdigest(),
            "size": len(body),
            "trailers": self.trailers,
        }
        self.send("200 OK", json.dumps(told).encode(), "Content-Type: application/json")

    def do_pattern(self, argument: str) -> None:
        self.send("200 OK", pattern(int(argument)))

    def do_empty(self, argument: str) -> None:
        self.sock.sendall(f"HTTP/1.1 {argument} Nothing\r\nETag: x\r\n\r\n".encode())

    def do_chunked(self, argument: str) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n"
        self.sock.sendall(head + b"5;ext=1\r\nhello\r\n")
        self.sock.sendall(b"6\r\n world\r\n0\r\nX-End: yes\r\n\r\n")

    def do_until_close(self, argument: str) -> bool:
        self.sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + pattern(100_000))
        return False

    def do_hints(self, argument: str) -> None:
        self.sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        self.send("200 OK", b"hinted")

    def do_refuses_body(self, argument: str) -> bool:
        """A final response, while the body is still to come."""
        self.send("413 Content Too Large", b"no", "Connection: close")
        return False

    def do_websocket(self, argument: str) -> bool:
        key = self.field("sec-websocket-key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
        )
        if argument:
            self.sock.sendall(argument.encode())
            return False
        while data := self.sock.recv(65536):
            self.sock.sendall(data)
        return False

    def do_connect(self, argument: str) -> bool:
        """As a proxy would, which is where this client thinks it is."""
        self.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nCONNECT seen: " + self.target.encode())
        return False

    # -- misbehaviour

    def do_closes(self, argument: str) -> bool:
        """Between two requests, without a word."""
        self.send("200 OK", b"and closes")
        return False

    def do_closes_at(self, argument: str) -> bool | None:
        """Instead of an answer, unless it is the connection's first request."""
        return self.do_seen("") if self.number == 0 else False

    def do_dies(self, argument: str) -> bool:
        self.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart")
        return False

    def do_dies_chunked(self, argument: str) -> bool:
        self.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\npart")
        return False

    def do_resets(self, argument: str) -> bool:
        if argument:
            self.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart")
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.lines.close()
        return False

    def do_nothing(self, argument: str) -> bool:
        """Closes without an answer."""
        return False

    def do_stalls(self, argument: str) -> bool:
        """Until the proxy has had enough."""
        if argument:
            self.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart")
        self.sock.recv(1)
        return False

    def do_garbage(self, argument: str) -> bool:
        self.sock.sendall(b"\x16\x03\x01 is no HTTP\r\n\r\n")
        return False

    def do_two_lengths(self, argument: str) -> bool:
        self.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")
        return False

    def do_too_much(self, argument: str) -> None:
        """A second response that nobody asked for."""
        smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"
        self.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + smuggled)


def pattern(size: int) -> bytes:
    """Bytes of which no two parts look alike."""
    block = b"".join(n.to_bytes(4, "big") for n in range(16384))
    return (block * (size // len(block) + 1))[:size]
