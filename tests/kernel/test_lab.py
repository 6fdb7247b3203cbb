"""The lab on a real kernel: packets, isolation, children, and that nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from lusca_comm.errors import CommError
from lusca_comm.lab import (
    Channel,
    ChildError,
    ChildTraceback,
    Host,
    Lab,
    LabTimeout,
    LabUnavailable,
    Topology,
    wait_for,
)
from lusca_comm.lab.namespaces import CLONE_NEWUSER, unshare
from lusca_comm.lab.process import Process

FAMILIES = [pytest.param(socket.AF_INET, id="v4"), pytest.param(socket.AF_INET6, id="v6")]
IP_TRANSPARENT = 19  # linux/in.h
R = TypeVar("R")
NONE: frozenset[str] = frozenset()


def echo(channel: Channel, family: int, address: tuple[str, int]) -> str:
    """Serve one connection: send back what comes until its end; the client's address."""
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        channel.send("listening")
        conn, peer = listener.accept()
        with conn:
            while data := conn.recv(65536):
                conn.sendall(data)
    return str(peer[0])


def ask(family: int, address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, timeout=10) as sock:
        assert sock.family == family
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


class TestNetwork:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_tcp_crosses_the_router(self, three_hosts: Topology, family: int) -> None:
        net = three_hosts
        address = (net.origin_ip[family], 80)
        server = net.origin.start(echo, family, address)
        assert server.recv() == "listening"
        before = packets(net.router, net.origin_link.a_ifname)
        assert net.client.run(ask, family, address, b"x" * 100_000) == b"x" * 100_000
        assert server.result() == net.client_ip[family]
        # 69 segments of 1448 bytes each way, were none coalesced
        assert packets(net.router, net.origin_link.a_ifname) > before

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_forwarding_nothing_crosses(self, three_hosts: Topology, family: int) -> None:
        net = three_hosts
        name = {socket.AF_INET: "ipv4.ip_forward", socket.AF_INET6: "ipv6.conf.all.forwarding"}
        net.router.sysctl(f"net.{name[socket.AddressFamily(family)]}", 0)
        address = (net.origin_ip[family], 80)
        server = net.origin.start(echo, family, address)
        assert server.recv() == "listening"
        with net.client.socket(family) as sock:
            sock.settimeout(0.5)
            with pytest.raises(OSError) as caught:
                sock.connect(address)
        assert isinstance(caught.value, TimeoutError) or caught.value.errno == errno.EHOSTUNREACH
        assert server.alive

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_a_route_the_kernel_says_so(self, lab: Lab, family: int) -> None:
        alone = lab.host("alone")
        address = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
        with alone.socket(family) as sock, pytest.raises(OSError) as caught:
            sock.connect((address[socket.AddressFamily(family)], 80))
        assert caught.value.errno == errno.ENETUNREACH

    def test_hosts_share_nothing(self, lab: Lab) -> None:
        a, b = lab.host("a"), lab.host("b")
        for host in (a, b):  # the same port on both, and on the loopback that each has up
            server = host.start(echo, socket.AF_INET, ("127.0.0.1", 80))
            assert server.recv() == "listening"
        assert a.run(ask, socket.AF_INET, ("127.0.0.1", 80), b"a") == b"a"
        a.sysctl("net.ipv4.ip_default_ttl", 9)
        assert b.sysctl("net.ipv4.ip_default_ttl") != "9"

    def test_a_host_sees_its_own_interfaces_in_sys(self, three_hosts: Topology) -> None:
        net = three_hosts
        listing = net.router.check_output(["ls", "/sys/class/net"])
        assert listing.split() == ["lo", "to-client", "to-origin"]
        assert (net.client_link.b_ifname, net.origin_link.a_ifname) == ("to-client", "to-origin")

    def test_a_settled_start_whatever_the_machine(self, lab: Lab) -> None:
        host = lab.host("host")
        for name in ("ipv4.ip_forward", "ipv4.conf.default.rp_filter", "ipv6.conf.all.accept_dad"):
            assert host.sysctl(f"net.{name}") == "0"

    def test_two_links_between_the_same_hosts(self, lab: Lab) -> None:
        a, b = lab.host("a"), lab.host("a host with a long name")
        one = lab.link(a, b, ["192.0.2.1/30"], ["192.0.2.2/30"])
        two = lab.link(a, b, ["192.0.2.5/30"], ["192.0.2.6/30"], mtu=1280)
        assert (one.a_ifname, two.a_ifname) == ("to-a-host-with-", "to-a-host-wit-2")
        assert (one.b_ifname, two.b_ifname) == ("to-a", "to-a-2")
        for host, name, mtu in ((a, one.a_ifname, "1500"), (b, two.b_ifname, "1280")):
            assert host.run(Path(f"/sys/class/net/{name}/mtu").read_text).strip() == mtu

    def test_any_ip(self, three_hosts: Topology) -> None:
        net = three_hosts
        address = ("203.0.113.7", 80)
        net.router.route("203.0.113.0/24", via=net.origin_ip[socket.AF_INET])
        net.origin.route("203.0.113.0/24", local=True)
        server = net.origin.start(echo, socket.AF_INET, ("0.0.0.0", 80))
        assert server.recv() == "listening"
        assert net.client.run(ask, socket.AF_INET, address, b"any") == b"any"

    def test_bad_links_and_routes_are_named(self, lab: Lab) -> None:
        a, b = lab.host("a"), lab.host("b")
        with pytest.raises(CommError, match="'a' already"):
            lab.host("a")
        with pytest.raises(CommError, match=r"the link a - b: '192.0.2.300/24'"):
            lab.link(a, b, ["192.0.2.300/24"], [])
        with pytest.raises(CommError, match=r"the route to default via 192.0.2.1: Netw") as caught:
            a.route("default", via="192.0.2.1")
        assert caught.value.errno == errno.ENETUNREACH
        with pytest.raises(CommError, match="no interface eth7"):
            a.route("198.51.100.0/24", device="eth7")
        for destination in ("default", "198.51.100.1/24", "origin"):
            with pytest.raises(CommError, match=f"the route to {destination}: ") as caught:
                a.route(destination, device="lo")
            assert caught.value.errno == errno.EINVAL


