"""epoll(7).

FACT: a registration belongs to the open file description, not to the number. A registered
descriptor that is closed while a dup() or a forked child still holds it is reported for ever, under
a number that may be somebody else's by then, and cannot be removed any more (EBADF, or ENOENT).
Only a fresh epoll gets rid of it: the reactor makes one when it meets such an event.

FACT: EPOLLERR and EPOLLHUP are reported whether asked for or not, so a descriptor that waits for
nothing must not stay registered.
"""

from __future__ import annotations

import errno
import select

from .poller import READ, WRITE

__all__ = ["EpollPoller"]


class EpollPoller:
    name = "epoll"

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._to_epoll = (
            0,
            select.EPOLLIN | select.EPOLLRDHUP,
            select.EPOLLOUT,
            select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLOUT,
        )
        both = READ | WRITE
        self._both_bits = select.EPOLLERR | select.EPOLLHUP
        self._from_epoll = {
            select.EPOLLIN: READ,
            select.EPOLLOUT: WRITE,
            select.EPOLLIN | select.EPOLLOUT: both,
        }

    def set(self, fd: int, before: int, after: int) -> None:
        epoll = self._epoll
        if after == 0:
            try:
                epoll.unregister(fd)
            except OSError as why:
                if why.errno not in (errno.EBADF, errno.ENOENT):
                    raise
        elif before == 0:
            try:
                epoll.register(fd, self._to_epoll[after])
            except FileExistsError:  # the number came back with the same open file description
                epoll.modify(fd, self._to_epoll[after])
        else:
            try:
                epoll.modify(fd, self._to_epoll[after])
            except FileNotFoundError:  # the number was closed and opened again
                epoll.register(fd, self._to_epoll[after])

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        ready = self._epoll.poll(seconds)
        simple = self._from_epoll
        return [(fd, simple.get(bits) or self._mask(bits)) for fd, bits in ready]

    def _mask(self, bits: int) -> int:
        if bits & self._both_bits:
            return READ | WRITE
        mask = 0
        if bits & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI):
            mask |= READ
        if bits & select.EPOLLOUT:
            mask |= WRITE
        return mask

    def close(self) -> None:
        self._epoll.close()
