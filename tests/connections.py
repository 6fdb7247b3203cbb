"""Real connections over the loopback, and the shim asked about one without Python's part."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from lusca_comm._shim import ffi, lib

Ends: TypeAlias = tuple[str, int]
Connection: TypeAlias = tuple[socket.socket, Ends, Ends]
"""The socket that accepted, the client's end, the local end."""

ELSEWHERE: dict[int, Ends] = {4: ("198.51.100.2", 80), 6: ("2001:db8::2", 80)}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def accepted(family: int, host: str | None = None) -> Iterator[Connection]:
    """A connection that a listener on `host` accepted; "::" takes both families."""
    host = LOOPBACK[family] if host is None else host
    with socket.socket(_family(host)) as listener, contextlib.ExitStack() as stack:
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        listener.listen()
        to = (LOOPBACK[family], listener.getsockname()[1])
        client = stack.enter_context(socket.create_connection(to))
        conn, _ = listener.accept()
        stack.enter_context(conn)
        yield conn, client.getsockname()[:2], to


@contextlib.contextmanager
def datagrams(family: int) -> Iterator[Connection]:
    """A connected datagram socket."""
    with contextlib.ExitStack() as stack:
        here, there = (
            stack.enter_context(socket.socket(_family(LOOPBACK[family]), socket.SOCK_DGRAM))
            for _ in range(2)
        )
        here.bind((LOOPBACK[family], 0))
        there.bind((LOOPBACK[family], 0))
        here.connect(there.getsockname())
        yield here, there.getsockname()[:2], here.getsockname()[:2]


PROTOS: dict[int, Callable[[int], contextlib.AbstractContextManager[Connection]]] = {
    socket.IPPROTO_TCP: accepted,
    socket.IPPROTO_UDP: datagrams,
}


def shim_address(ends: Ends, scope: int = 0) -> Any:
    """A ``struct lc_addr``."""
    host, port = ends
    packed = socket.inet_pton(_family(host), host)
    out = ffi.new("struct lc_addr *")
    out.family, out.port, out.scope = 6 if ":" in host else 4, port, scope
    ffi.memmove(out.ip, packed, len(packed))
    return out


def host_and_port(addr: Any) -> Ends:
    raw = bytes(ffi.buffer(addr.ip))
    if addr.family == 6:
        return socket.inet_ntop(socket.AF_INET6, raw), addr.port
    return socket.inet_ntop(socket.AF_INET, raw[:4]), addr.port


def of_datagram(local: Ends, client: Ends, row: int, scope: int = 0) -> tuple[int, Any]:
    """What engine `row` makes of one datagram: 0 or -errno, and the ``struct lc_origin``."""
    origin = ffi.new("struct lc_origin *")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        err = lib.lc_original_of(
            sock.fileno(), row, shim_address(local, scope), shim_address(client, scope), origin
        )
    return err, origin


def in_child(run: Callable[[], None]) -> int:
    """The exit status of a forked child: 0 if `run` raised nothing there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
