"""The lab's networks on a real kernel: packets, isolation, settings, sockets."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

import pytest
from kernel.labs import IP_TRANSPARENT, ask, echo

from lusca_comm.errors import CommError
from lusca_comm.lab import Host, Lab, LabTimeout, Topology

IFA_F_NODAD = 0x02
FAMILIES = [pytest.param(socket.AF_INET, id="v4"), pytest.param(socket.AF_INET6, id="v6")]


class TestNetwork:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_tcp_crosses_the_router(self, three_hosts: Topology, family: int) -> None:
        net = three_hosts
        address = (net.origin_ip[family], 80)
        server = net.origin.start(echo, family, address)
        assert server.recv() == "listening"
        before = packets(net.router, net.origin_link.a_ifname)
        assert net.client.run(ask, family, address, b"x" * 100_000) == b"x" * 100_000
        assert server.result() == net.client_ip[family]
        # 69 segments of 1448 bytes each way, were none coalesced
        assert packets(net.router, net.origin_link.a_ifname) > before

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_forwarding_nothing_crosses(self, three_hosts: Topology, family: int) -> None:
        net = three_hosts
        name = {socket.AF_INET: "ipv4.ip_forward", socket.AF_INET6: "ipv6.conf.all.forwarding"}
        net.router.sysctl(f"net.{name[socket.AddressFamily(family)]}", 0)
        address = (net.origin_ip[family], 80)
        server = net.origin.start(echo, family, address)
        assert server.recv() == "listening"
        with net.client.socket(family) as sock:
            sock.settimeout(0.5)
            with pytest.raises(OSError) as caught:
                sock.connect(address)
        assert isinstance(caught.value, TimeoutError) or caught.value.errno == errno.EHOSTUNREACH
        assert server.alive

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_a_route_the_kernel_says_so(self, lab: Lab, family: int) -> None:
        alone = lab.host("alone")
        address = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
        with alone.socket(family) as sock, pytest.raises(OSError) as caught:
            sock.connect((address[socket.AddressFamily(family)], 80))
        assert caught.value.errno == errno.ENETUNREACH

    def test_an_address_is_there_at_once(self, three_hosts: Topology) -> None:
        """One that might be a duplicate could not be bound for a moment, on a busy machine."""
        table = three_hosts.origin.run(Path("/proc/net/if_inet6").read_text)
        address = int(ipaddress.ip_address(three_hosts.origin_ip[socket.AF_INET6]))
        (flags,) = (
            line.split()[4] for line in table.splitlines() if line[:32] == f"{address:032x}"
        )
        assert int(flags, 16) & IFA_F_NODAD

    def test_hosts_share_nothing(self, lab: Lab) -> None:
        a, b = lab.host("a"), lab.host("b")
        for host in (a, b):  # the same port on both, and on the loopback that each has up
            server = host.start(echo, socket.AF_INET, ("127.0.0.1", 80))
            assert server.recv() == "listening"
        assert a.run(ask, socket.AF_INET, ("127.0.0.1", 80), b"a") == b"a"
        a.sysctl("net.ipv4.ip_default_ttl", 9)
        assert b.sysctl("net.ipv4.ip_default_ttl") != "9"

    def test_a_host_sees_its_own_interfaces_in_sys(self, three_hosts: Topology) -> None:
        net = three_hosts
        listing = net.router.check_output(["ls", "/sys/class/net"])
        assert listing.split() == ["lo", "to-client", "to-origin"]
        assert (net.client_link.b_ifname, net.origin_link.a_ifname) == ("to-client", "to-origin")

    def test_a_settled_start_whatever_the_machine(self, lab: Lab) -> None:
        host = lab.host("host")
        for name in ("ipv4.ip_forward", "ipv4.conf.default.rp_filter", "ipv6.conf.all.accept_dad"):
            assert host.sysctl(f"net.{name}") == "0"

    def test_two_links_between_the_same_hosts(self, lab: Lab) -> None:
        a, b = lab.host("a"), lab.host("a host with a long name")
        one = lab.link(a, b, ["192.0.2.1/30"], ["192.0.2.2/30"])
        two = lab.link(a, b, ["192.0.2.5/30"], ["192.0.2.6/30"], mtu=1280)
        assert (one.a_ifname, two.a_ifname) == ("to-a-host-with-", "to-a-host-wit-2")
        assert (one.b_ifname, two.b_ifname) == ("to-a", "to-a-2")
        for host, name, mtu in ((a, one.a_ifname, "1500"), (b, two.b_ifname, "1280")):
            assert host.run(Path(f"/sys/class/net/{name}/mtu").read_text).strip() == mtu

    def test_any_ip(self, three_hosts: Topology) -> None:
        net = three_hosts
        address = ("203.0.113.7", 80)
        net.router.route("203.0.113.0/24", via=net.origin_ip[socket.AF_INET])
        net.origin.route("203.0.113.0/24", local=True)
        server = net.origin.start(echo, socket.AF_INET, ("0.0.0.0", 80))
        assert server.recv() == "listening"
        assert net.client.run(ask, socket.AF_INET, address, b"any") == b"any"

    def test_bad_links_and_routes_are_named(self, lab: Lab) -> None:
        a, b = lab.host("a"), lab.host("b")
        with pytest.raises(CommError, match="'a' already"):
            lab.host("a")
        with pytest.raises(CommError, match=r"the link a - b: '192.0.2.300/24'"):
            lab.link(a, b, ["192.0.2.300/24"], [])
        with pytest.raises(CommError, match=r"the route to default via 192.0.2.1: Netw") as caught:
            a.route("default", via="192.0.2.1")
        assert caught.value.errno == errno.ENETUNREACH
        with pytest.raises(CommError, match="no interface eth7"):
            a.route("198.51.100.0/24", device="eth7")
        for destination in ("default", "198.51.100.1/24", "origin"):
            with pytest.raises(CommError, match=f"the route to {destination}: ") as caught:
                a.route(destination, device="lo")
            assert caught.value.errno == errno.EINVAL


class TestSysctl:
    def test_set_and_read(self, lab: Lab) -> None:
        host = lab.host("host")
        assert host.sysctl("net.ipv4.tcp_syncookies", 2) == "2"
        assert host.sysctl("net.ipv4.tcp_syncookies") == "2"
        assert host.sysctl("net/ipv4/conf/lo/rp_filter", 1) == "1"

    def test_the_machine_is_not_touched(self, lab: Lab) -> None:
        here = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
        lab.host("host").sysctl("net.ipv4.ip_default_ttl", 9)
        assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == here
        with pytest.raises(CommError, match=r"only net\.\* is"):
            lab.host("other").sysctl("kernel.hostname", "x")

    def test_refusals_are_named(self, lab: Lab) -> None:
        with pytest.raises(CommError, match=r"host: sysctl net.no.such: No such file"):
            lab.host("host").sysctl("net.no.such")
        with pytest.raises(CommError, match=r"net.ipv4.ip_forward = many: Invalid argument"):
            lab.host("other").sysctl("net.ipv4.ip_forward", "many")


class TestSockets:
    def test_it_lives_in_the_host(self, three_hosts: Topology) -> None:
        net = three_hosts
        with net.origin.socket() as listener, net.client.socket() as sock:
            listener.bind((net.origin_ip[socket.AF_INET], 80))
            listener.listen()
            sock.settimeout(10)
            sock.connect(listener.getsockname())
            conn, peer = listener.accept()
            with conn:
                assert peer == sock.getsockname()
                assert peer[0] == net.client_ip[socket.AF_INET]
            assert not os.get_inheritable(sock.fileno())

    def test_the_caller_may_do_with_it_what_the_host_may(self, three_hosts: Topology) -> None:
        with three_hosts.router.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            assert (sock.family, sock.type) == (socket.AF_INET6, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            sock.bind(("2001:db8:ffff::1", 53))


def packets(host: Host, interface: str) -> int:
    path = Path(f"/sys/class/net/{interface}/statistics/tx_packets")
    return int(host.run(path.read_text))


class TestWaitListening:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_until_it_listens(self, lab: Lab, family: int) -> None:
        host = lab.host("host")
        with host.socket(family) as sock:
            sock.bind(("", 8080))
            with pytest.raises(LabTimeout, match="a listener on port 8080 of host"):
                host.wait_listening(8080, timeout=0.05)  # bound is not listening
            sock.listen()
            host.wait_listening(8080)

    def test_only_in_that_host(self, lab: Lab) -> None:
        host, other = lab.host("host"), lab.host("other")
        with host.socket() as sock:
            sock.bind(("", 8080))
            sock.listen()
            with pytest.raises(LabTimeout):
                other.wait_listening(8080, timeout=0.05)