class TestSysctl:
    def test_set_and_read(self, lab: Lab) -> None:
        host = lab.host("host")
        assert host.sysctl("net.ipv4.tcp_syncookies", 2) == "2"
        assert host.sysctl("net.ipv4.tcp_syncookies") == "2"
        assert host.sysctl("net/ipv4/conf/lo/rp_filter", 1) == "1"

    def test_the_machine_is_not_touched(self, lab: Lab) -> None:
        here = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
        lab.host("host").sysctl("net.ipv4.ip_default_ttl", 9)
        assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == here
        with pytest.raises(CommError, match=r"only net\.\* is"):
            lab.host("other").sysctl("kernel.hostname", "x")

    def test_refusals_are_named(self, lab: Lab) -> None:
        with pytest.raises(CommError, match=r"host: sysctl net.no.such: No such file"):
            lab.host("host").sysctl("net.no.such")
        with pytest.raises(CommError, match=r"net.ipv4.ip_forward = many: Invalid argument"):
            lab.host("other").sysctl("net.ipv4.ip_forward", "many")


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

        def stuck_here() -> None:
            pids[1].send(str(os.getpid()).encode())
            signal.pause()

        with pids[0], pids[1]:
            with pytest.raises(LabTimeout, match="stuck_here in host still runs") as caught:
                host.run(stuck_here, timeout=0.2)
            assert "in stuck_here" in str(caught.value)
            assert not Path(f"/proc/{pids[0].recv(20).decode()}").exists()

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
                signal.pause()
            except KeyboardInterrupt:
                return "interrupted"
            return "went on"

        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = host.start(interrupted)
        finally:
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


class TestSockets:
    def test_it_lives_in_the_host(self, three_hosts: Topology) -> None:
        net = three_hosts
        with net.origin.socket() as listener, net.client.socket() as sock:
            listener.bind((net.origin_ip[socket.AF_INET], 80))
            listener.listen()
            sock.settimeout(10)
            sock.connect(listener.getsockname())
            conn, peer = listener.accept()
            with conn:
                assert peer == sock.getsockname()
                assert peer[0] == net.client_ip[socket.AF_INET]
            assert not os.get_inheritable(sock.fileno())

    def test_the_caller_may_do_with_it_what_the_host_may(self, three_hosts: Topology) -> None:
        with three_hosts.router.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            assert (sock.family, sock.type) == (socket.AF_INET6, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            sock.bind(("2001:db8:ffff::1", 53))


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


class TestNothingIsLeft:
    def test_children_programs_and_daemons(self) -> None:
        with Lab() as lab:
            host = lab.host("host")
            process = host.start(lambda channel: signal.pause())
            program = host.popen(["sleep", "1000"])
            daemon = host.start(daemonize).result()
            inode = host.run(os.stat, "/proc/self/ns/net").st_ino
            pids = [process.pid, program.pid, daemon]
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


def in_child(fn: Callable[[], R]) -> R:
    """``fn()`` in a forked child that stays in this process's namespaces."""
    process = Process(lambda: None, lambda channel: fn(), "the child")
    try:
        return process.result()
    finally:
        process.stop()


def own_user_namespace() -> None:
    """Have all capabilities over a new user namespace, and limits of one's own."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def become_ordinary() -> None:
    """Lose every capability but that of mapping uid 0 again, if the process has any."""
    from lusca_comm.lab.capabilities import effective, keep_only

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


def ask_nobody() -> None:
    try:
        ask(socket.AF_INET, ("127.0.0.1", 9), b"")
    except OSError as error:
        raise CommError(error.errno or 0) from None


def become_transparent() -> int:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        return sock.getsockopt(socket.SOL_IP, IP_TRANSPARENT)


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


def packets(host: Host, interface: str) -> int:
    path = Path(f"/sys/class/net/{interface}/statistics/tx_packets")
    return int(host.run(path.read_text))


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
