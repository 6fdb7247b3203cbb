"""What the interception tests share: an origin that says whom it saw, a client, and a relay in the
router that says what it saw.

    client 192.0.2.2 ---- 192.0.2.1 router 198.51.100.1 ---- 198.51.100.2 origin
           2001:db8:1::2            (proxy)                  2001:db8:2::2
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import socket
from typing import Any

import pytest

import lusca_comm as lc
from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Channel, Host, Process, Topology

PROXY_PORT = 3129
FAMILIES = (socket.AF_INET, socket.AF_INET6)
WILDCARD = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


@dataclasses.dataclass
class Seen:
    """What the proxy saw of one connection."""

    peer: Any = None
    me: Any = None
    address: Any = None
    engine: str = ""
    translated: bool | None = None
    refused: str = ""  # the type of what original_destination raised
    spoof: Any = None
    connected: int | None = None
    errno: int = 0


def intercept(host: Host, **plan: Any) -> None:
    """Rules in `host` from now on; its namespace takes them along when it goes."""

    def run() -> None:
        apply(Plan(**plan))

    host.run(run)


def load_nft(host: Host, text: str) -> None:
    """Loads rules that have nothing to do with ours, as nft(8) reads them. Debian keeps the program
    where an ordinary user's PATH does not lead."""
    program = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip("needs the program nft: apt install nftables")
    host.check_output([program, text])


# -- origin ------------------------------------------------------------------------------------


def origin_server(channel: Channel, family: int, port: int, backlog: int = 1000) -> None:
    """Answers every connection with the peer it saw and the bytes it got until the client's end."""
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((WILDCARD[family], port))
        listener.listen(backlog)
        channel.send("ready")
        while True:
            conn, peer = listener.accept()
            with conn, contextlib.suppress(ConnectionError):
                got = b""
                while chunk := conn.recv(65536):
                    got += chunk
                conn.sendall(f"{peer[0]} {peer[1]} ".encode() + got)


def serve_origin(net: Topology, family: int, port: int = 80) -> Process[None]:
    process = net.origin.start(origin_server, family, port)
    assert process.recv() == "ready"
    return process


# -- client ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Answer:
    """What the client got: the origin's view of it, or an errno."""

    source: str = ""  # the peer's host that the origin saw
    port: int = 0
    body: bytes = b""
    mine: Any = None  # the client's own address
    errno: int = 0


def fetch(
    family: int,
    host: str,
    port: int = 80,
    body: bytes = b"hello",
    source_port: int = 0,
    timeout: float = 10.0,
) -> Answer:
    """One exchange with the origin server."""
    answer = Answer()
    try:
        with socket.socket(family) as sock:
            sock.settimeout(timeout)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if source_port:
                sock.bind((WILDCARD[family], source_port))
            sock.connect((host, port))
            answer.mine = sock.getsockname()[:2]
            sock.sendall(body)
            with contextlib.suppress(OSError):  # ENOTCONN after a reset, which recv then tells
                sock.shutdown(socket.SHUT_WR)
            got = b""
            while chunk := sock.recv(65536):
                got += chunk
    except OSError as why:
        answer.errno = why.errno or errno.ETIMEDOUT
        return answer
    seen, port_text, answer.body = got.split(b" ", 2)
    answer.source, answer.port = seen.decode(), int(port_text)
    return answer


# -- the proxy ---------------------------------------------------------------------------------


class RelayProxy:
    """Accepts, asks, goes there, relays; and tells the test all of it."""

    def __init__(
        self,
        channel: Channel,
        spoof: bool = False,
        transparent_port: bool = False,
        engine: str | None = None,
        mark: int | None = None,
    ) -> None:
        self.channel = channel
        self.spoof = spoof
        self.flags = lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR
        if spoof:
            self.flags |= lc.COMM_TPROXY_REM
        if transparent_port:
            self.flags |= lc.COMM_TRANSPARENT_PORT
        self.engine = engine
        self.mark = mark

    def listen(self, address: Any, flags: int, **options: Any) -> socket.socket:
        listener = lc.comm_open(
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            address,
            flags=lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR | flags,
            **options,
        )
        lc.comm_listen(listener)
        lc.comm_set_select(listener, lc.COMM_SELECT_READ, self.on_readable)
        return listener

    def on_readable(self, listener: socket.socket, _data: Any) -> None:
        lc.comm_set_select(listener, lc.COMM_SELECT_READ, self.on_readable)
        while (got := lc.comm_accept(listener)) is not None:
            seen = Seen(peer=got.peer, me=got.me)
            try:
                there = lc.original_destination(got.sock, engine=self.engine)
                seen.address, seen.engine, seen.translated = there
                upstream = lc.comm_open(
                    socket.SOCK_STREAM,
                    0,
                    got.peer if self.spoof else None,
                    family=socket.AF_INET6 if ":" in there.address[0] else socket.AF_INET,
                    flags=self.flags,
                    mark=self.mark,
                )
            except lc.CommError as why:
                seen.refused, seen.errno = type(why).__name__, why.errno or 0
                self.channel.send(seen)
                lc.comm_reset_close(got.sock)
                continue
            data = (got.sock, seen)
            lc.comm_connect(upstream, there.address, self.on_connected, data, timeout=5)

    def on_connected(self, upstream: socket.socket, status: int, data: Any) -> None:
        client, seen = data
        seen.connected = status
        seen.errno = lc.comm_error(upstream)
        seen.spoof = lc.comm_spoof(upstream)
        self.channel.send(seen)
        if status == lc.COMM_OK:
            lc.relay(client, upstream, lambda result: None, idle=30)
        else:
            lc.comm_reset_close(upstream)
            lc.comm_reset_close(client)


def relay_proxy(
    channel: Channel,
    addresses: list[Any],
    flags: int = lc.COMM_TPROXY_LCL,
    dualstack: bool = False,
    **options: Any,
) -> None:
    """A process function: relays what arrives on `addresses` until it is killed."""
    proxy = RelayProxy(channel, **options)
    lc.default_reactor.exception_hook = lambda why, where: channel.send(f"{where}: {why!r}")
    for address in addresses:
        proxy.listen(address, flags, dualstack=dualstack)
    channel.send("ready")
    lc.run()


def serve_proxy(host: Host, addresses: list[Any], **options: Any) -> Process[None]:
    process = host.start(relay_proxy, addresses, **options)
    assert process.recv() == "ready"
    return process


def saw_nothing(proxy: Process[None], net: Topology, family: int) -> None:
    """Asserts that the proxy has told of no connection so far: the first that it tells of is the
    one made here, straight to its port."""
    knock = net.client.run(fetch, family, net.router_client_ip[family], PROXY_PORT)
    assert knock.errno in (errno.ECONNRESET, errno.ECONNREFUSED), knock
    if knock.errno == errno.ECONNRESET:
        seen = proxy.recv()
        assert (seen.me, seen.refused) == (
            (net.router_client_ip[family], PROXY_PORT),
            "NotIntercepted",
        ), seen
