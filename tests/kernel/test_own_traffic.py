"""The machine's own traffic, and addresses that are the machine's by route (AnyIP)."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from kernel.proxying import (
    FAMILIES,
    PROXY_PORT,
    WILDCARD,
    fetch,
    intercept,
    serve_origin,
    serve_proxy,
)

import lusca_comm as lc
from lusca_comm.firewall import Exempt
from lusca_comm.lab import Topology

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])
MARK = 0x100


@v4_and_v6
@modes
def test_own_traffic_is_intercepted(three_hosts: Topology, family: int, mode: str) -> None:
    """The router's own connection goes through the proxy on the same machine, whose own sockets
    are exempt by their mark."""
    net = three_hosts
    intercept(
        net.router,
        mode=mode,
        port=PROXY_PORT,
        forwarded=False,
        own=True,
        exempt=Exempt(mark=MARK),
    )
    serve_origin(net, family)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)], mark=MARK)
    answer = net.router.run(fetch, family, net.origin_ip[family])
    seen = proxy.recv()
    assert answer.body == b"hello"
    assert seen.peer == answer.mine
    assert seen.address == (net.origin_ip[family], 80)
    assert seen.engine == ("tproxy4" if mode == "tproxy" else "netfilter")
    assert answer.source == net.router_origin_ip[family]
    assert answer.port != answer.mine[1]  # the proxy's connection, not the client's


@v4_and_v6
@modes
def test_without_the_exemption_the_proxy_refuses_its_own_connection(
    three_hosts: Topology, family: int, mode: str
) -> None:
    """The negative control: what the proxy opens without its mark comes back to it. It must not go
    round until the descriptors are used up."""
    net = three_hosts
    intercept(
        net.router, mode=mode, port=PROXY_PORT, forwarded=False, own=True, exempt=Exempt(mark=MARK)
    )
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)])
    serve_origin(net, family)
    answer = net.router.run(fetch, family, net.origin_ip[family])
    seen = [proxy.recv(), proxy.recv()]
    looped = next(one for one in seen if one.refused)
    first = next(one for one in seen if not one.refused)
    assert (looped.refused, looped.errno) == ("NotIntercepted", errno.ELOOP)
    assert first.address == (net.origin_ip[family], 80)
    assert looped.peer == first.spoof.address
    assert answer.errno == errno.ECONNRESET


@v4_and_v6
@pytest.mark.parametrize("uid", [0, 12345])
def test_exempt_by_uid(three_hosts: Topology, family: int, uid: int) -> None:
    """Everything in the lab is uid 0: exempt, or not."""
    net = three_hosts
    intercept(
        net.router, port=PROXY_PORT, forwarded=False, own=True, exempt=Exempt(mark=MARK, uids=[uid])
    )
    serve_origin(net, family)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)], mark=MARK)
    answer = net.router.run(fetch, family, net.origin_ip[family])
    assert answer.body == b"hello"
    assert (answer.port == answer.mine[1]) is (uid == 0)  # its own connection, or the proxy's
    if uid:
        assert proxy.recv().peer == answer.mine


ANYIP = {
    socket.AF_INET: ("203.0.113.0/24", "203.0.113.9"),
    socket.AF_INET6: ("2001:db8:3::/64", "2001:db8:3::9"),
}


def what_it_was(channel: Any, family: int, engine: str | None) -> tuple[Any, ...]:
    """Accepts one connection on port 80 and says where it was going."""
    listener = lc.comm_open(address=(WILDCARD[family], 80), flags=lc.COMM_REUSEADDR)
    lc.comm_listen(listener)
    out: list[Any] = []

    def on_readable(sock: Any, data: Any) -> None:
        got = lc.comm_accept(sock)
        assert got is not None
        try:
            out.append(lc.original_destination(got.sock, engine=engine))
        except lc.NotIntercepted as why:
            out.append(why.errno)
        lc.comm_reset_close(got.sock)
        lc.stop()

    lc.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable)
    channel.send("ready")
    lc.run()
    return tuple(out)


@v4_and_v6
@pytest.mark.parametrize("engine", [None, "netfilter", "tproxy4", "sockname"])
def test_anyip(three_hosts: Topology, family: int, engine: str | None) -> None:
    """A whole network is the router's by route. Nothing on the socket tells such a connection from
    a direct one, so only the engine that trusts getsockname answers, where it is named."""
    net = three_hosts
    network, address = ANYIP[socket.AddressFamily(family)]
    net.router.route(network, device="lo", local=True)
    server = net.router.start(what_it_was, family, engine)
    assert server.recv() == "ready"
    answer = net.client.run(fetch, family, address)
    assert answer.errno == errno.ECONNRESET
    (told,) = server.result()
    if engine == "sockname":
        assert told == ((address, 80), "sockname", False)
    else:
        assert told == errno.ENOENT
