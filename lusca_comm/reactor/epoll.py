"""epoll(7).

FACT: a registration belongs to the open file description, not to the number. A registered
descriptor that is closed while a dup() or a forked child still holds it is reported for ever, under
a number that may be somebody else's by then, and cannot be removed any more (EBADF, or ENOENT).
Only a fresh epoll gets rid of it: the reactor makes one when it meets such an event.

FACT: EPOLLERR and EPOLLHUP are reported whether asked for or not, so a descriptor that waits for
nothing must not stay registered.

FACT: epoll_wait(2) takes an int of milliseconds; Python raises OverflowError for more.
"""

from __future__ import annotations

import errno
import select

from .poller import READ, WRITE

__all__ = ["EpollPoller"]

_LONGEST = 86400.0
_BOTH = READ | WRITE
_TO_EPOLL = {
    READ: select.EPOLLIN | select.EPOLLRDHUP,
    WRITE: select.EPOLLOUT,
    READ | WRITE: select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLOUT,
}
_FROM_EPOLL = {
    select.EPOLLIN: READ,
    select.EPOLLOUT: WRITE,
    select.EPOLLIN | select.EPOLLOUT: READ | WRITE,
    select.EPOLLIN | select.EPOLLRDHUP: READ,
    select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP: READ | WRITE,
}


class EpollPoller:
    name = "epoll"

    def __init__(self) -> None:
        self._epoll = select.epoll()

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
                epoll.register(fd, _TO_EPOLL[after])
            except FileExistsError:  # the number came back with the same open file description
                epoll.modify(fd, _TO_EPOLL[after])
        else:
            try:
                epoll.modify(fd, _TO_EPOLL[after])
            except FileNotFoundError:  # the number was closed and opened again
                epoll.register(fd, _TO_EPOLL[after])

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        ready = self._epoll.poll(min(seconds, _LONGEST))
        return [(fd, _FROM_EPOLL.get(bits, _BOTH)) for fd, bits in ready]

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        self._epoll.close()
