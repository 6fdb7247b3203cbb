"""What reaches a loop from outside: other threads, signals, fork, the end of the process."""

from __future__ import annotations

import abc
import atexit
import contextlib
import errno
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ..errors import CommError

__all__ = ["Outside", "Waker"]


class Waker:
    """A pipe that ends a poll. Its descriptors are closed with the last reference to it, so a
    thread in the middle of :meth:`wake` cannot write into what got the number since."""

    def __init__(self, pipe: tuple[int, int]) -> None:
        self.reader, self._writer = pipe
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.reader, 4096)) == 4096:
                pass

    def __del__(self) -> None:
        os.close(self.reader)
        os.close(self._writer)


class Outside(abc.ABC):
    """Belongs to the thread that runs it; ``call_soon_threadsafe`` and ``stop`` are for all."""

    def __init__(self) -> None:
        self._incoming: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._waker: Waker | None = None
        self._stopping = False
        self._thread: int | None = None
        _loops.add(self)

    def call_soon_threadsafe(self, fn: Callable[..., object], *args: Any) -> None:
        """Has the loop's thread call ``fn(*args)`` at its next turn. From any thread, and from
        signal handlers."""
        if not callable(fn):
            raise TypeError(f"{fn!r} is not callable")
        self._incoming.append((fn, args))
        self._wake()

    def stop(self) -> None:
        """Ends :meth:`run` after the current turn; before it has begun: after none. From any
        thread, and from signal handlers."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        # Without a pipe no loop is waiting yet: its first turn looks at what was set before.
        waker = self._waker
        if waker is not None:
            waker.wake()

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """The calling thread runs the loop."""
        self._check_thread()
        if self._thread is not None:
            raise CommError(errno.EDEADLK, "the loop is running: a handler cannot run it again")
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def _check_thread(self) -> None:
        if self._thread is not None and self._thread != threading.get_ident():
            raise CommError(
                errno.EPERM, "the loop runs in another thread: use call_soon_threadsafe(fn, *args)"
            )

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
            if signal.getsignal(signal.SIGINT) is on_sigint:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _forked(self) -> None:
        """In the child. A handler that forked goes on in both, each with a loop of its own."""
        if self._thread != threading.get_ident():
            self._thread = None
        self._waker = None
        self._after_fork()

    @abc.abstractmethod
    def _after_fork(self) -> None:
        """Lets go of what parent and child must not share."""

    @abc.abstractmethod
    def _at_exit(self) -> None:
        """Closes what the table still holds, so that nothing complains about it later."""


_loops: weakref.WeakSet[Outside] = weakref.WeakSet()


def _after_fork() -> None:
    for loop in list(_loops):
        loop._forked()


def _at_exit() -> None:
    for loop in list(_loops):
        if loop._thread is None:  # a daemon thread may still be using it
            loop._at_exit()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
