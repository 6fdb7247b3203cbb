"""The reply path of spoofed connections, and the origin's leg of same-port ones in its own zone."""

from __future__ import annotations

import random
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from firewall_peers import FAMILIES, fetch, listener, nothing_left, relay_on, serve_on

from lusca_comm.firewall import Exempt, Plan, apply, remove
from lusca_comm.firewall.kernel import transact
from lusca_comm.firewall.nftables import Chain, Hook, Rule, Table
from lusca_comm.firewall.statements import Expr, Sets, expr
from lusca_comm.firewall.transaction import parts
from lusca_comm.lab import Channel, Topology, wait_for

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21

families = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


@families
@modes
def test_a_spoofed_connection_gets_its_answers_only_with_the_reply_path(
    three_hosts: Topology, mode: str, family: int
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, name="origin")
    proxy = relay_on(net.router, family, mode, same_port=False)
    plan = Plan(mode=mode, spoof=True)
    with nothing_left(net.router):
        net.router.run(apply, plan)
        name, seen, own = net.client.run(fetch, there)
        assert name == "origin"
        assert proxy.recv() == (own, there)
        assert seen.startswith(net.client_ip[family] + " ")
        assert seen != f"{own[0]} {own[1]}"
        net.router.run(remove, plan)

        if mode == "redirect":  # TPROXY has the same rules with and without
            proxy.stop()
            proxy = relay_on(net.router, family, mode, same_port=False, patience=0.5)
            net.router.run(apply, Plan(mode=mode))
            assert net.client.run(fetch, there)[0] == ""  # the proxy had no answer itself
            assert proxy.recv()[1] == there
            net.router.run(remove, Plan(mode=mode))


@families
@modes
@pytest.mark.parametrize("same_port", [False, True], ids=["port-0", "same-port"])
def test_own_and_forwarded_traffic_spoofed_at_once(
    three_hosts: Topology, mode: str, family: int, same_port: bool
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    serve_on(net.origin, family, 80, name="origin")
    proxy = relay_on(net.router, family, mode, same_port=False, mark=0x539)
    exempt = Exempt(mark=0x539)
    net.router.run(apply, Plan(mode=mode, own=True, exempt=exempt, spoof=True, same_port=same_port))
    for host in (net.client, net.router):
        name, seen, own = host.run(fetch, there)
        assert name == "origin"
        assert proxy.recv() == (own, there)
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


@families
@modes
@pytest.mark.parametrize("by", ["interface", "port"])
def test_same_port_spoofing_beside_a_stateful_firewall(
    three_hosts: Topology, mode: str, family: int, by: str
) -> None:
    net = three_hosts
    there = (net.origin_ip[family], 80)
    net.origin.sysctl("net.ipv4.tcp_syncookies", 2)
    serve_on(net.origin, family, 80, name="origin")
    net.router.run(drop_invalid)
    interfaces = (net.origin_link.a_ifname,) if by == "interface" else ()
    plan = Plan(mode=mode, spoof=True, same_port=True, origin_interfaces=interfaces)
    without = Plan(mode=mode, spoof=True)

    net.router.run(apply, without)
    proxy = relay_on(net.router, family, mode, same_port=True, patience=0.5)
    for _ in range(5):  # a sequence number may fit by chance
        name = net.client.run(fetch, there, prepare=with_isn, patience=1)[0]
        assert proxy.recv()[1] == there
        if name == "":
            break
    assert name == ""
    net.router.run(remove, without)
    proxy.stop()

    net.router.run(apply, plan)
    proxy = relay_on(net.router, family, mode, same_port=True)
    for _ in range(8):
        name, seen, own = net.client.run(fetch, there, prepare=with_isn)
        assert proxy.recv() == (own, there)
        assert (name, seen) == ("origin", f"{own[0]} {own[1]}")


@pytest.mark.skipif(not shutil.which("nft"), reason="the program nft is not installed")
@families
@modes
@pytest.mark.parametrize("by", ["interface", "port"])
def test_what_is_not_the_proxys_keeps_its_conntrack_zone(
    three_hosts: Topology, mode: str, family: int, by: str
) -> None:
    """In another zone an answer would not find the NAT that was done to its connection."""
    net = three_hosts
    serve_on(net.origin, family, 80, 81, name="origin")
    out = net.origin_link.a_ifname
    chain = "{ type nat hook postrouting priority srcnat; }"
    net.router.check_output(["nft", f"add table inet nat; add chain inet nat out {chain}"])
    net.router.check_output(["nft", f"add rule inet nat out oifname {out} masquerade"])
    net.router.run(drop_invalid)
    plan = Plan(
        mode=mode,
        spoof=True,
        same_port=True,
        bypass=(net.origin_ip[family],),
        origin_interfaces=(out,) if by == "interface" else (),
    )
    net.router.run(apply, plan)
    for host in (net.client, net.router):
        for port in (80, 81):
            name, seen, _ = host.run(fetch, (net.origin_ip[family], port))
            assert name == "origin"
            assert seen.startswith(net.router_origin_ip[family] + " ")


def resets_sent() -> int:
    """Tcp: OutRsts, of both families."""
    names, numbers = (
        line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if "Tcp:" in line
    )
    return int(numbers[names.index("OutRsts")])


def states() -> set[int]:
    """Of the TCP sockets here, listeners aside; numbers of include/net/tcp_states.h."""
    lines = [
        line.split()[3]
        for file in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(file).read_text().splitlines()[1:]
    ]
    return {int(state, 16) for state in lines} - {10}


def answer_and_hold(channel: Channel, family: int) -> None:
    """A server that closes its side when it is told to."""
    with listener(family, 80, tproxy=False) as lsock:
        channel.send("ready")
        sock, peer = lsock.accept()
        with sock:
            sock.sendall(f"origin {peer[0]} {peer[1]} ".encode() + sock.recv(100))
            channel.recv(20)


@families
@modes
@pytest.mark.parametrize("same_port", [False, True], ids=["port-0", "same-port"])
def test_the_end_of_a_spoofed_connection_comes_to_the_proxy_too(
    three_hosts: Topology, mode: str, family: int, same_port: bool
) -> None:
    """The proxy has closed, of its socket a remnant is left, and then the origin closes."""
    net = three_hosts
    there = (net.origin_ip[family], 80)
    origin = net.origin.start(answer_and_hold, family)
    assert origin.recv() == "ready"
    proxy = relay_on(net.router, family, mode, same_port)
    net.router.run(drop_invalid)
    net.router.run(apply, Plan(mode=mode, spoof=True, same_port=same_port))
    name, _, own = net.client.run(fetch, there)
    assert name == "origin"
    assert proxy.recv() == (own, there)
    # FIN_WAIT2: the origin has acknowledged the proxy's FIN. Of a closed socket Linux keeps from
    # there on only what it keeps in TIME_WAIT.
    wait_for(lambda: 5 in net.router.run(states), what="the acknowledgement of the proxy's FIN")
    origin.send("close")
    origin.result()
    # The origin's FIN was acknowledged, and the client, to which it is addressed, never saw it.
    wait_for(lambda: not net.origin.run(states), what="the origin's socket to end")
    assert net.client.run(resets_sent) == 0
