"""What the poller shall know: the interest of every entry, brought to it once a turn."""

from __future__ import annotations

import abc
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

from ..fdtable import Counters, Entry, FdTable
from .outside import Outside, Waker
from .poller import READ, Poller

__all__ = ["Interest"]

_log = logging.getLogger("lusca_comm")


def _log_exception(why: BaseException, where: str) -> None:
    _log.error("%s raised", where, exc_info=why)


class Interest(Outside):
    """The table, and a poller that learns of it what has changed."""

    def __init__(self, poller: Callable[[], Poller]) -> None:
        super().__init__()
        self.table = FdTable(self._dropped)
        self.system_calls = Counters()
        self.exception_hook: Callable[[BaseException, str], object] = _log_exception
        """``hook(exception, where)`` for what a handler raises; it never ends the loop."""
        self._make_poller = poller
        self._poller: Poller | None = None
        self._rebuild = False  # the poller may know descriptors that the table does not
        self._dirty: list[Entry] = []
        self._watched: dict[int, Callable[[], object]] = {}  # descriptors of no entry
        self._gone: set[int] = set()  # closed since the last poll: their events may be in the batch

    def _touch(self, entry: Entry) -> None:
        if not entry.dirty:
            entry.dirty = True
            self._dirty.append(entry)
            if entry.flows is not None:
                self._touch(entry.flows.entry)

    def _flush(self) -> None:
        if self._rebuild:
            self._renew_poller()
        dirty = self._dirty
        for entry in dirty:  # and those that are added meanwhile
            entry.dirty = False
            wants = entry.wants
            if entry.closing or wants == entry.registered:
                continue
            if entry.stale:
                self.table.drop_stale(entry)
                continue
            try:
                self._set_interest(entry, wants)
            except OSError as why:
                # Its handlers would never be called again: say so, and let it go.
                entry.error = why.errno or 0
                self._close_entry(entry)
                self._report(why, f"waiting for descriptor {entry.fd} ({entry.note})")
        dirty.clear()

    def _set_interest(self, entry: Entry, wants: int) -> None:
        if entry.registered != wants:
            self.system_calls["interest"] += 1
            self._open_poller().set(entry.fd, entry.registered, wants)
            entry.registered = wants

    def _forget(self, entry: Entry) -> None:
        """Out of the poller, while the number is still ours."""
        if entry.registered:
            self._gone.add(entry.fd)
            with contextlib.suppress(OSError):
                self._set_interest(entry, 0)
            entry.registered = 0

    def _open_poller(self) -> Poller:
        if self._poller is None:
            if self._waker is None:
                self._waker = Waker(os.pipe())
            poller = self._make_poller()
            for fd in (self._waker.reader, *self._watched):
                poller.set(fd, 0, READ)
            self._poller = poller
        return self._poller

    def _watch(self, fd: int, callback: Callable[[], object]) -> None:
        """Has ``callback()`` called in every turn in which `fd` is readable."""
        self._open_poller().set(fd, 0, READ)
        self._watched[fd] = callback

    def _renew_poller(self) -> None:
        """The next turn opens a poller that knows the living entries only."""
        self._rebuild = False
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        for entry in self.table:
            entry.registered = 0
            self._touch(entry)

    def _after_fork(self) -> None:
        """A poller of its own for the child. The parent's epoll is the same open file in both, so
        it must not be changed from here; closing the number does not touch it."""
        self._watched.clear()
        self._renew_poller()
        for entry in self.table:
            if entry.flows is not None:
                entry.flows.after_fork()

    def _at_exit(self) -> None:
        for entry in self.table:
            close = getattr(entry.sock, "close", None)
            if close is not None:
                with contextlib.suppress(OSError):
                    close()

    def _guarded(self, fn: Callable[..., object], *args: Any) -> None:
        try:
            fn(*args)
        except Exception as why:
            self._report(why, getattr(fn, "__qualname__", repr(fn)))

    def _report(self, why: Exception, where: str) -> None:
        try:
            self.exception_hook(why, where)
        except Exception as worse:
            _log_exception(worse, "exception_hook")

    @abc.abstractmethod
    def _dropped(self, entry: Entry) -> None:
        """An entry left the table without comm_close."""

    @abc.abstractmethod
    def _close_entry(self, entry: Entry) -> None:
        """closing.py says what closing means."""
