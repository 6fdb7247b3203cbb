"""Outbound: opening sockets, in the client's name where that is asked for, and what was really got.

No fallback is silent: a source address that cannot be had is an error unless ``spoof_fallback``
was given, and a port that cannot be kept (COMM_TRANSPARENT_PORT) is told by ``comm_spoof``.
"""

from __future__ import annotations

import errno
import operator
import os
import socket
import sys
from typing import Any, NamedTuple

from . import engines
from ._shim import ffi, lib
from .address import Address, from_shim, spell, to_shim
from .constants import (
    ALL_FLAGS,
    COMM_INTERCEPT,
    COMM_TPROXY_LCL,
    COMM_TPROXY_REM,
    COMM_TRANSPARENT_PORT,
)
from .errors import CommError

__all__ = ["Spoof"]

_LINUX = sys.platform == "linux"

CAPABILITY = (
    "CAP_NET_ADMIN or CAP_NET_RAW: run as root, `setcap cap_net_raw+ep PROGRAM`, or "
    "AmbientCapabilities=CAP_NET_RAW in the systemd unit"
    if _LINUX
    else "root, and in a jail one with its own network stack (vnet)"
)


class Spoof(NamedTuple):
    """What an outbound socket really got."""

    address: Address | None
    """The source address: ``(host, port)``. The port is 0 until the socket is connected, where the
    kernel chooses it; the host is a wildcard until then, where nothing was spoofed."""
    kept_port: bool
    """The port is the client's own."""
    reason: str
    """Why the port, or the address, is not the client's; "" where all that was asked for is so."""


def checked_mark(mark: int) -> int:
    """`mark`, which fits into 32 bits. Raises CommError (EINVAL) or TypeError."""
    value = operator.index(mark)
    if not 0 <= value <= 0xFFFFFFFF:
        raise CommError(errno.EINVAL, f"mark {mark} is outside 0-{0xFFFFFFFF:#x}")
    return value


def set_mark(request: Any, mark: int | None) -> None:
    """Of a structure of the shim's that has one. Raises CommError (EINVAL) or TypeError."""
    if mark is not None:
        request.has_mark, request.mark = 1, checked_mark(mark)


def request_for(
    kind: int,
    proto: int,
    address: Address | None,
    family: int | None,
    flags: int,
    tos: int,
    mark: int | None,
    device: str | None,
    dualstack: bool,
) -> Any:
    """The ``struct lc_open`` of comm_open's arguments. Raises CommError (EINVAL) or TypeError."""
    if isinstance(flags, bool) or not isinstance(flags, int):
        raise TypeError(f"flags is a sum of COMM_ constants, not {flags!r}")
    if flags & ~ALL_FLAGS or flags < 0:
        raise CommError(errno.EINVAL, f"unknown flags {flags & ~ALL_FLAGS:#x}")
    if kind not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        raise CommError(errno.EINVAL, "type is SOCK_STREAM or SOCK_DGRAM")
    if family not in (None, socket.AF_INET, socket.AF_INET6):
        raise CommError(errno.EINVAL, "family is AF_INET or AF_INET6")
    if flags & (COMM_TPROXY_LCL | COMM_TPROXY_REM) and address is None:
        raise CommError(errno.EINVAL, "COMM_TPROXY_LCL and COMM_TPROXY_REM need an address")
    if flags & COMM_TRANSPARENT_PORT and not flags & COMM_TPROXY_REM:
        raise CommError(errno.EINVAL, "COMM_TRANSPARENT_PORT goes with COMM_TPROXY_REM")
    if kind == socket.SOCK_DGRAM:
        refuse_redirected(flags)
    request = ffi.new("struct lc_open *")
    request.type = kind
    request.flags = flags
    request.engine = -1
    request.dualstack = dualstack
    try:
        request.proto = proto
        request.tos = tos
        if device is not None:
            request.device = _device(device)
    except OverflowError as why:
        raise CommError(errno.EINVAL, f"proto or tos is out of range: {why}") from why
    set_mark(request, mark)
    if not 0 <= tos <= 255:
        raise CommError(errno.EINVAL, f"tos {tos} is outside 0-255")
    request.family = 6 if family == socket.AF_INET6 else 4
    if address is not None:
        to_shim(address, request.address)
        if family is None:
            request.family = request.address.family
        elif request.address.family == 6 and family == socket.AF_INET:
            raise CommError(errno.EAFNOSUPPORT, f"{spell(address)} does not fit an AF_INET socket")
    if dualstack and (address is None or address[0] != "::"):
        raise CommError(errno.EINVAL, 'dualstack goes with the address "::"')
    return request


def refuse_redirected(flags: int) -> None:
    """Of a datagram socket. Raises CommError (EOPNOTSUPP) where no engine can tell where NAT took a
    datagram from."""
    if flags & COMM_INTERCEPT and _LINUX:
        raise CommError(
            errno.EOPNOTSUPP,
            "nothing tells where a datagram was going once REDIRECT or DNAT has sent it here (the "
            "control message has the address after NAT, SO_ORIGINAL_DST knows TCP only): for UDP "
            "it takes TPROXY rules, which `lusca-comm rules` prints, and COMM_TPROXY_LCL",
        )


def _device(name: str) -> bytes:
    """IFNAMSIZ is 16, with the zero at the end."""
    if not isinstance(name, str):
        raise TypeError(f"device is an interface's name, not {name!r}")
    packed = os.fsencode(name)
    if not 0 < len(packed) < 16 or b"\0" in packed:
        raise CommError(errno.EINVAL, f"{name!r} is no interface's name: see `ip link`")
    return packed


