"""``lusca-comm relay`` in the router of a lab: what it takes, what it lets be, what it says.
Its life and its workers': test_relay_command_life.py."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import re
import select
import signal
from pathlib import Path
from threading import Thread

import pytest
from kernel.proxying import FAMILIES, PROXY_PORT, Answer, fetch, intercept, serve_origin
from kernel.relay_service import COMMAND, ECHO, ENVIRONMENT, LISTEN, V4, Service

from lusca_comm.address import spell
from lusca_comm.cli.relay.worker import LINES
from lusca_comm.firewall import Exempt
from lusca_comm.lab import Channel, Lab, Topology, wait_for

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


def policy_file(folder: Path, *lines: str) -> Path:
    path = folder / "policy"
    path.write_text("\n".join((*lines, "")))
    return path


# -- connections -------------------------------------------------------------------------------


@v4_and_v6
@modes
@pytest.mark.parametrize("spoof", [False, True], ids=["plain", "spoofed"])
def test_relays(three_hosts: Topology, tmp_path: Path, family: int, mode: str, spoof: bool) -> None:
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, spoof=spoof)
    serve_origin(net, family)
    service = Service(net.router, tmp_path, *(["--spoof"] if spoof else [])).ready()
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert answer.body == b"hello"
    assert answer.source == (net.client_ip if spoof else net.router_origin_ip)[family]
    down = len(f"{answer.source} {answer.port} hello")
    service.count(accepted=1, relayed=1, ended=1, denied=0, failed=0, live=0, up=5, down=down)
    assert service.end() == 0
    assert service.said("ended: accepted 1, relayed 1, ")


@v4_and_v6
@modes
def test_sees_nothing_without_a_rule(
    three_hosts: Topology, tmp_path: Path, family: int, mode: str
) -> None:
    """The negative control: the port is not among the intercepted."""
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, ports=(ECHO,))
    serve_origin(net, family)
    service = Service(net.router, tmp_path).ready()
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert (answer.body, answer.source) == (b"hello", net.client_ip[family])
    assert service.counters()["all"]["accepted"] == 0


@v4_and_v6
def test_the_client_keeps_its_port(three_hosts: Topology, tmp_path: Path, family: int) -> None:
    net = three_hosts
    intercept(
        net.router,
        port=PROXY_PORT,
        spoof=True,
        same_port=True,
        origin_interfaces=(net.origin_link.a_ifname,),
    )
    serve_origin(net, family)
    Service(net.router, tmp_path, "--spoof", "--keep-port").ready()
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert (answer.source, answer.port) == answer.mine[:2]


def test_own_traffic_with_a_mark(three_hosts: Topology, tmp_path: Path) -> None:
    """Without the mark the relay's own connection would come back to it."""
    net = three_hosts
    rules = {"port": PROXY_PORT, "own": True, "exempt": Exempt(mark=0x100)}
    intercept(net.router, **rules)
    serve_origin(net, V4)
    service = Service(net.router, tmp_path, "--mark", "0x100").ready()
    assert net.client.run(fetch, V4, net.origin_ip[V4]).body == b"hello"
    service.count(accepted=1, looped=0)
    assert service.end() == 0
    service = Service(net.router, tmp_path, "--mark", "0x200").ready()
    assert net.client.run(fetch, V4, net.origin_ip[V4]).errno == errno.ECONNRESET
    service.count(accepted=2, looped=1)


# -- the policy --------------------------------------------------------------------------------


@v4_and_v6
def test_the_policy_decides_and_can_be_changed(
    three_hosts: Topology, tmp_path: Path, family: int
) -> None:
    net = three_hosts
    host = net.origin_ip[family]
    intercept(net.router, port=PROXY_PORT, ports=(80, 82, 83), spoof=True)
    for port in (80, 82, 83):
        serve_origin(net, family, port)

    def ask(port: int) -> Answer:
        return net.client.run(fetch, family, host, port)

    plain, client = net.router_origin_ip[family], net.client_ip[family]
    first = ("# of a test", f"spoof {host} 82", "deny any 82-83  # not 80", "deny 203.0.113.0/24")
    path = policy_file(tmp_path, *first)
    service = Service(net.router, tmp_path, "--policy", str(path), "--workers", "2")
    assert "3 rules, otherwise relay" in service.said("ready on")
    assert (ask(80).source, ask(82).source) == (plain, client)
    assert ask(83).errno == errno.ECONNRESET

    path = policy_file(tmp_path, "deny any 80", "deny 198.51.100.0/33", "allow any")
    service.send(signal.SIGHUP)
    assert f"{path}:2: " in service.said("198.51.100.0/33")
    assert f"{path}:3: " in service.said("'allow'")
    service.said("the policy stays as it was")
    assert (ask(80).source, ask(82).source) == (plain, client)

    policy_file(tmp_path, "deny any 80", "spoof")
    service.send(signal.SIGHUP)
    assert "2 rules, " in service.said("the policy has changed")
    assert ask(80).errno == errno.ECONNRESET
    assert (ask(82).source, ask(83).source) == (client, client)
    service.count(accepted=8, relayed=6, denied=2)
    assert service.end() == 0


def test_without_a_policy_there_is_nothing_to_read_again(
    three_hosts: Topology, tmp_path: Path
) -> None:
    service = Service(three_hosts.router, tmp_path).ready()
    service.send(signal.SIGHUP)
    service.said("there is no --policy")
    assert service.end() == 0


# -- failures ----------------------------------------------------------------------------------


