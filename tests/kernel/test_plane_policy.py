"""Rules of a plane's policy about who began a connection: its address, and its packets' mark."""

from __future__ import annotations

import errno
import socket

import pytest
from kernel.proxying import FAMILIES, PROXY_PORT, fetch, intercept, load_nft, serve_origin
from kernel.test_plane_intercept import serve

import lusca_comm as lc
from lusca_comm import Rule
from lusca_comm.lab import Topology

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
EVERY = (0, 65535)
NEAR = {socket.AF_INET: "192.0.2.0/24", socket.AF_INET6: "2001:db8:1::/64"}
FAR = {socket.AF_INET: "192.0.3.0/24", socket.AF_INET6: "2001:db8:3::/64"}
MARK = """
table inet marks {{
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    tcp dport 80 meta mark set {mark}
  }}
}}
"""


@v4_and_v6
def test_by_the_clients_network(three_hosts: Topology, family: int) -> None:
    net = three_hosts
    intercept(net.router, port=PROXY_PORT)
    serve_origin(net, family)
    proxy = serve(net.router, family, [Rule("deny", source=FAR[family]), Rule("relay")])
    assert net.client.run(fetch, family, net.origin_ip[family]).body == b"hello"
    assert proxy.recv()[0] == "eof"
    proxy.send([Rule("deny", source=NEAR[family]), Rule("relay")])
    assert proxy.recv() == "set"
    assert net.client.run(fetch, family, net.origin_ip[family]).errno == errno.ECONNRESET
    proxy.send("totals")
    totals = proxy.recv()
    assert (totals.accepted, totals.relayed, totals.denied) == (2, 1, 1)


@v4_and_v6
def test_by_mark(three_hosts: Topology, family: int) -> None:
    """The accepted socket has the mark of the client's packet only where the sysctl says so."""
    net = three_hosts
    intercept(net.router, mode="redirect", port=PROXY_PORT)
    load_nft(net.router, MARK.format(mark=0x213))
    serve_origin(net, family)
    policy = [Rule("deny", "", EVERY, "", (0x10, 0xF0)), Rule("relay")]
    proxy = serve(net.router, family, policy, flags=lc.COMM_INTERCEPT)
    assert net.client.run(fetch, family, net.origin_ip[family]).body == b"hello"
    assert proxy.recv()[0] == "eof"
    net.router.sysctl("net.ipv4.tcp_fwmark_accept", 1)
    assert net.client.run(fetch, family, net.origin_ip[family]).errno == errno.ECONNRESET
    proxy.send([Rule("deny", "", EVERY, "", (0x20, 0xF0)), Rule("relay")])
    assert proxy.recv() == "set"
    assert net.client.run(fetch, family, net.origin_ip[family]).body == b"hello"
