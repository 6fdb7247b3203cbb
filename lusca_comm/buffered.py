"""Reading and writing with a callback at the end, and closing once everything has gone out."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from .connect import Connects
from .constants import (
    COMM_ERR_CLOSING,
    COMM_ERROR,
    COMM_OK,
    COMM_SELECT_READ,
    COMM_SELECT_WRITE,
)
from .errors import CommError
from .fdtable import Entry

__all__ = ["Buffered"]

_LINGER = 10.0  # seconds that a lingering close waits for the peer's end

ReadCallback = Callable[[Any, bytes, int, Any], object]
"""``callback(sock, bytes, status, data)``."""
WriteCallback = Callable[[Any, int, int, Any], object]
"""``callback(sock, sent, status, data)``."""


class _Write:
    """A buffer on its way out."""

    __slots__ = ("callback", "data", "left", "sent")

    def __init__(self, buffer: Any, callback: WriteCallback | None, data: Any) -> None:
        self.left = memoryview(buffer).cast("B")
        self.sent = 0
        self.callback = callback
        self.data = data


class Buffered(Connects):
    """A loop that reads and writes for its user."""

    def comm_read(self, sock: Any, size: int, callback: ReadCallback, data: Any = None) -> None:
        """Reads once, when there is something: ``callback(sock, bytes, status, data)``.

        status: COMM_OK, where ``b""`` is the peer's end; COMM_ERROR, and comm_error has the errno;
        COMM_ERR_CLOSING. It takes the read slot of :meth:`comm_set_select`.

        :param size: bytes at most.
        :raises CommError: EINVAL, EBADF, EBUSY while another comm_read waits.
        """
        if size <= 0:
            raise CommError(errno.EINVAL, "size is a number of bytes above 0")
        if not callable(callback):
            raise TypeError(f"callback {callback!r} is not callable")
        entry = self._entry(sock)
        if "read" in entry.pending:
            raise CommError(errno.EBUSY, f"a comm_read waits on descriptor {entry.fd} already")

        def answer(status: int, got: bytes = b"") -> None:
            entry.pending.pop("read", None)
            callback(entry.sock, got, status, data)

        def on_readable(_sock: Any, _data: Any) -> None:
            self.system_calls["read"] += 1
            try:
                got = _recv(entry, size)
            except (BlockingIOError, InterruptedError):
                self.comm_set_select(entry.sock, COMM_SELECT_READ, on_readable)
                return
            except OSError as why:
                entry.error = why.errno or errno.EIO
                answer(COMM_ERROR)
                return
            entry.bytes_in += len(got)
            answer(COMM_OK, got)

        entry.pending["read"] = answer
        self.comm_set_select(entry.sock, COMM_SELECT_READ, on_readable)

    def comm_write(
        self, sock: Any, buffer: Any, callback: WriteCallback | None = None, data: Any = None
    ) -> None:
        """Sends all of `buffer`, behind what was queued before, and then calls
        ``callback(sock, sent, status, data)``, never before this call has returned.

        status: COMM_OK; COMM_ERROR, and comm_error has the errno; COMM_ERR_CLOSING. `buffer` is
        any bytes-like object, and must not be changed until then. It takes the write slot.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback {callback!r} is not callable")
        entry = self._entry(sock)
        if "connect" in entry.pending:
            raise CommError(errno.ENOTCONN, f"descriptor {entry.fd} is still connecting")
        write = _Write(buffer, callback, data)
        if entry.write_queue is None:
            entry.write_queue = deque()
        entry.write_queue.append(write)
        if len(entry.write_queue) == 1:
            entry.pending["write"] = lambda status: self._fail_writes(entry, status)
            self._push_writes(entry)

    def _push_writes(self, entry: Entry) -> None:
        queue = entry.write_queue
        while queue:
            write = queue[0]
            if len(write.left):
                self.system_calls["write"] += 1
                try:
                    sent = _send(entry, write.left)
                except (BlockingIOError, InterruptedError):
                    self.comm_set_select(entry.sock, COMM_SELECT_WRITE, self._on_writable, entry)
                    return
                except OSError as why:
                    entry.error = why.errno or errno.EIO
                    self._fail_writes(entry, COMM_ERROR)
                    return
                write.sent += sent
                entry.bytes_out += sent
                write.left = write.left[sent:]
                if len(write.left):
                    continue
            queue.popleft()
            self._written(entry, write, COMM_OK)
        entry.pending.pop("write", None)
        flushed = entry.pending.get("flushed")
        if flushed is not None:
            flushed(COMM_OK)

    def _on_writable(self, _sock: Any, entry: Entry) -> None:
        self._push_writes(entry)

    def _written(self, entry: Entry, write: _Write, status: int) -> None:
        if write.callback is not None:
            args = (entry.sock, write.sent, status, write.data)
            self._ready.append((write.callback, args))

    def _fail_writes(self, entry: Entry, status: int) -> None:
        entry.pending.pop("write", None)
        queue, entry.write_queue = entry.write_queue, None
        for write in queue or ():
            if status == COMM_ERR_CLOSING and write.callback is not None:
                self._guarded(write.callback, entry.sock, write.sent, status, write.data)
            else:
                self._written(entry, write, status)
        flushed = entry.pending.get("flushed")
        if flushed is not None and status != COMM_ERR_CLOSING:
            flushed(status)

    def _when_flushed(self, entries: tuple[Entry, ...], then: Callable[[], object]) -> None:
        """Calls `then` once nothing is queued on `entries` any more."""
        for entry in entries:
            if entry.closing:
                return
            if entry.write_queue:

                def flushed(status: int, entry: Entry = entry) -> None:
                    entry.pending.pop("flushed", None)
                    if status != COMM_ERR_CLOSING:
                        self._when_flushed(entries, then)

                entry.pending["flushed"] = flushed
                return
        then()

    def comm_lingering_close(self, sock: Any) -> None:
        """Sends what is queued and then the end of the stream, waits at most 10 s for the peer's
        end, throwing away what still comes, and closes. So a peer that is still sending gets all
        that was sent to it, where a plain close would reset the connection."""
        entry = self._closing_entry(sock)
        if entry is None or entry.closing:
            return
        entry.read_handler = entry.read_data = None
        entry.deferred = False
        read = entry.pending.pop("read", None)
        if read is not None:
            read(COMM_ERR_CLOSING)
        self._set_deadline(entry, _LINGER)
        entry.deadline_handler = None
        self._when_flushed((entry,), lambda: self._linger(entry))

    def _linger(self, entry: Entry) -> None:
        try:
            with contextlib.suppress(AttributeError):
                entry.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close_entry(entry)
            return
        self._drain(entry.sock, entry)

    def _drain(self, _sock: Any, entry: Entry) -> None:
        self.comm_set_select(entry.sock, COMM_SELECT_READ, self._drain, entry)
        try:
            while _recv(entry, 65536):
                pass
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._close_entry(entry)


def _recv(entry: Entry, size: int) -> bytes:
    """From a socket, or from any other descriptor: a pipe, a TUN device."""
    if isinstance(entry.sock, socket.socket):
        return entry.sock.recv(size)
    return os.read(entry.fd, size)


def _send(entry: Entry, data: memoryview) -> int:
    if isinstance(entry.sock, socket.socket):
        return entry.sock.send(data)
    return os.write(entry.fd, data)
