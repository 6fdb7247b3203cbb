"""Timers in a heap, on a monotonic clock.

A deadline that is moved later (the usual fate of an idle time-out) costs no heap operation: its
node stays where it is and is pushed again when it comes up. Moving it earlier or cancelling it
leaves a dead node behind; dead nodes are swept when they are the majority.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from ..errors import CommError

__all__ = ["Timer", "Timers", "seconds_of"]


def seconds_of(value: Any, what: str) -> float:
    """`value` as seconds. Raises TypeError for what is no number, CommError (EINVAL) for NaN, which
    no heap could keep in order."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} is a number of seconds, not {value!r}")
    if value != value:
        raise CommError(errno.EINVAL, f"{what} is not a number")
    return value


class Timer:
    """One call to come. ``due`` is on the clock of its Timers, in seconds; None once it has fired
    or was cancelled."""

    __slots__ = ("_node", "_when", "args", "callback", "due")

    def __init__(
        self, due: float | None, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.due = due
        self.callback = callback
        self.args = args
        self._node = 0  # the number of its node in the heap; every other node of it is dead
        self._when = 0.0  # where that node stands, which may be earlier than due


class Timers:
    """A heap of timers. It neither sleeps nor reads a clock: the reactor tells it the time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = count(1)
        self._dead = 0

    def __len__(self) -> int:
        """How many timers are to come."""
        return len(self._heap) - self._dead

    def schedule(self, due: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(due, callback, args)
        self._push(timer, due)
        return timer

    def move(self, timer: Timer, due: float) -> None:
        """Gives `timer` another time; one that has fired or was cancelled is set again."""
        was, timer.due = timer.due, due
        if was is None:
            self._push(timer, due)
        elif due < timer._when:
            self._push(timer, due)
            self._one_died()

    def cancel(self, timer: Timer) -> None:
        """Idempotent."""
        if timer.due is not None:
            timer.due = None
            timer._node = 0
            self._one_died()

    def next_due(self) -> float | None:
        """When the reactor has to look again, at the latest; None where no timer is to come."""
        heap = self._heap
        while heap:
            when, node, timer = heap[0]
            if timer._node == node:
                return when
            heappop(heap)
            self._dead -= 1
        return None

    def pop_due(self, now: float) -> Timer | None:
        """Takes out the first timer whose time has come; the caller calls it. What the call
        schedules, moves or cancels counts at once."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, node, timer = heappop(heap)
            if timer._node != node:
                self._dead -= 1
                continue
            assert timer.due is not None
            if timer.due > when:
                self._push(timer, timer.due)
            else:
                timer.due = None
                timer._node = 0
                return timer
        return None

    def _push(self, timer: Timer, due: float) -> None:
        timer._when = due
        timer._node = next(self._sequence)
        heappush(self._heap, (due, timer._node, timer))

    def _one_died(self) -> None:
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [node for node in self._heap if node[2]._node == node[1]]
            heapify(self._heap)
            self._dead = 0
