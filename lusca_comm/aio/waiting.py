"""Waiting for a descriptor, in any event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket

__all__ = ["Readable", "writable"]


def _set(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


async def writable(loop: asyncio.AbstractEventLoop, fd: int, due: float | None) -> bool:
    """False: it is not, and ``loop.time()`` is `due`."""
    future: asyncio.Future[bool] = loop.create_future()
    timer = None if due is None else loop.call_at(due, _set, future, False)
    loop.add_writer(fd, _set, future, True)
    try:
        return await future
    finally:
        loop.remove_writer(fd)
        if timer is not None:
            timer.cancel()


class Readable:
    """A socket that is waited for; only one at a time can wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, least: int) -> None:
        """:param least: bytes that make it readable. Its end does, too."""
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._least = least
        self._future: asyncio.Future[bool] = loop.create_future()
        if least > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
        loop.add_reader(self._fd, _set, self._future, True)

    async def wait(self) -> bool:
        """False: :meth:`end` was called."""
        try:
            return await self._future
        finally:
            self._leave()

    def end(self) -> None:
        """Comes before its descriptor goes, which can be another socket's at once."""
        self._leave()
        _set(self._future, False)

    def _leave(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(self._fd)
        if self._least > 1:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
