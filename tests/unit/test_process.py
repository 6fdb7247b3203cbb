"""The process around the reactor: thousands of connections, the interpreter's end, fork, Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from contract.reactors import open_fds, watched

import lusca_comm as lc

READ = lc.COMM_SELECT_READ


def python(program: str, **options: Any) -> subprocess.Popen[bytes]:
    """A Python of its own, which complains of everything."""
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run(program: str) -> bytes:
    """What the program printed; it must end well and complain of nothing."""
    with python(program) as process:
        out, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 0
    return out


def test_ten_thousand_connections_in_a_row_leak_no_descriptor() -> None:
    """Accepted, relayed to an upstream connected for each, and closed by both ends."""
    count, at_once = 10_000, 50
    with watched() as reactor, socket.create_server(("127.0.0.1", 0), backlog=1024) as origin:
        listener = reactor.comm_open(address=("127.0.0.1", 0))
        reactor.comm_listen(listener)
        done: list[str] = []

        def on_readable(sock: Any, _: Any) -> None:
            reactor.comm_set_select(sock, READ, on_readable)
            while (got := reactor.comm_accept(sock)) is not None:
                upstream = reactor.comm_open()
                reactor.comm_connect(upstream, origin.getsockname(), on_connected, got.sock)

        def on_connected(upstream: Any, status: int, client: Any) -> None:
            assert status == lc.COMM_OK
            reactor.relay(client, upstream, lambda result: done.append(result.end), idle=60)

        reactor.comm_set_select(listener, READ, on_readable)
        reactor.comm_select(0)
        fds: set[int] = set()
        for turn in range(count // at_once):
            clients = [socket.create_connection(listener.getsockname()) for _ in range(at_once)]
            conns = []
            while len(conns) < at_once:
                reactor.comm_select(0)
                origin.settimeout(0)
                try:
                    conns.append(origin.accept()[0])
                except BlockingIOError:
                    continue
            for number, end in enumerate((*clients, *conns)):
                if number % 7 == 0:
                    end.send(b"bytes")
                end.close()
            reactor.until(lambda turn=turn: len(done) == (turn + 1) * at_once)
            if turn == 0:
                fds = open_fds()
        assert len(done) == count
        assert open_fds() == fds
        assert len(reactor.table) == 1
        assert len(reactor.timers) == 0


def test_the_interpreter_ends_with_everything_open() -> None:
    run(
        """
        import os, socket, threading
        import lusca_comm as lc

        def nothing(*args): pass

        listener = lc.comm_open(address=("127.0.0.1", 0))
        lc.comm_listen(listener)
        lc.comm_set_select(listener, lc.COMM_SELECT_READ, nothing)
        up = lc.comm_open()
        lc.comm_connect(up, listener.getsockname(), nothing, timeout=60)
        while (got := lc.comm_accept(listener)) is None: lc.comm_select(10)
        lc.comm_read(got.sock, 1, nothing)
        lc.comm_add_event(60, nothing)
        lc.call_soon_threadsafe(nothing)
        datagrams = lc.comm_open(socket.SOCK_DGRAM, 0, ("127.0.0.1", 0))
        lc.comm_set_select(datagrams, lc.COMM_SELECT_READ, nothing)
        r, w = os.pipe()
        lc.comm_set_select(r, lc.COMM_SELECT_READ, nothing)
        other = lc.Reactor()
        pair = socket.socketpair()
        other.relay(*pair, nothing)
        other.comm_select(0)
        lc.comm_select(0)
        """
    )


def test_the_interpreter_ends_while_a_daemon_thread_runs_the_loop() -> None:
    run(
        """
        import threading
        import lusca_comm as lc

        started = threading.Event()
        lc.comm_add_event(0, lambda _: started.set())
        threading.Thread(target=lc.run, daemon=True).start()
        started.wait()
        """
    )


def test_ctrl_c_ends_run_and_the_program_goes_on() -> None:
    with python(
        """
        import lusca_comm as lc
        lc.comm_add_event(0, lambda _: print("running", flush=True))
        lc.run()
        print("and the rest")
        """
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == (b"and the rest\n", b"", 0)


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
def test_fork_with_a_live_reactor(leave: str) -> None:
    """Parent and child both go on with the same listener, and with timers of their own."""
    out = run(
        f"""
        import os, signal, socket, sys
        import lusca_comm as lc

        served = 0

        def on_readable(sock, data):
            global served
            lc.comm_set_select(sock, lc.COMM_SELECT_READ, on_readable)
            while (got := lc.comm_accept(sock)) is not None:
                served += 1
                lc.comm_write(got.sock, str(os.getpid()).encode(), on_written)

        def on_written(sock, *rest):
            lc.comm_close(sock)
            lc.stop()

        listener = lc.comm_open(address=("127.0.0.1", 0))
        lc.comm_listen(listener)
        lc.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable)
        lc.comm_select(0)
        with socket.create_connection(listener.getsockname()) as client:
            pid = os.fork()
            if pid == 0:
                client.close()
                signal.alarm(30)
                lc.run()
                {leave}
            assert client.recv(100) == str(pid).encode()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with socket.create_connection(listener.getsockname()) as client:
            signal.alarm(30)
            lc.run()
            assert client.recv(100) == str(os.getpid()).encode()
        print(served)
        """
    )
    assert out == b"1\n"


def test_a_program_without_the_loop_opens_nothing() -> None:
    before = run("import os; print(len(os.listdir('/proc/self/fd')))")
    after = run("import os, lusca_comm; print(len(os.listdir('/proc/self/fd')))")
    assert before == after


def test_programs_that_are_started_inherit_nothing() -> None:
    before = open_fds()
    with watched() as reactor:
        listener = reactor.comm_open(address=("127.0.0.1", 0))
        reactor.comm_listen(listener)
        reactor.comm_set_select(listener, READ, lambda *_: None)
        reactor.comm_select(0)
        made = open_fds() - before
        assert len(made) == 4  # with the poller and the two ends of the pipe that wakes it
        assert [fd for fd in made if os.get_inheritable(fd)] == []
