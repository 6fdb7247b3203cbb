"""Rules that intercept, in real namespaces: what passes through them, and what is left alone.

::

    client ---- router (rules, proxy on 3129) ---- origin (servers on 80, 81, 3129)

An nft tproxy rule fails open: a request that never met the proxy still gets an answer. So every
test says who answered, and asks the proxy what it saw. Where nothing else is said, both families
are tried at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from firewall_peers import (
    FAMILIES,
    LOOPBACK,
    PORT,
    Address,
    all_seen,
    ended,
    fetch,
    in_force,
    intercept_on,
    names,
    nothing_left,
    serve_on,
    shared_hosts,
    snapshot,
)
from pyroute2 import IPRoute

from lusca_comm.errors import CommError
from lusca_comm.firewall import Exempt, Plan, apply, fields, remove, render
from lusca_comm.firewall.statements import Expr, expr
from lusca_comm.lab import Channel, Lab, Topology, wait_for

modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])
hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    yield from ended(hosts)


def origin(net: Topology, port: int = 80) -> list[Address]:
    return [(net.origin_ip[family], port) for family in FAMILIES]


@modes
def test_forwarded_traffic_meets_the_proxy_while_the_plan_is_in_force(
    net: Topology, mode: str
) -> None:
    there = origin(net)
    serve_on(net.origin, 80, name="origin")
    proxy = intercept_on(net.router, mode)
    with nothing_left(net.router, sysctls=True):
        assert names(net.client, *there) == ["origin", "origin"]
        with in_force(net.router, Plan(mode=mode)):
            all_seen(net.client, proxy, *there)
        assert names(net.client, *there) == ["origin", "origin"]


@modes
def test_what_the_plan_does_not_name_is_left_alone(net: Topology, mode: str) -> None:
    serve_on(net.origin, 80, 81, PORT, name="origin")
    serve_on(net.router, 80, 81, name="router")
    proxy = intercept_on(net.router, mode)
    near = [(net.router_client_ip[family], 80) for family in FAMILIES]
    far = [(net.router_origin_ip[family], 80) for family in FAMILIES]
    with in_force(net.router, Plan(mode=mode)):
        # Another port; a port on which a wildcard listener with IP_TRANSPARENT waits; the router's
        # own service on the intercepted port, near and far side; the router's own connections.
        others = names(net.client, *origin(net, 81), *origin(net, PORT), *near, *far)
        assert others == ["origin"] * 4 + ["router"] * 4
        assert names(net.router, *origin(net), *near) == ["origin"] * 2 + ["router"] * 2
        # And the one that it names:
        all_seen(net.client, proxy, *origin(net))


@modes
@pytest.mark.parametrize("limit", ["bypass", "bypass_ports", "interfaces"])
def test_each_limit_of_a_plan_is_kept(net: Topology, mode: str, limit: str) -> None:
    there = origin(net)
    serve_on(net.origin, 80, name="origin")
    proxy = intercept_on(net.router, mode)
    outside, inside = {
        "bypass": (
            Plan(mode=mode, bypass=("198.51.100.0/24", "203.0.113.7", "2001:db8:2::/48")),
            Plan(mode=mode, bypass=("198.51.100.3", "10.0.0.0/8", "2001:db8:3::/48")),
        ),
        "bypass_ports": (
            Plan(mode=mode, ports=((1, 1023),), bypass_ports=(80, 443)),
            Plan(mode=mode, ports=((1, 1023),), bypass_ports=(79, 81, (90, 99))),
        ),
        "interfaces": (
            Plan(mode=mode, interfaces=("lan9", net.origin_link.a_ifname)),
            Plan(mode=mode, interfaces=("lan9", net.client_link.b_ifname)),
        ),
    }[limit]
    with in_force(net.router, outside):
        assert names(net.client, *there) == ["origin", "origin"]
    with in_force(net.router, inside):
        all_seen(net.client, proxy, *there)


@modes
def test_one_family_leaves_the_other_alone(net: Topology, mode: str) -> None:
    there = origin(net)
    serve_on(net.origin, 80, name="origin")
    proxy = intercept_on(net.router, mode)
    for family, inside, outside in (("ipv4", *there), ("ipv6", *reversed(there))):
        with in_force(net.router, Plan(mode=mode, families=(family,))):
            assert names(net.client, outside) == ["origin"]
            all_seen(net.client, proxy, inside)


def test_a_tproxy_listener_on_one_address_needs_the_rule_to_name_it(net: Topology) -> None:
    there = origin(net)
    serve_on(net.origin, 80, name="origin")
    proxy = intercept_on(net.router, "tproxy", LOOPBACK)
    with in_force(net.router, Plan()):
        assert names(net.client, *there) == ["origin", "origin"]  # it fails open
    with in_force(net.router, Plan(listen4=LOOPBACK[0], listen6=LOOPBACK[1])):
        all_seen(net.client, proxy, *there)


def talk_on(channel: Channel, addresses: list[Address]) -> list[bool]:
    """Whether connections still work when the starter has said so."""
    socks = [socket.create_connection(address, 10) for address in addresses]
    channel.send("ready")
    channel.recv(20)
    alive = []
    for sock in socks:
        with sock:
            try:
                sock.sendall(b"hello")
                alive.append(sock.recv(100).startswith(b"origin "))
            except ConnectionResetError:
                alive.append(False)
    return alive


@pytest.mark.parametrize(
    ("mode", "tracked", "survives"),
    [("tproxy", True, False), ("redirect", True, True), ("redirect", False, False)],
)
def test_connections_from_before_the_plan(
    net: Topology, mode: str, tracked: bool, survives: bool
) -> None:
    serve_on(net.origin, 80, name="origin")
    intercept_on(net.router, mode)
    with contextlib.ExitStack() as stack:
        if tracked:  # the first NAT rule brings conntrack with it
            nat = Plan(mode="redirect", ports=(9,), name="other")
            stack.enter_context(in_force(net.router, nat))
        client = net.client.start(talk_on, origin(net))
        assert client.recv() == "ready"
        with in_force(net.router, Plan(mode=mode)):
            client.send("go on")
            assert client.result() == [survives, survives]


@pytest.mark.parametrize("wrong", ["not transparent", "nobody"])
def test_tproxy_without_a_listener_that_has_the_option_fails_open(
    net: Topology, wrong: str
) -> None:
    serve_on(net.origin, 80, name="origin")
    if wrong == "not transparent":
        intercept_on(net.router, "redirect")
    with in_force(net.router, Plan()):
        assert names(net.client, *origin(net)) == ["origin", "origin"]


@modes
@pytest.mark.parametrize("kind", ["mark", "uid"])
def test_own_traffic_meets_the_proxy_unless_it_is_exempt(
    net: Topology, mode: str, kind: str
) -> None:
    there = origin(net)
    serve_on(net.origin, 80, name="origin")
    serve_on(net.router, 80, name="router")
    proxy = intercept_on(net.router, mode)
    exempt, stranger, mark = {
        "mark": (Exempt(mark=0x539), Exempt(mark=0x53A), 0x539),
        "uid": (Exempt(uids=(0, 65533)), Exempt(uids=(65533,)), 0),
    }[kind]
    with in_force(net.router, Plan(mode=mode, own=True, exempt=exempt)):
        assert names(net.router, *there, mark=mark) == ["origin", "origin"]
    here = [(net.router_origin_ip[family], 80) for family in FAMILIES]
    for forwarded in (False, True):
        plan = Plan(mode=mode, own=True, forwarded=forwarded, exempt=stranger)
        with in_force(net.router, plan):
            all_seen(net.router, proxy, *there, mark=mark)
            # What is for the machine itself stays there.
            local = [*here, *((host, 80) for host in LOOPBACK)]
            assert names(net.router, *local) == ["router"] * 4
            # And forwarded traffic goes by its own switch.
            if forwarded:
                all_seen(net.client, proxy, *there)
            else:
                assert names(net.client, *there) == ["origin", "origin"]
    assert names(net.router, *there) == ["origin", "origin"]


def test_own_traffic_on_all_ports_leaves_a_server_its_clients(net: Topology) -> None:
    """The answers of a server of the machine go to client ports, which are among the plan's."""
    serve_on(net.router, 8080, name="router")
    serve_on(net.origin, 8080, name="origin")
    proxy = intercept_on(net.router, "tproxy")
    plan = Plan(own=True, forwarded=False, ports=((1, 65535),), exempt=Exempt(mark=7))
    with in_force(net.router, plan):
        here = [(net.router_client_ip[family], 8080) for family in FAMILIES]
        assert names(net.client, *here) == ["router", "router"]
        all_seen(net.router, proxy, *origin(net, 8080))


