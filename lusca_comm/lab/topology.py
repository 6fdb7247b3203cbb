"""Labs: hosts in network namespaces, and the links between them."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from socket import AF_INET, AF_INET6
from types import TracebackType
from typing import Any

from lusca_comm.errors import CommError
from lusca_comm.lab.host import Host
from lusca_comm.lab.namespaces import Namespaces
from lusca_comm.lab.network import add_link, add_route, require_netlink
from lusca_comm.lab.process import Process, receive_fds
from lusca_comm.lab.unavailable import LabUnavailable, explain
from lusca_comm.lab.waiting import wait_for

__all__ = ["Lab", "Link", "Topology", "three_hosts"]


@dataclass(frozen=True)
class Link:
    """A link's two interface names: ``a_ifname`` in the first host, ``b_ifname`` in the second."""

    a_ifname: str
    b_ifname: str


class Lab:
    """Hosts that exist as long as this object is open.

    As root they are network and mount namespaces, as an ordinary user within a user namespace of
    the lab's. Only descriptors hold them: when the process ends in any way, they are gone.

    Raises ``LabUnavailable`` where the machine does not allow it, with the command that does.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            text = f"a lab needs the network namespaces of Linux; this is {sys.platform}"
            raise LabUnavailable(errno.ENOSYS, text)
        require_netlink()
        self._hosts: dict[str, Host] = {}
        self._processes: list[Process[Any]] = []
        self._programs: list[subprocess.Popen[Any]] = []
        self._fds: set[int] = set()
        self._indexes = itertools.count(1001)  # far from the kernel's own choices
        self._open = True
        # The first host's namespaces show whether the machine allows them.
        self._user: int | None = None
        self._spare: Namespaces | None = self._create()
        self._user = self._spare.user

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def rootless(self) -> bool:
        """Whether the hosts live in a user namespace (no root needed)."""
        return self._user is not None

    def host(self, name: str) -> Host:
        """A new host, with ``lo`` up and nothing else. Its name is unique in the lab."""
        self._require_open()
        if name in self._hosts:
            raise CommError(errno.EEXIST, f"the lab has a host {name!r} already")
        namespaces, self._spare = self._spare or self._create(), None
        self._hosts[name] = host = Host(self, name, namespaces)
        return host

    def link(
        self,
        a: Host,
        b: Host,
        a_addresses: Sequence[str],
        b_addresses: Sequence[str],
        mtu: int = 1500,
    ) -> Link:
        """Join two hosts by a veth pair that is up on return.

        Addresses are "192.0.2.1/24" or "2001:db8::1/64"; IPv6 ones are usable at once, there is
        no duplicate address detection. The interfaces are called after the host at the other end.
        """
        try:
            addresses = [list(map(ip_interface, own)) for own in (a_addresses, b_addresses)]
        except ValueError as error:
            raise CommError(errno.EINVAL, f"the link {a.name} - {b.name}: {error}") from None
        link = Link(interface_name(b.name, a._interfaces), interface_name(a.name, b._interfaces))
        names = (link.a_ifname, link.b_ifname)
        a.run(add_link, b._namespaces.net, next(self._indexes), names, addresses, mtu)
        a._interfaces.append(link.a_ifname)
        b._interfaces.append(link.b_ifname)
        return link

    def three(self) -> Topology:
        """:func:`three_hosts` in this lab."""
        return three_hosts(self)

    def close(self) -> None:
        """Kill and reap everything in the hosts, and let go of them. Again: does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            for program in self._programs:
                with contextlib.suppress(BrokenPipeError), program:  # unread input, flushed
                    program.kill()
            for process in self._processes:
                process.stop()
            wait_for(lambda: not self._kill_strays(), what="the hosts' last processes to die")
        finally:
            for fd in self._fds:
                os.close(fd)

    def _kill_strays(self) -> bool:
        """Kill what the hosts' processes left behind, daemons for one; whether there was any."""
        own = {os.fstat(host._namespaces.net).st_ino for host in self._hosts.values()}
        found = False
        for folder in Path("/proc").iterdir():
            # gone since, or of another user
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and (folder / "ns/net").stat().st_ino in own:
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        return found

    def _create(self) -> Namespaces:
        near, far = socket.socketpair()

        def create() -> bool:
            made = Namespaces.create(self._user)
            socket.send_fds(far, [b"n"], made.fds)
            return made.user is not None

        with near, far:
            child = Process(lambda: None, lambda _: create(), "making namespaces")
            try:
                child.result()
            except CommError:
                raise
            except OSError as error:
                raise explain(error) from error
            finally:
                child.stop()
            fds = receive_fds(near, 3)
        self._fds.update(fds)
        mount, net, *user = fds
        return Namespaces(user[0] if user else None, mount, net)

    def _require_open(self) -> None:
        if not self._open:
            raise CommError(errno.EBADF, "the lab is closed")


