"""Namespaces by file descriptor: made, joined, never named.

A namespace lives as long as a process is in it or a descriptor holds it, so nothing is left behind
however the process ends. os.setns and os.unshare came with Python 3.12; ctypes serves 3.10 too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from lusca_comm.lab.capabilities import effective

__all__ = [
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWUSER",
    "Namespaces",
    "die_with",
    "join_net",
    "unshare",
]

# linux/sched.h, linux/prctl.h, linux/mount.h, linux/sockios.h, linux/if.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_MS_BIND, _MS_REC, _MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

# A new network namespace takes its IPv4 settings from the machine's first one
# (Documentation/admin-guide/sysctl/net.rst, devconf_inherit_init_net); a lab is the same
# everywhere. Without duplicate address detection an IPv6 address is usable at once.
_SETTINGS = {
    "ipv4": {"forwarding": 0, "rp_filter": 0, "route_localnet": 0, "accept_local": 0},
    "ipv6": {"forwarding": 0, "disable_ipv6": 0, "accept_dad": 0},
}


def _call(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces (unshare(2)); ``OSError`` with its errno."""
    _call("unshare", ctypes.c_int(flags))


def _setns(fd: int, kind: int) -> None:
    _call("setns", ctypes.c_int(fd), ctypes.c_int(kind))


def join_net(fd: int) -> None:
    """Move the calling thread into the network namespace of ``fd`` and no other of its kinds."""
    _setns(fd, CLONE_NEWNET)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), None)


def die_with(parent: int) -> None:
    """Have the kernel kill this process as soon as the thread that forked it is gone.

    ``parent`` is the pid of the forking process. Gaining capabilities clears this setting
    (PR_SET_PDEATHSIG(2const)), so it comes after the namespaces are joined.
    """
    _call("prctl", _PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (_SIGKILL, 0, 0, 0)))
    if os.getppid() != parent:
        os._exit(1)


@dataclass(frozen=True)
class Namespaces:
    """Descriptors of one host's namespaces; ``user`` is None where none is needed (root)."""

    user: int | None
    mount: int
    net: int

    @classmethod
    def create(cls, user: int | None) -> Namespaces:
        """Move the calling (forked) process into new namespaces and return their descriptors.

        ``user`` is an existing user namespace to make them in. With None, and without the
        capabilities to do so as it stands, the process makes a user namespace of its own.
        ``OSError`` names the step that failed as its ``filename``.
        """
        if user is not None:
            _setns(user, CLONE_NEWUSER)
        elif not effective() >= {"CAP_SYS_ADMIN", "CAP_NET_ADMIN"}:
            uid, gid = os.geteuid(), os.getegid()
            unshare(CLONE_NEWUSER)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            user = os.open("/proc/self/ns/user", os.O_RDONLY)
        unshare(CLONE_NEWNET | CLONE_NEWNS)
        # Mounts made here stay here; the machine's later ones, and unmounts, come in.
        _mount(b"none", b"/", None, _MS_REC | _MS_SLAVE)
        _own_sys()
        for family, settings in _SETTINGS.items():
            for scope in ("all", "default"):
                folder = Path("/proc/sys/net", family, "conf", scope)
                if folder.is_dir():  # absent where the kernel runs without IPv6
                    for name, value in settings.items():
                        (folder / name).write_text(str(value))
        _loopback_up()
        mount, net = (os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "net"))
        return cls(user, mount, net)

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors there are: mount, net and, where there is one, user."""
        return (self.mount, self.net) if self.user is None else (self.mount, self.net, self.user)

    def join(self) -> None:
        """Move the calling process in. It must have one thread (setns(2)), as after a fork."""
        here = None
        with contextlib.suppress(FileNotFoundError):
            here = Path.cwd()
        if self.user is not None:
            _setns(self.user, CLONE_NEWUSER)
        join_net(self.net)
        _setns(self.mount, CLONE_NEWNS)  # which also changes the directory to /
        if here is not None:
            os.chdir(here)


def _own_sys() -> None:
    """Mount a /sys that shows this namespace's interfaces, the control groups where they were.

    A container that hides parts of its own /sys is refused (EPERM): there the host keeps the /sys
    of the machine, and everything but /sys/class/net is right all the same.
    """
    groups = os.open("/sys/fs/cgroup", os.O_PATH) if Path("/sys/fs/cgroup").is_dir() else None
    try:
        _mount(b"sysfs", b"/sys", b"sysfs", 0)
        if groups is not None:
            _mount(b"/proc/self/fd/%d" % groups, b"/sys/fs/cgroup", None, _MS_BIND | _MS_REC)
    except PermissionError:
        pass
    finally:
        if groups is not None:
            os.close(groups)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
