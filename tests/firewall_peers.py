"""Plain-socket client, server and proxies for the firewall's kernel tests.

Constants by number, from include/uapi/linux: what is tested here is the rules, not the library's
own way of opening sockets.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import NFTSocket

from lusca_comm.lab import Channel, Host, Process

IP_TRANSPARENT = (0, 19)
IPV6_TRANSPARENT = (41, 75)
SO_ORIGINAL_DST = 80
SO_MARK = 36
FAMILIES = (socket.AF_INET, socket.AF_INET6)
PORT = 3129
Address = tuple[str, int]


def wildcard(family: int) -> str:
    return "0.0.0.0" if family == socket.AF_INET else "::"


def transparent(sock: socket.socket) -> None:
    option = IP_TRANSPARENT if sock.family == socket.AF_INET else IPV6_TRANSPARENT
    sock.setsockopt(*option, 1)


def listener(family: int, port: int, host: str | None = None, *, tproxy: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(41, socket.IPV6_V6ONLY, 1)
    if tproxy:
        transparent(sock)
    sock.bind((host or wildcard(family), port))
    sock.listen(64)
    return sock


def serve(channel: Channel, family: int, ports: tuple[int, ...], name: str) -> None:
    """Answer every connection to any of the ports with `name` and the peer's address.

    It never closes first.
    """
    with selectors.DefaultSelector() as waiting:
        for port in ports:
            waiting.register(listener(family, port, tproxy=False), selectors.EVENT_READ)
        channel.send("ready")
        while True:
            for key, _ in waiting.select():
                sock, peer = key.fileobj.accept()
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(10)
                    request = sock.recv(100)
                    sock.sendall(f"{name} {peer[0]} {peer[1]} ".encode() + request)
                    sock.recv(1)


def serve_on(host: Host, family: int, *ports: int, name: str) -> Process[None]:
    process = host.start(serve, family, ports, name)
    assert process.recv() == "ready"
    return process


def fetch(
    address: Address,
    *,
    mark: int = 0,
    patience: float = 10,
    prepare: Callable[[socket.socket], None] = lambda _: None,
) -> tuple[str, str, Address]:
    """Who answered, what address it saw, and the client's own address. "" for nobody."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(patience)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        prepare(sock)
        try:
            sock.connect(address)
            own = sock.getsockname()[:2]
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while data := sock.recv(1000):
                answer += data
        except (TimeoutError, ConnectionResetError):
            return "", "", ("", 0)
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


def intercept(channel: Channel, family: int, mode: str, host: str | None = None) -> None:
    """Answer as the proxy itself; tell the channel the client and where it wanted to go."""
    lsock = listener(family, PORT, host, tproxy=mode == "tproxy")
    lsock.settimeout(None)
    channel.send("ready")
    while True:
        sock, peer = lsock.accept()
        with sock:
            sock.settimeout(10)
            channel.send((peer[:2], original(sock, mode)))
            with contextlib.suppress(OSError):
                sock.sendall(f"proxy {peer[0]} {peer[1]} ".encode() + sock.recv(100))


def intercept_on(host: Host, family: int, mode: str, address: str | None = None) -> Process[None]:
    process = host.start(intercept, family, mode, address)
    assert process.recv() == "ready"
    return process


def relay(
    channel: Channel, family: int, mode: str, same_port: bool, patience: float, mark: int
) -> None:
    """A proxy that goes on in the client's name and closes the origin's side first."""
    lsock = listener(family, PORT, tproxy=True)
    lsock.settimeout(None)
    channel.send("ready")
    while True:
        sock, peer = lsock.accept()
        with sock, socket.socket(family, socket.SOCK_STREAM) as up:
            sock.settimeout(patience)
            there = original(sock, mode)
            channel.send((peer[:2], there))
            up.settimeout(patience)
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
    host: Host, family: int, mode: str, same_port: bool, patience: float = 10, mark: int = 0
) -> Process[None]:
    process = host.start(relay, family, mode, same_port, patience, mark)
    assert process.recv() == "ready"
    return process


def body(answer: Any) -> str:
    """All bytes of a message but its header, which numbers it."""
    start, size = answer.offset, answer["header"]["length"]
    return bytes(answer.data[start + 16 : start + size]).hex()


def snapshot() -> dict[str, list[str]]:
    """Everything in this network namespace that the appliers could change, as netlink lists it."""
    found: dict[str, list[str]] = {}
    with NFTSocket(nfgen_family=0) as nft, IPRoute() as ip:
        for what, kind in (("tables", 1), ("chains", 4), ("rules", 7), ("sets", 10)):
            found[what] = [body(answer) for answer in nft.request_get(nfgen_msg(), kind)]
        for family in FAMILIES:
            found[f"routes {family}"] = [body(route) for route in ip.route("dump", family=family)]
            found[f"ip rules {family}"] = [body(rule) for rule in ip.rule("dump", family=family)]
    for file in Path("/proc/sys/net").glob("ipv[46]/**/*"):
        with contextlib.suppress(OSError):
            if file.is_file() and not re.search("stable_secret|inode|nr$", file.name):
                found[str(file)] = [file.read_text()]
    return found


def have(program: str) -> bool:
    return shutil.which(program) is not None


@contextlib.contextmanager
def nothing_left(host: Host) -> Iterator[None]:
    """What the block does in the host leaves no trace in its network namespace."""
    before = host.run(snapshot)
    yield
    assert host.run(snapshot) == before
