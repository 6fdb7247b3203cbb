"""The sockets of a server, by host and port as asyncio's own servers take them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import Any

from .. import spoof
from ..errors import CommError
from ..sockets import socket_of

__all__ = ["addresses_of", "open_all"]

_PORTS_TRIED = 64  # one in a row that is taken is rare; 64 are an answer


async def addresses_of(
    loop: asyncio.AbstractEventLoop,
    type: socket.SocketKind,
    host: str | Sequence[str] | None,
    port: int,
) -> list[tuple[Any, ...]]:
    """Numeric addresses, each once. Raises CommError (EINVAL) for what is no port: getaddrinfo(3)
    takes it modulo 65536."""
    if not 0 <= port <= 65535:
        raise CommError(errno.EINVAL, f"port {port} is not from 0 to 65535")
    hosts = [host] if host is None or isinstance(host, str) else list(host)
    found: dict[tuple[Any, ...], None] = {}
    for one in hosts:
        infos = await loop.getaddrinfo(one or None, port, type=type, flags=socket.AI_PASSIVE)
        for *_, address in infos:
            has_scope = len(address) == 4 and address[3]
            found[address if has_scope else address[:2]] = None
    return list(found)


def open_all(
    addresses: list[tuple[Any, ...]],
    type: socket.SocketKind,
    flags: int,
    dualstack: bool,
    mark: int | None = None,
) -> list[tuple[socket.socket, Any]]:
    """The sockets, and what they were opened by: all or none; those without a port on the port that
    the first one got. The kernel chose it for the first address alone: where another finds it
    taken, all of them go to another port."""
    tries = _PORTS_TRIED if sum(port == 0 for _, port, *_ in addresses) > 1 else 1
    while True:
        try:
            return _open_once(addresses, type, flags, dualstack, mark)
        except CommError as why:
            tries -= 1
            if why.errno != errno.EADDRINUSE or not tries:
                raise


def _open_once(
    addresses: list[tuple[Any, ...]],
    type: socket.SocketKind,
    flags: int,
    dualstack: bool,
    mark: int | None,
) -> list[tuple[socket.socket, Any]]:
    opened: list[tuple[socket.socket, Any]] = []
    try:
        for host, port, *rest in addresses:
            if port == 0 and opened:
                port = opened[0][0].getsockname()[1]
            wide = dualstack and host == "::"
            request = spoof.request_for(
                type, 0, (host, port, *rest), None, flags, 0, mark, None, wide
            )
            opened.append((socket_of(spoof.open_socket(request, False)[0]), request))
    except BaseException:
        for sock, _ in opened:
            sock.close()
        raise
    return opened
