"""The pollers that the contract is held against: each that this system has, and the emulated
kqueue where there is no real one. And what is done to sockets to see them tell of it."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from lusca_comm.reactor.kqueue import KqueuePoller
from lusca_comm.reactor.poller import READ, WRITE, Poller

BOTH = READ | WRITE

MAKERS: dict[str, Callable[[], Poller]] = {}
if hasattr(select, "epoll"):
    from lusca_comm.reactor.epoll import EpollPoller

    MAKERS["epoll"] = EpollPoller
SYSTEM: Any = select
"""What has kqueue, kevent and the KQ_ constants."""
if hasattr(select, "kqueue"):
    MAKERS["kqueue"] = KqueuePoller
else:
    from emulators import kqueue as SYSTEM

    MAKERS["kqueue, emulated"] = lambda: KqueuePoller(SYSTEM)
KQUEUES = [name for name in MAKERS if name.startswith("kqueue")]


def asked_for(events: list[tuple[int, int]], only: socket.socket | int, asked: int) -> int:
    """What was told of the only descriptor; the mask of an error may have more than was asked."""
    assert [fd for fd, _ in events] == [only if isinstance(only, int) else only.fileno()]
    return events[0][1] & asked


def broken(sock: socket.socket) -> bool:
    try:
        sock.send(b"x")
    except BlockingIOError:
        return False
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while sock.send(bytes(65536)):
            pass
