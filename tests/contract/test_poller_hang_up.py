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


@pytest.mark.parametrize("before", [0, READ, WRITE, BOTH])
@pytest.mark.parametrize("early", [True, False])
def test_a_reset_is_told_whatever_was_asked_for_before(poller, tcp, before, early):
    a, b = tcp
    b.send(b"x")
    arrived(a)
    if before:
        poller.set(a.fileno(), 0, before)
        assert poller.poll(-1) == [(a.fileno(), before)]
    if early:
        reset(b)
    poller.set(a.fileno(), before, HANGUP)
    if not early:
        assert poller.poll(0) == []
        reset(b)
    assert [asked_for(poller.poll(-1), a, HANGUP) for _ in range(2)] == [HANGUP] * 2


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
