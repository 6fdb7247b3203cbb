"""Plain-socket client, server and proxies for the firewall's kernel tests, both families at once.

Constants by number, from include/uapi/linux: what is tested here is the rules, not the library's
own way of opening sockets.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import NFTSocket

from lusca_comm.firewall import Plan, apply, remove
from lusca_comm.lab import Channel, Host, Lab, LabUnavailable, Process, Topology

IP_TRANSPARENT = (0, 19)
IPV6_TRANSPARENT = (41, 75)
SO_ORIGINAL_DST = 80
SO_MARK = 36
FAMILIES = (socket.AF_INET, socket.AF_INET6)
PORT = 3129
WILDCARD = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "::1")
Address = tuple[str, int]
Fetched = tuple[str, str, Address]

_started: list[Process[None]] = []


def shared_hosts() -> Iterator[Topology]:
    """Client, router and origin for all tests of a module; each ends what it began by
    :func:`in_force` and :func:`ended`."""
    try:
        lab = Lab()
    except LabUnavailable as why:
        if os.environ.get("LUSCA_COMM_LAB") == "require":
            raise
        pytest.skip(str(why))
    with lab:
        yield lab.three()


def ended(net: Topology) -> Iterator[Topology]:
    """Servers and proxies live as long as one test."""
    yield net
    while _started:
        _started.pop().stop()


@contextlib.contextmanager
def in_force(host: Host, plan: Plan) -> Iterator[None]:
    host.run(apply, plan)
    try:
        yield
    finally:
        host.run(remove, plan)


def start(host: Host, fn: Callable[..., None], *args: Any) -> Process[None]:
    process = host.start(fn, *args)
    _started.append(process)
    assert process.recv() == "ready"
    return process


def transparent(sock: socket.socket) -> None:
    option = IP_TRANSPARENT if sock.family == socket.AF_INET else IPV6_TRANSPARENT
    sock.setsockopt(*option, 1)


def listener(address: Address, *, tproxy: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(41, socket.IPV6_V6ONLY, 1)
    if tproxy:
        transparent(sock)
    sock.bind(address)
    sock.listen(64)
    return sock


def accepted(
    channel: Channel, addresses: Sequence[Address], *, tproxy: bool
) -> Iterator[tuple[socket.socket, Address]]:
    """Every connection to one of the addresses, for ever."""
    with selectors.DefaultSelector() as waiting:
        for address in addresses:
            waiting.register(listener(address, tproxy=tproxy), selectors.EVENT_READ)
        channel.send("ready")
        while True:
            for key, _ in waiting.select():
                sock, peer = key.fileobj.accept()
                with sock:
                    sock.settimeout(10)
                    yield sock, peer[:2]


def serve(channel: Channel, ports: tuple[int, ...], name: str) -> None:
    """Answer every connection to any of the ports with `name` and the peer's address.

    It never closes first.
    """
    addresses = [(host, port) for host in WILDCARD for port in ports]
    for sock, peer in accepted(channel, addresses, tproxy=False):
        with contextlib.suppress(OSError):
            request = sock.recv(100)
            sock.sendall(f"{name} {peer[0]} {peer[1]} ".encode() + request)
            sock.recv(1)


def serve_on(host: Host, *ports: int, name: str) -> Process[None]:
    return start(host, serve, ports, name)


def ask(host: Host, *addresses: Address, **options: Any) -> list[Fetched]:
    """What :func:`fetch` gets of each address, all from one process in the host."""
    return host.run(lambda: [fetch(address, **options) for address in addresses])


def names(host: Host, *addresses: Address, **options: Any) -> list[str]:
    """Who answered at each address."""
    return [fetched[0] for fetched in ask(host, *addresses, **options)]


def all_seen(
    host: Host,
    proxy: Process[None],
    *addresses: Address,
    name: str = "proxy",
    asking: Callable[..., list[Fetched]] = ask,
    **options: Any,
) -> list[Fetched]:
    """Assert that the proxy saw each connection, and that `name` answered."""
    found = asking(host, *addresses, **options)
    assert [fetched[0] for fetched in found] == [name] * len(addresses)
    for there, (_, _, own) in zip(addresses, found, strict=True):
        assert proxy.recv() == (own, there)
    return found


def fetch(
    address: Address,
    *,
    mark: int = 0,
    patience: float = 10,
    prepare: Callable[[socket.socket], None] = lambda _: None,
) -> Fetched:
    """Who answered, what address it saw, and the client's own address. "" for nobody."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(patience)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        prepare(sock)
        own, answer = ("", 0), b""
        try:
            sock.connect(address)
            own = sock.getsockname()[:2]
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(1000):
                answer += data
        except (TimeoutError, ConnectionResetError):
            return "", "", own
        if not answer:
            return "", "", own
        name, seen, port, said = answer.decode().split(" ")
        assert said == "hello"
        return name, f"{seen} {port}", own


