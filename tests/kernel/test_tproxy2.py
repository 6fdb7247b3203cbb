"""The engine tproxy2 on an emulated kernel, with real packets between namespaces: its job, and what
it refuses.

The proxy runs in the router under the supervisor of emulators.tproxy2; client and origin know
nothing of it. What passes here is `emulated`.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from emulators.tproxy2 import kernel, seccomp, supervise
from kernel.proxying import PROXY_PORT, Answer, fetch, intercept, relay_proxy, serve_origin
from kernel.tproxy2 import (
    FOREIGN,
    OPEN,
    V4,
    chosen,
    connected,
    foreign_behind_the_client,
    needs_nft,
    spoofed,
    under,
)

import lusca_comm as lc
from lusca_comm.engines import name_of, spoofer
from lusca_comm.lab import Channel, Process, Topology, wait_for

LISTENER = [("0.0.0.0", PROXY_PORT)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "tcp_relay.py"

pytestmark = needs_nft


@pytest.fixture
def net(three_hosts: Topology) -> Topology:
    return foreign_behind_the_client(three_hosts)


def proxy_under(net: Topology, **options: Any) -> Process[Any]:
    intercept(net.router, mode="redirect", port=PROXY_PORT)
    process = under(net.router, relay_proxy, LISTENER, **options)
    assert process.recv() == "ready"
    return process


# -- the job: intercept, go there in the client's name ------------------------------------------


def test_the_origin_sees_the_client_and_its_port(net: Topology) -> None:
    serve_origin(net, V4)
    proxy = proxy_under(net, spoof=True, transparent_port=True)
    for _ in range(3):
        answer = net.client.run(fetch, V4, net.origin_ip[V4])
        seen = proxy.recv()
        assert answer.body == b"hello", (answer, seen)
        assert (answer.source, answer.port) == answer.mine == seen.peer
        assert answer.source == net.client_ip[V4]
        assert (seen.address, seen.engine) == ((net.origin_ip[V4], 80), "netfilter")
        assert seen.spoof == (seen.peer, True, "")


def test_the_port_is_the_kernels_unless_asked_for(net: Topology) -> None:
    serve_origin(net, V4)
    proxy = proxy_under(net, spoof=True)
    answer = net.client.run(fetch, V4, net.origin_ip[V4], source_port=1)
    seen = proxy.recv()
    assert answer.source == net.client_ip[V4]
    assert answer.port > 1
    assert seen.spoof == ((answer.source, answer.port), False, "")


def test_without_an_assignment_the_origin_sees_the_proxy(net: Topology) -> None:
    """The control, on the same kernel with the same engine: REM makes all the difference."""
    serve_origin(net, V4)
    proxy = proxy_under(net, spoof=False)
    answer = net.client.run(fetch, V4, net.origin_ip[V4])
    seen = proxy.recv()
    assert (answer.body, answer.source) == (b"hello", net.router_origin_ip[V4])
    assert seen.spoof.address == (answer.source, answer.port)
    assert seen.spoof.reason == "opened without COMM_TPROXY_REM"


def run_example(channel: Channel) -> None:
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    os.execve(sys.executable, [sys.executable, str(EXAMPLE), str(PROXY_PORT)], os.environ | path)


def test_an_unmodified_program(net: Topology) -> None:
    """The example relay, executed: it knows neither the engine nor the supervisor."""
    serve_origin(net, V4)
    intercept(net.router, mode="redirect", port=PROXY_PORT)
    under(net.router, run_example)

    def reached() -> Answer | None:
        answer = net.client.run(fetch, V4, net.origin_ip[V4])
        return None if answer.errno else answer

    answer = wait_for(reached)
    assert answer is not None
    assert (answer.body, answer.source) == (b"hello", net.client_ip[V4])


# -- without the patch, without the right, beyond its reach ---------------------------------------


def try_to_open(channel: Channel, *args: Any, flags: int, **options: Any) -> tuple[int, str]:
    with pytest.raises(lc.CommError) as caught:
        lc.comm_open(*args, flags=OPEN | flags, **options)
    return caught.value.errno or 0, str(caught.value)


@pytest.mark.parametrize("flag", [lc.COMM_TPROXY_LCL, lc.COMM_TPROXY_REM], ids=["LCL", "REM"])
def test_a_kernel_without_the_patch(net: Topology, flag: int) -> None:
    args = (socket.SOCK_STREAM, 0, (FOREIGN, 80))
    program = net.router.start(partial(chosen, try_to_open), *args, flags=flag)
    code, text = program.result()
    assert code == errno.ENOTSUP
    assert "tproxy2: the kernel has no IP_TPROXY (Balabit's cttproxy patch)" in text


def what_is_chosen(channel: Channel) -> tuple[str, int]:
    codes = {one.name: one.errno for one in lc.engines()}
    return name_of(spoofer("spoof")), codes["tproxy2"]


def test_todays_mechanism_is_preferred(net: Topology) -> None:
    """Where both are, TPROXY of today is taken; tproxy2 has to be named."""
    assert supervise(net.router, what_is_chosen).result() == ("tproxy4", 0)
    assert net.router.start(what_is_chosen).result() == ("tproxy4", errno.ENOPROTOOPT)
    assert under(net.router, what_is_chosen).result() == ("tproxy2", 0)


@pytest.mark.parametrize("flag", [lc.COMM_TPROXY_LCL, lc.COMM_TPROXY_REM], ids=["LCL", "REM"])
def test_the_capability_is_named(net: Topology, flag: int) -> None:
    args = (socket.SOCK_STREAM, 0, (FOREIGN, 80))
    program = under(
        net.router, try_to_open, *args, flags=flag, capabilities={"CAP_NET_RAW", "CAP_SETUID"}
    )
    code, text = program.result()
    assert code == errno.EPERM
    assert "setcap cap_net_admin+ep" in text
    assert "cap_net_raw" not in text


def open_ping(channel: Channel) -> tuple[int, str]:
    """ICMP datagrams: an IPv4 socket that is neither TCP nor UDP."""
    return try_to_open(
        channel,
        socket.SOCK_DGRAM,
        socket.IPPROTO_ICMP,
        (FOREIGN, 0),
        flags=lc.COMM_TPROXY_REM,
    )


def test_neither_ipv6_nor_other_protocols(net: Topology) -> None:
    for args, options in (
        ((socket.SOCK_STREAM, 0, ("2001:db8:1::2", 0)), {}),
        ((socket.SOCK_DGRAM, 0, ("2001:db8:1::2", 0)), {}),
        ((socket.SOCK_STREAM, 0, (FOREIGN, 0)), {"family": socket.AF_INET6}),
    ):
        code, text = under(
            net.router, try_to_open, *args, flags=lc.COMM_TPROXY_REM, **options
        ).result()
        assert code == errno.EAFNOSUPPORT, args
        assert "engine 'tproxy2' grants no foreign address here" in text
    net.router.sysctl("net.ipv4.ping_group_range", "0 0")
    assert under(net.router, open_ping).result()[0] == errno.EPROTONOSUPPORT


def use_everything(channel: Channel, origin: Any, options: range) -> str:
    """The engine's whole repertoire; killed at the first use of one of the options."""
    seccomp.forbid(socket.SOL_IP, options)
    lsock = lc.comm_open(socket.SOCK_STREAM, 0, (FOREIGN, 0), flags=OPEN | lc.COMM_TPROXY_LCL)
    lc.comm_listen(lsock)
    lc.comm_open(socket.SOCK_DGRAM, 0, (FOREIGN, 53), flags=OPEN | lc.COMM_TPROXY_LCL)
    own = lc.comm_open(socket.SOCK_STREAM, 0, ("0.0.0.0", 0), flags=OPEN | lc.COMM_TPROXY_LCL)
    lc.comm_listen(own)
    for source in ((FOREIGN, 0), ("198.51.100.1", 0)):
        assert connected(spoofed(source), origin) == lc.COMM_OK
        assert connected(spoofed(source, socket.SOCK_DGRAM), origin) == lc.COMM_OK
    return "alive"


def test_options_20_to_25_are_never_touched(net: Topology) -> None:
    """They are the patch's first version, and other options of today's kernels."""
    serve_origin(net, V4)
    args = (net.router, use_everything, (net.origin_ip[V4], 80))
    assert under(*args, range(20, 26)).result() == "alive"
    with pytest.raises(lc.CommError, match="signal 31"):  # SIGSYS: the trap is set
        under(*args, range(kernel.OPTION, kernel.OPTION + 1)).result()
