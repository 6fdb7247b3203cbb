"""What a whole head tells besides its framing: spans, flags, forms, limits. The other framers."""

from __future__ import annotations

import ssl

import pytest
from framers import HELLO, LENGTH16, RESPONSE, Head, Limits, judge, split
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm._shim import lib

NAMED = [
    "KEEP",
    "OLD",
    "EXPECT",
    "UPGRADE",
    "CONNECT",
    "IS_HEAD",
    "SAFE",
    "IDEMPOTENT",
    "TRAILERS",
]


def flags(head: Head) -> set[str]:
    return {name for name in NAMED if head.h.flags & getattr(lib, f"LC_HEAD_{name}")}


def request(start: bytes, *fields: bytes) -> Head:
    head = judge(b"\r\n".join([start, b"Host: a", *fields, b"", b""]))
    assert head.h.state == lib.LC_HEAD_WHOLE, head.verdict
    return head


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (b"GET", {"SAFE", "IDEMPOTENT"}),
        (b"HEAD", {"SAFE", "IDEMPOTENT", "IS_HEAD"}),
        (b"TRACE", {"SAFE", "IDEMPOTENT"}),
        (b"OPTIONS", {"SAFE", "IDEMPOTENT"}),
        (b"PUT", {"IDEMPOTENT"}),
        (b"DELETE", {"IDEMPOTENT"}),
        (b"POST", set()),
        (b"PATCH", set()),
        (b"get", set()),
        (b"LOCK", set()),
    ],
)
def test_methods(method: bytes, told: set[str]) -> None:
    assert flags(request(method + b" / HTTP/1.1")) == {"KEEP"} | told


@pytest.mark.parametrize(
    ("version", "fields", "told"),
    [
        (b"1.1", [], {"KEEP"}),
        (b"1.1", [b"Connection: close"], set()),
        (b"1.1", [b"Connection: x, CLOSE", b"Connection: keep-alive"], set()),
        (b"1.0", [], {"OLD"}),
        (b"1.0", [b"connection: Keep-Alive"], {"OLD", "KEEP"}),
        (b"1.0", [b"Connection: close, keep-alive"], {"OLD"}),
        (b"1.1", [b"Expect: 100-continue", b"Content-Length: 1"], {"KEEP", "EXPECT"}),
        (b"1.1", [b"Expect: 100-continue", b"Transfer-Encoding: chunked"], {"KEEP", "EXPECT"}),
        (b"1.1", [b"Expect: 100-continue"], {"KEEP"}),
        (b"1.1", [b"Expect: 100-continue", b"Content-Length: 0"], {"KEEP"}),
        (b"1.0", [b"Expect: 100-continue", b"Content-Length: 1"], {"OLD"}),
        (b"1.1", [b"Connection: upgrade", b"Upgrade: websocket"], {"KEEP", "UPGRADE"}),
        (b"1.1", [b"Upgrade: websocket"], {"KEEP"}),
        (b"1.1", [b"Connection: upgrade"], {"KEEP"}),
        (b"1.1", [b"Connection: upgrade", b"Upgrade: websocket, H2C"], {"KEEP"}),
        (b"1.1", [b"Connection: upgrade", b"Upgrade: a", b"Upgrade: h2c"], {"KEEP"}),
        (b"1.0", [b"Connection: upgrade", b"Upgrade: websocket"], {"OLD"}),
        (b"1.1", [b"TE: gzip;q=1, Trailers"], {"KEEP", "TRAILERS"}),
        (b"1.1", [b"TE: trailers;q=0"], {"KEEP"}),
    ],
)
def test_flags(version: bytes, fields: list[bytes], told: set[str]) -> None:
    assert flags(request(b"POST / HTTP/" + version, *fields)) == told


def test_connect_switches_to_nothing_else() -> None:
    head = judge(
        b"CONNECT a:443 HTTP/1.1\r\nHost: b\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert flags(head) == {"CONNECT", "KEEP"}
    assert head.h.form == lib.LC_TARGET_AUTHORITY
    assert head.text(head.h.authority) == b"a:443"


@pytest.mark.parametrize(
    ("target", "form", "authority"),
    [
        (b"/x?y", lib.LC_TARGET_ORIGIN, b""),
        (b"//a/x", lib.LC_TARGET_ORIGIN, b""),
        (b"http://b:81/x", lib.LC_TARGET_ABSOLUTE, b"b:81"),
        (b"http://[::1]?x", lib.LC_TARGET_ABSOLUTE, b"[::1]"),
        (b"*", lib.LC_TARGET_ASTERISK, b""),
    ],
)
def test_forms_and_spans(target: bytes, form: int, authority: bytes) -> None:
    head = judge(b"\r\nOPTIONS " + target + b" HTTP/1.1\r\nX: y\r\nhost: \tc:82 \r\n\r\nbody")
    assert head.start == [b"OPTIONS", target, b"HTTP/1.1"]
    assert (head.h.form, head.text(head.h.authority)) == (form, authority)
    assert head.text(head.h.host) == b"c:82"
    assert head.bytes[head.h.size :] == b"body"


def test_a_response_told() -> None:
    head = judge(b"HTTP/1.0 404 Not  Found \r\nContent-Length: 7\r\n\r\n", RESPONSE)
    assert head.start == [b"HTTP/1.0", b"404", b"Not  Found "]
    assert (head.h.code, head.h.minor, head.h.length) == (404, 0, 7)
    assert flags(head) == {"OLD"}


@pytest.mark.parametrize(
    ("data", "about", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", 0, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n", 0, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n", 0, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n", 0, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", 0, False),
        (b"HTTP/1.1 200 OK\r\n\r\n", lib.LC_HEAD_IS_HEAD, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", lib.LC_HEAD_CONNECT, False),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", 0, True),
    ],
)
def test_who_keeps_the_connection(data: bytes, about: int, keeps: bool) -> None:
    assert ("KEEP" in flags(judge(data, RESPONSE, about))) == keeps


def test_a_length_that_is_told_of_no_body() -> None:
    said = b"HTTP/1.1 %d x\r\nContent-Length: 7\r\n\r\n"
    assert judge(said % 200, RESPONSE, lib.LC_HEAD_IS_HEAD).h.length == 7
    assert judge(said % 304, RESPONSE).h.length == 7


def test_find() -> None:
    head = request(b"GET / HTTP/1.1", b"X: 1", b"xx: 2", b"x:\t3 \t", b"X:", b"Y-X: 5")
    assert head.find(b"x") == head.find(b"X") == [b"1", b"3", b""]
    assert head.find(b"host") == [b"a"]
    assert head.find(b"hos") == head.find(b"a") == head.find(b"") == []
    assert lib.lc_head_find(head.bytes, head.h, b"x", 1, [], 0) == 3


START, FIELD = b"GET / HTTP/1.1\r\n", b"Host: a\r\n"


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        (Limits(14, 27, 1), "none"),
        (Limits(13, 27, 1), "414 LONG_LINE"),
        (Limits(14, 26, 1), "431 LONG_HEAD"),
        (Limits(14, 15, 1), "431 LONG_HEAD"),
        (Limits(14, 27, 0), "431 FIELDS"),
        (Limits(0, 0, 0), "431 LONG_HEAD"),
    ],
)
def test_limits(limits: Limits, verdict: str) -> None:
    assert judge(START + FIELD + b"\r\n", limits=limits).verdict == verdict


