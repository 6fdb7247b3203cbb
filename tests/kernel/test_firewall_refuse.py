"""Plans that are about a sandbox: some of the machine's own traffic alone, and the rest refused.

::

    client ---- router (rules, proxy on 3129) ---- origin (servers on 80 and 81, UDP on 443)
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from _sni_lab import QUIC, datagrams
from firewall_peers import (
    FAMILIES,
    SO_MARK,
    Address,
    all_seen,
    ended,
    fetch,
    in_force,
    intercept_on,
    names,
    serve_on,
    shared_hosts,
    start,
)
from kernel.privileged import real_root
from kernel.proxying import load_nft
from kernel.test_firewall import removed

from lusca_comm.firewall import Exempt, Only, Plan, Skip, render
from lusca_comm.lab import Host, Topology, wait_for

modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])
hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")
MARK = 0x700


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    serve_on(hosts.origin, 80, 81, name="origin")
    start(hosts.origin, datagrams)
    yield from ended(hosts)


def there(net: Topology, port: int = 80) -> list[Address]:
    return [(net.origin_ip[family], port) for family in FAMILIES]


def outcome(address: Address, kind: int, mark: int = 0, patience: float = 10) -> int:
    """0 with an answer, else the errno. A packet that is refused on its way out is dropped, which
    the sender of a datagram is told at once (EPERM), and answered, as anybody else's is."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, kind) as sock:
        sock.settimeout(patience)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        try:
            sock.connect(address)
            sock.sendall(b"x")
            return 0 if sock.recv(10) else errno.ECONNRESET
        except OSError as why:
            return why.errno or errno.ETIMEDOUT


def outcomes(host: Host, *addresses: Address, kind: int = 1, **options: Any) -> set[int]:
    return host.run(lambda: {outcome(address, kind, **options) for address in addresses})


udp = partial(outcomes, kind=socket.SOCK_DGRAM)


@modes
def test_what_clients_send_besides_is_refused(net: Topology, mode: str) -> None:
    """Also datagrams, and what is meant for the proxy while there is none."""
    lan: dict[str, Any] = {"mode": mode, "interfaces": (net.client_link.b_ifname,)}
    proxy = intercept_on(net.router, mode)
    serve_on(net.client, 81, name="client")
    inward = [(net.client_ip[family], 81) for family in FAMILIES]
    with in_force(net.router, Plan(**lan)):
        assert outcomes(net.client, *there(net, 81)) == {0}
        assert udp(net.client, *there(net, QUIC)) == {0}
    with in_force(net.router, Plan(**lan, rest="refuse")):
        all_seen(net.client, proxy, *there(net))
        assert outcomes(net.client, *there(net, 81)) == {errno.ECONNREFUSED}
        assert udp(net.client, *there(net, QUIC)) == {errno.ECONNREFUSED}
        assert names(net.origin, *inward) == ["client", "client"]
        proxy.stop()
        assert outcomes(net.client, *there(net)) == {errno.ECONNREFUSED}


def test_what_is_bypassed_passes_and_a_family_left_out_does_not(net: Topology) -> None:
    skip = Skip(source=net.client_ip[socket.AF_INET], ports=(QUIC,))
    v4, v6 = there(net, QUIC)
    plan = Plan(families=("ipv4",), bypass=(skip,), bypass_ports=(81,), rest="refuse")
    with in_force(net.router, plan):
        assert udp(net.client, v4) == {0}
        assert udp(net.client, v6) == {errno.ECONNREFUSED}
        assert outcomes(net.client, *there(net, 81)) == {0}
        assert outcomes(net.client, there(net)[1]) == {errno.ECONNREFUSED}


