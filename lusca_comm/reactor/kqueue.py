"""kqueue(2): FreeBSD, NetBSD, OpenBSD, DragonFly BSD, macOS.

Registrations are pairs of a descriptor and a filter, level-triggered. Additions are made at once,
because the caller must learn what the system refuses; removals wait for the next poll and travel
with it, because nobody needs to know how they went.

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
knows that only from 3.12.1 on; an older one closes whatever has got the number since. A newer one
is told by a hook that CPython registers with the first object, and that hits objects which earlier
hooks have made in the child: so the first is made here, before any hook of ours is registered.
"""

from __future__ import annotations

import contextlib
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

if hasattr(select, "kqueue"):
    select.kqueue().close()


class KqueuePoller:
    name = "kqueue"

    def __init__(self, system: Any = select) -> None:
        """`system` has kqueue, kevent and the KQ_ constants of the module select."""
        self._system = system
        self._filters = ((READ, system.KQ_FILTER_READ), (WRITE, system.KQ_FILTER_WRITE))
        self._kqueue = system.kqueue()
        self._process = os.getpid()
        self._removals: dict[tuple[int, int], Any] = {}
        self._ended: dict[int, int] = {}  # what the kernel has told of for the last time
        self._beacon = -1  # readable, for fileno(), while there is any such

    def set(self, fd: int, before: int, after: int) -> None:
        system = self._system
        if after and not before:
            _refuse_files(fd)
        if fd in self._ended:
            self._revive(fd)
        additions = []
        for bit, filter in self._filters:
            if after & bit:
                # Also what `before` has: the number may have been closed and opened again.
                additions.append(system.kevent(fd, filter, system.KQ_EV_ADD))
                self._removals.pop((fd, filter), None)
            elif before & bit:
                self._remove(fd, filter)
        if not additions:
            return
        try:
            self._kqueue.control(additions, 0, 0)
        except BrokenPipeError:  # of the write filter, the last one
            self._end(fd, WRITE)
        except OSError:
            for bit, filter in self._filters:
                if after & bit & ~before:
                    self._remove(fd, filter)
            raise

    def _remove(self, fd: int, filter: int) -> None:
        self._removals[fd, filter] = self._system.kevent(fd, filter, self._system.KQ_EV_DELETE)

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        system = self._system
        changes = list(self._removals.values())
        self._removals.clear()
        timeout = min(seconds, _LONGEST) if seconds >= 0 else None
        if self._ended:
            timeout = 0
        events = self._kqueue.control(changes, max(_ROOM, len(changes)), timeout)
        if changes and events and events[0].flags & system.KQ_EV_ERROR:
            events = self._kqueue.control(None, _ROOM, timeout)
        ready: dict[int, int] = {}
        for event in events:
            fd, flags = event.ident, event.flags
            if flags & system.KQ_EV_ONESHOT:
                self._end(fd, READ if event.filter == system.KQ_FILTER_READ else WRITE)
            elif fd != self._beacon:
                bit = READ if event.filter == system.KQ_FILTER_READ else WRITE
                ready[fd] = ready.get(fd, 0) | bit
        for fd, mask in self._ended.items():
            ready[fd] = ready.get(fd, 0) | mask
        return list(ready.items())

    def _end(self, fd: int, mask: int) -> None:
        """`fd` is ready from now on, whatever the kernel says."""
        self._ended[fd] = self._ended.get(fd, 0) | mask
        if self._beacon < 0:
            with contextlib.suppress(OSError):  # no descriptor left: poll() does without
                self._beacon, writer = os.pipe()
                os.close(writer)
                system = self._system
                event = system.kevent(self._beacon, system.KQ_FILTER_READ, system.KQ_EV_ADD)
                self._kqueue.control([event], 0, 0)

    def _revive(self, fd: int) -> None:
        del self._ended[fd]
        if not self._ended and self._beacon >= 0:
            os.close(self._beacon)
            self._beacon = -1

    def fileno(self) -> int:
        return int(self._kqueue.fileno())

    def close(self) -> None:
        for fd in list(self._ended):
            self._revive(fd)
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