def test_limits_of_a_field_line() -> None:
    data = START + b"Host: a\r\nX: 12345678901\r\n"
    assert judge(data + b"\r\n", limits=Limits(14, 99, 9)).verdict == "none"
    assert judge(data[:-1] + b"2", limits=Limits(14, 99, 9)).verdict == "400 BYTE"
    assert judge(data[:-2] + b"23", limits=Limits(14, 99, 9)).verdict == "431 LONG_LINE"


def test_what_has_a_verdict_keeps_it() -> None:
    head = judge(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    told = head.told
    assert head.feed(b"GET / HTTP/3\r\n").told == told
    assert judge(b"x", framer=77).h.state == lib.LC_HEAD_OTHER


# -- TLS


def client_hello(name: str = "origin.example", alpn: int = 2) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols([f"protocol-{i}" for i in range(alpn)])
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def records(message: bytes, sizes: list[int]) -> bytes:
    out = b""
    for piece in split(message, sizes):
        if piece:
            out += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
    return out


BIG = 1 + 3 + 2000  # of a post-quantum key share: more than one segment
HELLOS = {
    "openssl": client_hello(),
    "long": client_hello("a" * 60 + ".example", 120),
    "post-quantum": records(b"\x01" + (BIG - 4).to_bytes(3, "big") + bytes(BIG - 4), []),
}


@pytest.mark.parametrize("hello", HELLOS.values(), ids=HELLOS.keys())
def test_a_client_hello(hello: bytes) -> None:
    assert judge(hello, HELLO).h.state == lib.LC_HEAD_WHOLE
    head = Head(HELLO)
    for i in range(len(hello)):
        assert head.h.state == lib.LC_HEAD_MORE
        head.feed(hello[i : i + 1])
    assert head.h.state == lib.LC_HEAD_WHOLE
    assert (head.h.size, head.h.fields, head.h.length) == (len(hello), 1, len(hello) - 5)


@given(
    st.sampled_from(list(HELLOS.values())),
    st.lists(st.integers(0, 3000), max_size=9),
    st.binary(max_size=9),
)
def test_a_client_hello_over_records(hello: bytes, sizes: list[int], behind: bytes) -> None:
    data = records(hello[5:], sizes)
    head = judge(data + behind, HELLO)
    assert (head.h.state, head.h.size, head.h.length) == (1, len(data), len(hello) - 5)
    again = Head(HELLO)
    for piece in split(data + behind, [size // 2 for size in sizes]):
        again.feed(piece)
    assert again.told == head.told


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (b"G", "other RECORD"),
        (b"\x15", "other RECORD"),
        (b"\x16\x02", "other RECORD"),
        (b"\x16\x03\x05", "other RECORD"),
        (b"\x80", "other RECORD"),
        (b"\x16\x03\x01\x00\x04\x02", "other RECORD"),
        (b"\x16\x03\x01\x00\x00", "400 RECORD"),
        (b"\x16\x03\x01\x40\x01", "400 RECORD"),
        (b"\x16\x03\x01\x00\x01\x01\x15", "400 RECORD"),
        (b"\x16\x03\x01\x00\x01\x01\x16\x03\x03\x00\x00", "400 RECORD"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "400 FRAME"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x02\x00", "more"),
    ],
)
def test_what_is_no_client_hello(data: bytes, verdict: str) -> None:
    assert judge(data, HELLO).verdict == verdict
    assert judge(data[:-1], HELLO).verdict == "more"


# -- messages behind their length


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (b"", "more"),
        (b"\0", "more"),
        (b"\0\3ab", "more"),
        (b"\0\0", "400 FRAME"),
        (b"\2\0", "400 FRAME"),
        (b"\0\3abcd", "none"),
    ],
)
def test_length16(data: bytes, verdict: str) -> None:
    head = judge(data, LENGTH16, limits=Limits(head=512))
    assert head.verdict == verdict
    if verdict == "none":
        assert (head.h.size, head.start[0]) == (5, b"abc")
