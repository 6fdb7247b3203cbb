"""Addresses in and out of the shim's form, and descriptors out of whatever has one."""

from __future__ import annotations

import asyncio
import errno
import io
import ipaddress
import os
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import CommError
from lusca_comm.address import descriptor, from_shim, holder, spell, to_shim

ports = st.integers(0, 65535)
hosts4 = st.ip_addresses(v=4).map(str)
hosts6 = st.ip_addresses(v=6)


@given(hosts4, ports)
def test_v4_comes_out_as_it_went_in(host: str, port: int) -> None:
    assert from_shim(to_shim((host, port))) == (host, port)
    assert to_shim([host, port]).family == 4


@given(hosts6, ports)
def test_v6_comes_out_normalised(host: ipaddress.IPv6Address, port: int) -> None:
    """As inet_ntop(3) spells it; v4-mapped as IPv4."""
    expected = host.ipv4_mapped or host
    out = from_shim(to_shim((str(host), port)))
    assert out is not None
    assert (ipaddress.ip_address(out[0]), out[1]) == (expected, port)
    assert from_shim(to_shim((host.exploded, port))) == out


@given(
    hosts6.filter(lambda a: a.ipv4_mapped is None),
    ports,
    st.integers(0, 0xFFFFF),
    st.integers(0, 0xFFFFFFFF),
)
def test_flow_and_scope_are_kept(
    host: ipaddress.IPv6Address, port: int, flow: int, scope: int
) -> None:
    shim = to_shim((str(host), port, flow, scope))
    assert (shim.flow, shim.scope) == (flow, scope)
    out = from_shim(shim)
    assert out is not None
    assert out[2:] == ((flow, scope) if scope else ())
    if scope:
        assert to_shim((f"{host}%{scope}", port)).scope == scope


def test_a_zone_may_be_a_name() -> None:
    index = socket.if_nametoindex("lo")
    assert from_shim(to_shim(("fe80::1%lo", 1))) == ("fe80::1", 1, 0, index)


def outcome(address: Any) -> Any:
    """What came of it: an address, or how it was refused."""
    try:
        return from_shim(to_shim(address))
    except TypeError:
        return TypeError
    except CommError as why:
        return why.errno if why.strerror else None


@given(st.text(max_size=50))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    out = outcome((text, 80))
    assert out in (errno.EINVAL, errno.ENODEV) or outcome(out) == out


anything: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5)
)


@given(
    st.one_of(
        anything,
        st.lists(anything, max_size=5),
        st.tuples(anything, anything),
        st.tuples(st.just("::1"), st.just(1), anything, anything),
    )
)
def test_anything_is_an_address_or_a_clear_error(thing: Any) -> None:
    out = outcome(thing)
    assert out in (TypeError, errno.EINVAL, errno.ENODEV) or outcome(out) == out


@pytest.mark.parametrize(
    ("address", "code"),
    [
        (("example.com", 80), errno.EINVAL),
        (("localhost", 80), errno.EINVAL),
        (("", 80), errno.EINVAL),
        (("1.2.3", 80), errno.EINVAL),
        (("1.2.3.4%lo", 80), errno.EINVAL),
        (("::1", 65536), errno.EINVAL),
        (("::1", -1), errno.EINVAL),
        (("::1", 1, 1 << 20, 0), errno.EINVAL),
        (("::1", 1, 0, -1), errno.EINVAL),
        (("::1", 1, 0, 1 << 32), errno.EINVAL),
        (("fe80::1%4294967296", 1), errno.EINVAL),
        (("fe80::1%", 1), errno.ENODEV),
        (("fe80::1%nosuchif0", 1), errno.ENODEV),
        (("fe80::1%²", 1), errno.ENODEV),
        (("1.2.3.4\0", 80), errno.EINVAL),
    ],
)
def test_what_is_wrong_is_said(address: Any, code: int) -> None:
    with pytest.raises(CommError) as caught:
        to_shim(address)
    assert caught.value.errno == code


@pytest.mark.parametrize(
    "address",
    [
        None,
        "1.2.3.4:80",
        ("1.2.3.4",),
        ("1.2.3.4", "80"),
        (b"1.2.3.4", 80),
        ("1.2.3.4", True),
        ("::1", 80, 0),
        ("::1", 80, "0", 0),
        {"host": "::1", "port": 1},
    ],
)
def test_what_is_no_address_is_a_type_error(address: Any) -> None:
    with pytest.raises(TypeError):
        to_shim(address)


def test_spelling() -> None:
    assert spell(("192.0.2.1", 80)) == "192.0.2.1:80"
    assert spell(("fe80::1", 80, 0, 3)) == "[fe80::1]:80"
    assert spell(None) == "no address"


# -- descriptors -----------------------------------------------------------------------------------


class Transport:
    """As asyncio's: no fileno, but a socket within."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def get_extra_info(self, name: str) -> Any:
        return self.sock if name == "socket" else None


def test_where_a_descriptor_is_found() -> None:
    with socket.socket() as sock:
        fd = sock.fileno()
        assert descriptor(sock) == descriptor(fd) == descriptor(Transport(sock)) == fd
        assert holder(Transport(sock)) is sock
        assert holder(sock) is sock


def test_an_asyncio_writer_has_one() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert descriptor(writer) == writer.get_extra_info("socket").fileno()
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_what_is_closed_is_ebadf() -> None:
    sock = socket.socket()
    sock.close()
    r, w = os.pipe()
    os.close(w)
    file = open(r)  # noqa: PTH123, SIM115
    file.close()
    for thing in (sock, file, -1, 1 << 31, 1 << 64, Transport(None)):
        with pytest.raises(CommError) as caught:
            descriptor(thing)
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("thing", [None, True, "3", 3.0, object(), io.BytesIO(), b"3", [3]])
def test_what_has_none_is_a_type_error(thing: Any) -> None:
    with pytest.raises(TypeError):
        descriptor(thing)


def test_a_fileno_that_is_no_number_is_a_type_error() -> None:
    class Odd:
        def fileno(self) -> Any:
            return "3"

    with pytest.raises(TypeError):
        descriptor(Odd())