def in_cgroup(path: Path, *addresses: Address) -> list[str]:
    (path / "cgroup.procs").write_text("0")
    return [fetch(address)[0] for address in addresses]


@modes
def test_own_traffic_of_a_cgroup_is_exempt(net: Topology, mode: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("a cgroup is made by root only")
    there = origin(net)
    serve_on(net.origin, 80, name="origin")
    proxy = intercept_on(net.router, mode)
    net.router.check_output(["mount", "-t", "cgroup2", "none", str(tmp_path)])
    group = f"lusca-comm-test-{os.getpid()}"
    inner = tmp_path / group / "proxy"
    plan = Plan(mode=mode, own=True, exempt=Exempt(cgroups=(group,)))
    net.router.run(inner.mkdir, parents=True)
    try:
        with in_force(net.router, plan):
            assert net.router.run(in_cgroup, inner, *there) == ["origin", "origin"]
            assert net.router.run(in_cgroup, inner.parent, *there) == ["origin", "origin"]
            all_seen(net.router, proxy, *there)
            assert net.router.run(in_cgroup, tmp_path, *there) == ["proxy", "proxy"]
            if shutil.which("nft"):
                listing = "nft list table inet lusca_comm"
                bind = f"mount --bind {tmp_path} /sys/fs/cgroup && {listing}"
                assert net.router.check_output(["sh", "-c", bind]) == render(plan)
                net.router.check_output(["umount", "/sys/fs/cgroup"])
    finally:
        for directory in (inner, inner.parent):
            wait_for(lambda: net.router.run(removed, directory), what="an empty cgroup")  # noqa: B023
        net.router.check_output(["umount", str(tmp_path)])


def removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError as why:
        if why.errno != errno.EBUSY:
            raise
        return False
    return True


def apply_with(plan: Plan, load: tuple[Expr, ...]) -> None:
    """Apply the plan with another way to load `socket transparent`."""
    fields._TRANSPARENT = dataclasses.replace(fields._TRANSPARENT, load=load)
    apply(plan)


@pytest.mark.parametrize(
    ("load", "text"),
    [
        ((Expr("nosuch", ()),), "'socket transparent 1' in chain divert: modprobe nft_nosuch"),
        ((expr("socket", key=999, dreg=1),), "modprobe nft_socket"),
        # What pyroute2 has no name for, which it leaves out without a word.
        ((expr("socket", key=0, dreg=1, nosuch=1),), "lists something else"),
    ],
    ids=["kind", "key", "attribute"],
)
def test_what_the_kernel_does_not_know_is_named_and_everything_undone(
    net: Topology, load: tuple[Expr, ...], text: str
) -> None:
    serve_on(net.origin, 80, name="origin")
    with nothing_left(net.router):
        with pytest.raises(CommError, match=text):
            net.router.run(apply_with, Plan(own=True, exempt=Exempt(mark=7)), load)
        assert names(net.client, *origin(net)) == ["origin", "origin"]


def lo_down() -> None:
    with IPRoute() as ip:
        ip.link("set", index=1, state="down")


def test_a_loopback_interface_that_is_down_is_named(lab: Lab) -> None:
    host = lab.host("router")
    host.run(lo_down)
    with nothing_left(host), pytest.raises(CommError, match="ip link set lo up") as caught:
        host.run(apply, Plan())
    assert caught.value.errno == errno.ENETDOWN
    host.run(apply, Plan(mode="redirect"))  # needs no route


def test_a_used_routing_table_is_refused(lab: Lab) -> None:
    host = lab.host("router")
    host.run(add_route, "192.0.2.0/24", 3129)
    with nothing_left(host), pytest.raises(CommError, match="routing table 3129") as caught:
        host.run(apply, Plan())
    assert caught.value.errno == errno.EEXIST
    host.run(apply, Plan(table=3130))


@pytest.mark.parametrize("name", ["conf.all.src_valid_mark", "tcp_fwmark_accept"])
def test_settings_that_make_connections_hang_are_refused(net: Topology, name: str) -> None:
    there = origin(net)[0]
    proxy = intercept_on(net.router, "tproxy")
    try:
        with in_force(net.router, Plan()):
            all_seen(net.client, proxy, there)
            net.router.sysctl(f"net.ipv4.{name}", 1)
            # The reason for the refusal.
            assert names(net.client, there, patience=0.5) == [""]
        with nothing_left(net.router):
            with pytest.raises(CommError, match=rf"sysctl -w net\.ipv4\.{name}=0") as caught:
                net.router.run(apply, Plan())
            assert caught.value.errno == errno.EOPNOTSUPP
        with in_force(net.router, Plan(mode="redirect")):
            pass
    finally:
        net.router.sysctl(f"net.ipv4.{name}", 0)


def add_route(network: str, table: int) -> None:
    with IPRoute() as ip:
        ip.route("add", dst=network, oif=1, table=table)


def in_a_block(plan: Plan) -> tuple[bool, bool]:
    before = snapshot()
    with apply(plan) as applied:
        during = snapshot()
        applied.remove()
        applied.remove()
        gone = snapshot()
    return during != before, gone == before == snapshot()


def under_asyncio(plan: Plan) -> None:
    async def main() -> None:
        with apply(plan):
            await asyncio.sleep(0)

    asyncio.run(main())


def test_applied_is_a_context_manager_under_asyncio_too(lab: Lab) -> None:
    host = lab.host("router")
    assert host.run(in_a_block, Plan(spoof=True, same_port=True)) == (True, True)
    with nothing_left(host):
        host.run(under_asyncio, Plan())


def test_applied_stays_in_its_own_namespace(lab: Lab) -> None:
    """It comes back from a lab's host by pickle; the machine outside must not be touched."""
    host = lab.host("router")
    with nothing_left(host):
        applied = host.run(apply, Plan())
        with pytest.raises(CommError, match="another network namespace") as caught:
            applied.remove()
        assert caught.value.errno == errno.EXDEV
        host.run(applied.remove)


def test_errors_name_what_is_in_the_way_and_leave_nothing(net: Topology) -> None:
    plan = Plan()
    with nothing_left(net.router, sysctls=True):
        with pytest.raises(CommError, match="CAP_NET_ADMIN") as caught:
            net.router.run(apply, plan, capabilities=())
        assert caught.value.errno == errno.EPERM

        net.router.run(apply, plan)
        for again in (plan, Plan(name="second")):
            with pytest.raises(CommError, match="is there already") as caught:
                net.router.run(apply, again)
            assert caught.value.errno == errno.EEXIST
        with pytest.raises(CommError, match="CAP_NET_ADMIN") as caught:
            net.router.run(remove, plan, capabilities=())
        assert caught.value.errno == errno.EPERM
        net.router.run(remove, plan)
        net.router.run(remove, plan)  # nothing there any more: nothing to do

        net.router.sysctl("net.ipv6.conf.lo.disable_ipv6", 1)
        with pytest.raises(CommError, match="disable_ipv6=0") as caught:
            net.router.run(apply, plan)
        net.router.run(apply, Plan(families=("ipv4",)))
        net.router.run(remove, Plan(families=("ipv4",)))
        net.router.sysctl("net.ipv6.conf.lo.disable_ipv6", 0)