def original(sock: socket.socket, mode: str) -> Address:
    if mode == "tproxy":
        return sock.getsockname()[:2]
    if sock.family == socket.AF_INET:
        data = sock.getsockopt(0, SO_ORIGINAL_DST, 16)
        return socket.inet_ntop(socket.AF_INET, data[4:8]), struct.unpack_from(">H", data, 2)[0]
    data = sock.getsockopt(41, SO_ORIGINAL_DST, 28)
    return socket.inet_ntop(socket.AF_INET6, data[8:24]), struct.unpack_from(">H", data, 2)[0]


def intercept(channel: Channel, mode: str, hosts: tuple[str, ...]) -> None:
    """Answer as the proxy itself; tell the channel the client and where it wanted to go."""
    addresses = [(host, PORT) for host in hosts]
    for sock, peer in accepted(channel, addresses, tproxy=mode == "tproxy"):
        channel.send((peer, original(sock, mode)))
        with contextlib.suppress(OSError):
            sock.sendall(f"proxy {peer[0]} {peer[1]} ".encode() + sock.recv(100))


def intercept_on(host: Host, mode: str, hosts: tuple[str, ...] = WILDCARD) -> Process[None]:
    return start(host, intercept, mode, hosts)


def relay(channel: Channel, mode: str, same_port: bool, patience: float, mark: int) -> None:
    """A proxy that goes on in the client's name and closes the origin's side first."""
    for sock, peer in accepted(channel, [(host, PORT) for host in WILDCARD], tproxy=True):
        with socket.socket(sock.family, socket.SOCK_STREAM) as up:
            there = original(sock, mode)
            channel.send((peer, there))
            for side in (sock, up):
                side.settimeout(patience)
            up.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            transparent(up)
            up.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            with contextlib.suppress(OSError):  # the client sees the end, and no answer
                up.bind((peer[0], peer[1] if same_port else 0))
                up.connect(there)
                up.sendall(sock.recv(100))
                answer = up.recv(1000)
                up.close()
                sock.sendall(answer)


def relay_on(
    host: Host, mode: str, same_port: bool, patience: float = 10, mark: int = 0
) -> Process[None]:
    return start(host, relay, mode, same_port, patience, mark)


def body(answer: Any) -> str:
    """All bytes of a message but its header, which numbers it."""
    start, size = answer.offset, answer["header"]["length"]
    return bytes(answer.data[start + 16 : start + size]).hex()


def snapshot(sysctls: bool = False) -> dict[str, list[str]]:
    """Everything in this network namespace that the appliers could change, as netlink lists it;
    and the sysctls, which are a thousand files."""
    found: dict[str, list[str]] = {}
    with NFTSocket(nfgen_family=0) as nft, IPRoute() as ip:
        for what, kind in (("tables", 1), ("chains", 4), ("rules", 7), ("sets", 10)):
            found[what] = [body(answer) for answer in nft.request_get(nfgen_msg(), kind)]
        for family in FAMILIES:
            found[f"routes {family}"] = [body(route) for route in ip.route("dump", family=family)]
            found[f"ip rules {family}"] = [body(rule) for rule in ip.rule("dump", family=family)]
    for file in Path("/proc/sys/net").glob("ipv[46]/**/*") if sysctls else ():
        with contextlib.suppress(OSError):
            if file.is_file() and not re.search("stable_secret|inode|nr$", file.name):
                found[str(file)] = [file.read_text()]
    return found


@contextlib.contextmanager
def nothing_left(host: Host, sysctls: bool = False) -> Iterator[None]:
    """What the block does in the host leaves no trace in its network namespace."""
    before = host.run(snapshot, sysctls)
    yield
    assert host.run(snapshot, sysctls) == before