@v4_and_v6
@modes
def test_what_fails_is_told(three_hosts: Topology, tmp_path: Path, family: int, mode: str) -> None:
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT)
    service = Service(net.router, tmp_path).ready()
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert answer.errno == errno.ECONNRESET
    line = service.said("Connection refused")
    assert line.endswith(f" to {spell((net.origin_ip[family], 80))}: Connection refused")
    assert f"worker 0: {spell((net.client_ip[family], 0))[:-1]}" in line
    service.count(accepted=1, relayed=0, failed=1)


def test_many_failures_are_counted_and_not_told_each(three_hosts: Topology, tmp_path: Path) -> None:
    net, many = three_hosts, 5 * LINES
    intercept(net.router, port=PROXY_PORT)
    service = Service(net.router, tmp_path).ready()

    def burst(channel: Channel) -> None:
        """All at once: one after the other they might take more than a second each LINES."""
        threads = [Thread(target=fetch, args=(V4, net.origin_ip[V4])) for _ in range(many)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    net.client.start(burst).result()
    service.count(failed=many)

    def told() -> int:
        withheld = [int(line.split()[-3]) for line in service.lines(" failures more")]
        return len(service.lines("Connection refused")) + sum(withheld)

    wait_for(lambda: told() == many, 20, "all failures told of")
    assert len(service.lines("Connection refused")) < many


def test_without_the_privilege_it_says_what_helps(three_hosts: Topology, tmp_path: Path) -> None:
    net = three_hosts
    service = Service(net.router, tmp_path, capabilities=())
    assert service.ended() == 1
    said = service.said("CAP_NET_ADMIN or CAP_NET_RAW")
    assert said.startswith(f"lusca-comm: 0.0.0.0:{PROXY_PORT}: ")
    assert said.endswith("--redirect-only needs no privilege")

    intercept(net.router, mode="redirect", port=PROXY_PORT)
    serve_origin(net, V4)
    service = Service(net.router, tmp_path, "--redirect-only", capabilities=()).ready()
    assert net.client.run(fetch, V4, net.origin_ip[V4]).source == net.router_origin_ip[V4]
    service.count(accepted=1, relayed=1)
    assert service.end() == 0

    service = Service(net.router, tmp_path, "--redirect-only", "--spoof", capabilities=())
    assert service.ended() == 1
    service.said("CAP_NET_ADMIN or CAP_NET_RAW")


def test_a_log_that_nobody_reads_ends_nothing(three_hosts: Topology, tmp_path: Path) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT)
    read, write = os.pipe()
    program = net.router.popen([*COMMAND, *LISTEN], stderr=write, env=ENVIRONMENT)
    os.close(write)
    with os.fdopen(read) as log:
        assert "ready on" in log.readline()
    assert net.client.run(fetch, V4, net.origin_ip[V4]).errno == errno.ECONNRESET  # a line of log
    serve_origin(net, V4)
    assert net.client.run(fetch, V4, net.origin_ip[V4]).source == net.router_origin_ip[V4]
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0


def test_a_second_service_on_the_port_is_refused(three_hosts: Topology, tmp_path: Path) -> None:
    """SO_REUSEPORT would let it in, and half of the connections go astray."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    one = Service(three_hosts.router, first, "--workers", "2").ready()
    other = Service(three_hosts.router, second, "--workers", "2")
    assert other.ended() == 1
    assert f"0.0.0.0:{PROXY_PORT}: " in other.said("in use")
    assert one.end() == 0


def test_another_user_can_spoof_and_nothing_else(
    lab: Lab, three_hosts: Topology, tmp_path: Path
) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, spoof=True)
    serve_origin(net, V4)
    service = Service(net.router, tmp_path, "--spoof", "--user", "nobody", "--workers", "2")
    if lab.rootless:  # its user namespace has uid 0 alone
        assert service.ended() == 1
        service.said("this user namespace ")
        return
    service.ready()
    assert net.client.run(fetch, V4, net.origin_ip[V4]).source == net.client_ip[V4]
    for pid in (service.process.pid, *service.pids()):
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^Uid:\t65534\t65534\t65534\t", status, re.MULTILINE)
        assert re.search(rf"^CapEff:\t{1 << 13:016x}$", status, re.MULTILINE)  # CAP_NET_RAW


# -- a terminal --------------------------------------------------------------------------------


def test_a_table_on_a_terminal(three_hosts: Topology, tmp_path: Path) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT)
    serve_origin(net, V4)
    near, far = pty.openpty()
    env = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"}
    program = net.router.popen([*COMMAND, *LISTEN], stdout=far, stderr=far, env=env)
    os.close(far)
    screen = bytearray()

    def shows(pattern: str) -> bool:
        if select.select([near], [], [], 0)[0]:
            with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
                screen.extend(os.read(near, 65536))
        # What has come may end within a character.
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode(errors="replace"))
        return re.search(pattern, plain) is not None

    try:
        wait_for(lambda: shows(r"ready on 0\.0\.0\.0:3129"), 20, "a line above the table")
        wait_for(lambda: shows(r"worker +pid +accepted"), 20, "the table")
        assert net.client.run(fetch, V4, net.origin_ip[V4]).body == b"hello"
        wait_for(lambda: shows(r"\n 0 +\d+ +1 +1 +0 +0 +0 +5 B +\d+ B"), 20, "the counters")
        program.send_signal(signal.SIGTERM)
        wait_for(lambda: shows("ended: accepted 1, relayed 1, "), 20, "the last line")
        assert program.wait(30) == 0
    finally:
        os.close(near)
