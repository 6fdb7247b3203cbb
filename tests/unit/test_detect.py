"""Protocols by their first bytes: each one's, none's, and any split of them."""

from __future__ import annotations

import itertools
import struct

import hellos
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm.protocols.detect import (
    LIMIT,
    MOST,
    PROTOCOLS,
    SERVER_FIRST,
    UNKNOWN,
    Detector,
    detect,
)

QUERY = bytes.fromhex("001d abcd 0100 0001 0000 0000 0000 03777777 076578616d706c65 00 0001 0001")
EXAMPLES = {
    "tls": [hellos.hello(), hellos.ssl2()],
    "http/2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"],
    "http/1": [
        b"GET / HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"GET http://example.org/ HTTP/1.1\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\n",
        b"VERSION-CONTROL /a HTTP/1.1\r\n",
        b"PROPFIND / HTTP/1.1\r\n",
    ],
    "proxy": [b"PROXY TCP4 1", b"\r\n\r\n\0\r\nQUIT\n\x21"],
    "ssh": [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "smtp": [b"EHLO mail.example\r\n", b"HELO mail.example\r\n"],
    "bittorrent": [b"\x13BitTorrent protocol" + bytes(8)],
    "socks4": [b"\x04\x01\x00\x50\xc6\x33\x64\x02\x00"],
    "socks5": [b"\x05\x01\x00", b"\x05\x02\x00\x02", b"\x05\x01\x00\x05\x01\x00\x01"],
    "postgresql": [
        struct.pack(">II", 8, 80877103),
        struct.pack(">II", 8, 80877104),
        struct.pack(">II", 41, 196608) + b"user\0me\0",
        struct.pack(">IIII", 16, 80877102, 1, 2),
    ],
    "dns": [QUERY],
}
NONE = [
    b"\0",
    b"\0\0\0\x08\x04\xd2\x16\x2e" + bytes(12),
    b"hello\r\n",
    b"GET\r\n",
    b"get / HTTP/1.0\r\n",
    b"GET relative HTTP/1.0\r\n",
    b"QUIT\r\n",
    b"CONNECT \r\n",
    b"A" * 40,
    b"PR ",
    b"PROXIES",
    b"SSH\r\n",
    b"\x16\x03\x01\x00\x05\x02",
    b"\x05\x00",
    b"\x04\x03",
    QUERY[:4] + b"\x81\x80" + QUERY[6:],  # an answer
]


def test_there_is_an_example_of_each() -> None:
    assert set(EXAMPLES) == set(PROTOCOLS)


@pytest.mark.parametrize(
    ("protocol", "data"), [(name, data) for name, every in EXAMPLES.items() for data in every]
)
def test_each_protocol(protocol: str, data: bytes) -> None:
    assert detect(data) == protocol
    assert detect(memoryview(data)) == protocol
    assert {detect(data[:at]) for at in range(len(data))} <= {None, protocol}


@pytest.mark.parametrize("data", NONE)
def test_none_of_them(data: bytes) -> None:
    # \0 alone may become a DNS query or PostgreSQL's; time decides.
    assert (detect(data) or after(data)) == UNKNOWN


def after(data: bytes) -> str:
    detector = Detector()
    detector.feed(data)
    return detector.silence()


def test_silence() -> None:
    detector = Detector()
    assert (detector.limit, detector.verdict) == (LIMIT, None)
    assert detector.feed(b"") is None
    assert detector.silence() == SERVER_FIRST
    assert detector.feed(b"GET / HTTP/1.1\r\n") == SERVER_FIRST  # the first verdict stands
    assert Detector(0.1).limit == 0.1
    detector = Detector()
    assert detector.feed(b"SSH-2.0") == "ssh"
    assert detector.silence() == "ssh"


@given(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from([data for every in EXAMPLES.values() for data in every] + NONE),
        st.sampled_from([data for every in EXAMPLES.values() for data in every]).flatmap(
            lambda data: st.integers(0, len(data)).flatmap(
                lambda at: st.binary(max_size=20).map(lambda more: data[:at] + more)
            )
        ),
    ),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_any_bytes_split_anyhow_give_one_verdict(data: bytes, cuts: list[int]) -> None:
    detector = Detector()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        detector.feed(data[start:end])
    assert detector.verdict == detect(data)
    assert detect(data.ljust(MOST, b"x")) is not None
