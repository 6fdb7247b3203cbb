"""Timers in a heap, on a monotonic clock.

A deadline that is moved later (the usual fate of an idle time-out) costs no heap operation: its
node stays where it is and is pushed again when it comes up. Moving it earlier or cancelling it
leaves a dead node behind; dead nodes are swept when they are the majority.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

__all__ = ["Timer", "Timers"]


class Timer:
    """One call to come. ``due`` is on the clock of its Timers, in seconds; None once it has fired
    or was cancelled."""

    __slots__ = ("_node", "args", "callback", "due", "when")

    def __init__(self, due: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.due: float | None = due
        self.when = due  # where its node stands in the heap
        self._node = 0
        self.callback = callback
        self.args = args


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
        self._push(timer)
        return timer

    def move(self, timer: Timer, due: float) -> None:
        """Gives `timer` another time; one that has fired or was cancelled is set again."""
        if timer.due is None:
            timer.due = due
            self._push(timer)
            return
        timer.due = due
        if due < timer.when:
            self._dead += 1
            self._push(timer)

    def cancel(self, timer: Timer) -> None:
        """Idempotent."""
        if timer.due is None:
            return
        timer.due = None
        timer._node = 0
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [node for node in self._heap if node[2]._node == node[1]]
            heapify(self._heap)
            self._dead = 0

    def next_due(self) -> float | None:
        """When the reactor has to look again; None where no timer is to come."""
        heap = self._heap
        while heap:
            when, node, timer = heap[0]
            if timer._node == node:
                return when
            heappop(heap)
            self._dead -= 1
        return None

    def take_due(self, now: float) -> list[Timer]:
        """The timers whose time has come, in order. A timer that the caller cancels before it
        gets to it has ``due`` None again; the caller sets ``due`` to None as it fires each."""
        heap = self._heap
        due: list[Timer] = []
        while heap and heap[0][0] <= now:
            _, node, timer = heappop(heap)
            if timer._node != node:
                self._dead -= 1
            elif timer.due is not None and timer.due > now:
                self._push(timer)
            else:
                timer._node = 0
                due.append(timer)
        return due

    def _push(self, timer: Timer) -> None:
        assert timer.due is not None
        timer.when = timer.due
        timer._node = next(self._sequence)
        heappush(self._heap, (timer.when, timer._node, timer))
