"""The loop: select slots over a poller, timers, wake-up from other threads, signals, fork.

Order of a turn: due timers, calls that were put off, changes of interest to the poller, the poll,
one pass over what is ready. Interest is compared with what the poller knows once a turn, so a
handler that arms its slot again, the usual case, costs no system call.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import logging
import os
import select
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ..address import descriptor
from ..constants import (
    COMM_ERR_CLOSING,
    COMM_OK,
    COMM_SELECT_READ,
    COMM_SELECT_WRITE,
    COMM_TIMEOUT,
)
from ..errors import CommError
from ..fdtable import Entry, FdTable, Handler
from ..intercept import forget_outgoing
from .poller import READ, WRITE, Poller
from .timers import Timer, Timers

__all__ = ["Loop"]

_log = logging.getLogger("lusca_comm")


def _default_poller() -> Poller:
    if hasattr(select, "epoll"):
        from .epoll import EpollPoller

        return EpollPoller()
    if hasattr(select, "kqueue"):
        from .kqueue import KqueuePoller

        return KqueuePoller()
    raise CommError(errno.ENOTSUP, "this system has neither epoll nor kqueue")


def _log_exception(why: BaseException, where: str) -> None:
    _log.error("%s raised", where, exc_info=why)


class Loop(abc.ABC):
    """Readiness, time and calls from outside; what the comm calls stand on.

    It is used from one thread, the one that runs it; ``call_soon_threadsafe`` is the exception.
    """

    def __init__(self, *, poller: Callable[[], Poller] = _default_poller) -> None:
        self.timers = Timers()
        self.table = FdTable(self._dropped)
        self.exception_hook: Callable[[BaseException, str], object] = _log_exception
        """``hook(exception, where)`` for what a handler raises; it never ends the loop."""
        self.system_calls: dict[str, int] = dict.fromkeys(
            ("poll", "interest", "open", "accept", "connect", "read", "write", "close"), 0
        )
        self._make_poller = poller
        self._poller: Poller | None = None
        self._rebuild = False
        self._polled = 0  # polls so far: an entry born since the last one has no event in it
        self._dirty: list[Entry] = []
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._incoming: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._wake_pipe: tuple[int, int] | None = None
        self._gone: set[int] = set()  # closed since the last poll: their events may be in the batch
        self._stopping = False
        self._thread: int | None = None
        _loops.add(self)

    # -- the user's calls ----------------------------------------------------------------------

    def comm_set_select(
        self, sock: Any, type: int, handler: Handler | None, data: Any = None, timeout: float = 0
    ) -> None:
        """Calls ``handler(sock, data)`` ONCE, when `sock` is ready.

        :param type: COMM_SELECT_READ, COMM_SELECT_WRITE, or both; the two slots are independent.
        :param handler: None cancels. Arm again first thing in the handler to hear of it again.
        :param timeout: seconds; above 0 it sets the deadline of `sock` (:meth:`comm_set_timeout`).
        :raises CommError: EBADF closed, EINVAL no such type, EPERM a kind of file that is always
            ready (epoll takes no regular files).
        """
        if type not in (1, 2, 3):
            raise CommError(errno.EINVAL, "type is COMM_SELECT_READ, COMM_SELECT_WRITE or both")
        if handler is not None and not callable(handler):
            raise TypeError(f"handler {handler!r} is not callable")
        entry = self._entry(sock)
        if type & COMM_SELECT_READ:
            entry.read_handler, entry.read_data = handler, data
        if type & COMM_SELECT_WRITE:
            entry.write_handler, entry.write_data = handler, data
        self._touch(entry)
        if timeout > 0:
            self._set_deadline(entry, timeout)

    def comm_set_timeout(
        self, sock: Any, seconds: float, handler: Handler | None = None, data: Any = None
    ) -> None:
        """Calls ``handler(sock, data)`` in `seconds`, unless set anew before; without a handler
        the socket is closed then. A negative number clears the deadline."""
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
        if not callable(fn):
            raise TypeError(f"{fn!r} is not callable")
        self._check_thread()
        return self.timers.schedule(time.monotonic() + max(0.0, seconds), fn, data)

    def comm_cancel_event(self, event: Timer) -> None:
        """Idempotent; also for one that has fired."""
        self.timers.cancel(event)

    def call_soon_threadsafe(self, fn: Callable[..., object], *args: Any) -> None:
        """Has the loop's thread call ``fn(*args)`` at its next turn. From any thread, and from
        signal handlers."""
        self._incoming.append((fn, args))
        self._wake()

    def comm_select(self, msec: float) -> int:
        """One turn of the loop, waiting at most `msec` milliseconds (negative: without limit).

        :returns: COMM_OK where something was done, COMM_TIMEOUT where not.
        """
        self._claim()
        try:
            return COMM_OK if self._turn(msec / 1000 if msec >= 0 else -1) else COMM_TIMEOUT
        finally:
            self._thread = None

    def run(self) -> None:
        """Turns until :meth:`stop` or Ctrl-C. After Ctrl-C it returns at the end of the turn; a
        second one raises KeyboardInterrupt where the first is still being obeyed."""
        self._claim()
        try:
            with self._interruptible():
                while not self._stopping:
                    self._turn(-1)
        finally:
            self._thread = None
            self._stopping = False

    def stop(self) -> None:
        """Ends :meth:`run` after the current turn; before it has begun: after none."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Gives the poller and the wake-up pipe back. Sockets in the table stay as they are."""
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        if self._wake_pipe is not None:
            for fd in self._wake_pipe:
                os.close(fd)
            self._wake_pipe = None

    # -- a turn --------------------------------------------------------------------------------

    def _turn(self, seconds: float) -> bool:
        busy = self._fire_timers()
        for _ in range(len(self._incoming)):
            self._ready.append(self._incoming.popleft())
        for _ in range(len(self._ready)):
            fn, args = self._ready.popleft()
            self._guarded(fn, *args)
            busy = True
        self._flush()
        if busy or self._ready or self._incoming or self._stopping:
            seconds = 0
        else:
            due = self.timers.next_due()
            if due is not None:
                left = max(0.0, due - time.monotonic())
                seconds = left if seconds < 0 else min(seconds, left)
        events = self._open_poller().poll(seconds)
        self.system_calls["poll"] += 1
        self._polled += 1
        self._gone.clear()
        busy = self._dispatch(events) or busy
        return self._fire_timers() or busy

    def _fire_timers(self) -> bool:
        due = self.timers.take_due(time.monotonic())
        for timer in due:
            if timer.due is not None:
                timer.due = None
                self._guarded(timer.callback, *timer.args)
        return bool(due)

    def _dispatch(self, events: list[tuple[int, int]]) -> bool:
        entries = self.table.entries
        done = False
        for fd, mask in events:
            entry = entries.get(fd)
            if entry is None:
                if self._wake_pipe is not None and fd == self._wake_pipe[0]:
                    self._drain_wake()
                    continue
                # Registered by a descriptor that was closed while a dup or a child holds the file.
                self._rebuild = self._rebuild or fd not in self._gone
                continue
            if entry.born == self._polled:
                continue  # opened by a handler since the poll: the event was its predecessor's
            if entry.stale:
                self.table.drop_stale(entry)
                continue
            if not mask & entry.registered:
                self._rebuild = True
                continue
            if mask & READ and entry.read_handler is not None and entry.wants & READ:
                handler, entry.read_handler = entry.read_handler, None
                data, entry.read_data = entry.read_data, None
                self._touch(entry)
                self._guarded(handler, entry.sock, data)
                done = True
            if mask & WRITE and entry.write_handler is not None and not entry.closing:
                handler, entry.write_handler = entry.write_handler, None
                data, entry.write_data = entry.write_data, None
                self._touch(entry)
                self._guarded(handler, entry.sock, data)
                done = True
        return done

    def _guarded(self, fn: Callable[..., object], *args: Any) -> None:
        try:
            fn(*args)
        except Exception as why:
            where = getattr(fn, "__qualname__", repr(fn))
            try:
                self.exception_hook(why, where)
            except Exception as worse:
                _log_exception(worse, "exception_hook")

    # -- interest ------------------------------------------------------------------------------

    def _touch(self, entry: Entry) -> None:
        if not entry.dirty:
            entry.dirty = True
            self._dirty.append(entry)

    def _flush(self) -> None:
        if self._rebuild:
            self._renew_poller()
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for entry in dirty:
                entry.dirty = False
                if entry.closing or entry.wants == entry.registered:
                    continue
                if entry.stale:
                    self.table.drop_stale(entry)
                    continue
                try:
                    self._set_interest(entry, entry.wants)
                except OSError as why:
                    # Its handlers would never be called again: say so, and let it go.
                    entry.error = why.errno or 0
                    self.table.drop_stale(entry)
                    self._guarded(self._raise, why)

    @staticmethod
    def _raise(why: BaseException) -> None:
        raise why

    def _set_interest(self, entry: Entry, wants: int) -> None:
        before, entry.registered = entry.registered, wants
        if before != wants:
            self.system_calls["interest"] += 1
            try:
                self._open_poller().set(entry.fd, before, wants)
            except OSError:
                entry.registered = before
                raise

    def _open_poller(self) -> Poller:
        if self._poller is None:
            self._poller = self._make_poller()
            if self._wake_pipe is None:
                self._wake_pipe = _pipe()
            self._poller.set(self._wake_pipe[0], 0, READ)
        return self._poller

    def _renew_poller(self) -> None:
        """A fresh poller that knows the living entries only."""
        self._rebuild = False
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        for entry in self.table:
            entry.registered = 0
            self._touch(entry)

    # -- entries -------------------------------------------------------------------------------

    def _entry(self, thing: Any) -> Entry:
        """The entry of `thing`; a descriptor that is not in the table yet is taken in, and made
        non-blocking."""
        self._check_thread()
        entry = self.table.find_object(thing)
        if entry is None or entry.stale:
            entry = self.table.find(thing)
        if entry is None:
            return self._adopt(thing)
        if entry.closing:
            raise CommError(errno.EBADF, f"descriptor {entry.fd} is being closed")
        return entry

    def _adopt(self, thing: Any) -> Entry:
        fd = descriptor(thing)
        try:
            settimeout = getattr(thing, "settimeout", None)
            if settimeout is not None:
                settimeout(0)
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
        return self.table.add(thing, fd, self._polled)

    def _dropped(self, entry: Entry) -> None:
        """An entry left the table without comm_close."""
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
        if handler is None:
            self._close_entry(entry)
        else:
            handler(entry.sock, data)

    @abc.abstractmethod
    def _close_entry(self, entry: Entry) -> None:
        """sockets.py says what closing means."""

    # -- threads, signals, fork ----------------------------------------------------------------

    def _claim(self) -> None:
        self._check_thread()
        if self._thread is not None:
            raise CommError(errno.EDEADLK, "the loop is running: a handler cannot run it again")
        self._thread = threading.get_ident()
        self._open_poller()

    def _check_thread(self) -> None:
        if self._thread is not None and self._thread != threading.get_ident():
            raise CommError(
                errno.EPERM, "the loop runs in another thread: use call_soon_threadsafe(fn, *args)"
            )

    def _wake(self) -> None:
        # Without a pipe no loop is waiting yet: its first turn looks at what was set before.
        if self._wake_pipe is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_pipe[1], b"\0")

    def _drain_wake(self) -> None:
        assert self._wake_pipe is not None
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._wake_pipe[0], 4096)) == 4096:
                pass

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C stops the loop, where the program left SIGINT as Python sets it."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return

        def on_sigint(signum: int, frame: FrameType | None) -> None:
            if self._stopping:
                signal.default_int_handler(signum, frame)
            self.stop()

        signal.signal(signal.SIGINT, on_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _after_fork(self) -> None:
        """In the child: a poller of its own. The parent's epoll is the same open file in both, so
        it must not be changed from here; closing the number does not touch it."""
        self._thread = None
        if self._poller is not None or self._wake_pipe is not None:
            self.close()
        for entry in self.table:
            entry.registered = 0
            self._touch(entry)


def _pipe() -> tuple[int, int]:
    r, w = os.pipe()
    os.set_blocking(r, False)
    os.set_blocking(w, False)
    return r, w


_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


def _loops_after_fork() -> None:
    for loop in list(_loops):
        loop._after_fork()


os.register_at_fork(after_in_child=_loops_after_fork)
