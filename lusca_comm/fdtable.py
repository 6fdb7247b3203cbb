"""The descriptor table: who owns which socket, what waits for it, and what it has carried.

An entry holds a strong reference to its socket object from open or accept until close, relay or
detach. The number of a descriptor is only a key: an entry whose object was closed behind its back
is stale, and is dropped before the number is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .address import descriptor
from .reactor.timers import Timer

__all__ = ["Entry", "FdTable", "Handler"]

Handler = Callable[[Any, Any], object]
"""``handler(sock, data)``."""


class Entry:
    """One descriptor in use."""

    __slots__ = (
        "born",
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
        "held",
        "note",
        "outgoing",
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

    def __init__(self, sock: Any, fd: int, born: int, flags: int, note: str) -> None:
        self.sock = sock
        self.fd = fd
        self.born = born  # the reactor's turn: events polled before it are another descriptor's
        self.flags = flags
        self.note = note
        self.registered = 0  # what the poller waits for
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
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def stale(self) -> bool:
        """The object was closed, or lost its descriptor, behind the table's back."""
        if isinstance(self.sock, int):
            return False
        try:
            return bool(self.sock.fileno() != self.fd)
        except ValueError:
            return True

    @property
    def wants(self) -> int:
        """What the poller should wait for."""
        mask = 0
        if self.read_handler is not None and not self.deferred and not self.held:
            mask = 1
        if self.write_handler is not None:
            mask |= 2
        return mask


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

    def add(self, sock: Any, fd: int, born: int, flags: int = 0, note: str = "") -> Entry:
        """A new entry for a number that the kernel has just given out: whatever the table knew
        under it is stale."""
        old = self.entries.get(fd)
        if old is not None:
            self.drop_stale(old)
        entry = Entry(sock, fd, born, flags, note)
        self.entries[fd] = entry
        self._by_object[id(sock)] = entry
        return entry

    def find(self, thing: Any) -> Entry | None:
        """The entry of a number or an object. A stale entry met on the way is dropped.

        Raises TypeError for what has no descriptor, CommError (EBADF) for what is closed.
        """
        fd = descriptor(thing)
        entry = self.entries.get(fd)
        if entry is not None and entry.sock is not thing and entry.stale:
            self.drop_stale(entry)
            return None
        return entry

    def find_object(self, thing: Any) -> Entry | None:
        """The entry that holds this very object, closed or not."""
        entry = self._by_object.get(id(thing))
        return entry if entry is not None and entry.sock is thing else None

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
