"""Waiting for a condition, in one place and with a limit."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from lusca_comm.errors import CommError

__all__ = ["LabTimeout", "wait_for"]

T = TypeVar("T")


class LabTimeout(CommError, TimeoutError):
    """Something in a lab did not happen in time; also a ``TimeoutError``."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)


def wait_for(predicate: Callable[[], T], timeout: float = 30.0, what: str = "the condition") -> T:
    """Call ``predicate`` until its result is true, and return that.

    Asks at once, then after 1 ms, then ever less often, up to every 50 ms. ``LabTimeout`` after
    ``timeout`` seconds, saying ``what`` was waited for.
    """
    end = time.monotonic() + timeout
    pause = 0.001
    while not (result := predicate()):
        if (left := end - time.monotonic()) <= 0:
            raise LabTimeout(errno.ETIMEDOUT, f"waited {timeout:g} s for {what}; it did not happen")
        time.sleep(min(pause, left))  # noqa: TID251
        pause = min(2 * pause, 0.05)
    return result
