"""Where a lab may exist, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from kernel.labs import NONE, ask, become_transparent, echo, in_child, own_user_namespace

from lusca_comm.errors import CommError
from lusca_comm.lab import Channel, Lab, LabUnavailable, wait_for
from lusca_comm.lab.capabilities import effective, keep_only
from lusca_comm.lab.process import Process


class TestNothingIsLeft:
    def test_children_programs_and_daemons(self) -> None:
        with contextlib.ExitStack() as stack:
            with Lab() as lab:
                host = lab.host("host")
                process = host.start(lambda channel: signal.pause())
                program = host.popen(["sleep", "1000"])
                daemon = host.start(daemonize).result()
                pids = [process.pid, program.pid, daemon]
                # Open: no other namespace gets its number.
                file = stack.enter_context(Path(f"/proc/{daemon}/ns/net").open("rb"))
                inode = os.fstat(file.fileno()).st_ino
                assert set(pids) <= set(inside(inode))
            assert inside(inode) == []
        for pid in pids:
            assert not Path(f"/proc/{pid}/exe").exists()

    def test_descriptors_and_children_of_the_caller(self) -> None:
        before = descriptors()
        with Lab() as lab:
            net = lab.three()
            net.origin.start(lambda channel: signal.pause())
            net.client.popen(["sleep", "1000"])
            net.client.run(os.getpid)
        assert descriptors() == before
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    def test_after_an_exception(self) -> None:
        processes = []

        def interrupted() -> None:
            with Lab() as lab:
                processes.append(lab.host("host").start(lambda channel: signal.pause()))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert not processes[0].alive

    def test_when_the_starting_thread_ends(self, lab: Lab) -> None:
        def stay(channel: Channel) -> None:
            channel.send("there")
            signal.pause()

        def start() -> None:
            started.append(host.start(stay))
            assert started[0].recv() == "there"

        host = lab.host("host")
        started: list[Process[None]] = []
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        wait_for(lambda: not started[0].alive, what="the thread's child to die")

    def test_closing_twice_and_using_it_then(self) -> None:
        lab = Lab()
        host = lab.host("host")
        lab.close()
        lab.close()
        for use in (lambda: lab.host("other"), lambda: host.run(os.getpid), host.socket):
            with pytest.raises(CommError, match="the lab is closed"):
                use()

    def test_after_kill_9(self) -> None:
        """Children and programs die with the process that opened the lab, without its help."""
        outside: list[int] = []

        def opener(channel: Channel) -> None:
            with Lab() as lab:
                host = lab.host("host")
                process = host.start(lambda channel: signal.pause())
                program = host.popen(["sleep", "1000"])
                channel.send([process.pid, program.pid])
                signal.pause()

        opened = Process(lambda: None, opener, "the opener")
        try:
            outside = opened.recv()
            assert all(Path(f"/proc/{pid}").exists() for pid in outside)
        finally:
            opened.stop()
        wait_for(
            lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in outside),
            what="the orphans to die",
        )

    def test_namespaces(self) -> None:
        """With at most 3 network namespaces allowed, 3 labs of 3 in a row need them freed."""

        def labs() -> None:
            own_user_namespace()
            Path("/proc/sys/user/max_net_namespaces").write_text("3")
            for _ in range(3):
                # the kernel frees namespaces in the background
                with wait_for(three_fit, what="the last lab's namespaces to go") as lab:
                    with pytest.raises(LabUnavailable, match="limit on their number is reached"):
                        lab.host("d")

        in_child(labs)


class TestOrdinaryUser:
    """From root, by dropping to one; an ordinary user runs the same as it is."""

    def test_the_same_lab(self) -> None:
        def lab() -> bool:
            become_ordinary()
            with Lab() as lab:
                net = lab.three()
                for family in (socket.AF_INET, socket.AF_INET6):
                    address = (net.origin_ip[family], 80)
                    server = net.origin.start(echo, family, address)
                    assert server.recv() == "listening"
                    assert net.client.run(ask, family, address, b"x") == b"x"
                    assert server.result() == net.client_ip[family]
                assert net.client.run(become_transparent) == 1
                with pytest.raises(PermissionError):
                    net.client.run(become_transparent, capabilities=NONE)
                return lab.rootless

        assert in_child(lab) is True

    def test_rootless_means_what_it_says(self, lab: Lab) -> None:
        assert lab.rootless == (os.geteuid() != 0)


class TestUnavailable:
    def test_no_user_namespaces(self) -> None:
        def refused() -> None:
            own_user_namespace()
            Path("/proc/sys/user/max_user_namespaces").write_text("0")
            become_ordinary()
            Lab()

        with pytest.raises(LabUnavailable, match=r"user.max_user_namespaces is 0") as caught:
            in_child(refused)
        assert caught.value.errno == errno.ENOSPC

    def test_no_network_namespaces(self) -> None:
        def refused() -> None:
            own_user_namespace()
            Path("/proc/sys/user/max_net_namespaces").write_text("0")
            Lab()

        with pytest.raises(LabUnavailable, match=r"sudo sysctl -w user.max_net_namespaces=15000"):
            in_child(refused)


def become_ordinary() -> None:
    """Lose every capability but that of mapping uid 0 again, if the process has any."""
    if effective():
        keep_only({"CAP_SETFCAP"})


def three_fit() -> Lab | None:
    lab = None
    try:
        lab = Lab()
        for name in "abc":
            lab.host(name)
    except LabUnavailable:
        if lab is not None:
            lab.close()
        return None
    return lab


def daemonize(channel: Channel) -> int:
    """Start a process that nobody waits for, in a session of its own; its pid."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if (pid := os.fork()) != 0:
            os.write(write, str(pid).encode())
            os._exit(0)
        os.execvp("sleep", ["sleep", "1000"])
    os.wait()
    return int(os.read(read, 20))


def inside(inode: int) -> list[int]:
    """The processes in the network namespace of this inode number."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "ns/net").stat().st_ino == inode:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def descriptors() -> dict[str, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:  # that of the listing itself
            continue
    return {fd: what for fd, what in found.items() if not what.startswith("/proc")}
