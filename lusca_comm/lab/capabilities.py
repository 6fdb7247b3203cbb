"""Capabilities by name, for children that must lack some of them (capabilities(7))."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Collection

from lusca_comm.errors import CommError

__all__ = ["check", "effective", "keep_only"]

# linux/capability.h: the position is the number
_IN_ORDER = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID "
    "CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST "
    "CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO "
    "CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE "
    "CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE "
    "CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM "
    "CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE"
)
_NAMES = _IN_ORDER.split()
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _call(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def effective() -> frozenset[str]:
    """The calling thread's effective capabilities."""
    data = (_Data * 2)()
    _call("capget", ctypes.byref(_Header(_VERSION_3, 0)), data)
    bits = data[0].effective | data[1].effective << 32
    return frozenset(name for number, name in enumerate(_NAMES) if bits >> number & 1)


def check(names: Collection[str]) -> None:
    """``CommError`` (EINVAL) for a name that is not a capability's."""
    if unknown := set(names) - set(_NAMES):
        raise CommError(
            errno.EINVAL,
            f"not a capability: {', '.join(sorted(unknown))}; names are as in capabilities(7), "
            "CAP_NET_RAW for one",
        )


def keep_only(names: Collection[str]) -> None:
    """Leave the calling thread, and what it executes, with these capabilities and no others.

    A program run as uid 0 gets all of the bounding set (capabilities(7)), so that shrinks too.
    """
    for number, name in enumerate(_NAMES):
        if name not in names:
            try:
                _call("prctl", _PR_CAPBSET_DROP, *map(ctypes.c_ulong, (number, 0, 0, 0)))
            except OSError as error:
                if error.errno != errno.EINVAL:  # one that this kernel does not know
                    raise
    ambient = map(ctypes.c_ulong, (_PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _call("prctl", _PR_CAP_AMBIENT, *ambient)
    bits = sum(1 << number for number, name in enumerate(_NAMES) if name in names)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    data = (_Data * 2)(_Data(low, low, 0), _Data(high, high, 0))
    _call("capset", ctypes.byref(_Header(_VERSION_3, 0)), data)
