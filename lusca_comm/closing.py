"""Closing a socket, or letting go of it, with everything that hangs on it."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any

from ._shim import lib
from .address import descriptor, holder
from .errors import CommError
from .fdtable import Entry, Handler
from .reactor.reactor import Loop

__all__ = ["Closing"]


class Closing(Loop):
    """A loop that closes."""

    def comm_close(self, sock: Any) -> None:
        """Closes `sock`: out of the loop first, then pending operations are told
        COMM_ERR_CLOSING, then the close handlers run, last in first out, then it is closed.
        Select handlers are not called. Idempotent.

        An fd is resolved to the socket object that owns it. An object that has no ``close()``, such
        as the socket of an asyncio transport, is closed by its owner.

        :raises CommError: EBADF for an open fd that is not in the table: closing it would close
            what somebody else owns.
        """
        entry = self._closing_entry(sock)
        if entry is not None:
            self._close_entry(entry)

    def comm_reset_close(self, sock: Any) -> None:
        """:meth:`comm_close` with a reset (RST), so that the peer knows it was no orderly end."""
        entry = self._closing_entry(sock)
        if entry is not None:
            self._abort_entry(entry)

    def comm_detach(self, sock: Any) -> Any:
        """Takes `sock` out of the table and the loop, and gives it to the caller, open. Pending
        operations are told COMM_ERR_CLOSING; close handlers are forgotten."""
        self._check_thread()
        entry = self.table.find(sock)
        if entry is None or entry.closing:
            if not _is_open(descriptor(sock)):
                raise CommError(errno.EBADF, f"descriptor {sock} is not open")
            return holder(sock)
        self._forget(entry)
        self._release(entry)
        entry.close_handlers.clear()
        self._answer_pending(entry)
        self.table.remove(entry)
        return entry.sock

    def comm_add_close_handler(self, sock: Any, handler: Handler, data: Any = None) -> None:
        """Has ``handler(sock, data)`` called when `sock` is closed.

        :raises CommError: EEXIST where this handler with this data is there already.
        """
        if not callable(handler):
            raise TypeError(f"handler {handler!r} is not callable")
        entry = self._entry(sock)
        if (handler, data) in entry.close_handlers:
            raise CommError(errno.EEXIST, "this close handler is there already")
        entry.close_handlers.append((handler, data))

    def comm_remove_close_handler(self, sock: Any, handler: Handler, data: Any = None) -> None:
        """:raises CommError: ENOENT where it is not there."""
        try:
            self._entry(sock).close_handlers.remove((handler, data))
        except ValueError:
            raise CommError(errno.ENOENT, "no such close handler") from None

    def _closing_entry(self, thing: Any) -> Entry | None:
        """Whose entry to close; None where there is nothing left to do."""
        self._check_thread()
        try:
            entry = self.table.find(thing)
        except CommError:
            if isinstance(thing, int):
                raise
            return None  # closed already
        if entry is not None:
            return entry
        fd = descriptor(thing)
        if not isinstance(thing, int):
            return Entry(holder(thing), fd)
        if _is_open(fd):
            text = f"descriptor {fd} is open but not in the table: its owner closes it"
            raise CommError(errno.EBADF, text)
        return None

    def _close_entry(self, entry: Entry) -> None:
        if entry.closing:
            return
        self._forget(entry)
        self._release(entry)
        try:
            self._answer_pending(entry)
        finally:
            self.table.remove(entry)
            self.system_calls["close"] += 1
            _close(entry)

    def _abort_entry(self, entry: Entry) -> None:
        if not entry.closing and not entry.stale:
            lib.lc_abort(entry.fd)  # what is no connection is just closed
        self._close_entry(entry)


def _close(entry: Entry) -> None:
    with contextlib.suppress(OSError):
        if entry.identity is not None:
            if not entry.stale:  # a close handler may have closed the number itself
                os.close(entry.fd)
        elif hasattr(entry.sock, "close"):
            entry.sock.close()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
