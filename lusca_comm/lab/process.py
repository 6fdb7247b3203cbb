"""Functions that run in forked children: results, exceptions and messages come back by pipe."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any, Generic, TypeVar

from lusca_comm.errors import CommError
from lusca_comm.lab.namespaces import die_with
from lusca_comm.lab.waiting import LabTimeout, wait_for

__all__ = ["Channel", "ChildError", "ChildTraceback", "Process", "fork_allowed", "receive_fds"]

R = TypeVar("R")


class ChildError(CommError):
    """A child ended without a result, or with an exception that can't be pickled."""


class ChildTraceback(Exception):
    """The cause of an exception that was raised in a child: its text is the child's traceback."""

    def __str__(self) -> str:
        return f"\n\nin the child process:\n{self.args[0]}"


class Channel:
    """The child's end of the pipe to the process that started it. Objects travel pickled."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, obj: object) -> None:
        """Give the starter an object, for its :meth:`Process.recv`."""
        self._connection.send_bytes(pickle.dumps(("message", obj)))

    def recv(self, timeout: float | None = None) -> Any:
        """The starter's next object; ``LabTimeout`` after ``timeout`` seconds (None: never)."""
        if not self._connection.poll(timeout):
            raise LabTimeout(errno.ETIMEDOUT, f"no message from the starter in {timeout:g} s")
        return pickle.loads(self._connection.recv_bytes())


class Process(Generic[R]):
    """A function running in a forked child, as :meth:`Host.start` makes it; ``pid`` is its id.

    The child never outlives the THREAD that started it: the kernel kills it (prctl(2)). It holds
    copies of all descriptors that were open when it began, so a socket closed elsewhere sends no
    FIN while a child has it: ``shutdown()`` it first. SIGINT and SIGTERM do in it what they do in
    a fresh interpreter.
    """

    def __init__(self, enter: Callable[[], None], fn: Callable[[Channel], R], what: str) -> None:
        near, far = Pipe()
        self._stack = os.memfd_create("stack", os.MFD_CLOEXEC)
        starter = os.getpid()
        sys.stdout.flush()  # or the child would print it a second time
        sys.stderr.flush()
        # A Ctrl-C must not unwind the child into the caller's frames: it waits until _enter().
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with fork_allowed():
                self.pid = os.fork()
            if self.pid == 0:
                _child(far, lambda: _enter(near, enter, starter, self._stack), fn)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        far.close()
        self._connection = near
        self._what = what
        self._messages: deque[Any] = deque()
        self._end: tuple[str, Any] | None = None
        self._status: int | None = None

    def __repr__(self) -> str:
        return f"<Process {self.pid}: {self._what}>"

    def send(self, obj: object) -> None:
        """Give the child an object, for its ``channel.recv()``; ``ChildError`` if it has ended."""
        try:
            self._connection.send_bytes(pickle.dumps(obj))
        except (BrokenPipeError, ConnectionResetError):
            raise self._gone() from None

    def recv(self, timeout: float = 30.0) -> Any:
        """The child's next message.

        Raises the child's exception if that comes instead, ``ChildError`` if it ended without
        another message, ``LabTimeout`` after ``timeout`` seconds.
        """
        if not self._messages and self._end is None and not self._turn(timeout):
            raise self._late(f"no message from {self._what} in {timeout:g} s")
        if self._messages:
            return self._messages.popleft()
        self._unwrap()
        raise ChildError(errno.EPIPE, f"{self._what} returned without sending another message")

    def result(self, timeout: float = 30.0) -> R:
        """Wait for the function's end: its value, or its exception raised here.

        ``LabTimeout`` after ``timeout`` seconds, saying where the child is; it goes on.
        ``ChildError`` if it died.
        """
        limit = time.monotonic() + timeout
        while self._end is None:
            if not self._turn(max(0.0, limit - time.monotonic())):
                raise self._late(f"{self._what} still runs after {timeout:g} s")
        value: R = self._unwrap()
        return value

    def stop(self) -> None:
        """Kill the child if it still runs, and reap it. A second call does nothing."""
        if self._connection.closed:
            return
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            self._wait(0)
        self._connection.close()
        os.close(self._stack)

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._wait(os.WNOHANG) is None

    def _wait(self, options: int) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # the caller reaps every child, as an init does
                pid, status = self.pid, 0
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def _turn(self, timeout: float) -> bool:
        """Take one message from the child, into the queue or as its end; False: none came."""
        try:
            if not self._connection.poll(timeout):
                return False
            kind, obj = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            kind, obj = "error", (self._gone(), "")
        if kind == "message":
            self._messages.append(obj)
        else:
            self._end = kind, obj
        return True

    def _unwrap(self) -> Any:
        assert self._end is not None
        kind, value = self._end
        if kind == "error":
            error, text = value
            raise error from (ChildTraceback(text) if text else None)
        return value

    def _gone(self) -> ChildError:
        status = self._wait(0)
        how = f"signal {-status}" if status and status < 0 else f"exit status {status}"
        return ChildError(errno.ECHILD, f"{self._what} ended with {how} before it returned")

    def _late(self, text: str) -> LabTimeout:
        """The exception for a child that takes too long, with the stacks of its threads."""
        before = os.fstat(self._stack).st_size
        with contextlib.suppress(ProcessLookupError, LabTimeout):
            os.kill(self.pid, signal.SIGQUIT)
            wait_for(lambda: os.fstat(self._stack).st_size > before, 1.0)
        stack = os.pread(self._stack, 1 << 16, before).decode(errors="replace")
        return LabTimeout(errno.ETIMEDOUT, f"{text}; it is here:\n{stack}" if stack else text)


def receive_fds(sock: socket.socket, most: int) -> list[int]:
    """Descriptors from ``socket.send_fds()``, kept from programs that this process starts.

    ``socket.recv_fds()`` can't do that: it ignores its flags.
    """
    fds = array("i")
    room = socket.CMSG_LEN(most * fds.itemsize)
    _, control, _, _ = sock.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
    for _, _, data in control:
        fds.frombytes(data[: len(data) // fds.itemsize * fds.itemsize])
    return list(fds)


@contextlib.contextmanager
def fork_allowed() -> Iterator[None]:
    """Silence the warning that Python 3.12 and newer give when a process with threads forks.

    The child of such a fork may find a lock held for ever by a thread that it does not have. Only
    a fork can take a function with its closure into another namespace; the children here take no
    lock of the parent's but those of the interpreter, which it resets itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        yield


def _enter(near: Connection, enter: Callable[[], None], starter: int, stack: int) -> None:
    near.close()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    faulthandler.register(signal.SIGQUIT, stack)
    gc.freeze()  # collecting the parent's garbage here would run its finalizers twice
    enter()
    die_with(starter)


def _child(
    connection: Connection, enter: Callable[[], None], fn: Callable[[Channel], object]
) -> None:
    """The child's whole life. It never returns: neither atexit nor the caller's frames run."""
    try:
        try:
            enter()
            last = pickle.dumps(("result", fn(Channel(connection))))
        except BaseException as error:
            last = _pickled_error(error)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        with contextlib.suppress(OSError):
            connection.send_bytes(last)
    finally:
        os._exit(0)


def _pickled_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        data = pickle.dumps(("error", (error, text)))
        pickle.loads(data)
    except Exception:
        stand_in = ChildError(errno.ECHILD, f"{type(error).__name__}: {error}")
        data = pickle.dumps(("error", (stand_in, text)))
    return data
