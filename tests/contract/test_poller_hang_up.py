"""Waiting for a reset and nothing else."""

from __future__ import annotations

import socket

import pytest
from contract.pollers import BOTH, arrived, asked_for, reset

from lusca_comm.reactor.poller import HANGUP, READ, WRITE


def test_a_hang_up_alone_is_no_byte_and_no_end_but_a_reset(poller, tcp):
    a, b = tcp
    poller.set(a.fileno(), 0, HANGUP)
    b.send(b"x")
    arrived(a)
    assert poller.poll(0) == []
    b.shutdown(socket.SHUT_WR)
    assert poller.poll(0) == []
    assert a.recv(2) == b"x"
    assert a.recv(2) == b""
    assert poller.poll(0) == []
    reset(b)
    for _ in range(3):
        assert asked_for(poller.poll(-1), a, HANGUP) == HANGUP


def test_a_reset_before_a_hang_up_was_asked_for(poller, tcp):
    a, b = tcp
    poller.set(a.fileno(), 0, READ)
    b.send(b"x")
    assert poller.poll(-1) == [(a.fileno(), READ)]
    poller.set(a.fileno(), READ, 0)
    assert poller.poll(0) == []
    reset(b)
    poller.set(a.fileno(), 0, HANGUP)
    assert asked_for(poller.poll(-1), a, HANGUP) == HANGUP


@pytest.mark.parametrize("between", [[], [0]], ids=["at once", "by way of nothing"])
@pytest.mark.parametrize("polled", [True, False])
def test_from_and_to_a_hang_up_alone(poller, tcp, between, polled):
    """What was asked for before leaves nothing behind."""
    a, b = tcp
    b.send(b"x")
    arrived(a)
    fd, now = a.fileno(), 0
    for after in (READ, HANGUP, READ, HANGUP, BOTH, HANGUP, WRITE, HANGUP, 0, READ):
        for step in [*between, after]:
            poller.set(fd, now, step)
            now = step
        if polled:
            for _ in range(2):
                expected = [(fd, now)] if now & BOTH else []
                assert poller.poll(0) == expected
    assert [poller.poll(0) for _ in range(3)] == [[(fd, READ)]] * 3
