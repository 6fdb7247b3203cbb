"""Worker processes that take connections from listening sockets which their parent keeps open.

A listening socket's queue lives as long as its last descriptor: when that is closed, the
connections in it are reset (Linux: ``inet_csk_listen_stop``). With SO_REUSEPORT every worker has a
socket, hence a queue, of its own, and the kernel chooses one by a hash, its worker alive or not. So
the parent, which never accepts, holds all of them, and a worker's replacement inherits its
predecessor's: what waited in the queue is served, and nothing is reset.

Workers are forked, not executed, so privileges are dropped and the listeners opened before
:meth:`Workers.start`, and the process has no other threads by then. Signals are the parent's: a
worker ignores those that stop or reload a program, because a terminal and a service manager send
them to every process at once, and does what it is told through its channel instead.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NamedTuple, NoReturn

from .errors import CommError

__all__ = ["Ended", "Seat", "Workers", "back_off"]

STEADY = 10.0
"""Seconds that a worker lives before its end no longer counts as part of a crash loop."""

_SLOWEST = 5.0
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def back_off(ends: int) -> float:
    """Seconds until the next start, after so many early ends in a row: 0, 0.1, 0.2, ... 5."""
    return 0.0 if ends <= 1 else min(0.1 * 2.0 ** min(ends - 2, 10), _SLOWEST)


class Seat(NamedTuple):
    """What a worker has."""

    number: int
    listeners: Sequence[socket.socket]
    channel: Connection
    """To the parent and from it, pickled objects. At its end (EOFError) the parent is gone."""


class Ended(NamedTuple):
    """How a worker ended."""

    number: int
    pid: int
    """0: it could not be started."""
    status: int
    """The exit status; negative: the signal that killed it; of one that could not be started,
    the errno."""
    again: float | None
    """Seconds until another takes its place; None: none does."""

    def __str__(self) -> str:
        if self.pid == 0:
            return f"could not be started: {os.strerror(self.status)}"
        if self.status >= 0:
            return f"ended with status {self.status}"
        try:
            return f"was killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"was killed by signal {-self.status}"


class _Place:
    """A worker, or the want of one."""

    def __init__(self, number: int, listeners: Sequence[socket.socket]) -> None:
        self.number = number
        self.listeners = listeners
        self.channel: Connection | None = None  # None: no process
        self.pid = 0
        self.since = 0.0
        self.early = 0  # ends in a row, each soon after its start
        self.due = math.inf  # when the next is started


class Workers:
    """As many processes as there are sets of listeners, each started again when it ends.

    :param listeners: for each worker its own; the parent's descriptors stay open until
        :meth:`finish`.
    :param main: ``main(seat)`` is a worker's life and returns its exit status. It leaves neither by
        returning into the caller's frames nor through atexit.
    :param on_message: ``on_message(number, obj)`` for what a worker sends.
    :param on_ended: ``on_ended(Ended)`` for each end.

    Callbacks are called by :meth:`turn`. The first restart is immediate, those of a crash loop wait
    (:func:`back_off`). More than one worker: each is placed on a core of its own as far as there
    are cores, where the system can do that (sched_setaffinity(2)).
    """

    def __init__(
        self,
        listeners: Sequence[Sequence[socket.socket]],
        main: Callable[[Seat], int],
        on_message: Callable[[int, Any], object],
        on_ended: Callable[[Ended], object],
    ) -> None:
        self._places = [_Place(number, own) for number, own in enumerate(listeners)]
        self._main = main
        self._on_message = on_message
        self._on_ended = on_ended
        self._finishing = False
        can = hasattr(os, "sched_getaffinity") and len(self._places) > 1
        self._cores = sorted(os.sched_getaffinity(0)) if can else []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        """Kills what still runs, and reaps it."""
        self.finish()
        self.kill()
        for place in self._places:
            if place.channel is not None:
                self._reap(place)

    @property
    def pids(self) -> dict[int, int]:
        """The process of each worker that runs, by its number."""
        return {place.number: place.pid for place in self._places if place.channel is not None}

    def start(self) -> None:
        """Forks all of them. Raises CommError (EAGAIN, ENOMEM) where the system refuses."""
        for place in self._places:
            try:
                self._fork(place)
            except OSError as why:
                code = why.errno or errno.EAGAIN
                raise CommError(code, f"no process for a worker: {os.strerror(code)}") from why

    def tell(self, obj: object) -> frozenset[int]:
        """Sends every worker an object; the numbers of those that could be told."""
        told = set()
        for place in self._places:
            if place.channel is not None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    place.channel.send(obj)
                    told.add(place.number)
        return frozenset(told)

    def turn(self, timeout: float | None, *others: Any) -> list[Any]:
        """Waits until a worker says something, ends or is to be started, one of `others` (anything
        with ``fileno()``) is readable, or `timeout` seconds have passed. Returns those of `others`
        that are readable."""
        channels = {place.channel: place for place in self._places if place.channel is not None}
        due = min((place.due for place in self._places), default=math.inf)
        if due < math.inf:
            left = max(0.0, due - time.monotonic())
            timeout = left if timeout is None else min(timeout, left)
        ready = wait([*channels, *others], timeout)
        for one in ready:
            if one in channels:
                self._hear(channels[one])
        for place in self._places:
            if place.due <= time.monotonic():
                self._again(place)
        return [other for other in others if other in ready]

    def finish(self) -> None:
        """No worker is started any more, and the listeners are closed here. Those that run go on
        until they are told otherwise."""
        self._finishing = True
        for place in self._places:
            place.due = math.inf
            for sock in place.listeners:
                sock.close()

    def kill(self) -> None:
        """SIGKILL to all that run. The system ends their connections, and not each with a reset."""
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own

    # -- one worker ----------------------------------------------------------------------------

    def _fork(self, place: _Place) -> None:
        place.due = math.inf
        near, far = Pipe()
        sys.stdout.flush()  # or the child would write it a second time
        sys.stderr.flush()
        # None may run the parent's handlers in the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                near.close()
                self._live(place, far, mask)
        except OSError:
            near.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            far.close()
        place.channel, place.pid, place.since = near, pid, time.monotonic()

    def _live(self, place: _Place, channel: Connection, mask: set[int]) -> NoReturn:
        """The child, until its end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _IGNORED:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for other in self._places:
                if other.channel is not None:
                    other.channel.close()
                if other is not place:
                    for sock in other.listeners:
                        sock.close()
            if self._cores:
                with contextlib.suppress(OSError):  # the core was taken offline
                    os.sched_setaffinity(0, {self._cores[place.number % len(self._cores)]})
            status = self._main(Seat(place.number, place.listeners, channel))
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _hear(self, place: _Place) -> None:
        assert place.channel is not None
        try:
            obj = place.channel.recv()
        except (EOFError, OSError):
            self._ended(place)
        else:
            self._on_message(place.number, obj)

    def _reap(self, place: _Place) -> int:
        assert place.channel is not None
        place.channel.close()
        place.channel = None
        try:
            return os.waitstatus_to_exitcode(os.waitpid(place.pid, 0)[1])
        except ChildProcessError:  # SIGCHLD is ignored, or another part of the program reaps
            return 0

    def _ended(self, place: _Place) -> None:
        """The channel has ended, and that is the process's doing alone, at its end."""
        pid, status = place.pid, self._reap(place)
        self._on_ended(Ended(place.number, pid, status, self._delay(place)))

    def _delay(self, place: _Place) -> float | None:
        if self._finishing:
            return None
        now = time.monotonic()
        place.early = 1 if now - place.since >= STEADY else place.early + 1
        delay = back_off(place.early)
        place.due = now + delay
        return delay

    def _again(self, place: _Place) -> None:
        place.since = time.monotonic()
        try:
            self._fork(place)
        except OSError as why:
            code = why.errno or errno.EAGAIN
            self._on_ended(Ended(place.number, 0, code, self._delay(place)))
