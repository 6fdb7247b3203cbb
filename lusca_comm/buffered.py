"""Reading and writing with a callback at the end, and closing once everything has gone out."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from ._shim import lib
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
_CHUNK = 65536
_ROUNDS = 16  # reads of one socket before others get their turn

ReadCallback = Callable[[Any, bytes, int, Any], object]
"""``callback(sock, bytes, status, data)``."""
WriteCallback = Callable[[Any, int, int, Any], object]
"""``callback(sock, sent, status, data)``."""


class _Read:
    """A comm_read that waits."""

    __slots__ = ("callback", "data", "entry", "loop", "size")

    def __init__(
        self, loop: Buffered, entry: Entry, size: int, callback: ReadCallback, data: Any
    ) -> None:
        self.loop = loop
        self.entry = entry
        self.size = size
        self.callback = callback
        self.data = data

    def on_readable(self, _sock: Any, _data: Any) -> None:
        entry = self.entry
        self.loop.system_calls["read"] += 1
        try:
            got = _recv(entry, self.size)
        except (BlockingIOError, InterruptedError):
            self.loop._arm(entry, COMM_SELECT_READ, self.on_readable)
            return
        except OSError as why:
            entry.error = why.errno or errno.EIO
            got, status = b"", COMM_ERROR
        else:
            entry.bytes_in += len(got)
            status = COMM_OK
        del entry.pending["read"]
        self.callback(entry.sock, got, status, self.data)

    def closing(self, status: int) -> None:
        self.callback(self.entry.sock, b"", status, self.data)


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
        :raises CommError: EINVAL, EBADF, EBUSY while another comm_read or a relay has the slot.
        """
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"size is a number of bytes, not {size!r}")
        if size <= 0:
            raise CommError(errno.EINVAL, "size is a number of bytes above 0")
        if not callable(callback):
            raise TypeError(f"callback {callback!r} is not callable")
        entry = self._entry(sock)
        self._refuse_while(entry, "read", "relay", "lingering close")
        self._unblock(entry)
        read = _Read(self, entry, size, callback, data)
        entry.pending["read"] = read.closing
        self._arm(entry, COMM_SELECT_READ, read.on_readable)

    def comm_write(
        self, sock: Any, buffer: Any, callback: WriteCallback | None = None, data: Any = None
    ) -> None:
        """Sends all of `buffer`, behind what was queued before, and then calls
        ``callback(sock, sent, status, data)``, never before this call has returned.

        status: COMM_OK; COMM_ERROR, and comm_error has the errno; COMM_ERR_CLOSING. `buffer` is
        any bytes-like object, and must not be changed until then. It takes the write slot.

        :raises CommError: ENOTCONN while a connect is under way, EBUSY in the middle of a relay or
            a lingering close, EBADF.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback {callback!r} is not callable")
        write = _Write(buffer, callback, data)
        entry = self._entry(sock)
        if "connect" in entry.pending:
            raise CommError(errno.ENOTCONN, f"descriptor {entry.fd} is still connecting")
        self._refuse_while(entry, "relay", "lingering close")
        self._unblock(entry)
        if entry.write_queue:
            entry.write_queue.append(write)
            return
        entry.write_queue = deque((write,))
        entry.pending["write"] = lambda status: self._fail_writes(entry, status)
        self._push_writes(entry)

    def _push_writes(self, entry: Entry) -> None:
        queue = entry.write_queue
        while queue:
            write = queue[0]
            try:
                self.system_calls["write"] += 1
                sent = _send(entry, write.left) if len(write.left) else 0
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as why:
                entry.error = why.errno or errno.EIO
                del entry.pending["write"]
                self._fail_writes(entry, COMM_ERROR)
                return
            write.sent += sent
            entry.bytes_out += sent
            write.left = write.left[sent:]
            if len(write.left):
                self._arm(entry, COMM_SELECT_WRITE, self._on_writable, entry)
                return
            queue.popleft()
            self._written(entry, write, COMM_OK)
        del entry.pending["write"]
        flushed = entry.pending.pop("flushed", None)
        if flushed is not None:
            flushed(COMM_OK)

    def _on_writable(self, _sock: Any, entry: Entry) -> None:
        self._push_writes(entry)

    def _written(self, entry: Entry, write: _Write, status: int) -> None:
        if write.callback is not None:
            args = (entry.sock, write.sent, status, write.data)
            self._ready.append((write.callback, args))

    def _fail_writes(self, entry: Entry, status: int) -> None:
        queue, entry.write_queue = entry.write_queue, None
        for write in queue:
            if status != COMM_ERR_CLOSING:
                self._written(entry, write, status)
            elif write.callback is not None:
                self._guarded(write.callback, entry.sock, write.sent, status, write.data)
        flushed = entry.pending.pop("flushed", None)
        if flushed is not None:
            flushed(status)

    def _when_flushed(self, entries: tuple[Entry, ...], then: Callable[[], object]) -> None:
        """Calls `then` once nothing is queued on `entries` any more; never where one is closed."""
        for entry in entries:
            if entry.closing:
                return
            if entry.write_queue:

                def flushed(status: int) -> None:
                    if status != COMM_ERR_CLOSING:
                        self._when_flushed(entries, then)

                entry.pending["flushed"] = flushed
                return
        then()

    def comm_lingering_close(self, sock: Any) -> None:
        """Sends what is queued and then the end of the stream, waits at most 10 s for the peer's
        end, throwing away what still comes, and closes. So a peer that is still sending gets all
        that was sent to it, where a plain close would reset the connection. Idempotent."""
        entry = self._closing_entry(sock)
        if entry is None or entry.closing or "lingering close" in entry.pending:
            return
        entry = self._entry(sock)
        for operation in ("connect", "read", "relay"):
            answer = entry.pending.pop(operation, None)
            if answer is not None:
                self._guarded(answer, COMM_ERR_CLOSING)
        if entry.closing:  # by what it was told
            return
        entry.pending["lingering close"] = _nobody_waits
        self._arm(entry, COMM_SELECT_READ, None)
        if not entry.write_queue:
            self._arm(entry, COMM_SELECT_WRITE, None)
        entry.deferred = False
        entry.deadline_handler = entry.deadline_data = None
        self._set_deadline(entry, _LINGER)
        self._when_flushed((entry,), lambda: self._linger(entry))

    def _linger(self, entry: Entry) -> None:
        if lib.lc_finish(entry.fd) in (0, -errno.ENOTSOCK):
            self._drain(entry.sock, entry)
        else:
            self._close_entry(entry)

    def _drain(self, _sock: Any, entry: Entry) -> None:
        self._arm(entry, COMM_SELECT_READ, self._drain, entry)
        try:
            for _ in range(_ROUNDS):
                if not _recv(entry, _CHUNK):
                    break
            else:
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._close_entry(entry)


def _nobody_waits(_status: int) -> None:
    pass


def _recv(entry: Entry, size: int) -> bytes:
    """From a socket, or from any other descriptor: a pipe, a TUN device."""
    if isinstance(entry.sock, socket.socket):
        return entry.sock.recv(size)
    return os.read(entry.fd, size)


def _send(entry: Entry, data: memoryview) -> int:
    if isinstance(entry.sock, socket.socket):
        return entry.sock.send(data)
    return os.write(entry.fd, data)
