"""The descriptor table: who owns which socket, what waits for it, and what it has carried.

An entry holds a strong reference to its socket object from open or accept until close, relay or
detach. The number of a descriptor is only a key: an entry whose object was closed behind its back
is stale, and is dropped before the number is used again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from .address import descriptor
from .reactor.poller import READ, WRITE
from .reactor.timers import Timer

__all__ = ["Counters", "Entry", "FdTable", "Handler"]

Handler = Callable[[Any, Any], object]
"""``handler(sock, data)``."""


class Entry:
    """One descriptor in use."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "close_handlers",
        "closing",
        "deadline",
        "deadline_data",
        "deadline_handler",
        "deferred",
        "dirty",
        "error",
        "fd",
        "flags",
        "flows",
        "held",
        "identity",
        "note",
        "outgoing",
        "parent",
        "pending",
        "read_data",
        "read_handler",
        "registered",
        "request",
        "sock",
        "spoof_reason",
        "write_data",
        "write_handler",
        "write_queue",
    )

    def __init__(self, sock: Any, fd: int, flags: int = 0, note: str = "") -> None:
        self.sock = sock
        self.fd = fd
        self.identity = _identity(fd) if isinstance(sock, int) else None
        self.flags = flags
        self.note = note
        # What the poller waits for. It is told once a turn, before the poll: an entry that is made
        # after a poll has 0 here, so no event of that poll can be taken for its own.
        self.registered = 0
        self.dirty = False  # that may differ from what the slots want
        self.read_handler: Handler | None = None
        self.read_data: Any = None
        self.write_handler: Handler | None = None
        self.write_data: Any = None
        self.deferred = False  # comm_defer
        self.held = False  # a listener out of descriptors
        self.closing = False
        self.deadline: Timer | None = None
        self.deadline_handler: Handler | None = None
        self.deadline_data: Any = None
        self.close_handlers: list[tuple[Handler, Any]] = []
        # Operations that owe their caller an answer: called with COMM_ERR_CLOSING on close.
        self.pending: dict[str, Callable[[int], object]] = {}
        self.write_queue: Any = None
        self.error = 0  # errno of the last failure
        self.request: Any = None  # struct lc_open of a spoofed socket
        self.spoof_reason = ""
        self.outgoing: Any = None  # both ends of a connection made under the machine's own name
        self.parent: Entry | None = None  # whose read slot this descriptor's readiness is
        self.flows: Any = None  # of a datagram listener: the sockets that answer for it
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def stale(self) -> bool:
        """The object was closed, or lost its descriptor, behind the table's back. A plain number
        is known by the file it stood for."""
        if self.identity is not None:
            return _identity(self.fd) != self.identity
        try:
            return bool(self.sock.fileno() != self.fd)
        except (ValueError, OSError):
            return True

    @property
    def wants(self) -> int:
        """What the poller should wait for."""
        if self.parent is not None:
            return self.parent.wants & READ
        mask = 0
        if self.read_handler is not None and not self.deferred and not self.held:
            mask = READ
        if self.write_handler is not None:
            mask |= WRITE
        return mask


def _identity(fd: int) -> tuple[int, int] | None:
    """What tells the open file under `fd` from another: device and inode; None: nothing is open."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class FdTable:
    """Entries by number, and by object for those whose number is gone."""

    def __init__(self, on_stale: Callable[[Entry], object]) -> None:
        self.entries: dict[int, Entry] = {}
        self._by_object: dict[int, Entry] = {}
        self._on_stale = on_stale

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.entries.values()))

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, sock: Any, fd: int, flags: int = 0, note: str = "") -> Entry:
        """A new entry for a number that the kernel has just given out: whatever the table knew
        under it is stale."""
        old = self.entries.get(fd)
        if old is not None:
            self.drop_stale(old)
        entry = Entry(sock, fd, flags, note)
        self.entries[fd] = entry
        if entry.identity is None:
            self._by_object[id(sock)] = entry
        return entry

    def living(self, thing: Any) -> Entry | None:
        """The entry of a socket object that is as it was put in: the usual case, and quick."""
        entry = self._by_object.get(id(thing))
        try:
            if entry is not None and not entry.closing and thing.fileno() == entry.fd:
                return entry
        except (ValueError, OSError):
            pass
        return None

    def find(self, thing: Any) -> Entry | None:
        """The entry of a number or an object. A stale entry met on the way is dropped.

        Raises TypeError for what has no descriptor, CommError (EBADF) for what is closed.
        """
        entry = self._by_object.get(id(thing))
        if entry is not None:
            if not entry.stale:
                return entry
            self.drop_stale(entry)
        entry = self.entries.get(descriptor(thing))
        if entry is not None and entry.stale:
            self.drop_stale(entry)
            return None
        return entry

    def own(self, entry: Entry, sock: Any) -> None:
        """The socket object `sock` takes the place of the plain number in `entry`."""
        entry.sock, entry.identity = sock, None
        self._by_object[id(sock)] = entry

    def remove(self, entry: Entry) -> None:
        """Idempotent."""
        if self.entries.get(entry.fd) is entry:
            del self.entries[entry.fd]
        if self._by_object.get(id(entry.sock)) is entry:
            del self._by_object[id(entry.sock)]

    def drop_stale(self, entry: Entry) -> None:
        self.remove(entry)
        self._on_stale(entry)

    def __str__(self) -> str:
        """A line per descriptor: number, note, what it waits for, bytes in and out."""
        lines = [f"{'fd':>5}  {'waits for':<10}  {'in':>12}  {'out':>12}  note"]
        for entry in sorted(self, key=lambda e: e.fd):
            waits = ("-", "read", "write", "read write")[entry.wants]
            lines.append(
                f"{entry.fd:>5}  {waits:<10}  {entry.bytes_in:>12}  {entry.bytes_out:>12}  "
                f"{entry.note}"
            )
        return "\n".join(lines)


class Counters(dict[str, int]):
    """How often each kind of system call was made. Printed: a line each."""

    def __init__(self) -> None:
        super().__init__(poll=0, interest=0, open=0, accept=0, connect=0, read=0, write=0, close=0)

    def __str__(self) -> str:
        return "\n".join(f"{number:>12}  {call}" for call, number in self.items())
