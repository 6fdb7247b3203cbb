"""What Python hands to a data plane: sockets, and the structures that say what is to become of
them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

from . import engines, spoof
from ._shim import ffi
from .address import Address, shim_of
from .constants import COMM_TPROXY_REM
from .errors import CommError
from .reactor.timers import seconds_of
from .sockets import socket_of

__all__ = [
    "check",
    "check_arguments",
    "check_plain",
    "connect_request",
    "fill_pair",
    "lent",
    "milliseconds",
]


def check(
    code: int, what: str = "the data plane", mend: str = " (its process forked, or it was stopped)"
) -> int:
    """`code`, where it is no error."""
    if code < 0:
        more = mend if code in (-errno.ESRCH, -errno.ESHUTDOWN) else ""
        raise CommError(-code, f"{what}: {os.strerror(-code)}{more}")
    return code


def milliseconds(seconds: float | None) -> int:
    """For C; -1: none. More than 49 days are 49 days."""
    return -1 if seconds is None else round(min(seconds * 1000, 0xFFFFFFFE))


def check_arguments(
    on_done: Any,
    prefix: Any,
    limits: tuple[int | None, int | None],
    times: tuple[float | None, ...],
) -> bytes:
    """Raises TypeError, CommError (EINVAL). Returns the prefix as bytes."""
    if not callable(on_done):
        raise TypeError(f"on_done {on_done!r} is not callable")
    for limit in limits:
        if limit is None:
            continue
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"a limit is a number of bytes, not {limit!r}")
        if not 0 <= limit < 1 << 63:
            raise CommError(errno.EINVAL, f"limit {limit} is negative, or has more than 63 bits")
    for seconds in times:
        if seconds is not None and seconds_of(seconds, "idle, total or timeout") < 0:
            raise CommError(errno.EINVAL, "times are not negative")
    first = memoryview(prefix).tobytes()
    if limits[0] is not None and len(first) > limits[0]:
        raise CommError(errno.EINVAL, "the prefix is longer than limit_up")
    return first


def check_plain(sock: socket.socket) -> None:
    """The plane moves the bytes as they are, below whatever a subclass does to them."""
    if not isinstance(sock, socket.socket):
        raise TypeError(f"{sock!r} belongs to another library: a relay takes sockets")
    if type(sock).recv is not socket.socket.recv:
        raise TypeError(f"{sock!r} changes the bytes: a relay takes plain sockets")
    if sock.type != socket.SOCK_STREAM:
        raise CommError(errno.EPROTOTYPE, f"descriptor {sock.fileno()} is no stream")


@contextlib.contextmanager
def lent(*things: Any) -> Iterator[tuple[int, ...]]:
    """Descriptors for a plane: at the end no object here owns them any more; after an error they
    are whose they were, and non-blocking."""
    socks: list[socket.socket] = []
    made: list[socket.socket] = []
    try:
        for thing in things:
            if isinstance(thing, int):
                thing = socket_of(thing)
                made.append(thing)
            check_plain(thing)
            if thing.fileno() < 0:
                raise CommError(errno.EBADF, f"{thing!r} is closed")
            thing.settimeout(0)
            socks.append(thing)
        if len({sock.fileno() for sock in socks}) < len(socks):
            raise CommError(errno.EINVAL, "client and upstream are the same socket")
        yield tuple(sock.fileno() for sock in socks)
    except BaseException:
        for sock in made:
            sock.detach()
        raise
    for sock in socks:
        sock.detach()


def connect_request(
    source: Address | None, to: Address, flags: int, mark: int | None
) -> tuple[Any, Any]:
    """``struct lc_open`` and ``struct lc_addr`` of a connect from `source` (None: the machine's)
    to `to`."""
    there = shim_of(to)
    family = socket.AF_INET6 if there.family == 6 else socket.AF_INET
    request = spoof.request_for(socket.SOCK_STREAM, 0, source, family, flags, 0, mark, None, False)
    if flags & COMM_TPROXY_REM:
        request.engine = engines.spoofer("spoof")
    return request, there


def fill_pair(
    pair: Any,
    prefix: bytes,
    limits: tuple[int | None, int | None],
    times: tuple[float | None, float | None],
    prefix_down: bytes = b"",
) -> Any:
    """Everything but the descriptors. Returns what has to live until the pair was submitted."""
    pair.limit_up = -1 if limits[0] is None else limits[0]
    pair.limit_down = -1 if limits[1] is None else limits[1]
    pair.idle, pair.total = milliseconds(times[0]), milliseconds(times[1])
    pair.prefix_size, pair.prefix_down_size = len(prefix), len(prefix_down)
    if not prefix and not prefix_down:
        return None
    held = [ffi.from_buffer("uint8_t[]", first) for first in (prefix, prefix_down)]
    pair.prefix, pair.prefix_down = held
    return held
