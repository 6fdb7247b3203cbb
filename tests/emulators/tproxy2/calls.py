"""The option's calls as C has them: getsockopt reads what its buffer holds, and Python's can't."""

from __future__ import annotations

import ctypes
import socket
from typing import Any

from emulators.tproxy2.kernel import OPTION

_libc = ctypes.CDLL(None, use_errno=True)


def raw_set(fd: int, place: Any, size: int) -> int:
    """0 or an errno."""
    return _code(_libc.setsockopt(fd, socket.SOL_IP, OPTION, place, size))


def raw_get(fd: int, place: Any, size: Any) -> int:
    """0 or an errno."""
    return _code(_libc.getsockopt(fd, socket.SOL_IP, OPTION, place, size))


def tell(sock: socket.socket, data: bytes) -> int:
    """setsockopt: 0 or an errno."""
    return raw_set(sock.fileno(), data, len(data))


def ask(sock: socket.socket, data: bytes) -> int | bytes:
    """getsockopt: what is in the buffer afterwards, or an errno."""
    buffer, size = ctypes.create_string_buffer(data, len(data)), ctypes.c_uint32(len(data))
    return raw_get(sock.fileno(), buffer, ctypes.byref(size)) or buffer.raw


def _code(result: int) -> int:
    return ctypes.get_errno() if result < 0 else 0
