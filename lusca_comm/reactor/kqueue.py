"""kqueue(2): FreeBSD, NetBSD, OpenBSD, DragonFly BSD, macOS.

Registrations are pairs of a descriptor and a filter, level-triggered (no EV_CLEAR). Additions are
made at once, because the caller must learn what the system refuses; removals wait for the next
poll and travel with it, because nobody needs to know how they went.

FACT: a change that fails is an event with EV_ERROR where the event list has room, and kevent(2)
then returns such events INSTEAD of what is ready, without waiting. Without room it fails itself
(sys/kern/kern_event.c, kqueue_kevent; the same on all systems).

FACT: closing a descriptor, by its number, removes its registrations, whoever else holds the file.
A removal that comes later fails: ENOENT where the number is in use again, else EBADF. It fails
too (ENOENT) where a signal made Python repeat the call: the changes were applied the first time.

FACT: the writing end of a pipe loses its registration when the reader closes: the event comes once,
with EV_EOF and EV_ONESHOT, and adding it again gives EPIPE (sys/kern/sys_pipe.c). It stays ready
here, as it does under epoll, until it is taken out.

FACT: a regular file is ready except at its end, where it would never be heard of again. epoll
refuses such files (EPERM), so they are refused here.

FACT: a kqueue is not inherited over fork(2): its number is free in the child. CPython's object
knows that only from 3.12.1 on; an older one closes whatever has got the number since.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from typing import Any

from .poller import READ, WRITE

__all__ = ["KqueuePoller"]

_ROOM = 512  # events a poll can return; the rest comes first at the next
_LONGEST = 86_400.0  # seconds; NetBSD and OpenBSD refuse more than 100,000,000 (EINVAL)

_not_ours: list[Any] = []
"""Objects of a forked child's parent whose number is somebody else's: collecting one closes it."""


class KqueuePoller:
    name = "kqueue"

    def __init__(self, system: Any = select) -> None:
        """`system` has kqueue, kevent and the KQ_ constants of the module select."""
        self._system = system
        self._filters = ((READ, system.KQ_FILTER_READ), (WRITE, system.KQ_FILTER_WRITE))
        self._kqueue = system.kqueue()
        self._process = os.getpid()
        self._removals: dict[tuple[int, int], Any] = {}
        self._ended: dict[int, int] = {}  # pipes without a reader

    def set(self, fd: int, before: int, after: int) -> None:
        kevent, add, delete = (
            self._system.kevent,
            self._system.KQ_EV_ADD,
            self._system.KQ_EV_DELETE,
        )
        if after and not before:
            _refuse_files(fd)
        self._ended.pop(fd, None)
        additions = []
        for bit, filter in self._filters:
            if after & bit:
                # Also what `before` has: the number may have been closed and opened again.
                additions.append(kevent(fd, filter, add))
                self._removals.pop((fd, filter), None)
            elif before & bit:
                self._removals[fd, filter] = kevent(fd, filter, delete)
        if not additions:
            return
        try:
            self._kqueue.control(additions, 0, 0)
        except BrokenPipeError:  # of the write filter, the last one
            self._ended[fd] = WRITE
        except OSError:
            for bit, filter in self._filters:
                if after & bit & ~before:
                    self._removals[fd, filter] = kevent(fd, filter, delete)
            raise

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        changes = list(self._removals.values())
        self._removals.clear()
        timeout = min(seconds, _LONGEST) if seconds >= 0 else None
        if self._ended:
            timeout = 0
        events = self._kqueue.control(changes, max(_ROOM, len(changes)), timeout)
        error, oneshot = self._system.KQ_EV_ERROR, self._system.KQ_EV_ONESHOT
        if changes and events and events[0].flags & error:
            events = self._kqueue.control(None, _ROOM, timeout)
        readable = self._system.KQ_FILTER_READ
        ready = self._ended.copy()
        for event in events:
            bit = READ if event.filter == readable else WRITE
            ready[event.ident] = ready.get(event.ident, 0) | bit
            if event.flags & oneshot:
                self._ended[event.ident] = self._ended.get(event.ident, 0) | bit
        return list(ready.items())

    def fileno(self) -> int:
        return int(self._kqueue.fileno())

    def close(self) -> None:
        if self._process != os.getpid() and not self._kqueue.closed:
            try:
                os.fstat(self._kqueue.fileno())
            except OSError:
                pass  # still nobody's: closing the object now keeps it from doing so later
            else:
                _not_ours.append(self._kqueue)
                return
        self._kqueue.close()


def _refuse_files(fd: int) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        raise PermissionError(errno.EPERM, "a file or directory cannot be waited for")
