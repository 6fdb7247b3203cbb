"""One host of a lab: what runs in it, and its settings."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lusca_comm.errors import CommError
from lusca_comm.lab import capabilities as caps
from lusca_comm.lab.namespaces import Namespaces, die_with
from lusca_comm.lab.network import add_route
from lusca_comm.lab.process import Channel, Process, fork_allowed, receive_fds
from lusca_comm.lab.waiting import wait_for

if TYPE_CHECKING:
    from lusca_comm.lab.topology import Lab

__all__ = ["Host"]

R = TypeVar("R")

_TCP_LISTEN = "0A"  # linux/tcp_states.h


class Host:
    """A network of its own: interfaces, routes, firewall, sysctls, /sys and mounts.

    Made by :meth:`Lab.host`. Everything that acts in it is a child process, forked here and moved
    there; closures and open descriptors go along. ``capabilities`` gives a child exactly those
    (None: all that the lab has), to test what happens without them. Its uid is 0 all the same,
    and that alone lets it write the host's sysctls.
    """

    def __init__(self, lab: Lab, name: str, namespaces: Namespaces) -> None:
        self.name = name
        self._lab = lab
        self._namespaces = namespaces
        self._interfaces: list[str] = ["lo"]

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    def run(
        self,
        fn: Callable[..., R],
        *args: Any,
        timeout: float = 30.0,
        capabilities: Collection[str] | None = None,
        **kwargs: Any,
    ) -> R:
        """Call ``fn`` in this host; its result, which must be picklable, or its exception.

        The exception has the child's traceback as its cause. ``LabTimeout`` after ``timeout``
        seconds (the child is killed), ``ChildError`` if the child died.
        """
        child = self._fork(lambda _: fn(*args, **kwargs), fn, capabilities)
        try:
            return child.result(timeout)
        finally:
            child.stop()

    def start(
        self,
        fn: Callable[..., R],
        *args: Any,
        capabilities: Collection[str] | None = None,
        **kwargs: Any,
    ) -> Process[R]:
        """Call ``fn(channel, *args, **kwargs)`` in this host, in the background.

        The child is killed when the lab is closed, and when the thread that started it ends.
        """
        process = self._fork(lambda channel: fn(channel, *args, **kwargs), fn, capabilities)
        self._lab._processes.append(process)
        return process

    def popen(
        self,
        args: Sequence[str | os.PathLike[str]],
        *,
        capabilities: Collection[str] | None = None,
        **kwargs: Any,
    ) -> subprocess.Popen[Any]:
        """Start an unmodified program in this host; ``kwargs`` are those of ``subprocess.Popen``.

        It is killed when the lab is closed, and when the thread that started it ends.
        """
        enter, starter = self._entry(capabilities), os.getpid()

        def before_exec() -> None:
            enter()
            die_with(starter)

        with fork_allowed():
            program = subprocess.Popen(args, preexec_fn=before_exec, **kwargs)
        self._lab._programs.append(program)
        return program

    def check_output(
        self, args: Sequence[str | os.PathLike[str]], *, timeout: float = 30.0, **kwargs: Any
    ) -> str:
        """Run a program in this host; what it printed.

        ``subprocess.CalledProcessError`` for an exit status other than 0,
        ``subprocess.TimeoutExpired`` after ``timeout`` seconds (it is killed).
        """
        program = self.popen(args, stdout=subprocess.PIPE, text=True, **kwargs)
        with program:
            try:
                output, _ = program.communicate(timeout=timeout)
            finally:
                program.kill()
        if program.returncode:
            raise subprocess.CalledProcessError(program.returncode, args, output)
        return str(output)

    def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
    ) -> socket.socket:
        """A socket of this host's network for use in the calling process.

        Children that are started later hold copies of it, so ``shutdown()`` it before ``close()``
        where the peer must see the end.
        """
        near, far = socket.socketpair()

        def make() -> None:
            with socket.socket(family, type, proto) as made:
                socket.send_fds(far, [b"s"], [made.fileno()])

        with near, far:
            self.run(make)
            (fd,) = receive_fds(near, 1)
        return socket.socket(fileno=fd)

    def wait_listening(self, port: int, timeout: float = 30.0) -> None:
        """Wait until a TCP socket of this host listens on ``port``: a program is ready.

        Nothing connects to it. ``LabTimeout`` after ``timeout`` seconds.
        """
        what = f"a listener on port {port} of {self.name}"
        self.run(wait_for, partial(_listening, port), timeout, what, timeout=timeout + 30)

    def sysctl(self, name: str, value: object = None) -> str:
        """The value of a ``net.`` sysctl, set to ``value`` first unless that is None.

        With a ``/`` in it ``name`` is a path below /proc/sys (an interface's name may have dots).
        """
        path = name if "/" in name else name.replace(".", "/")
        if not path.startswith("net/"):
            raise CommError(errno.EINVAL, f"sysctl {name} is not of one host: only net.* is")

        def access() -> str:
            file = Path("/proc/sys", path)
            if value is not None:
                file.write_text(str(value))
            return file.read_text().strip()

        try:
            return self.run(access)
        except OSError as error:
            number = error.errno or errno.EIO
            to = "" if value is None else f" = {value}"
            text = f"{self.name}: sysctl {name}{to}: {os.strerror(number)}"
            raise CommError(number, text) from error

    def route(
        self,
        destination: str,
        *,
        via: str | None = None,
        device: str | None = None,
        local: bool = False,
    ) -> None:
        """Add a route to a network, or to "default" with the family of ``via``.

        ``local`` takes packets for the whole network in as this host's own (AnyIP).
        ``CommError`` with the kernel's errno where it refuses.
        """
        self.run(add_route, destination, via, device, local)

    def _fork(
        self, body: Callable[[Channel], R], fn: Callable[..., R], names: Collection[str] | None
    ) -> Process[R]:
        what = f"{getattr(fn, '__qualname__', repr(fn))} in {self.name}"
        return Process(self._entry(names), body, what)

    def _entry(self, names: Collection[str] | None) -> Callable[[], None]:
        self._lab._require_open()
        if names is not None:
            caps.check(names)

        def enter() -> None:
            self._namespaces.join()
            if names is not None:
                caps.keep_only(names)

        return enter


def _listening(port: int) -> bool:
    for table in ("tcp", "tcp6"):  # proc_pid_net(5): slot, local address:port, peer, state, ...
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _TCP_LISTEN and int(local.rpartition(":")[2], 16) == port:
                return True
    return False
