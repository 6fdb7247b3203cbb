"""The two exceptions of the library.

Every failure is an :class:`OSError` with the kernel's errno, and its text says what is missing and
how to mend it.
"""

from __future__ import annotations

import os

__all__ = ["CommError", "NotIntercepted"]


class CommError(OSError):
    """A call that failed.

    ``errno`` is the kernel's number. ``strerror`` says what was tried, why it failed and, where
    something is missing on the machine, the command that mends it.
    """

    def __init__(self, errno: int, text: str | None = None) -> None:
        super().__init__(errno, os.strerror(errno) if text is None else text)


class NotIntercepted(CommError):
    """The connection was not intercepted: going where it "was going" would be wrong or a loop.

    ``strerror`` names the cause: a direct connection to the listener, a rule that is missing, or
    an engine that has no entry for this connection.
    """
