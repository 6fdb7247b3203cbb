"""``lusca-comm relay``: its end, and what becomes of connections whose worker dies."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from pathlib import Path

import pytest
from kernel.proxying import PROXY_PORT, fetch, intercept, serve_origin
from kernel.relay_service import ECHO, V4, Holder, Service

from lusca_comm.lab import Topology, wait_for

modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


# -- the end -----------------------------------------------------------------------------------


@modes
def test_term_lets_what_runs_come_to_its_end(
    three_hosts: Topology, tmp_path: Path, mode: str
) -> None:
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, ports=(80, ECHO))
    serve_origin(net, V4)
    service = Service(net.router, tmp_path, "--workers", "2").ready()
    client = Holder(net)
    assert client.say("open", b"before") == b"before"
    service.send(signal.SIGTERM)
    service.said("no new connections")

    def let_be() -> bool:
        answer = net.client.run(fetch, V4, net.origin_ip[V4])
        if mode == "tproxy":  # no listener: the kernel forwards it
            return answer.source == net.client_ip[V4]
        return answer.errno == errno.ECONNREFUSED

    wait_for(let_be, 20, "the listeners closed")
    assert client.say(0, b"after" * 100_000) == b"after" * 100_000
    assert service.process.poll() is None
    assert client.say(0, b"") == b""
    assert service.ended() == 0


@pytest.mark.parametrize("how", ["second signal", "time-out"])
def test_what_does_not_end_is_reset(three_hosts: Topology, tmp_path: Path, how: str) -> None:
    """A reset, and not an end: a part must not look like the whole."""
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, ports=(ECHO,))
    options = ["--drain-timeout", "0.2"] if how == "time-out" else []
    service = Service(net.router, tmp_path, *options).ready()
    client = Holder(net)
    assert client.say("open", b"before") == b"before"
    service.send(signal.SIGTERM)
    service.said("no new connections")
    if how == "second signal":
        service.send(signal.SIGINT)
    assert service.ended() == 3
    assert client.say(0, b"after") == errno.ECONNRESET


def test_an_idle_relay_ends(three_hosts: Topology, tmp_path: Path) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, ports=(ECHO,))
    service = Service(net.router, tmp_path, "--idle", "1").ready()
    client = Holder(net)
    assert client.say("open", b"before") == b"before"
    service.count(relayed=1, ended=1, live=0)
    assert client.say(0, b"after") == errno.ECONNRESET


# -- workers -----------------------------------------------------------------------------------


def test_a_worker_takes_only_its_own_connections_with_it(
    three_hosts: Topology, tmp_path: Path
) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, ports=(ECHO,))
    service = Service(net.router, tmp_path, "--workers", "2").ready()
    client = Holder(net)
    of: dict[int, list[int]] = {0: [], 1: []}  # connections by worker
    numbers = itertools.count()

    def open_one() -> None:
        before = service.counters()
        assert client.say("open", b"first") == b"first"
        after = service.counters()
        (worker,) = (n for n in of if after[str(n)]["accepted"] > before[str(n)]["accepted"])
        of[worker].append(next(numbers))

    while not all(of.values()):
        open_one()
    dead, other = service.pids()
    os.kill(dead, signal.SIGKILL)
    assert "worker 0 was killed by SIGKILL" in service.said("takes its place")
    replacement = int(service.said("worker 0 is process").split()[-2])
    assert replacement not in (dead, other)
    for number in of[1]:
        assert client.say(number, b"second") == b"second"
    for number in of[0]:
        assert client.say(number, b"second") in (b"", errno.ECONNRESET, errno.EPIPE)
    of[0].clear()
    while not of[0]:
        open_one()
    assert client.say(of[0][0], b"second") == b"second"
    assert service.pids() == [replacement, other]
    service.send(signal.SIGTERM)
    service.said("no new connections")
    for number in of[0] + of[1]:
        assert client.say(number, b"") == b""
    assert service.ended() == 0


def test_what_waits_for_a_worker_that_dies_is_served(three_hosts: Topology, tmp_path: Path) -> None:
    """In the queue of a listener that nobody else had open it would be reset."""
    net = three_hosts
    intercept(net.router, port=PROXY_PORT)
    serve_origin(net, V4)
    service = Service(net.router, tmp_path).ready()
    (pid,) = service.pids()
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: stopped(pid), 20, "its threads at rest")
    running = net.client.start(lambda channel: fetch(V4, net.origin_ip[V4]))
    wait_for(lambda: net.router.run(queued) == 1, 20, "the connection in the queue")
    os.kill(pid, signal.SIGKILL)
    assert running.result().body == b"hello"
    service.count(accepted=1, relayed=1)
    assert service.end() == 0


def stopped(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


def queued() -> int:
    """Connections that wait to be accepted (proc_pid_net(5): of a listener, the receive queue)."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    return sum(int(line.split()[4].split(":")[1], 16) for line in lines if line.split()[3] == "0A")


def test_a_worker_that_does_not_answer_is_named(three_hosts: Topology, tmp_path: Path) -> None:
    service = Service(three_hosts.router, tmp_path, "--workers", "2").ready()
    pid, other = service.pids()
    os.kill(pid, signal.SIGSTOP)
    service.send(signal.SIGUSR1)
    service.said(f"worker 0 (process {pid}) (does not answer): accepted 0, ")
    service.said(f"worker 1 (process {other}): accepted 0, ")
    os.kill(pid, signal.SIGCONT)
    assert service.end() == 0


def test_each_worker_has_a_core(three_hosts: Topology, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    service = Service(three_hosts.router, tmp_path, "--workers", "3").ready()
    for number, pid in enumerate(service.pids()):
        for task in Path(f"/proc/{pid}/task").iterdir():
            assert os.sched_getaffinity(int(task.name)) == {cores[number % len(cores)]}


def test_a_crash_loop_is_slowed_down(three_hosts: Topology, tmp_path: Path) -> None:
    service = Service(three_hosts.router, tmp_path, "--workers", "2").ready()
    (pid, _) = service.pids()
    for waits in ("", " in 0.1 s", " in 0.2 s"):
        os.kill(pid, signal.SIGKILL)
        assert service.said("takes its place").endswith(f"takes its place{waits}")
        pid = int(service.said("worker 0 is process").split()[-2])
    assert service.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_all_processes_count_once(
    three_hosts: Topology, tmp_path: Path, number: int
) -> None:
    """A terminal's Ctrl-C goes to all of them, as does what a service manager sends."""
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, ports=(ECHO,))
    service = Service(net.router, tmp_path).ready()
    client = Holder(net)
    assert client.say("open", b"before") == b"before"
    for pid in (*service.pids(), service.process.pid):
        os.kill(pid, number)
    if number in (signal.SIGTERM, signal.SIGINT):
        service.said("no new connections")
    assert client.say(0, b"after") == b"after"
    assert client.say(0, b"") == b""
    assert (service.ended() if number in (signal.SIGTERM, signal.SIGINT) else service.end()) == 0


def test_workers_do_not_outlive_the_service(three_hosts: Topology, tmp_path: Path) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, ports=(ECHO,))
    service = Service(net.router, tmp_path, "--workers", "2").ready()
    client = Holder(net)
    assert client.say("open", b"before") == b"before"
    pids = service.pids()
    service.send(signal.SIGKILL)
    wait_for(lambda: all(map(gone, pids)), 20, "the end of the workers")
    assert client.say(0, b"after") == errno.ECONNRESET
