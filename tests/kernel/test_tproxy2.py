"""The engine tproxy2 on an emulated kernel, with real packets between namespaces.

The proxy runs in the router under the supervisor of emulators.tproxy2; client and origin know
nothing of it. What passes here is `emulated`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from emulators.tproxy2 import kernel, nat, seccomp, supervise
from emulators.tproxy2.calls import ask, tell
from kernel.proxying import (
    PROXY_PORT,
    Answer,
    fetch,
    intercept,
    relay_proxy,
    serve_origin,
)

import lusca_comm as lc
from lusca_comm.engines import name_of, spoofer
from lusca_comm.lab import Channel, Host, Process, Topology, wait_for

V4 = socket.AF_INET
LISTENER = [("0.0.0.0", PROXY_PORT)]
FOREIGN = "203.0.113.7"  # nobody's
OPEN = lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR
EXAMPLE = Path(__file__).parents[2] / "examples" / "tcp_relay.py"

pytestmark = pytest.mark.skipif(
    nat.program() is None, reason="the emulator needs the program nft: apt install nftables"
)


@pytest.fixture
def net(three_hosts: Topology) -> Topology:
    """FOREIGN lies behind the client, as the client's own address does: a listener and a datagram
    socket take their local address from that route."""
    three_hosts.router.route(f"{FOREIGN}/32", via=three_hosts.client_ip[V4])
    return three_hosts


def chosen(fn: Callable[..., Any], channel: Channel, *args: Any, **kwargs: Any) -> Any:
    """``fn(channel, ...)`` where tproxy2 is the engine that LUSCA_COMM_ENGINE names."""
    os.environ["LUSCA_COMM_ENGINE"] = "tproxy2"
    return fn(channel, *args, **kwargs)


def under(host: Host, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Process[Any]:
    """``fn(channel, ...)`` on the emulated kernel, with the engine chosen."""
    return supervise(host, partial(chosen, fn), *args, **kwargs)


def proxy_under(net: Topology, **options: Any) -> Process[Any]:
    intercept(net.router, mode="redirect", port=PROXY_PORT)
    process = under(net.router, relay_proxy, LISTENER, **options)
    assert process.recv() == "ready"
    return process


def installed(host: Host) -> list[str]:
    """The elements in the supervisor's maps."""
    listing = host.check_output([nat.program() or "nft", "list", "table", "ip", "tproxy2"])
    return [line for line in listing.splitlines() if "elements" in line]


def connected(sock: Any, address: Any) -> int:
    """comm_connect to its end: the status."""
    ends: list[int] = []
    lc.comm_connect(sock, address, lambda _sock, status, _data: ends.append(status), timeout=5)
    while not ends:
        lc.comm_select(100)
    return ends[0]


def exchange(sock: Any) -> list[str]:
    """What the origin says about the peer of this connection: its host and port."""
    sock.settimeout(5)
    sock.sendall(b"x")
    sock.shutdown(socket.SHUT_WR)
    got = b""
    while chunk := sock.recv(100):
        got += chunk
    sock.settimeout(0)
    return got.decode().split(" ")[:2]


def spoofed(source: Any, kind: int = socket.SOCK_STREAM, flags: int = 0, **options: Any) -> Any:
    return lc.comm_open(kind, 0, source, flags=OPEN | lc.COMM_TPROXY_REM | flags, **options)


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


# -- connecting ---------------------------------------------------------------------------------


def both_ends(channel: Channel, source: Any, *origins: Any) -> list[Any]:
    """Connections from one foreign address and port: what comm_spoof says and the origin sees."""
    told = []
    for origin in origins:
        sock = spoofed(source, flags=lc.COMM_TRANSPARENT_PORT)
        before = lc.comm_spoof(sock)
        assert before == (source, True, "")
        assert connected(sock, origin) == lc.COMM_OK
        told.append((lc.comm_spoof(sock), origin, sock))
    return [(spoof, origin, exchange(sock)) for spoof, origin, sock in told]


def test_one_foreign_port_to_two_origins(net: Topology) -> None:
    serve_origin(net, V4, 80)
    serve_origin(net, V4, 81)
    source, host = (FOREIGN, 4000), net.origin_ip[V4]
    program = under(net.router, both_ends, source, (host, 80), (host, 81))
    for spoof, _, seen in program.result():
        assert spoof == (source, True, "")
        assert seen == [FOREIGN, "4000"]


