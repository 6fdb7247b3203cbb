"""PROXY protocol headers: in, out, split anyhow, and every way in which one can be wrong."""

from __future__ import annotations

import errno
import struct
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import CommError
from lusca_comm.protocols.proxy_header import MOST, Header, pack, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = (("192.0.2.2", 40000), ("198.51.100.2", 80))
V6 = (("2001:db8:1::2", 40000), ("2001:db8:2::2", 443))
V4_BYTES = bytes([192, 0, 2, 2, 198, 51, 100, 2]) + struct.pack(">HH", 40000, 80)


def v2(body: bytes, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + struct.pack(">BBH", command, family, size) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (b"PROXY TCP4 192.0.2.2 198.51.100.2 40000 80\r\n", Header(*V4, version=1)),
        (b"PROXY TCP6 2001:db8:1::2 2001:DB8:2:0::2 40000 443\r\n", Header(*V6, version=1)),
        (b"PROXY UNKNOWN\r\n", Header(version=1, transport="")),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Header(version=1, transport="")),
        (v2(V4_BYTES), Header(*V4)),
        (v2(V4_BYTES, family=0x12), Header(*V4, transport="dgram")),
        (v2(b"", family=0), Header(transport="")),
        (v2(tlv(5, b"id"), family=0), Header(transport="", tlvs=((5, b"id"),))),
        (v2(b"", 0x20, 0), Header(local=True, transport="")),
        (v2(b"anything", 0x20, 0xFF), Header(local=True, transport="")),  # to be skipped
        (
            v2(b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0"), family=0x31),
            Header("/run/a", "/run/b"),
        ),
        (
            v2(V4_BYTES + tlv(2, b"example.org") + tlv(1, b"h2") + tlv(2, b"again")),
            Header(*V4, tlvs=((2, b"example.org"), (1, b"h2"), (2, b"again"))),
        ),
        # As in a header of HAProxy, whose TLVs are not in the order of their types.
        (
            v2(V4_BYTES + tlv(5, b"id") + tlv(3, bytes.fromhex("7a0f7e55")) + tlv(1, b"h2")),
            None,
        ),
    ],
)
def test_in(data: bytes, header: Header | None) -> None:
    if header is None:
        data, header = with_checksum(data), Header(*V4, tlvs=((5, b"id"), (1, b"h2")))
    assert parse(data) == (header, len(data))
    assert parse(memoryview(data + b"\r\nGET /")) == (header, len(data))
    assert {parse(data[:at]) for at in range(len(data))} == {None}


def with_checksum(data: bytes) -> bytes:
    """The header with its CRC32C, bit by bit, after RFC 3720 B.4."""
    at = data.index(b"\3\0\4") + 3
    blank, crc = data[:at] + bytes(4) + data[at + 4 :], 0xFFFFFFFF
    for byte in blank:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return data[:at] + struct.pack(">I", crc ^ 0xFFFFFFFF) + data[at + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY\r\n",
        b"proxy TCP4",
        b"PROXY TCP4 192.0.2.2 198.51.100.2 40000 80\n",
        b"PROXY TCP4 192.0.2.2 198.51.100.2 40000\r\n",
        b"PROXY TCP4 192.0.2.2  198.51.100.2 40000 80\r\n",
        b"PROXY TCP4 192.0.2.2 198.51.100.2 40000 80 \r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.2 40000 80\r\n",
        b"PROXY TCP4 192.0.2.02 198.51.100.2 40000 80\r\n",
        b"PROXY TCP4 192.0.2.2 198.51.100.2 +4000 80\r\n",
        b"PROXY TCP4 192.0.2.2 198.51.100.2 4_0 80\r\n",
        b"PROXY TCP4 192.0.2.2 198.51.100.2 080 80\r\n",
        b"PROXY TCP4 192.0.2.2 198.51.100.2 65536 80\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 192.0.2.2 198.51.100.2 1 2\r\n",
        b"PROXY TCP6 2001:db8::1::2 2001:db8::2 1 2\r\n",
        b"PROXY TCP6 fe80::1%lo 2001:db8::2 1 2\r\n",
        b"PROXY UDP4 192.0.2.2 198.51.100.2 1 2\r\n",
        b"PROXY UNKNOWN" + b" " * 100,
        b"PROXY UNKNOWN" + b" " * 100 + b"\r\n",
        v2(V4_BYTES, 0x11),
        v2(V4_BYTES, 0x22),
        v2(V4_BYTES, family=0x10),
        v2(V4_BYTES, family=0x13),
        v2(V4_BYTES, family=0x41),
        v2(V4_BYTES, family=0x21),
        v2(V4_BYTES[:-1]),
        v2(b"/run/\xff".ljust(216, b"\0"), family=0x31),
        v2(V4_BYTES + b"\1"),
        v2(V4_BYTES + b"\1\0"),
        v2(V4_BYTES + b"\1\0\5four"),
        v2(V4_BYTES + tlv(3, b"\0\0\0\0")),
        v2(V4_BYTES + tlv(3, b"\0\0\0")),
        with_checksum(v2(V4_BYTES + tlv(3, bytes(4)) + tlv(3, bytes(4)))),
        v2(b"", length=MOST - 15),
        SIGNATURE[:-1] + b"\r",
    ],
)
def test_strict(data: bytes) -> None:
    with pytest.raises(CommError, match=r"^\[Errno \d+\] no PROXY protocol header: ") as caught:
        parse(data)
    assert caught.value.errno == errno.EPROTO


