"""The program, the filter it runs under, and the thread that answers."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, TypeVar

from emulators.tproxy2 import nat, seccomp
from emulators.tproxy2.kernel import NOWHERE, OPTION, SIZE, Address, Kernel, Socket

from lusca_comm.lab import Channel, Host, Process
from lusca_comm.lab.capabilities import keep_only
from lusca_comm.lab.process import receive_fds

R = TypeVar("R")

_SOL_IP: Final = 0
_SO_COOKIE: Final = 57
_TCP_CLOSE, _TCP_LISTEN = 7, 10
_CAP_NET_ADMIN: Final = 12
_INT_MAX: Final = 0x7FFFFFFF
_WAIT_FOR_END: Final = 0.1
_WHOLE_LAB: Final = 3600.0


def supervise(
    host: Host,
    fn: Callable[..., R],
    *args: Any,
    capabilities: Collection[str] | None = None,
    **kwargs: Any,
) -> Process[R]:
    """``host.start(fn, *args, **kwargs)`` on a machine with cttproxy.

    ``capabilities`` are the program's.
    """

    def serve(channel: Channel) -> R:
        return _serve(lambda: fn(channel, *args, **kwargs), capabilities)

    return host.start(serve)


def _serve(fn: Callable[[], R], capabilities: Collection[str] | None) -> R:
    maps, ends = nat.Maps(), nat.Ends()
    near, far = socket.socketpair()

    def enter() -> None:
        listener = seccomp.listen(_SOL_IP, OPTION)
        socket.send_fds(far, [b"l"], [listener])
        os.close(listener)
        if capabilities is not None:
            keep_only(capabilities)

    program = Process(enter, lambda _: fn(), "the program under cttproxy")
    far.close()
    with near:
        listeners = receive_fds(near, 1)
    if not listeners:
        return program.result()  # raises what kept it from its filter
    answers = Answers(listeners[0], maps, ends)
    thread = threading.Thread(target=answers.serve)
    thread.start()
    try:
        return program.result(_WHOLE_LAB)
    finally:
        program.stop()
        thread.join()
        if answers.error is not None:
            raise answers.error


class Answers:
    """Serves the listener of one filter until nothing runs under it."""

    def __init__(self, listener: int, maps: nat.Maps, ends: nat.Ends) -> None:
        self._listener = listener
        self._maps = maps
        self._ends = ends
        self._kernel = Kernel(nat.chosen_port, nat.forget, _local_ports())
        self.error: BaseException | None = None

    def serve(self) -> None:
        """Returns at the end; what went wrong is in ``error``, and the program gets ENOSYS."""
        try:
            self._serve()
        except BaseException as error:
            self.error = error
        finally:
            os.close(self._listener)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._ends, select.POLLIN)
        while True:
            for fd, event in poll.poll():
                if fd == self._ends.fileno():
                    self._drop_ended()
                elif event & select.POLLIN:
                    with contextlib.suppress(seccomp.Gone):
                        self._one(seccomp.Call.next(self._listener))
                elif event & select.POLLHUP:
                    return

    def _drop_ended(self) -> None:
        for cookie in self._ends.cookies():
            self._kernel.closed(cookie)
        self._apply()

    def _apply(self) -> None:
        self._maps.set(nat.elements(self._kernel.assignments.values()))

    def _one(self, call: seccomp.Call) -> None:
        fd, _, _, place, length, _ = call.args
        try:
            sock = _describe(call.descriptor(fd & 0xFFFFFFFF))
        except OSError as error:
            call.answer(error.errno or errno.EBADF)
            return
        if sock is None:
            call.answer(errno.ENOPROTOOPT)  # another family's handler, which has no such option
        elif call.sets:
            call.answer(self._set(call, sock, place, length & 0xFFFFFFFF))
        else:
            call.answer(self._get(call, sock, place, length))

    def _set(self, call: seccomp.Call, sock: Socket, place: int, size: int) -> int:
        if size > _INT_MAX:
            return errno.EINVAL
        data = call.read(place, min(size, SIZE))
        if data is None:
            return errno.EFAULT
        may = bool(int(call.status("CapEff"), 16) >> _CAP_NET_ADMIN & 1)
        code = self._kernel.setsockopt(sock, may, data)
        while code in (errno.EEXIST, errno.EADDRINUSE) and self._end_comes():
            code = self._kernel.setsockopt(sock, may, data)
        self._apply()
        return code

    def _end_comes(self) -> bool:
        """The kernel tells of a socket's end a moment after its close(2)."""
        if not select.select([self._ends], [], [], _WAIT_FOR_END)[0]:
            return False
        self._drop_ended()
        return True

    def _get(self, call: seccomp.Call, sock: Socket, place: int, length: int) -> int:
        raw = call.read(length, 4)
        if raw is None:
            return errno.EFAULT
        data = call.read(place, min(struct.unpack("=I", raw)[0], SIZE))
        if data is None:
            return errno.EFAULT
        answer = self._kernel.getsockopt(sock, data)
        self._apply()
        return answer.code if call.write(place, answer.data) else errno.EFAULT


def _describe(fd: int) -> Socket | None:
    """What the option's handler would see of the socket, which is closed; None: not AF_INET.

    ``OSError``: ENOTSOCK.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise
    with sock:
        if sock.family != socket.AF_INET:
            return None
        protocol = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}.get(sock.proto, "other")
        (cookie,) = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))
        remote: Address = NOWHERE
        with contextlib.suppress(OSError):
            remote = sock.getpeername()
        connected = remote != NOWHERE
        if protocol == "tcp":
            state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            connected = state not in (_TCP_CLOSE, _TCP_LISTEN)
        reuse = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
        return Socket(cookie, protocol, sock.getsockname(), remote, connected, reuse)


def _local_ports() -> range:
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return range(int(first), int(last) + 1)
