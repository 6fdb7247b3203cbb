"""The packets' part: nftables maps, conntrack's entries, and the end of sockets."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

from emulators.tproxy2.kernel import NOWHERE, Address, Assignment, Key
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

# A datagram to a listener is changed by itself and tracked by nobody (ITP_UNIDIR), unless a socket
# with that very foreign address is connected to its sender. In the second statement the port is
# changed already, so that map's key has the new one.
TABLE: Final = """
table ip tproxy2 {
    map to_pair { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }
    map to_address { type inet_proto . ipv4_addr . inet_service : ipv4_addr; }
    map to_listener { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }
    map to_flow {
        type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr . inet_service;
    }
    set flows { type ipv4_addr . inet_service . ipv4_addr . inet_service; }
    map datagram_port { type ipv4_addr . inet_service : inet_service; }
    map datagram_address { type ipv4_addr . inet_service : ipv4_addr; }
    chain datagrams {
        type filter hook prerouting priority raw;
        ip saddr . udp sport . ip daddr . udp dport @flows accept
        udp dport set ip daddr . udp dport map @datagram_port \
ip daddr set ip daddr . udp dport map @datagram_address notrack
    }
    chain prerouting {
        type nat hook prerouting priority dstnat;
        dnat ip to ip saddr . udp sport . ip daddr . udp dport map @to_flow
        dnat ip to meta l4proto . ip daddr . th dport map @to_listener
    }
    chain output {
        type nat hook output priority -100;
        dnat ip to meta l4proto . ip daddr . th dport map @to_listener
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        snat ip to meta l4proto . ip saddr . th sport map @to_pair
        snat to meta l4proto . ip saddr . th sport map @to_address
    }
}
"""

Element: TypeAlias = tuple[str, str]
"""The name of a map or set, and what is in it."""


def elements(assignments: Iterable[Assignment]) -> frozenset[Element]:
    """What has to be in the maps for these assignments."""
    return frozenset(element for one in assignments for element in _elements(one))


def _elements(one: Assignment) -> Iterator[Element]:
    local, foreign = _pair(one.local), _pair(one.foreign)
    if one.connects and one.foreign[1]:
        yield "to_pair", f"{one.protocol} . {local} : {foreign}"
    elif one.connects:
        yield "to_address", f"{one.protocol} . {local} : {one.foreign[0]}"
    if one.connects and one.protocol == "udp" and one.remote != NOWHERE and one.foreign[1]:
        flow = f"{_pair(one.remote)} . {foreign}"
        yield "flows", flow
        if one.listens:
            yield "to_flow", f"{flow} : {local}"
    elif one.listens and one.unidir and one.protocol == "udp":
        yield "datagram_port", f"{foreign} : {one.local[1]}"
        yield "datagram_address", f"{one.foreign[0]} . {one.local[1]} : {one.local[0]}"
    elif one.listens:
        yield "to_listener", f"{one.protocol} . {foreign} : {local}"


def _pair(address: Address) -> str:
    return f"{address[0]} . {address[1]}"


def program() -> str | None:
    """Where nft is: not always in an ordinary user's PATH."""
    return shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Maps:
    """The table in this network namespace, which takes it along when it goes."""

    def __init__(self) -> None:
        self._installed: frozenset[Element] = frozenset()
        _nft(TABLE)

    def set(self, wanted: frozenset[Element]) -> None:
        """Have these elements in the maps, and no others."""
        gone, new = self._installed - wanted, wanted - self._installed
        lines = [f"delete element ip tproxy2 {name} {{ {text} }}" for name, text in gone]
        lines += [f"add element ip tproxy2 {name} {{ {text} }}" for name, text in new]
        if lines:
            _nft("\n".join(lines))
        self._installed = wanted


def _nft(text: str) -> None:
    nft = program()
    assert nft is not None, "no nft"
    done = subprocess.run([nft, "-f", "-"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, f"nft: {done.stderr} in\n{text}"


_PROTOCOLS: Final = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}


class Tuple(NamedTuple):
    """One direction of a tracked connection."""

    protocol: str
    source: Address
    destination: Address


def _tracked(conntrack: NFCTSocket, key: Key) -> Iterator[tuple[Tuple, NFCTAttrTuple]]:
    """Of every connection that began at this local address: the way back, and the way there as
    pyroute2 has it."""
    for entry in conntrack.dump():
        there, back = (
            NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr(f"CTA_TUPLE_{way}"))
            for way in ("ORIG", "REPLY")
        )
        if _tuple(there)[:2] == key:
            yield _tuple(back), there


def _tuple(way: NFCTAttrTuple) -> Tuple:
    name = _PROTOCOLS.get(way.proto, "")
    return Tuple(name, (way.saddr, way.sport or 0), (way.daddr, way.dport or 0))


def chosen_port(key: Key) -> int | None:
    """The port that NAT gave to a connection from this local address; None: there is none."""
    with NFCTSocket() as conntrack:
        return next((reply.destination[1] for reply, _ in _tracked(conntrack, key)), None)


def forget(key: Key) -> None:
    """Delete conntrack's entries of connections from this local address."""
    with NFCTSocket() as conntrack:
        for _, there in list(_tracked(conntrack, key)):
            conntrack.entry("del", tuple_orig=there)


_SOCK_DIAG: Final = 4
_TCP_AND_UDP_DESTROY: Final = 0b11  # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET_UDP_DESTROY
_COOKIE: Final = 16 + 44  # in struct inet_diag_msg, after struct nlmsghdr


class Ends(socket.socket):
    """Tells of every TCP and UDP socket of this namespace that the kernel frees (sock_diag(7))."""

    def __init__(self) -> None:
        super().__init__(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _SOCK_DIAG)
        self.bind((0, _TCP_AND_UDP_DESTROY))

    def cookies(self) -> Iterator[int]:
        """SO_COOKIE of those that ended since the last call."""
        while True:
            try:
                data = self.recv(1 << 16)
            except BlockingIOError:
                return
            yield struct.unpack_from("=Q", data, _COOKIE)[0]
