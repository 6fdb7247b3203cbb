"""Rules that intercept, in real namespaces: what passes through them, and what is left alone.

::

    client ---- router (rules, proxy on 3129) ---- origin (servers on 80, 81, 3129)

An nft tproxy rule fails open: a request that never met the proxy still gets an answer. So every
test says who answered, and asks the proxy what it saw.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import shutil
import socket
from pathlib import Path

import pytest
from firewall_peers import (
    FAMILIES,
    PORT,
    Address,
    fetch,
    intercept_on,
    listener,
    nothing_left,
    serve_on,
    snapshot,
)
from pyroute2 import IPRoute

from lusca_comm.errors import CommError
from lusca_comm.firewall import Exempt, Plan, apply, fields, remove, render
from lusca_comm.firewall.statements import Expr, expr
from lusca_comm.lab import Channel, Lab, Topology, wait_for

families = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


@families
@modes
def test_forwarded_traffic_meets_the_proxy_while_the_plan_is_in_force(
    three_hosts: Topology, mode: str, family: int
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, name="origin")
    proxy = intercept_on(net.router, family, mode)
    plan = Plan(mode=mode)
    with nothing_left(net.router):
        assert net.client.run(fetch, there)[0] == "origin"
        net.router.run(apply, plan)
        name, _, own = net.client.run(fetch, there)
        assert name == "proxy"
        assert proxy.recv() == (own, there)
        net.router.run(remove, plan)
        assert net.client.run(fetch, there)[0] == "origin"


@families
@modes
def test_what_the_plan_does_not_name_is_left_alone(
    three_hosts: Topology, mode: str, family: int
) -> None:
    net = three_hosts
    serve_on(net.origin, family, 80, 81, PORT, name="origin")
    serve_on(net.router, family, 80, 81, name="router")
    proxy = intercept_on(net.router, family, mode)
    there, router = net.origin_ip[family], net.router_client_ip[family]
    net.router.run(apply, Plan(mode=mode))
    # Another port; a port on which a wildcard listener with IP_TRANSPARENT waits; the router's
    # own service on the intercepted port, near and far side; the router's own connections.
    assert net.client.run(fetch, (there, 81))[0] == "origin"
    assert net.client.run(fetch, (there, PORT))[0] == "origin"
    assert net.client.run(fetch, (router, 80))[0] == "router"
    assert net.client.run(fetch, (net.router_origin_ip[family], 80))[0] == "router"
    assert net.router.run(fetch, (there, 80))[0] == "origin"
    assert net.router.run(fetch, (router, 80))[0] == "router"
    # And the one that it names:
    name, _, own = net.client.run(fetch, (there, 80))
    assert name == "proxy"
    assert proxy.recv() == (own, (there, 80))


@families
@modes
@pytest.mark.parametrize("limit", ["bypass", "bypass_ports", "interfaces", "families"])
def test_each_limit_of_a_plan_is_kept(
    three_hosts: Topology, mode: str, family: int, limit: str
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, name="origin")
    proxy = intercept_on(net.router, family, mode)
    both = ("ipv4", "ipv6") if family == socket.AF_INET6 else ("ipv6", "ipv4")
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
        "families": (Plan(mode=mode, families=both[:1]), Plan(mode=mode, families=both[1:])),
    }[limit]
    with nothing_left(net.router):
        net.router.run(apply, outside)
        assert net.client.run(fetch, there)[0] == "origin"
        net.router.run(remove, outside)
        net.router.run(apply, inside)
        name, _, own = net.client.run(fetch, there)
        assert name == "proxy"
        assert proxy.recv() == (own, there)
        net.router.run(remove, inside)


@families
def test_a_tproxy_listener_on_one_address_needs_the_rule_to_name_it(
    three_hosts: Topology, family: int
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    serve_on(net.origin, family, 80, name="origin")
    proxy = intercept_on(net.router, family, "tproxy", loopback)
    wrong, right = Plan(), Plan(listen4="127.0.0.1", listen6="::1")
    net.router.run(apply, wrong)
    assert net.client.run(fetch, there)[0] == "origin"  # it fails open
    net.router.run(remove, wrong)
    net.router.run(apply, right)
    name, _, own = net.client.run(fetch, there)
    assert name == "proxy"
    assert proxy.recv() == (own, there)


def echo(channel: Channel, family: int) -> None:
    with listener(family, 80, tproxy=False) as lsock:
        channel.send("ready")
        sock, _ = lsock.accept()
        with sock:
            while data := sock.recv(100):
                sock.sendall(data)


def talk_on(channel: Channel, there: Address) -> bool:
    """Whether a connection still works when the starter has said so."""
    with socket.create_connection(there, 10) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        channel.send("ready")
        channel.recv(20)
        try:
            sock.sendall(b"b")
            return sock.recv(1) == b"b"
        except ConnectionResetError:
            return False


@families
@pytest.mark.parametrize(
    ("mode", "tracked", "survives"),
    [("tproxy", True, False), ("redirect", True, True), ("redirect", False, False)],
)
def test_connections_from_before_the_plan(
    three_hosts: Topology, family: int, mode: str, tracked: bool, survives: bool
) -> None:
    net = three_hosts
    if tracked:  # the first NAT rule brings conntrack with it
        net.router.run(apply, Plan(mode="redirect", ports=(9,), name="other"))
    origin = net.origin.start(echo, family)
    assert origin.recv() == "ready"
    intercept_on(net.router, family, mode)
    client = net.client.start(talk_on, (net.origin_ip[family], 80))
    assert client.recv() == "ready"
    net.router.run(apply, Plan(mode=mode))
    client.send("go on")
    assert client.result() == survives


@families
@pytest.mark.parametrize("wrong", ["not transparent", "nobody"])
def test_tproxy_without_a_listener_that_has_the_option_fails_open(
    three_hosts: Topology, family: int, wrong: str
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, name="origin")
    if wrong == "not transparent":
        intercept_on(net.router, family, "redirect")
    net.router.run(apply, Plan())
    assert net.client.run(fetch, there)[0] == "origin"


@families
@modes
@pytest.mark.parametrize("kind", ["mark", "uid"])
def test_own_traffic_meets_the_proxy_unless_it_is_exempt(
    three_hosts: Topology, mode: str, family: int, kind: str
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, name="origin")
    serve_on(net.router, family, 80, name="router")
    proxy = intercept_on(net.router, family, mode)
    exempt, stranger, mark = {
        "mark": (Exempt(mark=0x539), Exempt(mark=0x53A), 0x539),
        "uid": (Exempt(uids=(0, 65533)), Exempt(uids=(65533,)), 0),
    }[kind]
    with nothing_left(net.router):
        for forwarded in (False, True):
            plan = Plan(mode=mode, own=True, forwarded=forwarded, exempt=exempt)
            net.router.run(apply, plan)
            assert net.router.run(fetch, there, mark=mark)[0] == "origin"
            net.router.run(remove, plan)

            plan = Plan(mode=mode, own=True, forwarded=forwarded, exempt=stranger)
            net.router.run(apply, plan)
            name, _, own = net.router.run(fetch, there, mark=mark)
            assert name == "proxy"
            assert proxy.recv() == (own, there)
            # What is for the machine itself stays there.
            assert net.router.run(fetch, (net.router_origin_ip[family], 80))[0] == "router"
            loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
            assert net.router.run(fetch, (loopback, 80))[0] == "router"
            # And forwarded traffic goes by its own switch.
            name, _, own = net.client.run(fetch, there)
            assert name == ("proxy" if forwarded else "origin")
            if forwarded:
                assert proxy.recv() == (own, there)
            net.router.run(remove, plan)
        assert net.router.run(fetch, there)[0] == "origin"


@families
def test_own_traffic_on_all_ports_leaves_a_server_its_clients(
    three_hosts: Topology, family: int
) -> None:
    """The answers of a server of the machine go to client ports, which are among the plan's."""
    net = three_hosts
    serve_on(net.router, family, 8080, name="router")
    serve_on(net.origin, family, 8080, name="origin")
    proxy = intercept_on(net.router, family, "tproxy")
    plan = Plan(own=True, forwarded=False, ports=((1, 65535),), exempt=Exempt(mark=7))
    net.router.run(apply, plan)
    assert net.client.run(fetch, (net.router_client_ip[family], 8080))[0] == "router"
    there = (net.origin_ip[family], 8080)
    name, _, own = net.router.run(fetch, there)
    assert name == "proxy"
    assert proxy.recv() == (own, there)


