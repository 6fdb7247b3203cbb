"""What a reactor asks of a poller: one interface over epoll and kqueue."""

from __future__ import annotations

from typing import Protocol

READ = 1
WRITE = 2


class Poller(Protocol):
    """Readiness of descriptors, level-triggered.

    ``set`` raises OSError where the system refuses; a descriptor that was closed is no error when
    it is taken out. Errors and hang-ups of a descriptor are reported as whatever was asked for.
    """

    name: str

    def set(self, fd: int, before: int, after: int) -> None:
        """Changes what `fd` waits for from `before` to `after` (READ | WRITE; 0: not at all)."""
        ...

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        """``(fd, mask)`` of what is ready, after at most `seconds` (negative: without limit)."""
        ...

    def close(self) -> None: ...
