"""Interception on the real kernel: TPROXY and REDIRECT, both families, and what must not happen.

The topology is drawn in kernel/proxying.py. An nft tproxy rule fails OPEN, so every test also
asserts what the proxy itself saw.
"""

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
    saw_nothing,
    serve_origin,
    serve_proxy,
)

import lusca_comm as lc
from lusca_comm.lab import Channel, Topology

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


@v4_and_v6
@modes
@pytest.mark.parametrize("spoof", [False, True], ids=["plain", "spoofed"])
def test_intercepted(three_hosts: Topology, family: int, mode: str, spoof: bool) -> None:
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, spoof=spoof)
    serve_origin(net, family)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)], spoof=spoof)
    answer = net.client.run(fetch, family, net.origin_ip[family])
    seen = proxy.recv()
    assert answer.body == b"hello"
    assert seen.peer == answer.mine
    assert seen.address == (net.origin_ip[family], 80)
    assert seen.engine == ("tproxy4" if mode == "tproxy" else "netfilter")
    assert seen.translated == (mode == "redirect")
    assert seen.me == (
        (net.origin_ip[family], 80)
        if mode == "tproxy"
        else (net.router_client_ip[family], PROXY_PORT)
    )
    assert answer.source == (net.client_ip if spoof else net.router_origin_ip)[family]
    if spoof:
        assert seen.spoof == ((net.client_ip[family], answer.port), False, "")


@v4_and_v6
@modes
def test_without_a_rule_the_origin_is_reached_directly(
    three_hosts: Topology, family: int, mode: str
) -> None:
    """The negative control of all the rest: the port is not among the intercepted."""
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, ports=(81,))
    serve_origin(net, family)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)])
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert (answer.body, answer.source) == (b"hello", net.client_ip[family])
    assert answer.port == answer.mine[1]
    saw_nothing(proxy, net, family)


@v4_and_v6
def test_listener_without_the_flag_gets_nothing(three_hosts: Topology, family: int) -> None:
    """TPROXY passes over a listener without IP_TRANSPARENT, and the connection goes on to the
    origin: it fails open."""
    net = three_hosts
    intercept(net.router, mode="tproxy", port=PROXY_PORT)
    serve_origin(net, family)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)], flags=0)
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert (answer.body, answer.source) == (b"hello", net.client_ip[family])
    saw_nothing(proxy, net, family)


@v4_and_v6
def test_listener_of_the_other_family_gets_nothing(three_hosts: Topology, family: int) -> None:
    other = FAMILIES[1 - FAMILIES.index(socket.AddressFamily(family))]
    net = three_hosts
    intercept(net.router, mode="tproxy", port=PROXY_PORT)
    serve_origin(net, family)
    proxy = serve_proxy(net.router, [(WILDCARD[other], PROXY_PORT)])
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert (answer.body, answer.source) == (b"hello", net.client_ip[family])
    saw_nothing(proxy, net, other)


@modes
def test_one_dual_stack_listener_takes_both_families(three_hosts: Topology, mode: str) -> None:
    """A v4-mapped connection comes out as IPv4, everywhere, and conntrack is asked at the level of
    the connection's family."""
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, spoof=True)
    proxy = serve_proxy(net.router, [("::", PROXY_PORT)], dualstack=True, spoof=True)
    for family in FAMILIES:
        serve_origin(net, family)
        answer = net.client.run(fetch, family, net.origin_ip[family])
        seen = proxy.recv()
        assert seen.peer == answer.mine
        assert seen.address == (net.origin_ip[family], 80)
        assert answer.source == net.client_ip[family]


def test_wildcard_v6_listener_takes_v6_only(three_hosts: Topology) -> None:
    net = three_hosts
    intercept(net.router, mode="tproxy", port=PROXY_PORT)
    serve_origin(net, socket.AF_INET)
    proxy = serve_proxy(net.router, [("::", PROXY_PORT)])
    answer = net.client.run(fetch, socket.AF_INET, net.origin_ip[socket.AF_INET])
    assert answer.source == net.client_ip[socket.AF_INET]
    saw_nothing(proxy, net, socket.AF_INET6)


@v4_and_v6
def test_one_listener_fed_by_tproxy_and_redirect(three_hosts: Topology, family: int) -> None:
    """Told apart per connection: a redirected one has IP_TRANSPARENT too, from its listener."""
    net = three_hosts
    intercept(net.router, mode="tproxy", port=PROXY_PORT, ports=(80,))
    intercept(net.router, mode="redirect", port=PROXY_PORT, ports=(81,), name="second")
    proxy = serve_proxy(
        net.router,
        [(WILDCARD[family], PROXY_PORT)],
        flags=lc.COMM_TPROXY_LCL | lc.COMM_INTERCEPT,
    )
    for port, engine in ((80, "tproxy4"), (81, "netfilter"), (80, "tproxy4")):
        origin = serve_origin(net, family, port)
        answer = net.client.run(fetch, family, net.origin_ip[family], port)
        seen = proxy.recv()
        assert (seen.address, seen.engine) == ((net.origin_ip[family], port), engine)
        assert answer.body == b"hello"
        origin.stop()


