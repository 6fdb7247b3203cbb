"""A stand-in for the parts of the module ``select`` that kqueue has, over poll(2).

It follows sys/kern/kern_event.c and sys_pipe.c of FreeBSD 14 and CPython's selectmodule.c in what
a poller can see: EVFILT_READ and EVFILT_WRITE as separate registrations; changes before events in
one call; a change that fails as an EV_ERROR event, or OSError where there is no room, and no other
events beside it; EV_EOF with data still to read; EV_CLEAR that outlives a change of the rest; round
robin where events do not fit; the end of a registration with its descriptor, and of a pipe's with
its reader; a descriptor that is itself ready; no inheritance over fork.

Where it differs from a kernel:

* EV_CLEAR is for EVFILT_READ with a NOTE_LOWAT that is never reached, and the other way round;
  EV_ONESHOT, EV_DISPATCH and EV_DISABLE raise NotImplementedError, and so do other filters
* a descriptor that is closed while another thread waits is noticed at the next call only; one that
  is replaced by another descriptor of the same file (dup2) is not noticed
* a TCP socket that was never connected is ready, as poll(2) has it; a BSD says it is not
* ``data`` is FIONREAD for reading (1 for a listener, whatever its queue) and 1 for writing;
  ``fflags`` of EV_EOF, the socket's error, is ECONNRESET for every error
* files are ready always, as poll(2) has it; a BSD says: for reading, except at the end
* the descriptor itself is an epoll, ready for what was closed while a dup or a child holds the file
* a signal does not make it apply its changes a second time, as CPython does after EINTR
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import struct
import termios
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering
from typing import Any

KQ_FILTER_READ, KQ_FILTER_WRITE = -1, -2
KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_ENABLE, KQ_EV_DISABLE = 0x1, 0x2, 0x4, 0x8
KQ_EV_ONESHOT, KQ_EV_CLEAR = 0x10, 0x20
KQ_EV_ERROR, KQ_EV_EOF = 0x4000, 0x8000
KQ_NOTE_LOWAT = 0x1
NEVER = 0x7FFFFFFF  # as NOTE_LOWAT's data: no buffer has that many bytes

# poll(2) reports POLLERR and POLLHUP whether asked for or not.
_ASKED = {
    KQ_FILTER_READ: select.POLLIN | select.POLLRDHUP,
    KQ_FILTER_WRITE: select.POLLOUT,
}
_ENDED = {
    KQ_FILTER_READ: select.POLLRDHUP | select.POLLHUP,
    KQ_FILTER_WRITE: select.POLLERR | select.POLLHUP,
}


# What is told of a note with EV_CLEAR: the end, and the error.
_EDGES = select.POLLRDHUP | select.POLLHUP | select.POLLERR


@total_ordering
class kevent:
    def __init__(
        self,
        ident: Any,
        filter: int = KQ_FILTER_READ,
        flags: int = KQ_EV_ADD,
        fflags: int = 0,
        data: int = 0,
        udata: int = 0,
    ) -> None:
        self.ident: int = ident if isinstance(ident, int) else ident.fileno()
        self.filter, self.flags = filter, flags
        self.fflags, self.data, self.udata = fflags, data, udata

    def _key(self) -> tuple[int, ...]:
        return (self.ident, self.filter, self.flags, self.fflags, self.data, self.udata)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, kevent) and self._key() == other._key()

    def __lt__(self, other: kevent) -> bool:
        return self._key() < other._key()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<emulated kevent ident={} filter={} flags={:#x} fflags={} data={} udata={}>".format(
            *self._key()
        )


@dataclass
class _Note:
    file: tuple[int, int]
    clear: bool
    lowat: bool = False
    told: int = 0  # of _EDGES


class kqueue:
    object_knows_fork = True
    """CPython from 3.12.1 on; before, the object goes on to believe in its number."""

    def __init__(self) -> None:
        self._mirror = select.epoll()  # what a poll of the number sees
        self._fd = os.dup(self._mirror.fileno())
        self._process = os.getpid()
        self._notes: dict[tuple[int, int], _Note] = {}
        _queues.add(self)

    def fileno(self) -> int:
        self._check()
        return self._fd

    @property
    def closed(self) -> bool:
        _after_fork()
        return self._fd < 0

    def close(self) -> None:
        _after_fork()
        if self._fd >= 0:
            number, self._fd = self._fd, -1
            self._mirror.close()
            with contextlib.suppress(OSError):
                os.close(number)

    def __del__(self) -> None:
        if hasattr(self, "_notes"):
            self.close()

    def control(
        self,
        changelist: Iterable[kevent] | None,
        max_events: int,
        timeout: float | None = None,
        /,
    ) -> list[kevent]:
        self._check()
        if max_events < 0:
            raise ValueError(f"Length of eventlist must be 0 or positive, got {max_events}")
        if timeout is not None and timeout < 0:
            raise ValueError("timeout must be positive or None")
        if timeout is not None and timeout > 100_000_000:  # NetBSD and OpenBSD
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._process != os.getpid():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        changes = list(changelist or ())
        if not all(isinstance(change, kevent) for change in changes):
            raise TypeError("changelist must be an iterable of select.kevent objects")
        self._forget_closed()
        failed: list[kevent] = []
        for change in changes:
            code = self._change(change)
            if code and len(failed) == max_events:
                raise OSError(code, os.strerror(code))
            if code:
                failed.append(kevent(change.ident, change.filter, KQ_EV_ERROR, 0, code))
        return failed or (self._scan(max_events, timeout) if max_events else [])

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed kqueue object")

    def _forget_closed(self) -> None:
        for key, note in list(self._notes.items()):
            if _file(key[0]) != note.file:
                del self._notes[key]

    def _change(self, change: kevent) -> int:
        """0 or an errno."""
        unknown = change.flags & ~(KQ_EV_ADD | KQ_EV_DELETE | KQ_EV_ENABLE | KQ_EV_CLEAR)
        lowat = (change.flags & KQ_EV_CLEAR, change.fflags & KQ_NOTE_LOWAT, change.data == NEVER)
        if unknown or change.filter not in _ASKED or any(lowat) != all(lowat):
            raise NotImplementedError(repr(change))
        file, key = _file(change.ident), (change.ident, change.filter)
        if file is None:
            return errno.EBADF
        if key not in self._notes:
            if not change.flags & KQ_EV_ADD:
                return errno.ENOENT
            if _is_orphan(*key):
                return errno.EPIPE
            self._notes[key] = _Note(file, clear=bool(change.flags & KQ_EV_CLEAR))
        self._notes[key].lowat = any(lowat)
        if change.flags & KQ_EV_DELETE:
            del self._notes[key]
        self._show(change.ident)
        return 0

    def _asked(self, fd: int) -> int | None:
        """What to poll `fd` for; None: not at all, as POLLHUP would be told again and again."""
        mask = None
        for filter in _ASKED:
            note = self._notes.get((fd, filter))
            if note is None or not _has_direction(fd, filter):
                continue
            if not note.clear:
                mask = (mask or 0) | _ASKED[filter]
            elif not note.told & select.POLLHUP:
                mask = (mask or 0) | select.POLLRDHUP & ~note.told
        return mask

    def _show(self, fd: int) -> None:
        mask = self._asked(fd)
        with contextlib.suppress(OSError):
            self._mirror.unregister(fd)
        if mask is not None:
            with contextlib.suppress(OSError):
                self._mirror.register(fd, mask)  # the bits of poll(2) and epoll(7) are the same

    def _scan(self, room: int, timeout: float | None) -> list[kevent]:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready = self._poll(left)[:room]
            if ready or left == 0.0:
                break
        for event in ready:
            note = self._notes.pop((event.ident, event.filter))
            if not event.flags & KQ_EV_ONESHOT:
                self._notes[event.ident, event.filter] = note  # last in the queue from now on
            self._show(event.ident)
        return ready

    def _poll(self, timeout: float | None) -> list[kevent]:
        poll = select.poll()
        for fd in {fd for fd, _ in self._notes}:
            mask = self._asked(fd)
            if mask is not None:
                poll.register(fd, mask)
        got = dict(poll.poll(None if timeout is None else timeout * 1000))
        events = []
        for (fd, filter), note in self._notes.items():
            event = self._event(fd, filter, note, got.get(fd, 0))
            if event is not None:
                events.append(event)
        return events

    def _event(self, fd: int, filter: int, note: _Note, bits: int) -> kevent | None:
        flags = KQ_EV_CLEAR if note.clear else 0
        if bits & _ENDED[filter]:
            flags |= KQ_EV_EOF
        if note.clear:
            bits = bits & _EDGES & ~note.told
            note.told |= bits
        elif not note.lowat:
            bits &= _ASKED[filter] | select.POLLERR | select.POLLHUP
        if not bits or not _has_direction(fd, filter):
            return None
        if _is_orphan(fd, filter):
            flags = KQ_EV_EOF | KQ_EV_ONESHOT
        error = errno.ECONNRESET if flags & KQ_EV_EOF and bits & select.POLLERR else 0
        return kevent(fd, filter, flags, error, _data(fd, filter))


_queues: weakref.WeakSet[kqueue] = weakref.WeakSet()
_process = os.getpid()


def _after_fork() -> None:
    """What the kernel does in fork(2), and CPython's object after it. Other hooks of a fork may run
    before this one, so every call comes here first."""
    global _process
    if os.getpid() == _process:
        return
    _process = os.getpid()
    for queue in list(_queues):
        if queue._fd >= 0:
            queue._mirror.close()
            os.close(queue._fd)
            if queue.object_knows_fork:
                queue._fd = -1


os.register_at_fork(after_in_child=_after_fork)


def _file(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except (OSError, OverflowError):
        return None
    return status.st_dev, status.st_ino


def _has_direction(fd: int, filter: int) -> bool:
    """A pipe is never ready in the direction it does not have."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return True
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return mode in (os.O_RDWR, os.O_RDONLY if filter == KQ_FILTER_READ else os.O_WRONLY)


def _is_orphan(fd: int, filter: int) -> bool:
    """The writing end of a pipe that nobody reads."""
    if filter != KQ_FILTER_WRITE or not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return False
    poll = select.poll()
    poll.register(fd, 0)
    return any(bits & select.POLLERR for _, bits in poll.poll(0))


def _data(fd: int, filter: int) -> int:
    if filter == KQ_FILTER_WRITE:
        return 1
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
    except OSError:
        return 1
