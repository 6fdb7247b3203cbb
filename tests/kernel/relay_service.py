"""``lusca-comm relay`` as the tests run it: in the router of a lab, with clients that stay."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from kernel.proxying import PROXY_PORT, WILDCARD

import lusca_comm
from lusca_comm.lab import Channel, Host, Process, Topology, wait_for

V4 = socket.AF_INET
ECHO = 81
LISTEN = ("--listen", f"0.0.0.0:{PROXY_PORT}", "--listen", f"[::]:{PROXY_PORT}")
COMMAND = (sys.executable, "-m", "lusca_comm", "relay")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lusca_comm.__file__).parents[1])}
COUNTERS = re.compile(r"relay: (?:worker (\d+) \(process (\d+)\)|(all)): (.*)")


class Service:
    """The command as a process of a host; its log is a file."""

    def __init__(
        self,
        host: Host,
        folder: Path,
        *options: str,
        capabilities: Collection[str] | None = None,
    ) -> None:
        self.log = folder / "log"
        self._read = 0
        with self.log.open("wb") as log:
            self.process = host.popen(
                [*COMMAND, *LISTEN, *options],
                capabilities=capabilities,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
            )

    def ready(self) -> Service:
        self.said("ready on")
        return self

    def said(self, text: str) -> str:
        """The next line with `text` in it; those before it are passed over."""

        def find() -> str:
            lines = self.log.read_text().splitlines(keepends=True)
            for number, line in enumerate(lines[self._read :], self._read + 1):
                if text in line and line.endswith("\n"):
                    self._read = number
                    return line.rstrip()
            return ""

        try:
            return wait_for(find, 20, f"{text!r} in the log")
        except TimeoutError:
            pytest.fail(f"no {text!r} after line {self._read} of:\n{self.log.read_text()}")

    def lines(self, text: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if text in line]

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def counters(self) -> dict[str, dict[str, int]]:
        """By worker ("0", "1", ... and "all"), what SIGUSR1 writes."""
        before = len(self.lines("relay: all: "))
        self.send(signal.SIGUSR1)
        wait_for(lambda: len(self.lines("relay: all: ")) > before, 20, "the counters")
        found = {}
        for line in self.log.read_text().splitlines():
            if match := COUNTERS.fullmatch(line):
                worker, pid, everything, values = match.groups()
                row = {name: int(value) for name, value in map(str.split, values.split(", "))}
                found[worker or everything] = row | {"pid": int(pid or 0)}
        return found

    def count(self, **expected: int) -> None:
        """Waits until all workers together have counted so much: an end is counted after the
        client has seen it."""

        def right() -> bool:
            everything = self.counters()["all"]
            return {name: everything[name] for name in expected} == expected

        wait_for(right, 20, f"{expected} counted")

    def pids(self) -> list[int]:
        found = self.counters()
        return [found[name]["pid"] for name in sorted(found) if name != "all"]

    def end(self) -> int:
        self.send(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """The exit status; its workers are gone by then."""
        status = self.process.wait(30)
        pids = {
            int(pid) for line in self.lines("workers: ") for pid in line.split(": ")[-1].split()
        }
        pids |= {int(line.split()[-2]) for line in self.lines(" is process ")}
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        return status


def echo_server(channel: Channel, family: int, port: int) -> None:
    """Sends everything back at once, to many at a time."""
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((WILDCARD[family], port))
        listener.listen()
        channel.send("ready")

        def serve(conn: socket.socket) -> None:
            with conn, contextlib.suppress(OSError):
                while data := conn.recv(65536):
                    conn.sendall(data)

        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()


def hold_connections(channel: Channel, address: Any) -> None:
    """Says bytes on one of its connections, or ends it (b""), and tells what comes back: bytes, or
    an errno. "open" is a new one, with the next number."""
    socks: list[socket.socket] = []
    while True:
        number, data = channel.recv()
        if number == "open":
            socks.append(socket.create_connection(address, 10))
            number = len(socks) - 1
        sock = socks[number]
        try:
            if data:
                sock.sendall(data)
            else:
                sock.shutdown(socket.SHUT_WR)
            got = b""
            while len(got) < max(len(data), 1) and (chunk := sock.recv(65536)):
                got += chunk
            channel.send(got)
        except OSError as why:
            channel.send(why.errno or errno.ETIMEDOUT)


class Holder:
    """A client with long connections to the echo server."""

    def __init__(self, net: Topology, family: int = V4) -> None:
        echo = net.origin.start(echo_server, family, ECHO)
        assert echo.recv() == "ready"
        self._process: Process[None] = net.client.start(
            hold_connections, (net.origin_ip[family], ECHO)
        )

    def say(self, number: int | str, data: bytes) -> Any:
        self._process.send((number, data))
        return self._process.recv()