@v4_and_v6
@pytest.mark.parametrize("nonlocal_bind", [0, 1])
@pytest.mark.parametrize("flags", [0, lc.COMM_TPROXY_LCL, lc.COMM_TPROXY_LCL | lc.COMM_INTERCEPT])
def test_direct_connection_to_the_listener_is_refused(
    three_hosts: Topology, family: int, flags: int, nonlocal_bind: int
) -> None:
    """Going where it "was going" would be the listener itself. With net.*.ip_nonlocal_bind a trial
    bind would take every address for this machine's; the answer must not change."""
    net = three_hosts
    name = "ipv4" if family == socket.AF_INET else "ipv6"
    net.router.sysctl(f"net.{name}.ip_nonlocal_bind", nonlocal_bind)
    intercept(net.router, mode="tproxy", port=PROXY_PORT)  # conntrack or not, as it comes
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)], flags=flags)
    for address in (net.router_client_ip[family], net.router_origin_ip[family]):
        answer = net.client.run(fetch, family, address, PROXY_PORT)
        seen = proxy.recv()
        assert answer.errno == errno.ECONNRESET
        assert (seen.me, seen.refused) == ((address, PROXY_PORT), "NotIntercepted")


@v4_and_v6
def test_nonlocal_bind_does_not_hide_tproxy(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    name = "ipv4" if family == socket.AF_INET else "ipv6"
    net.router.sysctl(f"net.{name}.ip_nonlocal_bind", 1)
    intercept(net.router, mode="tproxy", port=PROXY_PORT, ports=(PROXY_PORT,))
    serve_origin(net, family, PROXY_PORT)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)])
    net.client.run(fetch, family, net.origin_ip[family], PROXY_PORT)
    assert proxy.recv().address == (net.origin_ip[family], PROXY_PORT)


@v4_and_v6
@modes
def test_foreign_host_on_the_listeners_port_is_legitimate(
    three_hosts: Topology, family: int, mode: str
) -> None:
    net = three_hosts
    intercept(net.router, mode=mode, port=PROXY_PORT, ports=(PROXY_PORT,))
    serve_origin(net, family, PROXY_PORT)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)])
    answer = net.client.run(fetch, family, net.origin_ip[family], PROXY_PORT)
    seen = proxy.recv()
    assert seen.address == (net.origin_ip[family], PROXY_PORT)
    assert (answer.body, answer.source) == (b"hello", net.router_origin_ip[family])


def open_with(channel: Channel, address: Any, flags: int) -> tuple[int, str]:
    """0, or the errno and the text of the failure."""
    try:
        sock = lc.comm_open(address=address, flags=flags)
    except lc.CommError as why:
        return why.errno or -1, str(why)
    lc.comm_close(sock)
    return 0, ""


@v4_and_v6
@pytest.mark.parametrize("flags", [lc.COMM_TPROXY_LCL, lc.COMM_TPROXY_REM], ids=["LCL", "REM"])
def test_missing_privilege_is_named(three_hosts: Topology, family: int, flags: int) -> None:
    net = three_hosts
    address = (net.client_ip[family], 4000)

    def tried(*capabilities: str) -> tuple[int, str]:
        return net.router.start(
            open_with, address, flags, capabilities=frozenset(capabilities)
        ).result()

    for enough in ("CAP_NET_RAW", "CAP_NET_ADMIN"):
        assert tried(enough) == (0, "")
    code, text = tried("CAP_NET_BIND_SERVICE")
    assert code == errno.EPERM
    assert "CAP_NET_ADMIN or CAP_NET_RAW" in text
    assert "setcap" in text


@v4_and_v6
def test_foreign_address_without_the_flag_is_refused(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    code, text = net.router.start(open_with, (net.client_ip[family], 4000), 0).result()
    assert code == errno.EADDRNOTAVAIL
    assert "COMM_TPROXY_REM" in text


@v4_and_v6
def test_handled_error_of_one_connection_leaves_the_others(
    three_hosts: Topology, family: int
) -> None:
    """A direct connection first, which is refused, then intercepted ones, which are served."""
    net = three_hosts
    intercept(net.router, mode="tproxy", port=PROXY_PORT)
    serve_origin(net, family)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)])
    saw_nothing(proxy, net, family)
    for _ in range(3):
        assert net.client.run(fetch, family, net.origin_ip[family]).body == b"hello"
        assert proxy.recv().engine == "tproxy4"


@v4_and_v6
def test_origin_that_refuses_is_a_refusal_to_the_client(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router, mode="tproxy", port=PROXY_PORT)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)])
    answer = net.client.run(fetch, family, net.origin_ip[family])
    seen = proxy.recv()
    assert (seen.connected, seen.errno) == (lc.COMM_ERR_CONNECT, errno.ECONNREFUSED)
    assert answer.errno == errno.ECONNRESET


@v4_and_v6
def test_named_engine_must_fit(three_hosts: Topology, family: int) -> None:
    """Under TPROXY the engine of REDIRECT knows of no translation, and says so."""
    net = three_hosts
    intercept(net.router, mode="tproxy", port=PROXY_PORT)
    proxy = serve_proxy(net.router, [(WILDCARD[family], PROXY_PORT)], engine="netfilter")
    net.client.run(fetch, family, net.origin_ip[family])
    assert proxy.recv().refused == "NotIntercepted"
