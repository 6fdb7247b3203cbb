"""What the tests of the data plane share: pairs of connections, faults on demand, open files."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lusca_comm import Plane, RelayResult
from lusca_comm._shim import lib

DEADLINE = 30.0


def connection(buffers: int = 0) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over the loopback; `buffers`: bytes of each socket buffer."""
    with socket.socket() as listener:
        if buffers:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        here = socket.socket()
        if buffers:
            here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        here.connect(listener.getsockname())
        there, _ = listener.accept()
    here.settimeout(DEADLINE)
    there.settimeout(DEADLINE)
    return here, there


class Pair:
    """A relay between two connections, seen from its two peers."""

    def __init__(self, plane: Plane, buffers: int = 0, **options: object) -> None:
        self.client, near = connection(buffers)
        self.upstream, far = connection(buffers)
        self.results: list[RelayResult] = []
        self.relay = plane.relay(near, far, self.results.append, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self.client.close()
        self.upstream.close()


def until(plane: Plane, condition: Callable[[], object]) -> None:
    """Runs completions until `condition` holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        plane.run_completions(0.05)


def wait_readable(sock: socket.socket) -> None:
    assert select.select([sock], [], [], DEADLINE)[0]


def receive(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (chunk := sock.recv(size - len(got))):
        got += chunk
    return bytes(got)


def open_files() -> int:
    gc.collect()  # a plane that was dropped has some
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def fault(call: str, err: int, skip: int = 0, times: int = -1) -> Iterator[None]:
    """The plane's `call` fails with `err`; see lc_plane_fault in csrc/shim.h."""
    number = getattr(lib, f"LC_FAULT_{call}")
    assert lib.lc_plane_fault(number, err, skip, times) == 0
    try:
        yield
    finally:
        assert lib.lc_plane_fault(number, 0, 0, 0) == 0


def fork(child: Callable[[], object]) -> int:
    """The exit status of a child that runs `child`; 99 after an exception."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = int(child() or 0)  # type: ignore[call-overload]
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
