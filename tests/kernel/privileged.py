"""What the tests of privileges share: what a process can do, found out by doing it, and becoming
somebody by the kernel's calls alone."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import socket
import struct
import subprocess
from collections.abc import Callable, Collection

import pytest
from kernel.proxying import PROXY_PORT

import lusca_comm as lc
from lusca_comm import credentials
from lusca_comm._shim import lib

FOREIGN = ("198.51.100.2", PROXY_PORT)
CLIENT = ("192.0.2.2", 0)
SIOCGIFMTU, SIOCSIFMTU = 0x8921, 0x8922  # linux/sockios.h
NOBODY = "nobody"

ADMIN, RAW, BIND = "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"
FEATURES = ("listen", "spoof", "mark", "low port")
TRANSPARENT = {"listen", "spoof", "mark"}

IS_ROOT = os.geteuid() == 0 and not credentials.unmapped("uid_map", {pwd.getpwnam(NOBODY).pw_uid})
real_root = pytest.mark.skipif(
    not IS_ROOT,
    reason="setuid to another user needs root outside of user namespaces",
)


# -- what a process can do, found out by doing it ------------------------------------------------


def listen() -> None:
    flags = lc.COMM_NONBLOCKING | lc.COMM_TPROXY_LCL
    listener = lc.comm_open(address=FOREIGN, flags=flags)
    lc.comm_listen(listener)
    lc.comm_close(listener)


def spoof() -> None:
    lc.comm_close(lc.comm_open(address=CLIENT, flags=lc.COMM_TPROXY_REM))


def mark() -> None:
    lc.comm_close(lc.comm_open(mark=7))


def low_port() -> None:
    lc.comm_close(lc.comm_open(address=("127.0.0.1", 80)))


def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def configure_the_network() -> None:
    with socket.socket() as sock:
        same = fcntl.ioctl(sock, SIOCGIFMTU, struct.pack("16s16x", b"lo"))
        fcntl.ioctl(sock, SIOCSIFMTU, same)


ACTS: dict[str, Callable[[], None]] = {
    "listen": listen,
    "spoof": spoof,
    "mark": mark,
    "low port": low_port,
    "raw socket": raw_socket,
    "configure the network": configure_the_network,
}


def can() -> set[str]:
    """The acts that work, and preflight says the same of those that it knows."""
    able = set()
    for act, do in ACTS.items():
        try:
            do()
        except PermissionError:
            continue
        except lc.CommError as why:
            if why.errno not in (errno.EPERM, errno.EACCES):
                raise
            continue
        able.add(act)
    rows = lc.preflight(FEATURES)
    assert {row.feature for row in rows if row.ok} == able & set(FEATURES), rows
    for row in rows:
        if not row.ok:
            assert row.missing.startswith(BIND if row.feature == "low port" else "CAP_NET_RAW")
    return able


def allowed(names: Collection[str]) -> set[str]:
    able: set[str] = set()
    if {ADMIN, RAW} & set(names):
        able |= TRANSPARENT
    if RAW in names:
        able |= {"raw socket"}
    if ADMIN in names:
        able |= {"configure the network"}
    if BIND in names:
        able |= {"low port"}
    return able


def become(user: str, names: Collection[str]) -> None:
    """An ordinary user with these capabilities, by the kernel's calls alone."""
    entry = pwd.getpwnam(user)
    assert lib.lc_capabilities_outlive_setuid(1) == 0
    os.setgroups([entry.pw_gid])
    os.setresgid(*(entry.pw_gid,) * 3)
    os.setresuid(*(entry.pw_uid,) * 3)
    assert lib.lc_capabilities_set(credentials.bits_of(names)) == 0


def assert_only(own: credentials.Credentials, names: Collection[str]) -> None:
    bits = credentials.bits_of(names)
    assert (own.permitted, own.effective) == (bits, bits)
    assert (own.inheritable, own.ambient) == (0, 0)


def executed() -> credentials.Credentials:
    """Of a program that this process executes."""
    status = subprocess.run(
        ["cat", "/proc/self/status"], stdout=subprocess.PIPE, text=True, check=True
    )
    return credentials.parse(status.stdout)
