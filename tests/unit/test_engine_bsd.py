"""What other systems decide from a connection's addresses alone, and what this one must not offer:
BINDANY, and a device, under a number that means something else here."""

from __future__ import annotations

import errno
import socket

import pytest
from connections import ELSEWHERE, accepted, host_and_port, of_datagram
from fake_devices import UDP, Entry, Pf, pretend

import lusca_comm as lc
from lusca_comm._shim import lib
from lusca_comm.engines import name_of, row_of

BSD = ["freebsd", "netbsd", "openbsd", "macos"]
UNNAMED = -1
CLIENT = {4: ("192.0.2.2", 40000), 6: ("2001:db8:1::2", 40000)}
OWN = {4: ("127.0.0.1", 3129), 6: ("::1", 3129)}

every_family = pytest.mark.parametrize("family", [4, 6])


@every_family
@pytest.mark.parametrize("system", BSD)
def test_a_foreign_local_address_is_the_sign(system: str, family: int) -> None:
    """ipfw's fwd and divert-to leave the destination as the local address, and nothing else brings
    such a datagram or connection to a BSD socket."""
    with pretend(Pf(system)) as pf:
        err, origin = of_datagram(ELSEWHERE[family], CLIENT[family], UNNAMED)
    assert (err, name_of(origin.engine), origin.own) == (0, "sockname", 0)
    assert host_and_port(origin.original) == ELSEWHERE[family]
    assert not origin.translated
    assert pf.questions == []


@every_family
@pytest.mark.parametrize("system", [*BSD, "linux"])
def test_its_own_local_address_is_not(system: str, family: int) -> None:
    with pretend(Pf(system)):
        err, origin = of_datagram(OWN[family], CLIENT[family], UNNAMED)
    assert (err, origin.own) == (-errno.ENOENT, -1 if system == "linux" else 1)


@every_family
def test_nor_is_it_on_linux(family: int) -> None:
    """There the socket would have IP_TRANSPARENT as well."""
    err, origin = of_datagram(ELSEWHERE[family], CLIENT[family], UNNAMED)
    assert (err, origin.transparent) == (-errno.ENOENT, 0)


@every_family
@pytest.mark.parametrize("system", BSD)
def test_translated_datagrams_are_pfs(system: str, family: int) -> None:
    entry = Entry(CLIENT[family], OWN[family], ELSEWHERE[family], UDP)
    with pretend(Pf(system, entry)):
        err, origin = of_datagram(OWN[family], CLIENT[family], UNNAMED)
    assert (err, name_of(origin.engine), origin.translated) == (0, "pf", 1)
    assert host_and_port(origin.original) == ELSEWHERE[family]


@pytest.mark.parametrize("system", BSD)
def test_what_cannot_be_asked_is_not_no(system: str) -> None:
    """The engine that failed is named beside its errno."""
    with pretend(Pf(system, owner=-2)):
        err, origin = of_datagram(OWN[4], CLIENT[4], UNNAMED)
    assert (err, name_of(origin.engine), origin.nat_errno) == (-errno.EACCES, "pf", errno.EACCES)


@every_family
def test_sockname_trusts_where_named(family: int) -> None:
    with accepted(family) as (sock, _, local):
        answer = lc.original_destination(sock, engine="sockname")
    assert answer == lc.Interception(local, "sockname", False)
    err, origin = of_datagram(ELSEWHERE[family], CLIENT[family], row_of("sockname"))
    assert (err, host_and_port(origin.original)) == (0, ELSEWHERE[family])


def test_bindany_is_not_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of("bindany")
    bindany = next(one for one in lc.engines() if one.name == "bindany")
    assert bindany.abilities == {"listen", "spoof", "tcp", "udp", "ipv4", "ipv6"}
    assert bindany.errno == errno.ENOTSUP
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(family) as sock:
            assert lib.lc_allow(sock.fileno(), row) == -errno.ENOTSUP
    monkeypatch.setenv("LUSCA_COMM_ENGINE", "bindany")
    with pytest.raises(lc.CommError, match="not a mechanism of this system") as why:
        lc.comm_open(address=CLIENT[4], flags=lc.COMM_TPROXY_REM)
    assert why.value.errno == errno.ENOTSUP


def test_rows_stand_in_the_order_of_asking() -> None:
    names = [one.name for one in lc.engines()]
    wanted = ["tproxy4", "tproxy2", "bindany", "netfilter", "pf", "ipfilter", "sockname", "null"]
    assert names == wanted
