"""What a reactor asks of a poller: one interface over epoll and kqueue."""

from __future__ import annotations

from typing import Protocol

READ = 1
WRITE = 2


class Poller(Protocol):
    """Readiness of descriptors, level-triggered.

    Errors and hang-ups are reported as whatever was asked for.
    """

    name: str

    def set(self, fd: int, before: int, after: int) -> None:
        """Changes what `fd` waits for from `before` to `after` (READ | WRITE; 0: not at all).

        Where the number was closed and opened again since `before` was set, `after` holds for what
        it is now. Taking out what is closed or unknown is no error.

        :raises OSError: EBADF closed, EPERM a kind of file that cannot be waited for, ENOSPC,
            ENOMEM.
        """
        ...

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        """``(fd, mask)`` of what is ready, after at most `seconds` (negative: without limit)."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable while anything is ready, so that pollers nest."""
        ...

    def close(self) -> None: ...
