"""What the tests of tproxy2 share: programs in the router, on the emulated kernel, with the engine
chosen."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from emulators.tproxy2 import nat, supervise

import lusca_comm as lc
from lusca_comm.lab import Channel, Host, Process, Topology

V4 = socket.AF_INET
FOREIGN = "203.0.113.7"  # nobody's
OPEN = lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR

needs_nft = pytest.mark.skipif(
    nat.program() is None, reason="the emulator needs the program nft: apt install nftables"
)


def foreign_behind_the_client(net: Topology) -> Topology:
    """Where the client's own address is: a listener and a datagram socket take their local address
    from the route to the foreign one."""
    net.router.route(f"{FOREIGN}/32", via=net.client_ip[V4])
    return net


def chosen(fn: Callable[..., Any], channel: Channel, *args: Any, **kwargs: Any) -> Any:
    """``fn(channel, ...)`` where tproxy2 is the engine that LUSCA_COMM_ENGINE names."""
    os.environ["LUSCA_COMM_ENGINE"] = "tproxy2"
    return fn(channel, *args, **kwargs)


def under(host: Host, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Process[Any]:
    """``fn(channel, ...)`` on the emulated kernel, with the engine chosen."""
    return supervise(host, partial(chosen, fn), *args, **kwargs)


def connected(sock: Any, address: Any) -> int:
    """comm_connect to its end: the status."""
    ends: list[int] = []
    lc.comm_connect(sock, address, lambda _sock, status, _data: ends.append(status), timeout=5)
    while not ends:
        lc.comm_select(100)
    return ends[0]


def exchange(sock: Any) -> list[str]:
    """What the origin says about the peer of this connection: its host and port."""
    sock.settimeout(5)
    sock.sendall(b"x")
    sock.shutdown(socket.SHUT_WR)
    got = b""
    while chunk := sock.recv(100):
        got += chunk
    sock.settimeout(0)
    return got.decode().split(" ")[:2]


def spoofed(source: Any, kind: int = socket.SOCK_STREAM, flags: int = 0, **options: Any) -> Any:
    return lc.comm_open(kind, 0, source, flags=OPEN | lc.COMM_TPROXY_REM | flags, **options)
