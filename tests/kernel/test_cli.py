"""``lusca-comm rules`` and ``doctor`` in a router: what is missing, put there, and missed again."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from pyroute2.netlink import NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    NFTSocket,
    nft_chain_msg,
    nft_rule_msg,
    nft_table_msg,
)

import lusca_comm as lc
from lusca_comm.cli import main
from lusca_comm.firewall import kernel
from lusca_comm.lab import Channel, Host, Topology

LISTEN = lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def missing(self) -> list[str]:
        """What doctor misses, each on one line with its cure."""
        said = self.out.partition("\n\n")[0].replace("\n         ", " ").splitlines()
        return [line.removeprefix("MISSING  ") for line in said if line.startswith("MISSING")]


def run(host: Host, *argv: str, capabilities: Sequence[str] | None = None) -> Ran:
    def child() -> Ran:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            status = main(argv)
        return Ran(status, out.getvalue(), err.getvalue())

    return host.run(child, capabilities=capabilities)


def listen(channel: Channel, address: tuple[str, int], flags: int, dualstack: bool) -> None:
    loop = lc.Reactor()
    loop.comm_listen(loop.comm_open(address=address, flags=flags, dualstack=dualstack))
    channel.send("listening")
    channel.recv()


def start_proxy(
    host: Host, address: tuple[str, int] = ("::", 3129), flags: int = LISTEN, dualstack: bool = True
) -> None:
    assert host.start(listen, address, flags, dualstack).recv() == "listening"


def have_port(channel: Channel, flags: int) -> None:
    lc.Reactor().comm_open(socket.SOCK_DGRAM, 0, ("::", 3129), flags=flags, dualstack=True)
    channel.send("open")
    channel.recv()


def test_datagrams(three_hosts: Topology) -> None:
    router, options = (
        three_hosts.router,
        ("--udp", "53", "--no-tcp", "--skip", "protocol udp mark 7"),
    )
    assert run(router, "rules", "--apply", *options).status == 0
    missing = [f"IPv{v}, UDP: nothing listens on port 3129" for v in "46"]
    assert run(router, "doctor", *options).missing == missing
    start_proxy(router)  # for connections: another matter
    assert run(router, "doctor", *options).missing == missing
    plain = router.start(have_port, lc.COMM_REUSEADDR)
    assert plain.recv() == "open"
    for text in run(router, "doctor", *options).missing:
        assert "UDP: [::]:3129 listens without IP_TRANSPARENT" in text
    plain.stop()
    assert router.start(have_port, LISTEN).recv() == "open"
    ran = run(router, "doctor", *options)
    assert (ran.missing, ran.status) == ([], 0)
    assert run(router, "doctor").missing == [OTHER_RULES]


def ready(net: Topology, *options: str) -> Host:
    """A router with everything in place for the plan of these options."""
    assert run(net.router, "rules", "--apply", *options).status == 0
    start_proxy(net.router)
    return net.router


modes = pytest.mark.parametrize(
    "options",
    [[], ["--spoof"], ["--mode", "redirect"], ["--own", "--exempt-mark", "7", "--no-forwarded"]],
    ids=" ".join,
)


@modes
def test_all_is_well(three_hosts: Topology, options: list[str]) -> None:
    ran = run(ready(three_hosts, *options), "doctor", *options)
    assert ran.missing == []
    assert ran.out.endswith("\n\nNothing is missing.\n")
    assert (ran.status, ran.err) == (0, "")


def test_a_bare_machine(three_hosts: Topology) -> None:
    net = three_hosts
    for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        net.router.sysctl(f"net.{name}", 0)
    ran = run(net.router, "doctor")
    assert ran.missing == [
        "IPv4: this machine is no router: it does not forward mend: "
        "sysctl -w net.ipv4.ip_forward=1",
        "IPv6: this machine is no router: it does not forward mend: "
        "sysctl -w net.ipv6.conf.all.forwarding=1",
        "IPv4: route local default dev lo table 3129 mend: "
        "ip -4 route add local default dev lo table 3129",
        "IPv4: rule priority 100 fwmark 0x40/0x40 lookup 3129 mend: "
        "ip -4 rule add priority 100 fwmark 0x40/0x40 lookup 3129",
        "IPv6: route local default dev lo table 3129 mend: "
        "ip -6 route add local default dev lo table 3129",
        "IPv6: rule priority 100 fwmark 0x40/0x40 lookup 3129 mend: "
        "ip -6 rule add priority 100 fwmark 0x40/0x40 lookup 3129",
        "nftables: table inet lusca_comm mend: lusca-comm rules --apply, with these options",
        "IPv4: nothing listens on port 3129",
        "IPv6: nothing listens on port 3129",
    ]
    assert ran.out.endswith("\n\n9 missing.\n")
    assert (ran.status, ran.err) == (1, "")


@pytest.mark.parametrize(
    ("address", "flags", "dualstack", "missing"),
    [
        (("::", 3129), LISTEN, True, []),
        (("::", 3129), LISTEN, False, ["IPv4: nothing listens on port 3129"]),
        (("0.0.0.0", 3129), LISTEN, False, ["IPv6: nothing listens on port 3129"]),
        (("::", 3128), LISTEN, True, [f"IPv{v}: nothing listens on port 3129" for v in "46"]),
        (
            ("::", 3129),
            lc.COMM_REUSEADDR,
            True,
            [
                f"IPv{v}: [::]:3129 listens without IP_TRANSPARENT, so connections go to the real "
                "server: open it with COMM_TPROXY_LCL"
                for v in "46"
            ],
        ),
    ],
)
def test_the_listener(
    three_hosts: Topology,
    address: tuple[str, int],
    flags: int,
    dualstack: bool,
    missing: list[str],
) -> None:
    router = three_hosts.router
    assert run(router, "rules", "--apply").status == 0
    start_proxy(router, address, flags, dualstack)
    ran = run(router, "doctor")
    assert ran.missing == missing
    assert ran.status == bool(missing)


def test_redirect_takes_any_listener(three_hosts: Topology) -> None:
    options = ("--mode", "redirect")
    assert run(three_hosts.router, "rules", "--apply", *options).status == 0
    start_proxy(three_hosts.router, flags=lc.COMM_REUSEADDR)
    assert run(three_hosts.router, "doctor", *options).missing == []


@pytest.mark.parametrize("name", ["conf/to-client/src_valid_mark", "tcp_fwmark_accept"])
def test_sysctls_that_break_it(three_hosts: Topology, name: str) -> None:
    """That they do is shown in test_demo.py."""
    router = ready(three_hosts)
    router.sysctl(f"net/ipv4/{name}", 1)
    assert run(router, "doctor").missing == [
        f"net/ipv4/{name} is on, so what carries the mark is not answered mend: "
        f"sysctl -w net/ipv4/{name}=0"
    ]
    assert run(router, "doctor", "--mode", "redirect").missing == [OTHER_RULES]


OTHER_RULES = (
    "nftables: table inet lusca_comm: it is there, with other rules than these options give "
    "mend: lusca-comm rules --remove, with its options, and --apply with these"
)


def test_masquerading_is_noted_for_spoofing(three_hosts: Topology) -> None:
    router = ready(three_hosts, "--spoof")
    assert "masquerades" not in run(router, "doctor", "--spoof").out
    router.run(masquerade)
    ran = run(router, "doctor", "--spoof")
    assert "note     chain nat postrouting masquerades: " in ran.out
    assert ran.status == 0
    assert "masquerades" not in run(router, "doctor", "--mode", "redirect").out


def masquerade() -> None:
    """``nft add table ip nat``, a postrouting chain, and the rule ``masquerade`` in it."""
    hook = [("NFTA_HOOK_HOOKNUM", 4), ("NFTA_HOOK_PRIORITY", 100)]
    with NFTSocket() as nft:
        nft.begin()
        for message, kind, attrs in (
            (nft_table_msg(), NFT_MSG_NEWTABLE, {"TABLE_NAME": "nat"}),
            (
                nft_chain_msg(),
                NFT_MSG_NEWCHAIN,
                {
                    "CHAIN_TABLE": "nat",
                    "CHAIN_NAME": "postrouting",
                    "CHAIN_HOOK": {"attrs": hook},
                    "CHAIN_TYPE": "nat",
                },
            ),
            (
                nft_rule_msg(),
                NFT_MSG_NEWRULE,
                {
                    "RULE_TABLE": "nat",
                    "RULE_CHAIN": "postrouting",
                    "RULE_EXPRESSIONS": [{"attrs": [("NFTA_EXPR_NAME", "masq")]}],
                },
            ),
        ):
            message["attrs"] = [(f"NFTA_{name}", value) for name, value in attrs.items()]
            nft.request_put(message, kind, NLM_F_REQUEST | NLM_F_CREATE)
        nft.commit()


def test_apply_and_remove(three_hosts: Topology) -> None:
    router = three_hosts.router
    applied = run(router, "rules", "--apply", "--spoof")
    assert applied.out.startswith("In force: table inet lusca_comm, routing table 3129 and ")
    assert "\nNote: While nothing with IP_TRANSPARENT listens on port 3129" in applied.out
    assert router.run(tables) == 1
    again = run(router, "rules", "--apply", "--spoof")
    assert (again.status, again.out) == (1, "")
    assert again.err.startswith("lusca-comm: nftables table inet lusca_comm is there already")
    for _ in range(2):  # what is not there is not missed
        removed = run(router, "rules", "--remove", "--spoof")
        assert (removed.status, removed.err) == (0, "")
        assert router.run(tables) == 0
    assert run(router, "rules", "--apply").status == 0


def tables() -> int:
    with kernel.opened() as (nft, _):
        return len(kernel.listed(nft, "table"))


def test_without_privileges(three_hosts: Topology) -> None:
    router = ready(three_hosts)
    for action in ("--apply", "--remove"):
        ran = run(router, "rules", action, capabilities=())
        assert (ran.status, ran.out) == (1, "")
        assert ran.err.startswith("lusca-comm: changing the firewall needs CAP_NET_ADMIN")
    ran = run(router, "doctor", capabilities=())
    (text,) = ran.missing
    assert text.startswith("transparent listeners, with the capabilities of this process: CAP_NET_")
    assert "mend: run as root, `setcap cap_net_raw+ep PROGRAM`" in text
    assert "unknown  nftables: table inet lusca_comm: only root can see it\n" in ran.out