def test_the_very_same_connection_gets_another_port(net: Topology) -> None:
    serve_origin(net, V4)
    source, origin = (FOREIGN, 4000), (net.origin_ip[V4], 80)
    first, second = under(net.router, both_ends, source, origin, origin).result()
    assert first[0] == (source, True, "")
    assert first[2] == [FOREIGN, "4000"]
    (host, port), kept, reason = second[0]
    assert (host, kept) == (FOREIGN, False)
    assert "4000 cannot be kept" in reason
    assert second[2] == [FOREIGN, str(port)]
    assert port not in (0, 4000)


def reuse(channel: Channel, source: Any, *origins: Any) -> list[Any]:
    """Two connections from one foreign port, the second when the first is closed; then one from
    their local port, unspoofed. To an origin each: conntrack remembers connections that are over.
    """
    told: list[Any] = []
    flags = lc.COMM_NONBLOCKING | lc.COMM_TPROXY_REM | lc.COMM_TRANSPARENT_PORT
    for origin in origins[:2]:
        sock = lc.comm_open(socket.SOCK_STREAM, 0, source, flags=flags)
        assert connected(sock, origin) == lc.COMM_OK
        told.append((sock.getsockname(), lc.comm_local_port(sock), lc.comm_spoof(sock)))
        lc.comm_reset_close(sock)
    channel.send("closed")
    channel.recv()
    sock = lc.comm_open(socket.SOCK_STREAM, 0, told[-1][0], flags=OPEN)
    assert connected(sock, origins[2]) == lc.COMM_OK
    return [*told, exchange(sock)]


def test_the_end_of_a_socket_frees_both_its_ports(net: Topology) -> None:
    here, source = net.router_origin_ip[V4], (FOREIGN, 4000)
    origins = [(net.origin_ip[V4], port) for port in (80, 81, 82)]
    for _, port in origins:
        serve_origin(net, V4, port)
    program = under(net.router, reuse, source, *origins)
    assert program.recv() == "closed"
    wait_for(lambda: not installed(net.router), what="the supervisor to hear of it")
    program.send("go on")
    *told, unspoofed = program.result()
    for local, port, spoof in told:
        assert local[0] == here, "the local address is that of the route to the origin"
        assert (port, spoof) == (4000, (source, True, ""))
    assert unspoofed == [here, str(told[-1][0][1])]


def connect_again(channel: Channel, source: Any, *origins: Any) -> Any:
    """One socket, and one origin after the other until one answers."""
    sock = spoofed(source, flags=lc.COMM_TRANSPARENT_PORT)
    statuses = [connected(sock, origin) for origin in origins]
    return statuses, lc.comm_spoof(sock), exchange(sock)


def test_a_socket_that_was_refused_connects_elsewhere(net: Topology) -> None:
    serve_origin(net, V4)
    host, source = net.origin_ip[V4], (FOREIGN, 4000)
    # Refused; then ECONNABORTED, as connect(2) says once to a socket that was reset; no route.
    origins = [(host, 79), (host, 79), ("10.0.0.1", 80), (host, 80)]
    statuses, spoof, seen = under(net.router, connect_again, source, *origins).result()
    assert statuses == [lc.COMM_ERR_CONNECT] * 3 + [lc.COMM_OK]
    assert spoof == (source, True, "")
    assert seen == [FOREIGN, "4000"]


def from_itself(channel: Channel, source: Any, origin: Any) -> Any:
    sock = spoofed(source)
    assert connected(sock, origin) == lc.COMM_OK
    return sock.getsockname(), lc.comm_spoof(sock), exchange(sock)


def test_an_address_of_the_machine_is_just_bound(net: Topology) -> None:
    serve_origin(net, V4)
    here = net.router_client_ip[V4]
    local, spoof, seen = under(net.router, from_itself, (here, 0), (net.origin_ip[V4], 80)).result()
    assert local[0] == here
    assert spoof.address == local
    assert seen == [here, str(local[1])]


def listen_and_connect(channel: Channel, source: Any, origin: Any) -> Any:
    sock = lc.comm_open(
        socket.SOCK_STREAM, 0, source, flags=OPEN | lc.COMM_TPROXY_LCL | lc.COMM_TPROXY_REM
    )
    assert connected(sock, origin) == lc.COMM_OK
    return lc.comm_spoof(sock).address, exchange(sock)


def test_a_listeners_address_may_connect_too(net: Topology) -> None:
    """With LCL the port is bound as given, and REM adds the right to connect from there."""
    serve_origin(net, V4)
    source = (FOREIGN, 4001)
    told, seen = under(net.router, listen_and_connect, source, (net.origin_ip[V4], 80)).result()
    assert told == source
    assert seen == [FOREIGN, "4001"]


def connect_to_ipv6(channel: Channel, source: Any, origin: Any) -> tuple[int, int]:
    sock = spoofed(source)
    return connected(sock, origin), lc.comm_error(sock)


