"""The IPFilter engine against an emulated /dev/ipnat: right where named, untouched where not."""

from __future__ import annotations

import errno
import os
import socket
import sys

import pytest
from connections import ELSEWHERE, PROTOS, accepted, host_and_port, in_child, of_datagram
from fake_devices import IPNAT, TCP, UDP, Ends, Entry, Ipnat, pretend
from hypothesis import given, settings
from hypothesis import strategies as st

import lusca_comm as lc
from lusca_comm._shim import ffi, lib
from lusca_comm.engines import row_of

SYSTEMS = IPNAT["systems"]
ROW = row_of("ipfilter")

every_system = pytest.mark.parametrize("system", SYSTEMS)
every_family = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUSCA_COMM_ENGINE", "ipfilter")


def openings(ipnat: Ipnat) -> list[int]:
    """The flags with which the device was opened."""
    return [flags for path, flags in ipnat.opened if path == "/dev/ipnat"]


def engine() -> lc.Engine:
    return next(one for one in lc.engines() if one.name == "ipfilter")


@every_system
def test_not_touched_unless_named(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUSCA_COMM_ENGINE", raising=False)
    with accepted(4) as (sock, client, local):
        with pretend(Ipnat(system, Entry(client, local, ELSEWHERE[4]))) as ipnat:
            assert engine().errno == errno.ECANCELED
            assert "named only" in engine().abilities
            lc.comm_close(lc.comm_open(address=("127.0.0.1", 0), flags=lc.COMM_INTERCEPT))
            with pytest.raises(lc.NotIntercepted):
                lc.original_destination(sock)
            monkeypatch.setenv("LUSCA_COMM_ENGINE", "netfilter, sockname")
            assert engine().errno == errno.ECANCELED
    assert openings(ipnat) == []
    assert ipnat.questions == []


def test_says_why() -> None:
    with pretend(Ipnat("freebsd")):
        assert "panics the machine" in engine().reason
        assert "LUSCA_COMM_ENGINE names it" in engine().reason
    with pretend(Ipnat("netbsd")):
        assert engine().reason == "not even probed unless LUSCA_COMM_ENGINE names it"


@pytest.mark.parametrize("system", ["linux", "openbsd", "macos"])
def test_other_systems_have_none(system: str, named: None) -> None:
    with accepted(4) as (sock, _, _), pretend(Ipnat(system)) as ipnat:
        assert engine().reason == "not a mechanism of this system"
        with pytest.raises(lc.NotIntercepted):
            lc.original_destination(sock)
    assert openings(ipnat) == []


@every_system
@every_family
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_redirected(system: str, family: int, proto: int) -> None:
    with PROTOS[proto](family) as (sock, client, local):
        with pretend(Ipnat(system, Entry(client, local, ELSEWHERE[family], proto))) as ipnat:
            answer = lc.original_destination(sock, engine="ipfilter")
    assert answer == lc.Interception(ELSEWHERE[family], "ipfilter", True)
    assert [(q.client, q.local, q.proto) for q in ipnat.questions] == [(client, local, proto)]


@every_system
def test_named_by_the_environment(system: str, named: None) -> None:
    """The listener opens the device then, so that it stays open after privileges are dropped."""
    with accepted(4) as (sock, client, local):
        with pretend(Ipnat(system, Entry(client, local, ELSEWHERE[4]))) as ipnat:
            lc.comm_close(lc.comm_open(address=("127.0.0.1", 0), flags=lc.COMM_INTERCEPT))
            (flags,) = openings(ipnat)
            assert flags & os.O_ACCMODE == os.O_RDONLY
            assert not os.get_inheritable(ipnat.descriptors[0])
            assert lc.original_destination(sock).address == ELSEWHERE[4]
            assert engine().errno == 0

            def dropped() -> None:
                ipnat.euid = lambda: ipnat.owner + 1
                assert lc.original_destination(sock).address == ELSEWHERE[4]

            assert in_child(dropped) == 0
    assert openings(ipnat) == [flags]


@every_system
def test_v4_mapped(system: str) -> None:
    with accepted(4, "::") as (sock, client, local):
        with pretend(Ipnat(system, Entry(client, local, ELSEWHERE[4]))):
            assert lc.original_destination(sock, engine="ipfilter").address == ELSEWHERE[4]


@every_system
@every_family
@pytest.mark.parametrize("entry", ["none", "swapped", "another proto", "direct"])
def test_no_entry(system: str, family: int, entry: str) -> None:
    """ESRCH, or the connection's own address: not intercepted."""
    with accepted(family) as (sock, client, local):
        there = ELSEWHERE[family]
        entries = {
            "none": [],
            "swapped": [Entry(local, client, there)],
            "another proto": [Entry(client, local, there, UDP)],
            "direct": [Entry(client, local, local)],
        }[entry]
        with pretend(Ipnat(system, *entries)) as ipnat, pytest.raises(lc.NotIntercepted) as why:
            lc.original_destination(sock, engine="ipfilter")
    assert why.value.errno == errno.ENOENT
    assert len(ipnat.questions) == 1


@every_system
@pytest.mark.parametrize(
    ("attribute", "value"),
    [("revision", 4010000), ("type", 8), ("size", 60)],
)
def test_another_kernels(
    system: str, attribute: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that wants another revision, type or size: EINVAL, which is not "no entry"."""
    with accepted(4) as (sock, client, local):
        ipnat = Ipnat(system, Entry(client, local, ELSEWHERE[4]))
        if attribute == "size":
            monkeypatch.setitem(IPNAT["natlookup"], "size", value)
        else:
            setattr(ipnat, attribute, value)
        with pretend(ipnat), pytest.raises(lc.CommError) as why:
            lc.original_destination(sock, engine="ipfilter")
    assert why.value.errno == errno.EINVAL
    assert not isinstance(why.value, lc.NotIntercepted)


def test_revision_is_new_enough() -> None:
    assert IPNAT["revision"] >= IPNAT["oldest revision"]


@pytest.mark.parametrize(("row", "field"), [("zero version", "version"), ("zero flags", "flags")])
def test_what_the_engine_never_asks(row: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its question with one field made zero, on its way into the emulated kernel."""
    ipnat = Ipnat("freebsd")
    honest = ipnat.answer
    at = IPNAT["natlookup"][field]

    def spoiled(command: int, data: bytearray) -> int:
        pointer = int.from_bytes(data[8:16], sys.byteorder)
        ffi.memmove(ffi.cast("char *", pointer + at), b"\0\0\0\0", 4)
        return honest(command, data)

    with accepted(4) as (sock, client, local), pretend(ipnat):
        ipnat.entries.append(Entry(client, local, ELSEWHERE[4]))
        monkeypatch.setattr(ipnat, "answer", spoiled)
        with pytest.raises(lc.NotIntercepted):
            lc.original_destination(sock, engine="ipfilter")
    assert next(r["errno"] for r in IPNAT["lookup"] if r["when"] == row) == "ESRCH"


@every_system
def test_another_users(system: str, named: None) -> None:
    with accepted(4) as (sock, client, local):
        entry = Entry(client, local, ELSEWHERE[4])
        with pretend(Ipnat(system, entry, owner=os.geteuid() + 1)) as ipnat:
            assert engine().errno == errno.EACCES
            with pytest.raises(lc.CommError) as why:
                lc.comm_open(address=("127.0.0.1", 0), flags=lc.COMM_INTERCEPT)
            assert why.value.errno == errno.EACCES
            with pytest.raises(lc.CommError) as why:
                lc.original_destination(sock)
    assert why.value.errno == errno.EACCES
    assert ipnat.questions == []


@every_system
def test_absent(system: str, named: None) -> None:
    with accepted(4) as (sock, _, _), pretend(Ipnat(system, absent=True)):
        assert engine().errno == errno.ENXIO
        assert "kldload ipl" in engine().reason
        with pytest.raises(lc.CommError) as why:
            lc.original_destination(sock)
    assert why.value.errno == errno.ENXIO


ports = st.integers(0, 65535)
ends4 = st.tuples(st.ip_addresses(v=4).map(str), ports)
ends6 = st.tuples(st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None).map(str), ports)


@settings(max_examples=50)
@given(
    system=st.sampled_from(SYSTEMS),
    ends=st.tuples(ends4, ends4, ends4) | st.tuples(ends6, ends6, ends6),
)
def test_any_address(system: str, ends: tuple[Ends, Ends, Ends]) -> None:
    client, local, original = ends
    with pretend(Ipnat(system, Entry(client, local, original, UDP))):
        err, origin = of_datagram(local, client, ROW)
    assert err == 0
    assert host_and_port(origin.original) == original
    assert origin.translated == (original != local)


def test_no_other_protocol() -> None:
    """A socket that is neither a stream nor of datagrams has no entry to ask for."""
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b, pretend(Ipnat("freebsd")) as ipnat:
        assert lib.lc_original(a.fileno(), ROW, ffi.new("struct lc_origin *")) < 0
    assert ipnat.questions == []
