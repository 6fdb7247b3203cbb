"""The three programs of the demo: what runs in the client, in the router and in the origin."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import pickle
import socket
import socketserver
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

import lusca_comm as lc
from lusca_comm.address import Address, spell
from lusca_comm.lab import Channel

from .checks import Proxied, Response, page

__all__ = ["LISTEN", "Log", "fetch", "intercept", "serve"]

LISTEN = lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL
"""One listener for both: the flag that TPROXY needs does REDIRECT no harm."""

SECONDS = 5.0
"""Until the client and the origin give up; half of it until the proxy does."""


class Log:
    """What a program in another host notes down, for the demo to read.

    A program notes before it acts, so once the client has its answer, all notes of that request
    are there to be read without waiting.
    """

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._read.setblocking(False)

    def note(self, thing: object) -> None:
        self._write.send(pickle.dumps(thing))

    def take(self) -> list[Any]:
        """All notes since the last time."""
        notes = []
        with contextlib.suppress(BlockingIOError):
            while True:
                notes.append(pickle.loads(self._read.recv(1 << 16)))
        return notes

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._read.close()
        self._write.close()


def fetch(address: Address, body: bytes) -> Response | str:
    """The client: an ordinary HTTP request to the origin. What it got, or why it got nothing."""
    connection = http.client.HTTPConnection(address[0], address[1], timeout=SECONDS)
    with contextlib.closing(connection):
        try:
            connection.connect()
            source = connection.sock.getsockname()[:2]
            connection.request("POST", "/", body)
            response = connection.getresponse()
            return Response(source, response.status, response.read())
        except (OSError, http.client.HTTPException) as why:
            return f"the client: {str(why) or type(why).__name__}"


def serve(channel: Channel, addresses: Iterable[Address], log: Log) -> None:
    """The origin: an HTTP server that notes down whom it saw, and answers with that."""

    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = SECONDS

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            peer = self.client_address[:2]
            log.note(peer)
            answer = page(peer, body)
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing: the demo says what there is to say."""

    servers = [_server(":" in address[0])(address[:2], Page) for address in addresses]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    channel.send("ready")
    for thread in threads:
        thread.join()


def _server(ipv6: bool) -> type[socketserver.ThreadingTCPServer]:
    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6 if ipv6 else socket.AF_INET
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None:
            """A connection that broke is the client's to tell."""

    return Server


def intercept(channel: Channel, ports: Mapping[int, bool], log: Log) -> None:
    """The proxy: takes connections that were meant for somebody else, and goes there.

    ``ports``: where it listens, and whether it goes on from there in the client's name.
    """
    loop = lc.Reactor()

    def on_readable(listener: socket.socket, spoof: bool) -> None:
        loop.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable, spoof)
        while (got := loop.comm_accept(listener)) is not None:
            try:
                go_there(got, spoof)
            except lc.CommError as why:
                give_up(got, str(why.strerror))

    def go_there(got: lc.Accepted, spoof: bool) -> None:
        there = lc.original_destination(got.sock)
        upstream = loop.comm_open(
            address=got.peer if spoof else None,
            family=socket.AF_INET6 if ":" in there.address[0] else socket.AF_INET,
            flags=lc.COMM_REUSEADDR | (lc.COMM_TPROXY_REM if spoof else 0),
        )
        loop.comm_connect(upstream, there.address, on_connected, (got, there), timeout=SECONDS / 2)

    def on_connected(
        upstream: socket.socket, status: int, data: tuple[lc.Accepted, lc.Interception]
    ) -> None:
        got, there = data
        peer = got.peer
        assert peer is not None
        source = loop.comm_spoof(upstream).address
        log.note(Proxied(peer, there.address, there.engine, there.translated, source))
        if status == lc.COMM_OK:
            loop.relay(got.sock, upstream, lambda _: None, idle=SECONDS)
            return
        code = loop.comm_error(upstream) or errno.ETIMEDOUT
        loop.comm_reset_close(upstream)
        give_up(got, f"to {spell(there.address)}: {os.strerror(code)}")

    def give_up(got: lc.Accepted, why: str) -> None:
        log.note(f"the proxy: {why}")
        loop.comm_reset_close(got.sock)

    for port, spoof in ports.items():
        listener = loop.comm_open(address=("::", port), dualstack=True, flags=LISTEN)
        loop.comm_listen(listener)
        loop.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable, spoof)
    channel.send("ready")
    loop.run()
