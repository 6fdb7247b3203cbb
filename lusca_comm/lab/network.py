"""Links and routes over netlink. These functions run in children that have joined a host."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from lusca_comm.errors import CommError
from lusca_comm.lab.namespaces import join_net
from lusca_comm.lab.waiting import wait_for

__all__ = ["add_link", "add_route", "require_netlink"]

_IFA_F_NODAD = 0x02


def require_netlink() -> None:
    """Import pyroute2, once and before any fork; ``CommError`` (ENOSYS) says how to get it."""
    try:
        import pyroute2  # noqa: F401
    except ImportError:
        raise CommError(
            errno.ENOSYS, "a lab needs pyroute2: pip install 'lusca-comm[cli]'"
        ) from None


@contextlib.contextmanager
def _netlink(what: str) -> Iterator[Any]:
    """An rtnetlink socket of the namespace joined last; the kernel's refusals as ``CommError``."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise CommError(error.code, f"{what}: {os.strerror(error.code)}") from None


def add_link(
    peer_net: int,
    index: int,
    names: tuple[str, str],
    addresses: Sequence[Sequence[ipaddress.IPv4Interface | ipaddress.IPv6Interface]],
    mtu: int,
) -> None:
    """Make a veth pair from this namespace to that of ``peer_net``, up and ready to send.

    ``index`` is for the end here. It must differ from the other end's, which gets the next small
    number: the kernel takes an interface whose index is its peer's for one without a peer, and
    notices its carrier up to a second late (linkwatch_urgent_event in net/core/link_watch.c).
    """
    what = f"the link {names[0]} - {names[1]}"
    with _netlink(what) as here:
        peer = {"ifname": names[1], "net_ns_fd": peer_net, "mtu": mtu}
        here.link("add", ifname=names[0], index=index, kind="veth", mtu=mtu, peer=peer)
        join_net(peer_net)
        with _netlink(what) as there:
            ends = [(here, index), (there, there.link_lookup(ifname=names[1])[0])]
            for (ip, number), own in zip(ends, addresses, strict=True):
                for address in own:
                    # FACT: accept_dad=0 lets an address be used soon, this flag at once.
                    flags = _IFA_F_NODAD if address.version == 6 else 0
                    ip.addr("add", index=number, address=address.with_prefixlen, flags=flags)
                ip.link("set", index=number, state="up")
            # Until the kernel has noticed its carrier, an interface drops what it should send.
            for ip, number in ends:
                wait_for(partial(_running, ip, number), what=f"{what} to be up")


def _running(ip: Any, index: int) -> bool:
    return bool(ip.link("get", index=index)[0].get("operstate") == "UP")


def add_route(
    destination: str, via: str | None = None, device: str | None = None, local: bool = False
) -> None:
    """Add a route; "default" takes its family from ``via``, a local one is on lo."""
    what = f"the route to {destination}" + (f" via {via}" if via else "")
    options: dict[str, Any] = {}
    try:
        if via is not None:
            gateway = ipaddress.ip_address(via)
            options["gateway"] = str(gateway)
            if destination == "default":
                destination = "0.0.0.0/0" if gateway.version == 4 else "::/0"
        network = ipaddress.ip_network(destination)
    except ValueError as error:
        raise CommError(errno.EINVAL, f"{what}: {error}") from None
    options["family"] = socket.AF_INET if network.version == 4 else socket.AF_INET6
    if local:
        options.update(type="local", scope="host", table="local")
        device = device or "lo"
    with _netlink(what) as ip:
        if device is not None:
            indexes = ip.link_lookup(ifname=device)
            if not indexes:
                raise CommError(errno.ENODEV, f"{what}: no interface {device}")
            options["oif"] = indexes[0]
        ip.route("add", dst=str(network), **options)