def open_socket(request: Any, spoof_fallback: bool) -> tuple[int, str]:
    """Opens what `request` asks for: the descriptor, and why the source is not all the client's.

    `request` is left as what was really opened.
    """
    flags = request.flags
    if flags & COMM_INTERCEPT:
        engines.probe_nat()
    outbound = flags & COMM_TPROXY_REM and not flags & COMM_TPROXY_LCL
    step = ffi.new("int *")
    try:
        if flags & COMM_TPROXY_LCL:
            request.engine = engines.spoofer("listen")
        elif outbound:
            request.engine = engines.spoofer("spoof")
        fd = lib.lc_open(request, step)
        if fd >= 0:
            return fd, ""
        if outbound and flags & COMM_TRANSPARENT_PORT and _port_refused(step[0], -fd):
            reason = f"port {request.address.port} cannot be kept: {os.strerror(-fd)}"
            request.address.port = 0
            fd = lib.lc_open(request, step)
            if fd >= 0:
                return fd, reason
        raise _open_error(-fd, step[0], request)
    except CommError as why:
        if not (spoof_fallback and outbound):
            raise
        reason = f"not spoofed: {why.strerror}"
    request.engine = -1
    request.flags = flags & ~(COMM_TPROXY_REM | COMM_TRANSPARENT_PORT)
    request.address.family = 0
    fd = lib.lc_open(request, step)
    if fd < 0:
        raise _open_error(-fd, step[0], request)
    return fd, reason


def open_flow(request: Any, peer: Address) -> int:
    """A datagram socket in a foreign name, as `request` asks for, connected to `peer`."""
    step = ffi.new("int *")
    request.engine = engines.spoofer("listen")
    fd: int = lib.lc_open_flow(request, to_shim(peer), step)
    if fd >= 0:
        return fd
    if step[0] == lib.LC_STEP_CONNECT:
        where = spell(from_shim(request.address))
        raise CommError(-fd, f"answering {spell(peer)} from {where}: {os.strerror(-fd)}")
    raise _open_error(-fd, step[0], request)


def allow(fd: int, row: int) -> None:
    """Grants a socket that exists the right to foreign local addresses."""
    code = -lib.lc_allow(fd, row)
    if code in (errno.EPERM, errno.EACCES):
        name = engines.name_of(row)
        raise CommError(code, f"foreign addresses ({name}) need {_capability(name)}")
    if code:
        raise CommError(code, f"engine {engines.name_of(row)!r}: {os.strerror(code)}")


def _capability(engine: str) -> str:
    if engine == "tproxy2":
        return "CAP_NET_ADMIN: run as root, or `setcap cap_net_admin+ep PROGRAM`"
    return CAPABILITY


def _port_refused(step: int, code: int) -> bool:
    return step == lib.LC_STEP_BIND and code in (errno.EADDRINUSE, errno.EACCES)


def port_reopened(fd: int, request: Any) -> str:
    """After a connect found the very same 4-tuple in use (EADDRNOTAVAIL): a fresh socket with a
    port of the kernel's choice takes the place under `fd`. Returns the reason to tell."""
    step = ffi.new("int *")
    reason = f"port {request.address.port} cannot be kept: this very connection exists already"
    request.address.port = 0
    err = lib.lc_reopen(fd, request, step)
    if err < 0:
        raise _open_error(-err, step[0], request)
    return reason


def _open_error(code: int, step: int, request: Any) -> CommError:
    """What is missing, and what mends it."""
    where = spell(from_shim(request.address))
    why = os.strerror(code)
    if step == lib.LC_STEP_SOCKET:
        mend = {
            errno.EMFILE: ": this process has no descriptor left: `ulimit -n`, LimitNOFILE=",
            errno.ENFILE: ": the system has no descriptor left: `sysctl fs.file-max`",
            errno.EAFNOSUPPORT: ": the kernel has no IPv6",
        }.get(code, "")
        return CommError(code, f"no socket: {why}{mend}")
    if step == lib.LC_STEP_RIGHT:
        name = engines.name_of(request.engine)
        if code in (errno.EPERM, errno.EACCES):
            return CommError(code, f"a foreign address ({where}, {name}) needs {_capability(name)}")
        return CommError(code, f"engine {name!r} grants no foreign address here: {why}")
    if step == lib.LC_STEP_MARK:
        if code == errno.EPERM:
            return CommError(code, f"a firewall mark (SO_MARK) needs {CAPABILITY}")
        return CommError(code, f"this system has no firewall mark: {why}")
    if step == lib.LC_STEP_DEVICE:
        device = ffi.string(request.device).decode()
        mend = {errno.ENODEV: ": see `ip link`", errno.EPERM: f" needs {CAPABILITY}"}.get(code, "")
        return CommError(code, f"device {device!r}: {why}{mend}")
    if step == lib.LC_STEP_V6ONLY:
        return CommError(code, f"this system's IPv6 sockets take IPv6 only: {why}")
    if step == lib.LC_STEP_ORIGDST:
        return CommError(
            code, f"this system tells no original destination of datagrams (TPROXY): {why}"
        )
    if step == lib.LC_STEP_BIND:
        mend = {
            errno.EADDRINUSE: ": somebody has it: `ss -ltnup`; COMM_REUSEADDR or COMM_REUSEPORT "
            "must be set on every socket that shares it",
            errno.EADDRNOTAVAIL: ": not an address of this machine: `ip addr add`, or "
            "COMM_TPROXY_LCL to listen on, COMM_TPROXY_REM to connect from a foreign one",
            errno.EACCES: ": ports below 1024 need CAP_NET_BIND_SERVICE, or "
            "`sysctl net.ipv4.ip_unprivileged_port_start`",
        }.get(code, "")
        return CommError(code, f"bind to {where}: {why}{mend}")
    return CommError(code, f"opening a socket for {where}: {why}")
