"""What runs in a host: forked functions, programs, and without capabilities."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from kernel.labs import NONE, ask, become_transparent, echo

from lusca_comm.errors import CommError
from lusca_comm.lab import Channel, ChildError, ChildTraceback, Host, Lab, LabTimeout, Topology


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class TestChildren:
    @pytest.fixture
    def host(self, lab: Lab) -> Host:
        return lab.host("host")

    def test_results_and_arguments(self, host: Host) -> None:
        local = object()
        assert host.run(lambda a, *, b: (a, b, local is not None), 1, b="two") == (1, "two", True)
        assert host.run(lambda: b"x" * 5_000_000) == b"x" * 5_000_000
        assert host.run(os.getpid) != os.getpid()

    def test_an_exception_travels_with_its_traceback(self, host: Host) -> None:
        def broken() -> None:
            raise KeyError("deep inside")

        with pytest.raises(KeyError, match="deep inside") as caught:
            host.run(broken)
        assert isinstance(caught.value.__cause__, ChildTraceback)
        assert "in broken" in str(caught.value.__cause__)

    def test_an_error_number_travels(self, host: Host) -> None:
        with pytest.raises(CommError) as caught:
            host.run(ask_nobody)
        assert caught.value.errno == errno.ECONNREFUSED

    def test_what_cannot_be_pickled_comes_as_text(self, host: Host) -> None:
        def broken() -> None:
            raise Unpicklable(1, 2)

        with pytest.raises(ChildError, match="Unpicklable: 1 and 2"):
            host.run(broken)
        with pytest.raises(Exception, match="pickle"):
            host.run(lambda: lambda: None)

    def test_a_child_that_exits_or_dies(self, host: Host) -> None:
        with pytest.raises(ChildError, match="exit status 3 before it returned"):
            host.run(lambda: os._exit(3))
        with pytest.raises(ChildError, match="signal 9"):
            host.run(lambda: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(SystemExit):
            host.run(sys.exit)

    def test_a_timeout_kills_and_says_where_the_child_was(self, host: Host) -> None:
        pids = socket.socketpair()
        pid = b""

        def stuck_here() -> None:
            pids[1].send(str(os.getpid()).encode())
            signal.pause()

        with pids[0], pids[1]:
            pids[0].setblocking(False)
            for timeout in (0.2, 2, 20):  # until it comes so far in time
                with pytest.raises(LabTimeout, match="stuck_here in host still runs") as caught:
                    host.run(stuck_here, timeout=timeout)
                with contextlib.suppress(BlockingIOError):
                    pid = pids[0].recv(20)
                if pid:
                    break
            assert "in stuck_here" in str(caught.value)
            assert not Path(f"/proc/{pid.decode()}").exists()

    def test_messages_both_ways(self, host: Host) -> None:
        def double(channel: Channel, first: int) -> str:
            channel.send(first)
            while (number := channel.recv()) is not None:
                channel.send(2 * number)
            return "done"

        process = host.start(double, 1)
        assert process.recv() == 1
        for number in (2, 3):
            process.send(number)
        assert process.recv() == 4
        process.send(None)
        assert process.result() == "done"  # the message before it is not lost
        assert process.recv() == 6
        with pytest.raises(ChildError, match="returned without sending"):
            process.recv()
        assert process.result() == "done"

    def test_messages_that_do_not_come(self, host: Host) -> None:
        def impatient(channel: Channel) -> None:
            channel.recv(timeout=0.05)

        process = host.start(impatient)
        with pytest.raises(LabTimeout, match=r"no message from the starter in 0.05 s"):
            process.recv()
        with pytest.raises(LabTimeout):
            process.result()
        waiting = host.start(lambda channel: channel.recv())
        with pytest.raises(LabTimeout, match=r"no message from .* in 0.05 s"):
            waiting.recv(timeout=0.05)
        assert waiting.alive
        waiting.stop()
        waiting.stop()
        assert not waiting.alive
        with pytest.raises(OSError):
            waiting.send("too late")

    def test_an_end_without_a_message(self, host: Host) -> None:
        process = host.start(lambda channel: os._exit(1))
        with pytest.raises(ChildError, match="exit status 1"):
            process.recv()
        with pytest.raises(ChildError, match="exit status 1"):
            process.send("too late")

    def test_signals_are_those_of_a_fresh_interpreter(self, host: Host) -> None:
        def interrupted(channel: Channel) -> str:
            try:
                channel.send("ready")
                while True:  # a signal just before a pause(2) would not end it
                    select.select([], [], [], 0.05)
            except KeyboardInterrupt:
                return "interrupted"
            return "went on"

        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = host.start(interrupted)
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {signal.SIGINT}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGINT, before)
        assert process.recv() == "ready"
        os.kill(process.pid, signal.SIGINT)
        assert process.result() == "interrupted"

    def test_buffered_output_comes_once(
        self, host: Host, capfd: pytest.CaptureFixture[str]
    ) -> None:
        sys.stdout.write("parent ")
        host.run(sys.stdout.write, "child ")
        sys.stdout.flush()
        assert capfd.readouterr().out == "parent child "

    def test_forking_beside_threads(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        def fork_of_python_3_12() -> int:
            pid = fork()
            text = (
                f"This process (pid={pid}) is multi-threaded, use of fork() may lead to deadlocks"
            )
            warnings.warn(text, DeprecationWarning, stacklevel=1)
            return pid

        fork = os.fork
        done = threading.Event()
        thread = threading.Thread(target=done.wait)
        thread.start()
        try:
            assert host.check_output(["echo", "out"]) == "out\n"
            if sys.version_info < (3, 12):
                monkeypatch.setattr(os, "fork", fork_of_python_3_12)
            assert host.run(threading.active_count) == 1
        finally:
            done.set()
            thread.join()

    def test_the_directory_is_the_starters(
        self, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert host.run(Path.cwd) == tmp_path
        tmp_path.rmdir()
        assert host.run(Path.cwd) == Path("/")


class TestPrograms:
    def test_an_unmodified_program_in_the_host(self, three_hosts: Topology) -> None:
        script = (
            "import socket, sys; print(socket.create_connection((sys.argv[1], 80)).getpeername())"
        )
        net = three_hosts
        server = net.origin.start(echo, socket.AF_INET, (net.origin_ip[socket.AF_INET], 80))
        assert server.recv() == "listening"
        command = [sys.executable, "-c", script, net.origin_ip[socket.AF_INET]]
        assert net.client.check_output(command) == "('198.51.100.2', 80)\n"
        assert server.result() == "192.0.2.2"
        with pytest.raises(subprocess.CalledProcessError) as caught:
            net.router.check_output(command, stderr=subprocess.DEVNULL)  # the server has ended
        assert caught.value.returncode == 1

    def test_a_program_that_takes_too_long_is_killed(self, lab: Lab) -> None:
        with pytest.raises(subprocess.TimeoutExpired):
            lab.host("host").check_output(["sleep", "1000"], timeout=0.1)

    def test_popen_takes_what_subprocess_takes(self, lab: Lab, tmp_path: Path) -> None:
        program = lab.host("host").popen(["cat"], stdin=-1, stdout=-1, cwd="/", env={"A": "b"})
        assert program.communicate(b"through", timeout=10) == (b"through", None)

    def test_programs_end_with_the_lab(self, lab: Lab) -> None:
        program = lab.host("host").popen(["cat"], stdin=subprocess.PIPE)
        assert program.stdin is not None
        program.stdin.write(b"never flushed")
        assert program.poll() is None
        lab.close()
        assert program.returncode == -signal.SIGKILL


class TestCapabilities:
    @pytest.mark.parametrize("names", [NONE, {"CAP_NET_BIND_SERVICE"}])
    def test_ip_transparent_needs_one(self, lab: Lab, names: frozenset[str]) -> None:
        with pytest.raises(PermissionError):
            lab.host("host").run(become_transparent, capabilities=names)

    @pytest.mark.parametrize("name", ["CAP_NET_ADMIN", "CAP_NET_RAW"])
    def test_either_of_two_is_enough(self, lab: Lab, name: str) -> None:
        assert lab.host("host").run(become_transparent, capabilities={name}) == 1

    def test_all_by_default(self, lab: Lab) -> None:
        assert lab.host("host").run(become_transparent) == 1

    def test_background_children_and_programs_too(self, lab: Lab) -> None:
        host = lab.host("host")
        with pytest.raises(PermissionError):
            host.start(lambda channel: become_transparent(), capabilities=NONE).result()
        command = ["grep", "-E", "Cap(Prm|Eff|Bnd|Amb)", "/proc/self/status"]
        bits = {
            int(line.split()[1], 16)
            for line in host.check_output(command, capabilities={"CAP_NET_RAW"}).splitlines()
        }
        assert bits == {1 << 13, 0}
        with pytest.raises(CommError, match="not a capability"):
            host.run(os.getpid, capabilities={"CAP_NET"})


def ask_nobody() -> None:
    try:
        ask(socket.AF_INET, ("127.0.0.1", 9), b"")
    except OSError as error:
        raise CommError(error.errno or 0) from None
