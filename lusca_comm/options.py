"""Socket options by what they mean. Seconds and bytes; ENOTSUP where the system has no such
option."""

from __future__ import annotations

import errno
import os
from typing import Any

from ._shim import lib
from .address import descriptor
from .errors import CommError

__all__ = ["Options"]


def _checked(result: int, what: str) -> int:
    if result < 0:
        text = os.strerror(-result)
        if result == -errno.EPERM:
            text += ": needs CAP_NET_ADMIN"
        raise CommError(-result, f"{what}: {text}")
    return result


def _number(value: Any, what: str, highest: int = 0x7FFFFFFF) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} is a number, not {value!r}")
    if not 0 <= value <= highest:
        raise CommError(errno.EINVAL, f"{what} {value} is outside 0-{highest}")
    return round(value)


class Options:
    """The calls that set options. Each raises CommError with the kernel's errno."""

    def comm_set_tos(self, sock: Any, tos: int) -> None:
        """The type-of-service (traffic class) byte of outgoing packets, both families."""
        _checked(lib.lc_set_tos(descriptor(sock), _number(tos, "tos", 255)), "type of service")

    def comm_get_tos(self, sock: Any) -> int:
        return int(_checked(lib.lc_get_tos(descriptor(sock)), "type of service"))

    def comm_set_keepalive(self, sock: Any, idle: float, interval: float, timeout: float) -> None:
        """TCP keep-alive: the first probe after `idle` seconds of silence, then one every
        `interval`, and the connection is given up after `timeout` seconds of unanswered probes.
        0 leaves that part as the system has it."""
        idle, interval = _number(idle, "idle"), _number(interval, "interval")
        timeout = _number(timeout, "timeout")
        count = -(-timeout // interval) if interval and timeout else 0
        result = lib.lc_set_keepalive(descriptor(sock), idle, interval, count)
        _checked(result, "keep-alive")

    def comm_set_nodelay(self, sock: Any) -> None:
        """Small segments leave at once. :func:`comm_open` sets it already."""
        _checked(lib.lc_set_nodelay(descriptor(sock)), "TCP_NODELAY")

    def comm_set_buffer_size(self, sock: Any, size: int) -> None:
        """Bytes of the kernel's receive and send buffers (Linux doubles what is asked for and
        stops at net.core.rmem_max and wmem_max)."""
        size = _number(size, "size", 0x3FFFFFFF)
        _checked(lib.lc_set_buffers(descriptor(sock), size), "buffer size")

    def comm_set_no_pmtu_discover(self, sock: Any) -> None:
        """Packets leave without the don't-fragment bit (ip(7), IP_PMTUDISC_DONT)."""
        _checked(lib.lc_set_no_pmtu_discover(descriptor(sock)), "path MTU discovery")

    def comm_set_priority(self, sock: Any, priority: int) -> None:
        """The queueing priority of outgoing packets, 0-6; more needs CAP_NET_ADMIN."""
        result = lib.lc_set_priority(descriptor(sock), _number(priority, "priority"))
        _checked(result, "priority")