@dataclass(frozen=True)
class Topology:
    """A client and an origin with a router between them that forwards.

    ::

        client                 router                  origin
        192.0.2.2 ------- 192.0.2.1  198.51.100.1 ---- 198.51.100.2
        2001:db8:1::2     2001:db8:1::1  2001:db8:2::1    2001:db8:2::2

    Addresses are by family: ``origin_ip[socket.AF_INET6]``. Client and origin have default routes
    to the router.
    """

    client: Host
    router: Host
    origin: Host
    client_link: Link
    """From the client (a) to the router (b)."""
    origin_link: Link
    """From the router (a) to the origin (b)."""
    client_ip: Mapping[int, str]
    router_client_ip: Mapping[int, str]
    """The router's addresses on the client's side."""
    router_origin_ip: Mapping[int, str]
    """The router's addresses on the origin's side."""
    origin_ip: Mapping[int, str]


def three_hosts(lab: Lab) -> Topology:
    """Add the hosts client, router and origin to ``lab``, linked and routed."""
    client, router, origin = (lab.host(name) for name in ("client", "router", "origin"))
    client_ip: dict[int, str] = {AF_INET: "192.0.2.2", AF_INET6: "2001:db8:1::2"}
    router_client_ip: dict[int, str] = {AF_INET: "192.0.2.1", AF_INET6: "2001:db8:1::1"}
    router_origin_ip: dict[int, str] = {AF_INET: "198.51.100.1", AF_INET6: "2001:db8:2::1"}
    origin_ip: dict[int, str] = {AF_INET: "198.51.100.2", AF_INET6: "2001:db8:2::2"}
    client_link = lab.link(client, router, _lan(client_ip), _lan(router_client_ip))
    origin_link = lab.link(router, origin, _lan(router_origin_ip), _lan(origin_ip))
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        router.sysctl(name, 1)
    for host, gateways in ((client, router_client_ip), (origin, router_origin_ip)):
        host.run(_default_routes, gateways.values())
    return Topology(
        client,
        router,
        origin,
        client_link,
        origin_link,
        client_ip,
        router_client_ip,
        router_origin_ip,
        origin_ip,
    )


def _default_routes(gateways: Iterable[str]) -> None:
    for gateway in gateways:
        add_route("default", gateway)


def _lan(addresses: Mapping[int, str]) -> list[str]:
    return [f"{addresses[AF_INET]}/24", f"{addresses[AF_INET6]}/64"]


def interface_name(peer: str, taken: Collection[str]) -> str:
    """A name for an interface towards ``peer`` that is not ``taken``: 15 characters (linux/if.h)
    at most, of those that no tool takes for something else."""
    stem = "to-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in peer)
    endings = ("", *(f"-{number}" for number in range(2, 1000)))
    names = (stem[: 15 - len(ending)] + ending for ending in endings)
    return next(name for name in names if name not in taken)
