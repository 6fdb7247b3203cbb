"""The heap of timers against a naive model: a list that is searched."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from lusca_comm import CommError
from lusca_comm.reactor.timers import Timer, Timers, seconds_of

times = st.integers(0, 1000).map(float)


class Machine(RuleBasedStateMachine):
    timers_made = Bundle("timers")

    def __init__(self) -> None:
        super().__init__()
        self.timers = Timers()
        self.model: dict[Timer, float] = {}
        self.now = 0.0

    @rule(target=timers_made, due=times)
    def schedule(self, due: float) -> Timer:
        timer = self.timers.schedule(due, lambda: None)
        self.model[timer] = due
        return timer

    @rule(timer=timers_made, due=times)
    def move(self, timer: Timer, due: float) -> None:
        self.timers.move(timer, due)
        self.model[timer] = due

    @rule(timer=timers_made)
    def cancel(self, timer: Timer) -> None:
        self.timers.cancel(timer)
        self.model.pop(timer, None)

    @rule(timer=timers_made, turns=st.integers(1, 200))
    def set_and_cancel_often(self, timer: Timer, turns: int) -> None:
        """Enough for dead nodes to be swept."""
        for turn in range(turns):
            self.timers.move(timer, float(turns - turn))
        self.timers.cancel(timer)
        self.model.pop(timer, None)

    @rule(step=st.integers(0, 300))
    def time_passes(self, step: int) -> None:
        self.now += step
        last = 0.0
        while (timer := self.timers.pop_due(self.now)) is not None:
            due = self.model.pop(timer)
            assert last <= due <= self.now
            assert timer.due is None
            last = due
        assert all(due > self.now for due in self.model.values())

    @rule()
    def one_fires_and_changes_another(self) -> None:
        """What a callback does counts at once."""
        timer = self.timers.pop_due(self.now)
        if timer is None:
            return
        del self.model[timer]
        for other in list(self.model)[:2]:
            self.timers.cancel(other)
            del self.model[other]

    @invariant()
    def agrees(self) -> None:
        assert len(self.timers) == len(self.model)
        next_due = self.timers.next_due()
        if self.model:
            assert next_due is not None
            assert next_due <= min(self.model.values())
        else:
            assert next_due is None
        for timer, due in self.model.items():
            assert timer.due == due


TestTimers = Machine.TestCase


def test_moving_later_costs_no_node() -> None:
    timers = Timers()
    timer = timers.schedule(1.0, lambda: None)
    for due in range(2, 1000):
        timers.move(timer, float(due))
    assert len(timers._heap) == 1
    assert timers.pop_due(998.0) is None
    assert timers.pop_due(999.0) is timer


def test_one_that_was_moved_later_fires_in_its_turn() -> None:
    """Although its node stands before the other's."""
    timers = Timers()
    first = timers.schedule(1.0, lambda: None)
    second = timers.schedule(3.0, lambda: None)
    timers.move(first, 5.0)
    assert [timers.pop_due(10.0), timers.pop_due(10.0)] == [second, first]


def test_dead_nodes_are_swept() -> None:
    timers = Timers()
    timer = timers.schedule(1e6, lambda: None)
    for due in range(10_000, 0, -1):
        timers.move(timer, float(due))
    assert len(timers._heap) < 200
    assert len(timers) == 1


@pytest.mark.parametrize("value", [None, "1", True, b"1", object()])
def test_what_is_no_number_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        seconds_of(value, "timeout")


def test_nan_is_refused() -> None:
    """No heap could keep it in order."""
    with pytest.raises(CommError) as caught:
        seconds_of(float("nan"), "timeout")
    assert caught.value.errno == errno.EINVAL