def test_the_bound() -> None:
    data = v2(V4_BYTES + tlv(0xE0, bytes(MOST - 16 - 12 - 3)))
    assert len(data) == MOST
    got = parse(data)
    assert got is not None
    assert got[1] == MOST
    assert parse(data[:-1]) is None
    with pytest.raises(CommError, match="longer than 100 bytes"):
        parse(data[:16], most=100)
    with pytest.raises(CommError, match="longer than 107 bytes"):
        parse(b"PROXY UNKNOWN".ljust(107))


HOST4, HOST6 = st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)
PORT = st.integers(0, 65535)
PATH = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=108)
TLVS = st.dictionaries(
    st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=40), max_size=4
).map(lambda every: tuple(sorted(every.items())))


def ends(one: Any) -> Any:
    return st.tuples(one, one)


HEADERS = st.one_of(
    st.builds(
        lambda ends, tlvs, transport: Header(*ends, tlvs=tlvs, transport=transport),
        st.one_of(*(ends(st.tuples(host, PORT)) for host in (HOST4, HOST6)), ends(PATH)),
        TLVS,
        st.sampled_from(["stream", "dgram"]),
    ),
    st.builds(
        lambda ends: Header(*ends, version=1),
        st.one_of(*(ends(st.tuples(host, PORT)) for host in (HOST4, HOST6))),
    ),
    TLVS.map(lambda tlvs: Header(tlvs=tlvs, transport="")),
    st.just(Header(version=1, transport="")),
    st.just(Header(local=True, transport="")),
)


@given(HEADERS)
def test_out_and_in_again(header: Header) -> None:
    data = pack(header)
    assert parse(data + b"more") == (header, len(data))


@pytest.mark.parametrize(
    "header",
    [
        Header(V4[0], V6[1]),
        Header(V4[0], None),
        Header(V4[0], "/run/b"),
        Header("/" * 109, "/run/b"),
        Header("/run/a", "/run/é"),
        Header(("example.org", 1), V4[1]),
        Header(("fe80::1%1", 1), V6[1], version=1),
        Header((V4[0][0], 65536), V4[1]),
        Header((V4[0][0], -1), V4[1], version=1),
        Header("/run/a", "/run/b", version=1),
        Header(*V4, version=1, tlvs=((1, b"h2"),)),
        Header(version=1, local=True),
        Header(*V4, version=1, transport="dgram"),
        Header(*V4, tlvs=((1, b"h2"), (1, b"h3"))),
        Header(*V4, tlvs=((3, b"\0\0\0\0"),)),
        Header(*V4, tlvs=((1, bytes(65536)),)),
        Header(*V4, tlvs=((1, bytes(40000)), (2, bytes(40000)))),
    ],
)
def test_what_has_no_header(header: Header) -> None:
    with pytest.raises(CommError) as caught:
        pack(header)
    assert caught.value.errno == errno.EINVAL


@given(
    st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(lambda more: b"PROXY " + more),
        st.binary(max_size=60).map(lambda more: SIGNATURE + more),
        st.tuples(HEADERS, st.integers(0, 60), st.binary(max_size=3)).map(
            lambda it: (data := pack(it[0]))[: it[1]] + it[2] + data[it[1] :]
        ),
    ),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_any_bytes_split_anyhow_give_one_verdict(data: bytes, cuts: list[int]) -> None:
    def verdict(data: bytes) -> Any:
        try:
            return parse(data)
        except CommError as why:
            return {errno.EPROTO: "wrong"}[why.errno]

    whole = verdict(data)
    for at in sorted(cuts):
        assert verdict(data[:at]) in (None, whole)
    assert whole is None or verdict(data + b"\r\n") == whole


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "proxyprotocol.checksum", None)
    for call in (lambda: pack(Header(*V4)), lambda: parse(v2(V4_BYTES))):
        with pytest.raises(CommError, match=r"pip install 'lusca-comm\[proxy\]'") as caught:
            call()
        assert caught.value.errno == errno.ENOSYS


def test_without_its_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checksum that can't be verified is not taken for right."""
    import proxyprotocol.checksum

    data = pack(Header(*V4))
    monkeypatch.setattr(proxyprotocol.checksum, "crc32c", None)
    with pytest.raises(CommError, match="needs crc32c") as caught:
        parse(data)
    assert caught.value.errno == errno.ENOSYS
