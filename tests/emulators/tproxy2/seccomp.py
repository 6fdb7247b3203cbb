"""System calls of another process, answered here: seccomp_unotify(2).

Numbers: linux/seccomp.h, linux/filter.h, linux/audit.h, asm/unistd.h of x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias


@dataclass(frozen=True)
class Machine:
    """An architecture's numbers."""

    audit: int
    seccomp: int
    setsockopt: int
    getsockopt: int


MACHINES: Final = {
    "x86_64": Machine(0xC000003E, 317, 54, 55),
    "aarch64": Machine(0xC00000B7, 277, 208, 209),
}
_PIDFD_OPEN: Final = 434
_PIDFD_GETFD: Final = 438
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 8
ALLOW: Final = 0x7FFF0000
ASK: Final = 0x7FC00000
KILL: Final = 0x80000000
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
# struct seccomp_data: int nr; u32 arch; u64 ip; u64 args[6]
_NR, _ARCH, _ARGS = 0, 4, 16
_NOTIFICATION: Final = struct.Struct("=QII iIQ 6Q")
_RESPONSE: Final = struct.Struct("=QqiI")
_RECV: Final = 0xC0000000 | _NOTIFICATION.size << 16 | 0x2100
_SEND: Final = 0xC0000000 | _RESPONSE.size << 16 | 0x2101
_ID_VALID: Final = 0x80082102  # as it was before 5.17, which newer kernels take too

Instruction: TypeAlias = tuple[int, int, int, int]
"""Code, jump if true, jump if false, k; jumps count from the next instruction."""


def program(machine: Machine, level: int, options: range, action: int) -> list[Instruction]:
    """The filter: ``action`` for setsockopt and getsockopt of these options, ALLOW for all else."""
    # An int argument is the lower half of its register; both machines are little-endian.
    count = len(options)
    return [
        (LOAD, 0, 0, _ARCH),
        (JUMP_EQUAL, 0, count + 6, machine.audit),
        (LOAD, 0, 0, _NR),
        (JUMP_EQUAL, 1, 0, machine.setsockopt),
        (JUMP_EQUAL, 0, count + 3, machine.getsockopt),
        (LOAD, 0, 0, _ARGS + 8),
        (JUMP_EQUAL, 0, count + 1, level),
        (LOAD, 0, 0, _ARGS + 16),
        *((JUMP_EQUAL, count - at, 0, option) for at, option in enumerate(options)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, action),
    ]


def listen(level: int, option: int) -> int:
    """Put the calling thread, and what it starts, under the filter; the descriptor that is asked.

    The thread must be the only one: SECCOMP_FILTER_FLAG_TSYNC, which would take others along, does
    not go together with a listener before 5.7.
    """
    return _install(level, range(option, option + 1), ASK, _NEW_LISTENER)


def forbid(level: int, options: range) -> None:
    """Kill the calling thread's process, and what it starts, at the first use of these options."""
    _install(level, options, KILL, 0)


def _install(level: int, options: range, action: int, flags: int) -> int:
    machine = MACHINES[platform.machine()]
    lines = program(machine, level, options, action)
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("=H6xQ", len(lines), ctypes.addressof(buffer))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    return _syscall(machine.seccomp, _SET_MODE_FILTER, flags, described)


def _call(name: str, *args: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = getattr(libc, name)(*args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def _syscall(*args: int | bytes) -> int:
    return _call("syscall", *(a if isinstance(a, bytes) else ctypes.c_long(a) for a in args))


class Gone(Exception):
    """The process that asked was killed meanwhile: nobody waits for an answer."""


@dataclass(frozen=True)
class Call:
    """One system call that waits for its answer."""

    listener: int
    id: int
    tid: int
    sets: bool
    args: Sequence[int]

    @classmethod
    def next(cls, listener: int) -> Call:
        """The next one that waits; blocks where none does. Raises Gone."""
        buffer = bytearray(_NOTIFICATION.size)  # the kernel wants it zeroed
        try:
            fcntl.ioctl(listener, _RECV, buffer)
        except FileNotFoundError:
            raise Gone from None
        id_, tid, _, number, _, _, *args = _NOTIFICATION.unpack(buffer)
        return cls(listener, id_, tid, number == MACHINES[platform.machine()].setsockopt, args)

    def check(self) -> None:
        """What was read of the process is its own, and of no later one with its number."""
        try:
            fcntl.ioctl(self.listener, _ID_VALID, struct.pack("=Q", self.id))
        except FileNotFoundError:
            raise Gone from None

    def answer(self, code: int) -> None:
        """0 or an errno, as the call's outcome."""
        try:
            fcntl.ioctl(self.listener, _SEND, _RESPONSE.pack(self.id, 0, -code, 0))
        except FileNotFoundError:
            raise Gone from None

    def read(self, place: int, size: int) -> bytes | None:
        """Of the process's memory; None where it has none there (EFAULT)."""
        data = bytearray(size)
        moved = self._move("process_vm_readv", data, place)
        self.check()
        return bytes(data) if moved else None

    def write(self, place: int, data: bytes) -> bool:
        """Whether the process has such memory."""
        self.check()
        return self._move("process_vm_writev", bytearray(data), place)

    def descriptor(self, fd: int) -> int:
        """A copy of the process's descriptor (pidfd_getfd(2)); ``OSError``: EBADF."""
        pidfd = _syscall(_PIDFD_OPEN, int(self.status("Tgid")), 0)
        try:
            self.check()
            return _syscall(_PIDFD_GETFD, pidfd, fd, 0)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise Gone from None
            raise
        finally:
            os.close(pidfd)

    def status(self, name: str) -> str:
        """A line of /proc/TID/status."""
        try:
            lines = Path(f"/proc/{self.tid}/status").read_text().splitlines()
        except OSError:
            raise Gone from None
        self.check()
        return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))

    def _move(self, name: str, data: bytearray, place: int) -> bool:
        """process_vm_readv(2): whether all of it could be moved. Unlike /proc/PID/mem it heeds what
        the process itself may write."""
        if not data:
            return True
        here = ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data))
        local, remote = (struct.pack("=QQ", start, len(data)) for start in (here, place))
        one = ctypes.c_ulong(1)
        try:
            return _call(name, self.tid, local, one, remote, one, ctypes.c_ulong(0)) == len(data)
        except OSError as error:
            if error.errno == errno.EFAULT:
                return False
            if error.errno == errno.ESRCH:
                raise Gone from None
            raise
