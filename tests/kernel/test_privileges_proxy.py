"""A whole proxy that gives its privileges away."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

import pytest
from kernel.privileged import (
    NOBODY,
    assert_only,
    real_root,
)
from kernel.proxying import FAMILIES, PROXY_PORT, WILDCARD, RelayProxy, fetch, intercept
from kernel.proxying import serve_origin as serve

import lusca_comm as lc
from lusca_comm import credentials
from lusca_comm.lab import Channel, Topology
from lusca_comm.privileges import DEFAULT_KEEP


def dropping_proxy(
    channel: Channel, family: int, user: str | None, keep: Collection[str], early: bool
) -> None:
    """Drops its privileges before it listens, or after."""
    lc.prepare()
    proxy = RelayProxy(channel, spoof=True, mark=7)
    address = (WILDCARD[family], PROXY_PORT)
    if not early:
        proxy.listen(address, lc.COMM_TPROXY_LCL)
    lc.comm_select(0)
    lc.drop_privileges(user, keep=keep)
    if early:
        proxy.listen(address, lc.COMM_TPROXY_LCL)
    channel.send(credentials.own())
    lc.run()


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
@pytest.mark.parametrize("early", [True, False], ids=["drop first", "listen first"])
@pytest.mark.parametrize(
    "user", [None, pytest.param(NOBODY, marks=real_root)], ids=["same user", "another user"]
)
def test_interception_after_the_drop(
    three_hosts: Topology, family: int, early: bool, user: str | None
) -> None:
    """Intercepted, relayed in the client's name, with a mark."""
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, spoof=True)
    serve(net, family)
    proxy = net.router.start(dropping_proxy, family, user, DEFAULT_KEEP, early)
    assert_only(proxy.recv(), DEFAULT_KEEP)
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert (answer.source, answer.body) == (net.client_ip[family], b"hello"), answer
    assert proxy.recv().spoof.address[0] == net.client_ip[family]


def test_without_the_capability_the_proxy_says_what_it_lacks(three_hosts: Topology) -> None:
    """The control: the same proxy that keeps nothing listens, and cannot go out as the client."""
    net, family = three_hosts, socket.AF_INET
    intercept(net.router, port=PROXY_PORT, spoof=True)
    serve(net, family)
    proxy = net.router.start(dropping_proxy, family, None, (), False)
    assert_only(proxy.recv(), ())
    assert net.client.run(fetch, family, net.origin_ip[family]).errno == errno.ECONNRESET
    seen = proxy.recv()
    assert (seen.refused, seen.errno) == ("CommError", errno.EPERM)

    deaf = net.router.start(dropping_proxy, socket.AF_INET6, None, (), True)
    with pytest.raises(lc.CommError, match="CAP_NET_ADMIN or CAP_NET_RAW"):
        deaf.recv()