@modes
def test_some_of_the_machines_own_traffic(net: Topology, mode: str) -> None:
    """By the mark of its sockets; the proxy, which has none, needs no exemption."""
    serve_on(net.router, 82, name="router")
    proxy = intercept_on(net.router, mode)
    plan = Plan(mode=mode, own=True, forwarded=False, only=Only(mark=MARK), rest="refuse")
    here = [(host, 82) for host in ("127.0.0.1", "::1", net.router_origin_ip[socket.AF_INET])]
    with in_force(net.router, plan):
        all_seen(net.router, proxy, *there(net), mark=MARK)
        assert outcomes(net.router, *there(net, 81), mark=MARK) == {errno.ECONNREFUSED}
        assert udp(net.router, *there(net, QUIC), mark=MARK) == {errno.EPERM}
        assert names(net.router, *here, mark=MARK) == ["router"] * 3
        # Everybody else on the machine, and behind it
        assert names(net.router, *there(net)) == ["origin", "origin"]
        assert names(net.client, *there(net)) == ["origin", "origin"]
        assert udp(net.router, *there(net, QUIC)) == {0}
        proxy.stop()
        # Linux 6.18 resets such an IPv4 connection, and is silent to an IPv6 one.
        assert 0 not in outcomes(net.router, *there(net), mark=MARK, patience=1)
    assert names(net.router, *there(net), mark=MARK) == ["origin", "origin"]


def as_user(uid: int, *addresses: Address) -> tuple[list[str], set[int]]:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    quic = {outcome((host, QUIC), socket.SOCK_DGRAM) for host, _ in addresses}
    return [fetch(address)[0] for address in addresses], quic


@real_root
@modes
@pytest.mark.parametrize("only", [Only(uids=(12345,)), Only(gids=(12345,))], ids=["uid", "gid"])
def test_a_user(net: Topology, mode: str, only: Only) -> None:
    proxy = intercept_on(net.router, mode)
    plan = Plan(mode=mode, own=True, exempt=Exempt(mark=MARK), only=only, rest="refuse")
    with in_force(net.router, plan):
        assert net.router.run(as_user, 12345, *there(net)) == (["proxy", "proxy"], {errno.EPERM})
        assert {proxy.recv()[1], proxy.recv()[1]} == set(there(net))
        assert net.router.run(as_user, 12346, *there(net)) == (["origin", "origin"], {0})


def in_cgroup(path: Path, *addresses: Address) -> tuple[list[str], set[int]]:
    (path / "cgroup.procs").write_text("0")
    quic = {outcome((host, QUIC), socket.SOCK_DGRAM) for host, _ in addresses}
    return [fetch(address)[0] for address in addresses], quic


@modes
def test_a_cgroup_and_all_below_it(net: Topology, mode: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("a cgroup is made by root only")
    proxy = intercept_on(net.router, mode)
    net.router.check_output(["mount", "-t", "cgroup2", "none", str(tmp_path)])
    group = f"lusca-comm-test-{os.getpid()}"
    inner = tmp_path / group / "inner"
    net.router.run(inner.mkdir, parents=True)
    plan = Plan(mode=mode, own=True, only=Only(cgroups=(group,)), rest="refuse")
    try:
        with in_force(net.router, plan):
            found = net.router.run(in_cgroup, inner, *there(net))
            assert found == (["proxy", "proxy"], {errno.EPERM})
            assert {proxy.recv()[1], proxy.recv()[1]} == set(there(net))
            assert net.router.run(in_cgroup, tmp_path, *there(net)) == (["origin", "origin"], {0})
    finally:
        for directory in (inner, inner.parent):
            wait_for(lambda: net.router.run(removed, directory), what="an empty cgroup")  # noqa: B023
        net.router.check_output(["umount", str(tmp_path)])


def test_loaded_by_nft_it_is_the_same(net: Topology) -> None:
    plan = Plan(interfaces=(net.client_link.b_ifname,), rest="refuse")
    load_nft(net.router, render(plan))
    assert udp(net.client, *there(net, QUIC)) == {errno.ECONNREFUSED}
    load_nft(net.router, f"delete table inet {plan.name}")
