"""The loop: select slots over a poller, timers, and calls that were put off.

Order of a turn: due timers, calls that were put off, changes of interest to the poller, the poll,
one pass over what is ready. Interest is compared with what the poller knows once a turn, so a
handler that arms its slot again, the usual case, costs no system call.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..address import descriptor, holder
from ..constants import (
    COMM_ERR_CLOSING,
    COMM_OK,
    COMM_SELECT_READ,
    COMM_SELECT_WRITE,
    COMM_TIMEOUT,
)
from ..errors import CommError
from ..fdtable import Entry, Handler
from ..intercept import forget_outgoing
from .interest import Interest
from .kqueue import KqueuePoller
from .poller import READ, WRITE, Poller
from .timers import Timer, Timers, seconds_of

if hasattr(select, "epoll"):
    from .epoll import EpollPoller

__all__ = ["Loop"]

# Whose slots they are while the operation of that name is pending.
_SLOTS = {
    "connect": COMM_SELECT_WRITE,
    "read": COMM_SELECT_READ,
    "write": COMM_SELECT_WRITE,
    "relay": COMM_SELECT_READ | COMM_SELECT_WRITE,
    "lingering close": COMM_SELECT_READ | COMM_SELECT_WRITE,
}


def default_poller() -> Poller:
    if hasattr(select, "epoll"):
        return EpollPoller()
    if hasattr(select, "kqueue"):
        return KqueuePoller()
    raise CommError(errno.ENOTSUP, "this system has neither epoll nor kqueue")


class Loop(Interest):
    """Readiness and time; what the comm calls stand on.

    It is used from one thread, the one that runs it; ``call_soon_threadsafe`` and ``stop`` are the
    exceptions.
    """

    def __init__(self, *, poller: Callable[[], Poller] = default_poller) -> None:
        super().__init__(poller)
        self.timers = Timers()
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    # -- the user's calls ----------------------------------------------------------------------

    def comm_set_select(
        self, sock: Any, type: int, handler: Handler | None, data: Any = None, timeout: float = 0
    ) -> None:
        """Calls ``handler(sock, data)`` ONCE, when `sock` is ready.

        :param type: COMM_SELECT_READ, COMM_SELECT_WRITE, or both; the two slots are independent.
        :param handler: None cancels. Arm again first thing in the handler to hear of it again.
        :param timeout: seconds; above 0 it sets the deadline of `sock` (:meth:`comm_set_timeout`).
        :raises CommError: EBADF closed, EINVAL no such type, EBUSY a comm_connect, comm_read,
            comm_write or relay has the slot (None leaves it alone), EPERM a kind of file that is
            always ready (epoll takes no regular files).
        """
        if type not in (1, 2, 3):
            raise CommError(errno.EINVAL, "type is COMM_SELECT_READ, COMM_SELECT_WRITE or both")
        if handler is not None and not callable(handler):
            raise TypeError(f"handler {handler!r} is not callable")
        if timeout:
            seconds_of(timeout, "timeout")
        entry = self._entry(sock)
        for operation in entry.pending:
            taken = _SLOTS.get(operation, 0) & type
            if taken and handler is not None:
                raise _busy(entry, operation)
            type &= ~taken
        self._unblock(entry)
        self._arm(entry, type, handler, data)
        if timeout > 0:
            self._set_deadline(entry, timeout)

    def comm_set_timeout(
        self, sock: Any, seconds: float, handler: Handler | None = None, data: Any = None
    ) -> None:
        """Calls ``handler(sock, data)`` in `seconds`, unless set anew before; without a handler
        the socket is closed then. A negative number clears the deadline."""
        seconds_of(seconds, "seconds")
        if handler is not None and not callable(handler):
            raise TypeError(f"handler {handler!r} is not callable")
        entry = self._entry(sock)
        entry.deadline_handler, entry.deadline_data = handler, data
        if seconds < 0:
            self._clear_deadline(entry)
        else:
            self._set_deadline(entry, seconds)

    def comm_defer(self, sock: Any) -> None:
        """Stops reading: the read slot keeps its handler but is not called until
        :meth:`comm_resume`."""
        entry = self._entry(sock)
        entry.deferred = True
        self._touch(entry)

    def comm_resume(self, sock: Any) -> None:
        """Reads again after :meth:`comm_defer`."""
        entry = self._entry(sock)
        entry.deferred = False
        self._touch(entry)

    def comm_add_event(
        self, seconds: float, fn: Callable[[Any], object], data: Any = None
    ) -> Timer:
        """Calls ``fn(data)`` once, in `seconds`. The timer can be given to
        :meth:`comm_cancel_event`."""
        seconds_of(seconds, "seconds")
        if not callable(fn):
            raise TypeError(f"{fn!r} is not callable")
        self._check_thread()
        return self.timers.schedule(time.monotonic() + max(0.0, seconds), fn, data)

    def comm_cancel_event(self, event: Timer) -> None:
        """Idempotent; also for one that has fired."""
        self._check_thread()
        self.timers.cancel(event)

    def comm_note(self, sock: Any, note: str) -> None:
        """Changes what the descriptor table says of `sock`."""
        self._entry(sock).note = note

    def comm_select(self, msec: float) -> int:
        """One turn of the loop, waiting at most `msec` milliseconds (negative: without limit).

        :returns: COMM_OK where something was done, COMM_TIMEOUT where not.
        """
        seconds = seconds_of(msec, "msec") / 1000
        with self._claimed():
            return COMM_OK if self._turn(seconds) else COMM_TIMEOUT

    def run(self) -> None:
        """Turns until :meth:`stop` or Ctrl-C. After Ctrl-C it returns at the end of the turn; a
        second one raises KeyboardInterrupt where the first is still being obeyed."""
        with self._claimed(), self._interruptible():
            try:
                while not self._stopping:
                    self._turn(-1)
            finally:
                self._stopping = False

    def close(self) -> None:
        """Gives the poller and the wake-up pipe back, until the next turn. Sockets in the table
        stay as they are."""
        self._check_thread()
        self._renew_poller()
        self._waker = None

    # -- a turn --------------------------------------------------------------------------------

    def _turn(self, seconds: float) -> bool:
        self._open_poller()  # before the calls of other threads are taken: they can wake it now
        busy = self._fire_timers()
        incoming = self._incoming
        while incoming:
            self._ready.append(incoming.popleft())
        for _ in range(len(self._ready)):
            fn, args = self._ready.popleft()
            self._guarded(fn, *args)
            busy = True
        self._flush()
        if busy or self._ready or incoming:
            seconds = 0
        else:
            due = self.timers.next_due()
            if due is not None:
                left = max(0.0, due - time.monotonic())
                seconds = left if seconds < 0 else min(seconds, left)
        events = self._open_poller().poll(seconds)
        self.system_calls["poll"] += 1
        self._gone.clear()
        busy = self._dispatch(events) or busy
        return self._fire_timers() or busy

    def _fire_timers(self) -> bool:
        now = time.monotonic()
        fired = False
        while (timer := self.timers.pop_due(now)) is not None:
            fired = True
            self._guarded(timer.callback, *timer.args)
        return fired

    def _dispatch(self, events: list[tuple[int, int]]) -> bool:
        entries = self.table.entries
        done = False
        for fd, mask in events:
            entry = entries.get(fd)
            if entry is None:
                if self._waker is not None and fd == self._waker.reader:
                    self._waker.drain()
                elif fd in self._watched:
                    self._watched[fd]()
                    done = True
                elif fd not in self._gone:
                    # Registered by a descriptor that was closed while a dup or a child holds the
                    # file.
                    self._rebuild = True
                continue
            if entry.stale:
                self.table.drop_stale(entry)
                continue
            mask &= entry.registered
            if not mask:  # the event is a predecessor's
                self._rebuild = self._rebuild or fd not in self._gone
                continue
            if entry.parent is not None:
                entry = entry.parent
            if mask & READ and not (entry.deferred or entry.held):
                read = entry.read_handler
                if read is not None:
                    data, entry.read_handler, entry.read_data = entry.read_data, None, None
                    self._touch(entry)
                    self._guarded(read, entry.sock, data)
                    done = True
            if mask & WRITE:
                write = entry.write_handler
                if write is not None:
                    data, entry.write_handler, entry.write_data = entry.write_data, None, None
                    self._touch(entry)
                    self._guarded(write, entry.sock, data)
                    done = True
        return done

    # -- entries -------------------------------------------------------------------------------

    def _entry(self, thing: Any) -> Entry:
        """The entry of `thing`; a descriptor that is not in the table yet is taken in, and made
        non-blocking."""
        self._check_thread()
        entry = self.table.living(thing) or self.table.find(thing)
        if entry is None:
            return self._adopt(thing)
        if entry.closing:
            raise CommError(errno.EBADF, f"descriptor {entry.fd} is being closed")
        return entry

    def _adopt(self, thing: Any) -> Entry:
        thing, fd = holder(thing), descriptor(thing)
        try:
            if hasattr(thing, "settimeout"):
                thing.settimeout(0)
            else:
                os.set_blocking(fd, False)
            poller = self._open_poller()
            # Now, so that the caller learns what the poller does not take.
            poller.set(fd, 0, READ)
            poller.set(fd, READ, 0)
        except OSError as why:
            code = why.errno or errno.EINVAL
            text = f"descriptor {fd}: {os.strerror(code)}"
            if code == errno.EPERM:
                text = f"descriptor {fd} is a kind of file that cannot be waited for"
            raise CommError(code, text) from why
        return self.table.add(thing, fd)

    def _arm(self, entry: Entry, type: int, handler: Handler | None, data: Any = None) -> None:
        if type & COMM_SELECT_READ:
            entry.read_handler, entry.read_data = handler, data
        if type & COMM_SELECT_WRITE:
            entry.write_handler, entry.write_data = handler, data
        self._touch(entry)

    @staticmethod
    def _unblock(entry: Entry) -> None:
        """Whatever time-out its user gave the socket object: the loop must never wait in it."""
        timeout = getattr(entry.sock, "gettimeout", None)
        if timeout is not None and timeout() != 0:
            entry.sock.settimeout(0)

    @staticmethod
    def _refuse_while(entry: Entry, *operations: str) -> None:
        if not entry.pending:
            return
        for operation in operations:
            if operation in entry.pending:
                raise _busy(entry, operation)

    def _dropped(self, entry: Entry) -> None:
        """An entry left the table without comm_close."""
        if entry.closing:
            return
        if entry.registered:
            self._rebuild = True
        self._release(entry)
        self._ready.append((self._answer_pending, (entry,)))

    def _release(self, entry: Entry) -> None:
        """Nothing of the loop refers to `entry` any more."""
        entry.closing = True
        entry.read_handler = entry.write_handler = None
        entry.read_data = entry.write_data = None
        self._clear_deadline(entry)
        if entry.outgoing is not None:
            forget_outgoing(entry.outgoing)

    def _answer_pending(self, entry: Entry, status: int = COMM_ERR_CLOSING) -> None:
        """Whoever waits for an operation is told; then the close handlers, last in first out."""
        while entry.pending:
            _, answer = entry.pending.popitem()
            self._guarded(answer, status)
        while entry.close_handlers:
            handler, data = entry.close_handlers.pop()
            self._guarded(handler, entry.sock, data)

    # -- deadlines -----------------------------------------------------------------------------

    def _set_deadline(self, entry: Entry, seconds: float) -> None:
        due = time.monotonic() + seconds
        if entry.deadline is None:
            entry.deadline = self.timers.schedule(due, self._deadline_passed, entry)
        else:
            self.timers.move(entry.deadline, due)

    def _clear_deadline(self, entry: Entry) -> None:
        if entry.deadline is not None:
            self.timers.cancel(entry.deadline)

    def _deadline_passed(self, entry: Entry) -> None:
        handler, data = entry.deadline_handler, entry.deadline_data
        entry.deadline_handler = entry.deadline_data = None
        if entry.stale:
            self.table.drop_stale(entry)
        elif handler is None:
            self._close_entry(entry)
        else:
            handler(entry.sock, data)


def _busy(entry: Entry, operation: str) -> CommError:
    text = f"descriptor {entry.fd} is in the middle of a {operation}"
    return CommError(errno.EALREADY if operation == "connect" else errno.EBUSY, text)