def test_ipv6_cannot_be_reached_from_ipv4(net: Topology) -> None:
    origin = (net.origin_ip[socket.AF_INET6], 80)
    outcome = under(net.router, connect_to_ipv6, (FOREIGN, 0), origin).result()
    assert outcome == (lc.COMM_ERR_CONNECT, errno.EAFNOSUPPORT)


def flags_told(channel: Channel, origin: Any) -> list[int]:
    """FLAGS of a socket of every kind, but for whether NAT has been at work."""
    lcl, rem = lc.COMM_TPROXY_LCL, lc.COMM_TPROXY_REM
    socks = []
    for port, (kind, flags) in enumerate(
        (kind, flags)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        for flags in (lcl, rem, lcl | rem)
    ):
        sock = lc.comm_open(kind, 0, (FOREIGN, 4000 + port), flags=OPEN | flags)
        if flags & rem:
            assert connected(sock, origin) == lc.COMM_OK
        elif kind == socket.SOCK_STREAM:
            lc.comm_listen(sock)
        socks.append(sock)
    told = []
    for sock in socks:
        answer = ask(sock, kernel.number(kernel.FLAGS))
        assert isinstance(answer, bytes), answer
        told.append(kernel.number_in(answer) & ~kernel.ITP_APPLIED)
    return told


def test_the_flags_of_every_kind_of_socket(net: Topology) -> None:
    serve_origin(net, V4)
    assert under(net.router, flags_told, (net.origin_ip[V4], 80)).result() == [
        kernel.ITP_LISTEN,
        kernel.ITP_CONNECT | kernel.ITP_ONCE,
        kernel.ITP_CONNECT | kernel.ITP_ONCE,
        kernel.ITP_LISTEN | kernel.ITP_UNIDIR,
        kernel.ITP_CONNECT,
        kernel.ITP_ESTABLISHED,
    ]


# -- listening ----------------------------------------------------------------------------------


def accept_one(channel: Channel, address: Any, listens: bool) -> Any:
    """A listener on what is not this machine's: what it takes, and what it is told."""
    lsock = lc.comm_open(socket.SOCK_STREAM, 0, address, flags=OPEN | lc.COMM_TPROXY_LCL)
    if listens:
        lc.comm_listen(lsock)
    else:
        lsock.listen()  # the kernel is not told
    channel.send((lsock.getsockname(), lc.comm_local_port(lsock)))
    while (got := lc.comm_accept(lsock)) is None:
        lc.comm_select(10)
    told = (got.peer, got.me, lc.original_destination(got.sock))
    got.sock.settimeout(5)
    got.sock.sendall(got.sock.recv(100).upper())
    lc.comm_close(got.sock)
    return told


def talk(address: Any, text: bytes, timeout: float = 5) -> Any:
    with socket.create_connection(address, timeout=timeout) as sock:
        sock.sendall(text)
        return sock.getsockname(), sock.recv(100)


@pytest.mark.parametrize("port", [80, 0])
def test_listening_on_a_foreign_address(net: Topology, port: int) -> None:
    program = under(net.router, accept_one, (FOREIGN, port), True)
    local, told = program.recv()
    assert local[0] == net.router_client_ip[V4]
    assert told == port if port else told > 0
    mine, answer = net.client.run(talk, (FOREIGN, told), b"hello")
    assert answer == b"HELLO"
    peer, me, there = program.result()
    assert (peer, me) == (mine, local)
    assert there == ((FOREIGN, told), "netfilter", True)


def test_a_listener_that_the_kernel_is_not_told_of(net: Topology) -> None:
    """ASSIGN without FLAGS(ITP_LISTEN): nothing leads to it."""
    program = under(net.router, accept_one, (FOREIGN, 80), False)
    program.recv()
    with pytest.raises(OSError):
        net.client.run(talk, (FOREIGN, 80), b"hello", timeout=1)
    assert program.alive


def two_listeners(channel: Channel, address: Any) -> tuple[int, int]:
    """The second finds the address taken: when it is opened, or when it listens."""
    socks = [
        lc.comm_open(socket.SOCK_STREAM, 0, address, flags=OPEN | lc.COMM_TPROXY_LCL)
        for _ in range(2)
    ]
    lc.comm_listen(socks[0])
    with pytest.raises(lc.CommError) as caught:
        lc.comm_listen(socks[1])
    with pytest.raises(lc.CommError) as unshared:
        lc.comm_open(socket.SOCK_STREAM, 0, address, flags=lc.COMM_NONBLOCKING | lc.COMM_TPROXY_LCL)
    return caught.value.errno or 0, unshared.value.errno or 0


