"""What the control messages of datagrams say, by system, and that no bytes whatever upset who reads
them (``tox -e sanitize`` runs this under ASan)."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from fake_devices import Pf, pretend
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm._shim import ffi, lib
from lusca_comm.address import from_shim

HEADER = struct.Struct("@Nii")
HOSTS = {4: "198.51.100.2", 6: "2001:db8:2::2"}
PORT = 5353
IP, IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6

Told = list[tuple[int, int, bytes]]
SYSTEMS = ["linux", "freebsd", "openbsd", "netbsd", "macos"]
every_system = pytest.mark.parametrize("system", SYSTEMS)
every_family = pytest.mark.parametrize("family", [4, 6])


def read(control: bytes) -> Any:
    """The address that `control` tells, or None."""
    out = ffi.new("struct lc_addr *")
    told = lib.lc_read_control(ffi.from_buffer("char[]", control), len(control), out)
    assert told == (out.family != 0)
    return from_shim(out)


def message(level: int, type: int, data: bytes) -> bytes:
    head = HEADER.pack(HEADER.size + len(data), level, type) + data
    return head + bytes(-len(head) % 8)


def sockaddr(family: int) -> bytes:
    port = socket.htons(PORT)
    if family == 4:
        return struct.pack("=HH4s8x", socket.AF_INET, port, packed(4))
    return struct.pack("=HHI16sI", socket.AF_INET6, port, 0, packed(6), 0)


def packed(family: int) -> bytes:
    return socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, HOSTS[family])


def told_by(system: str, family: int) -> Told:
    port = struct.pack("!H", PORT)
    pktinfo = struct.pack("@16sI", packed(6), 2)
    return {
        ("linux", 4): [(IP, 20, sockaddr(4))],
        ("linux", 6): [(IPV6, 74, sockaddr(6))],
        ("freebsd", 4): [(IP, 27, sockaddr(4))],
        ("freebsd", 6): [(IPV6, 72, sockaddr(6))],
        ("openbsd", 4): [(IP, 7, packed(4)), (IP, 33, port)],
        ("openbsd", 6): [(IPV6, 46, pktinfo), (IPV6, 64, port)],
    }.get((system, family)) or [(IP, 7, packed(4)) if family == 4 else (IPV6, 46, pktinfo)]


def pretending(system: str) -> Any:
    return pretend(Pf(system))


@every_system
@every_family
@pytest.mark.parametrize("backwards", [False, True])
def test_where_a_datagram_was_going(system: str, family: int, backwards: bool) -> None:
    told = told_by(system, family)
    if backwards:
        told.reverse()
    control = b"".join(message(*one) for one in told)
    port = 0 if system in ("netbsd", "macos") else PORT  # the listener's, then
    with pretending(system):
        assert read(control) == (HOSTS[family], port)


@every_family
@pytest.mark.parametrize("other", SYSTEMS[1:])
def test_another_systems_messages_say_nothing_on_linux(other: str, family: int) -> None:
    assert read(b"".join(message(*one) for one in told_by(other, family))) is None


@every_system
@every_family
def test_other_messages_in_between_are_passed_over(system: str, family: int) -> None:
    noise = message(IP, 99, b"x" * 5), message(socket.SOL_SOCKET, 1, b"")
    control = noise[0].join([noise[1], *(message(*one) for one in told_by(system, family)), b""])
    with pretending(system):
        assert read(control)[0] == HOSTS[family]


@every_system
@every_family
def test_what_is_cut_short_is_no_address(system: str, family: int) -> None:
    level, type, data = told_by(system, family)[0]
    whole = message(level, type, data)
    with pretending(system):
        for size in range(HEADER.size + len(data)):
            assert read(whole[:size]) is None
        for size in range(4 if family == 4 else 16):
            assert read(message(level, type, data[:size])) is None


def test_a_mapped_address_is_ipv4() -> None:
    mapped = bytes(10) + b"\xff\xff" + packed(4)
    data = struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(PORT), 0, mapped, 0)
    assert read(message(IPV6, 74, data)) == (HOSTS[4], PORT)
    with pretending("netbsd"):
        pktinfo = struct.pack("@16sI", mapped, 2)
        assert read(message(IPV6, 46, pktinfo)) == (HOSTS[4], 0)


def test_the_interface_of_a_link_local_address_is_kept() -> None:
    pktinfo = struct.pack("@16sI", socket.inet_pton(socket.AF_INET6, "fe80::1"), 7)
    port = message(IPV6, 64, struct.pack("!H", PORT))
    with pretending("openbsd"):
        assert read(message(IPV6, 46, pktinfo) + port) == ("fe80::1", PORT, 0, 7)
        assert read(port) is None


levels = st.sampled_from([IP, IPV6, socket.SOL_SOCKET]) | st.integers(-(2**31), 2**31 - 1)
types = st.sampled_from([7, 20, 27, 33, 46, 64, 72, 74]) | st.integers(-(2**31), 2**31 - 1)
lengths = st.integers(0, 80) | st.sampled_from([2**31, 2**63, 2**64 - 1])
contents = st.binary(max_size=40) | st.sampled_from([sockaddr(4), sockaddr(6), packed(4)])


@st.composite
def controls(draw: st.DrawFn) -> bytes:
    """Messages whose lengths may lie, cut off anywhere."""
    out = b""
    for _ in range(draw(st.integers(0, 4))):
        data = draw(contents)
        honest = HEADER.size + len(data)
        length = draw(st.just(honest) | lengths)
        out += HEADER.pack(length, draw(levels), draw(types)) + data
        out += bytes(-len(out) % 8)
    return out[: draw(st.integers(0, len(out)))] if draw(st.booleans()) else out


@given(controls() | st.binary(max_size=200), st.sampled_from(SYSTEMS))
def test_no_bytes_upset_it(control: bytes, system: str) -> None:
    with pretending(system):
        address = read(control)
    assert address is None or len(address) in (2, 4)


@given(st.lists(st.tuples(levels, types, contents), max_size=4))
def test_an_address_comes_only_from_a_message_that_tells_one(messages: Told) -> None:
    control = b"".join(message(*one) for one in messages)
    tells = any((level, type) in ((IP, 20), (IPV6, 74)) for level, type, _ in messages)
    assert tells or read(control) is None
