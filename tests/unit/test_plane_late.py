"""A data plane that comes late to everything: what was there in time counts."""

from __future__ import annotations

import os
import resource
import signal
import threading

from contract.reactors import in_child
from planes import connection, receive, until

from lusca_comm import Plane, RelayResult


def test_what_is_there_is_activity_however_late_it_is_found() -> None:
    """The process is stopped until the time is up, while bytes wait for its plane."""
    client, near = connection()
    upstream, far = connection()

    def relays() -> None:
        client.close()
        upstream.close()
        plane, results = Plane(), list[RelayResult]()
        plane.relay(near, far, results.append, idle=1)
        until(plane, lambda: results)
        assert results[0].end == "eof"

    pid = in_child(relays)
    near.close()
    far.close()
    client.sendall(b"x")
    assert receive(upstream, 1) == b"x"
    os.kill(pid, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    client.sendall(b"y")
    threading.Event().wait(1.2)
    os.kill(pid, signal.SIGCONT)
    assert receive(upstream, 1) == b"y"
    client.close()
    upstream.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_one_poll_has_no_room_for_is_there_too() -> None:
    """More relays than a poll tells of, all late at once."""
    number = 300
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        near, far = zip(*(connection() for _ in range(number)), strict=True)
        upstream, origin = zip(*(connection() for _ in range(number)), strict=True)

        def relays() -> None:
            for sock in (*near, *origin):
                sock.close()
            plane, results = Plane(), list[RelayResult]()
            for pair in zip(far, upstream, strict=True):
                plane.relay(*pair, results.append, idle=1)
            until(plane, lambda: len(results) == number)
            assert {result.end for result in results} == {"eof"}

        pid = in_child(relays)
        for sock in (*far, *upstream):
            sock.close()
        for sock in near:
            sock.sendall(b"x")
        for sock in origin:
            assert receive(sock, 1) == b"x"
        os.kill(pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        for sock in near:
            sock.sendall(b"y")
        threading.Event().wait(1.2)
        os.kill(pid, signal.SIGCONT)
        for sock in origin:
            assert receive(sock, 1) == b"y"
        for sock in (*near, *origin):
            sock.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
