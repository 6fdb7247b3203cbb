"""The reply path of spoofed connections, and the origin's leg of same-port ones in its own zone.

Both families at once.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from firewall_peers import (
    FAMILIES,
    WILDCARD,
    Address,
    accepted,
    all_seen,
    ask,
    ended,
    in_force,
    names,
    nothing_left,
    relay_on,
    serve_on,
    shared_hosts,
)

from lusca_comm.firewall import Exempt, Plan, apply
from lusca_comm.firewall.kernel import transact
from lusca_comm.firewall.nftables import Chain, Hook, Rule, Table
from lusca_comm.firewall.statements import Expr, Sets, expr
from lusca_comm.firewall.transaction import delete_table, parts
from lusca_comm.lab import Channel, Host, Topology, wait_for

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21

modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])
by_what = pytest.mark.parametrize("by", ["interface", "port"])
ports_kept = pytest.mark.parametrize("same_port", [False, True], ids=["port-0", "same-port"])
hosts = pytest.fixture(shared_hosts, scope="module", name="hosts")


@pytest.fixture
def net(hosts: Topology) -> Iterator[Topology]:
    yield from ended(hosts)


def origin(net: Topology, port: int = 80) -> list[Address]:
    return [(net.origin_ip[family], port) for family in FAMILIES]


@modes
def test_a_spoofed_connection_gets_its_answers_only_with_the_reply_path(
    net: Topology, mode: str
) -> None:
    there = origin(net)
    serve_on(net.origin, 80, name="origin")
    proxy = relay_on(net.router, mode, same_port=False)
    with nothing_left(net.router):
        with in_force(net.router, Plan(mode=mode, spoof=True)):
            for _, seen, own in all_seen(net.client, proxy, *there, name="origin"):
                assert seen.startswith(own[0] + " ")
                assert seen != f"{own[0]} {own[1]}"

        if mode == "redirect":  # TPROXY has the same rules with and without
            proxy.stop()
            proxy = relay_on(net.router, mode, same_port=False, patience=0.3)
            with in_force(net.router, Plan(mode=mode)):
                all_seen(net.client, proxy, *there, name="")  # the proxy had no answer itself


@modes
@ports_kept
def test_own_and_forwarded_traffic_spoofed_at_once(
    net: Topology, mode: str, same_port: bool
) -> None:
    serve_on(net.origin, 80, name="origin")
    proxy = relay_on(net.router, mode, same_port=False, mark=0x539)
    exempt = Exempt(mark=0x539)
    plan = Plan(mode=mode, own=True, exempt=exempt, spoof=True, same_port=same_port)
    with in_force(net.router, plan):
        for host in (net.client, net.router):
            for _, seen, own in all_seen(host, proxy, *origin(net), name="origin"):
                assert seen.startswith(f"{own[0]} ")


class DropInvalid:
    """``ct state invalid drop``, which many routers have."""

    since, reason = (3, 13), "ct state"

    def text(self) -> str:
        return "ct state invalid drop"

    def expressions(self, sets: Sets) -> Iterator[Expr]:
        yield expr("ct", dreg=1, key=0)
        one, zero = struct.pack("=I", 1), bytes(4)  # NF_CT_STATE_INVALID_BIT
        data = {"mask": (("NFTA_DATA_VALUE", one),), "xor": (("NFTA_DATA_VALUE", zero),)}
        yield expr("bitwise", sreg=1, dreg=1, len=4, **data)
        yield expr("cmp", sreg=1, op=1, data=(("NFTA_DATA_VALUE", zero),))
        drop = (("NFTA_VERDICT_CODE", 0),)
        yield expr("immediate", dreg=0, data=(("NFTA_DATA_VERDICT", drop),))


@contextlib.contextmanager
def stateful(host: Host) -> Iterator[None]:
    host.run(drop_invalid)
    yield
    host.run(transact, [delete_table("stateful")])


def drop_invalid() -> None:
    rule = Rule((DropInvalid(),), "after conntrack, before anything is delivered")  # type: ignore
    hooks = (Hook("filter", hook, "-190") for hook in ("prerouting", "output"))
    chains = tuple(Chain(f"stateful_{hook.hook}", hook, (rule,)) for hook in hooks)
    transact(parts(Table("stateful", chains)))


def with_isn(sock: socket.socket) -> None:
    """A random initial sequence number: one kernel would give both legs nearly the same one."""
    sock.setsockopt(socket.SOL_TCP, TCP_REPAIR, 1)
    sock.setsockopt(socket.SOL_TCP, TCP_REPAIR_QUEUE, 2)  # TCP_SEND_QUEUE
    sock.setsockopt(socket.SOL_TCP, TCP_QUEUE_SEQ, random.randbytes(4))
    sock.setsockopt(socket.SOL_TCP, TCP_REPAIR, 0)


@modes
@by_what
def test_same_port_spoofing_beside_a_stateful_firewall(net: Topology, mode: str, by: str) -> None:
    there = origin(net)
    net.origin.sysctl("net.ipv4.tcp_syncookies", 2)
    serve_on(net.origin, 80, name="origin")
    interfaces = (net.origin_link.a_ifname,) if by == "interface" else ()
    plan = Plan(mode=mode, spoof=True, same_port=True, origin_interfaces=interfaces)
    with stateful(net.router):
        with in_force(net.router, Plan(mode=mode, spoof=True)):
            proxy = relay_on(net.router, mode, same_port=True, patience=0.3)
            for address in there:
                for _ in range(5):  # a sequence number may fit by chance
                    (name,) = names(net.client, address, prepare=with_isn, patience=0.5)
                    assert proxy.recv()[1] == address
                    if name == "":
                        break
                assert name == ""
            proxy.stop()
        with in_force(net.router, plan):
            proxy = relay_on(net.router, mode, same_port=True)
            found = all_seen(net.client, proxy, *(8 * there), name="origin", prepare=with_isn)
            assert [seen for _, seen, _ in found] == [f"{own[0]} {own[1]}" for _, _, own in found]


@pytest.mark.skipif(not shutil.which("nft"), reason="the program nft is not installed")
@modes
@by_what
def test_what_is_not_the_proxys_keeps_its_conntrack_zone(net: Topology, mode: str, by: str) -> None:
    """In another zone an answer would not find the NAT that was done to its connection."""
    serve_on(net.origin, 80, 81, name="origin")
    out = net.origin_link.a_ifname
    chain = "{ type nat hook postrouting priority srcnat; }"
    rule = f"add rule inet nat out oifname {out} masquerade"
    net.router.check_output(["nft", f"add table inet nat; add chain inet nat out {chain}; {rule}"])
    plan = Plan(
        mode=mode,
        spoof=True,
        same_port=True,
        bypass=tuple(net.origin_ip.values()),
        origin_interfaces=(out,) if by == "interface" else (),
    )
    with stateful(net.router), in_force(net.router, plan):
        for host in (net.client, net.router):
            found = ask(host, *origin(net, 80), *origin(net, 81))
            assert [name for name, _, _ in found] == ["origin"] * 4
            routers = [net.router_origin_ip[family] for family in FAMILIES]
            assert [seen.split()[0] for _, seen, _ in found] == 2 * routers
    net.router.check_output(["nft", "delete table inet nat"])


def resets_sent() -> int:
    """Tcp: OutRsts, of both families."""
    names, numbers = (
        line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if "Tcp:" in line
    )
    return int(numbers[names.index("OutRsts")])


def states() -> list[int]:
    """Of the TCP sockets here, listeners aside; numbers of include/net/tcp_states.h."""
    lines = [
        line.split()[3]
        for file in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(file).read_text().splitlines()[1:]
    ]
    return [state for line in lines if (state := int(line, 16)) != 10]


def answer_and_hold(channel: Channel) -> None:
    """A server that closes its side of both connections when it is told to."""
    with contextlib.ExitStack() as held:
        for sock, peer in accepted(channel, [(host, 80) for host in WILDCARD], tproxy=False):
            sock.sendall(f"origin {peer[0]} {peer[1]} ".encode() + sock.recv(100))
            held.enter_context(sock.dup())
            if sock.family == socket.AF_INET6:
                break
        channel.recv(20)


@modes
@ports_kept
def test_the_end_of_a_spoofed_connection_comes_to_the_proxy_too(
    three_hosts: Topology, mode: str, same_port: bool
) -> None:
    """The proxy has closed, of its socket a remnant is left, and then the origin closes."""
    net = three_hosts
    server = net.origin.start(answer_and_hold)
    assert server.recv() == "ready"
    proxy = relay_on(net.router, mode, same_port)
    net.router.run(drop_invalid)
    net.router.run(apply, Plan(mode=mode, spoof=True, same_port=same_port))
    all_seen(net.client, proxy, *origin(net), name="origin")
    # FIN_WAIT2: the origin has acknowledged the proxy's FIN. Of a closed socket Linux keeps from
    # there on only what it keeps in TIME_WAIT.
    wait_for(
        lambda: net.router.run(states).count(5) == len(FAMILIES),
        what="the acknowledgements of the proxy's FINs",
    )
    server.send("close")
    server.result()
    # The origin's FIN was acknowledged, and the client, to which it is addressed, never saw it.
    wait_for(lambda: not net.origin.run(states), what="the origin's socket to end")
    assert net.client.run(resets_sent) == 0
