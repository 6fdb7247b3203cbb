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
    addresses: tuple[Sequence[str], Sequence[str]],
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
                for address in map(ipaddress.ip_interface, own):
                    ip.addr("add", index=number, address=address.with_prefixlen)
                ip.link("set", index=number, state="up")
            # Until the kernel has noticed its carrier, an interface drops what it should send.
            for ip, number in ends:
                wait_for(partial(_running, ip, number), what=f"{what} to be up")


def _running(ip: Any, index: int) -> bool:
    return bool(ip.link("get", index=index)[0].get("operstate") == "UP")


def add_route(destination: str, via: str | None, device: str | None, kind: str) -> None:
    """Add a route; "default" takes its family from ``via``."""
    gateway = None if via is None else ipaddress.ip_address(via)
    if destination == "default":
        if gateway is None:
            raise CommError(errno.EINVAL, "a default route without via: say 0.0.0.0/0 or ::/0")
        destination = "0.0.0.0/0" if gateway.version == 4 else "::/0"
    network = ipaddress.ip_network(destination)
    what = f"the route to {network}" + (f" via {via}" if via else "")
    with _netlink(what) as ip:
        options: dict[str, Any] = {}
        if gateway is not None:
            options["gateway"] = str(gateway)
        if device is not None:
            found = ip.link_lookup(ifname=device)
            if not found:
                raise CommError(errno.ENODEV, f"{what}: no interface {device}")
            options["oif"] = found[0]
        if kind == "local":
            options.update(type=kind, scope="host", table="local")
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        ip.route("add", family=family, dst=str(network), **options)
