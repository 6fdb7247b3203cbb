"""Signals as something to wait for."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterable
from typing import Any

__all__ = ["Signals"]


class Signals:
    """While it is open, `numbers` make it readable (``fileno()``) instead of ending the process."""

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        # The handler does nothing: that it is there makes the interpreter write the number.
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, lambda *_: None) for number in numbers
        }
        self._fd_before = signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._near.close()
        self._far.close()

    def fileno(self) -> int:
        return self._near.fileno()

    def fetch(self) -> list[int]:
        """Those that have come, in their order."""
        with contextlib.suppress(BlockingIOError):
            return list(self._near.recv(256))
        return []