def test_two_listeners_on_one_foreign_address(net: Topology) -> None:
    codes = under(net.router, two_listeners, (FOREIGN, 80)).result()
    assert codes == (errno.EADDRINUSE, errno.EADDRINUSE)


# -- datagrams ----------------------------------------------------------------------------------


def datagram_origin(channel: Channel, port: int) -> None:
    """Answers every datagram with the peer that it saw."""
    with socket.socket(V4, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", port))
        channel.send("ready")
        while True:
            _, peer = sock.recvfrom(100)
            sock.sendto(f"{peer[0]} {peer[1]}".encode(), peer)


def datagrams(
    channel: Channel, source: Any, origin: Any, flags: int, connects: bool, unassigns: bool
) -> Any:
    sock = spoofed(source, socket.SOCK_DGRAM, flags)
    if connects:
        assert connected(sock, origin) == lc.COMM_OK
    sock.settimeout(5)
    seen = []
    for _ in range(3):
        if connects:
            sock.send(b"x")
        else:
            sock.sendto(b"x", origin)
        seen.append(sock.recv(100).decode().split(" "))
    told = lc.comm_spoof(sock)
    if unassigns:
        assert tell(sock, kernel.number(kernel.UNASSIGN)) == 0
        sock.sendto(b"x", origin)
        seen.append(sock.recv(100).decode().split(" "))
    return told, seen


def serve_datagrams(net: Topology) -> Any:
    process = net.origin.start(datagram_origin, 53)
    assert process.recv() == "ready"
    return net.origin_ip[V4], 53


@pytest.mark.parametrize("connects", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("keeps", [True, False], ids=["the port too", "any port"])
def test_datagrams_in_the_clients_name(net: Topology, connects: bool, keeps: bool) -> None:
    origin = serve_datagrams(net)
    source = (net.client_ip[V4], 5353)
    flags = lc.COMM_TRANSPARENT_PORT if keeps else 0
    told, seen = under(net.router, datagrams, source, origin, flags, connects, False).result()
    assert {tuple(one) for one in seen} == {(told.address[0], str(told.address[1]))}
    assert told.address[0] == net.client_ip[V4]
    assert (told.address[1] == 5353) is told.kept_port is keeps


def test_datagrams_without_an_assignment(net: Topology) -> None:
    """The control: the same socket, once its assignment is gone."""
    origin = serve_datagrams(net)
    source = (net.client_ip[V4], 5353)
    _, seen = under(net.router, datagrams, source, origin, 0, False, True).result()
    *before, after = (host for host, _ in seen)
    assert set(before) == {net.client_ip[V4]}
    assert after == net.router_client_ip[V4]


def answer_datagrams(channel: Channel, address: Any) -> Any:
    """A listener, and one more socket for the first client: who gets which datagram."""
    lsock = lc.comm_open(socket.SOCK_DGRAM, 0, address, flags=OPEN | lc.COMM_TPROXY_LCL)
    channel.send(lsock.getsockname())
    lsock.settimeout(5)
    first, client = lsock.recvfrom(100)
    lsock.sendto(b"from the listener", client)
    flow = spoofed(address, socket.SOCK_DGRAM, lc.COMM_TRANSPARENT_PORT)
    assert connected(flow, client) == lc.COMM_OK
    flow.send(b"from the flow")
    flow.settimeout(5)
    second = flow.recv(100)
    third, other = lsock.recvfrom(100)
    return (client, first), second, (other, third), lc.comm_spoof(flow)


def two_clients(address: Any, first: int, second: int) -> Any:
    with contextlib.ExitStack() as stack:
        socks = []
        for port in (first, second):
            sock = stack.enter_context(socket.socket(V4, socket.SOCK_DGRAM))
            sock.settimeout(5)
            sock.bind(("0.0.0.0", port))
            socks.append(sock)
        socks[0].sendto(b"one", address)
        answers = [socks[0].recvfrom(100) for _ in range(2)]
        socks[0].sendto(b"two", address)
        socks[1].sendto(b"three", address)
        return answers


def test_datagrams_to_a_foreign_address(net: Topology) -> None:
    """One way in alone: the listener's own answer leaves from its local address. The flow's does
    not, and from then on it gets its client's datagrams."""
    address, client = (FOREIGN, 53), net.client_ip[V4]
    program = under(net.router, answer_datagrams, address)
    local = program.recv()
    answers = net.client.run(two_clients, address, 7001, 7002)
    assert answers == [(b"from the listener", local), (b"from the flow", address)]
    first, second, third, spoof = program.result()
    assert first == ((client, 7001), b"one")
    assert second == b"two"
    assert third == ((client, 7002), b"three")
    assert spoof == (address, True, "")