def in_cgroup(path: Path, there: Address) -> str:
    (path / "cgroup.procs").write_text("0")
    return fetch(there)[0]


@families
@modes
def test_own_traffic_of_a_cgroup_is_exempt(
    three_hosts: Topology, mode: str, family: int, tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("a cgroup is made by root only")
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, name="origin")
    proxy = intercept_on(net.router, family, mode)
    net.router.check_output(["mount", "-t", "cgroup2", "none", str(tmp_path)])
    group = f"lusca-comm-test-{os.getpid()}"
    inner = tmp_path / group / "proxy"
    plan = Plan(mode=mode, own=True, exempt=Exempt(cgroups=(group,)))
    net.router.run(inner.mkdir, parents=True)
    try:
        net.router.run(apply, plan)
        assert net.router.run(in_cgroup, inner, there) == "origin"
        assert net.router.run(in_cgroup, inner.parent, there) == "origin"
        name, _, own = net.router.run(fetch, there)
        assert name == "proxy"
        assert proxy.recv() == (own, there)
        assert net.router.run(in_cgroup, tmp_path, there) == "proxy"
        if shutil.which("nft"):
            bind = f"mount --bind {tmp_path} /sys/fs/cgroup && nft list table inet lusca_comm"
            assert net.router.check_output(["sh", "-c", bind]) == render(plan)
    finally:
        for directory in (inner, inner.parent):
            wait_for(lambda: net.router.run(removed, directory), what="an empty cgroup")  # noqa: B023


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
    three_hosts: Topology, load: tuple[Expr, ...], text: str
) -> None:
    net = three_hosts
    there = (net.origin_ip[socket.AF_INET], 80)
    serve_on(net.origin, socket.AF_INET, 80, name="origin")
    with nothing_left(net.router):
        with pytest.raises(CommError, match=text):
            net.router.run(apply_with, Plan(own=True, exempt=Exempt(mark=7)), load)
        assert net.client.run(fetch, there)[0] == "origin"


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
def test_settings_that_make_connections_hang_are_refused(three_hosts: Topology, name: str) -> None:
    net = three_hosts
    there = (net.origin_ip[socket.AF_INET], 80)
    intercept_on(net.router, socket.AF_INET, "tproxy")
    net.router.run(apply, Plan())
    assert net.client.run(fetch, there)[0] == "proxy"
    net.router.sysctl(f"net.ipv4.{name}", 1)
    assert net.client.run(fetch, there, patience=1)[0] == ""  # the reason for the refusal
    net.router.run(remove, Plan())
    with nothing_left(net.router):
        with pytest.raises(CommError, match=rf"sysctl -w net\.ipv4\.{name}=0") as caught:
            net.router.run(apply, Plan())
        assert caught.value.errno == errno.EOPNOTSUPP
    net.router.run(apply, Plan(mode="redirect"))


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


def test_errors_name_what_is_in_the_way_and_leave_nothing(three_hosts: Topology) -> None:
    net = three_hosts
    plan = Plan()
    with nothing_left(net.router):
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
