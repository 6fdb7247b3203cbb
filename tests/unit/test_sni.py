"""The name in a ClientHello: of real clients, of every version, split anyhow, and in junk."""

from __future__ import annotations

import ast
import json
import ssl
import sys
import threading
from pathlib import Path
from typing import Any

import hellos
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import protocols
from lusca_comm.protocols.sni import MOST, ClientHello, Verdict, client_hello, looks_like_tls

NAME = "www.example.com"
RECORDED = json.loads((Path(__file__).parents[1] / "vectors/hellos.json").read_text())
SNI = hellos.server_name(NAME.encode())
PADDING = 21  # RFC 7685


def named(name: str = NAME, **more: Any) -> ClientHello:
    return ClientHello(Verdict.NAME, name, **more)


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: f"{one['client']} {one['how']}")
def test_what_real_clients_send(one: dict[str, Any]) -> None:
    data = bytes.fromhex(one["hello"])
    verdict = Verdict.NAME if one["name"] else Verdict.NO_SNI
    whole = ClientHello(verdict, one["name"], tuple(one["alpn"]), one["ech"])
    assert client_hello(data) == whole
    assert client_hello(memoryview(data + b"early data")) == whole
    assert {client_hello(data[:at]) for at in range(len(data))} == {ClientHello(Verdict.NEED_MORE)}


def test_the_recorded_ones_are_of_every_kind() -> None:
    """Post-quantum key shares make a hello longer than a segment; Chromium's has a meaningless ECH
    extension."""
    assert {one["name"] for one in RECORDED} == {NAME, ""}
    assert sum(len(one["hello"]) // 2 > 1500 for one in RECORDED) >= 2
    assert any(one["ech"] for one in RECORDED)


def first_flight(name: str | None, version: ssl.TLSVersion | None) -> bytes:
    """What this Python's own client sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if version is not None:
        context.minimum_version = context.maximum_version = version
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("version", [None, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_this_python_as_a_client(version: ssl.TLSVersion | None) -> None:
    alpn = ("h2", "http/1.1")
    assert client_hello(first_flight("WWW.Example.com", version)) == named(
        "WWW.Example.com", alpn=alpn
    )
    assert client_hello(first_flight(None, version)) == ClientHello(Verdict.NO_SNI, alpn=alpn)


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302, 0x0303, 0x0304, 0x0305])
@pytest.mark.parametrize(
    "suites",
    [(0x0005,), (0x1304,), (0x1305,), (0xC02F, 0x5600), (0xFEFE,), (0x00C6,)],
    ids=["RC4", "CCM", "CCM-8", "fallback", "unassigned", "SM4"],
)
@pytest.mark.parametrize("extensions", [(SNI,), (SNI, hellos.TLS13)], ids=["1.2", "1.3"])
def test_every_version_and_cipher(version: int, suites: tuple[int, ...], extensions: Any) -> None:
    """Also what this OpenSSL does not speak: it is looked at, not spoken with."""
    assert client_hello(hellos.hello(*extensions, version=version, suites=suites)) == named()


def test_versions_in_an_extension_that_are_old() -> None:
    assert client_hello(hellos.hello(SNI, (43, b"\x04\x03\x02\x03\x01"))) == named()


def test_looking_warns_of_nothing_and_prints_nothing(
    recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    client_hello(hellos.hello(SNI, version=0x0301))
    client_hello(hellos.hello(hellos.server_name(b"\xff\xfe.example")))
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_the_form_of_ssl_2_has_no_name() -> None:
    data = hellos.ssl2()
    assert client_hello(data) == ClientHello(Verdict.NO_SNI)
    assert {client_hello(data[:at]).verdict for at in range(len(data))} == {Verdict.NEED_MORE}


def test_ech_has_an_outer_name() -> None:
    outer = hellos.hello(hellos.server_name(b"public.example"), hellos.TLS13, (0xFE0D, bytes(200)))
    assert client_hello(outer) == named("public.example", ech=True)
    assert client_hello(hellos.hello(hellos.TLS13, (0xFE0D, bytes(200)))) == ClientHello(
        Verdict.NO_SNI, ech=True
    )


@pytest.mark.parametrize("size", [1, 5, 512, 1 << 14])
def test_a_hello_in_many_records(size: int) -> None:
    message = hellos.message([SNI, hellos.TLS13, (PADDING, bytes(6000))])
    data = hellos.records(message, size)
    assert client_hello(data) == named()
    assert client_hello(data[:-1]) == ClientHello(Verdict.NEED_MORE)


@pytest.mark.parametrize("size", [1, 7, 1 << 14])
def test_what_is_missing_comes_in_a_few_looks(size: int) -> None:
    """A hello that comes byte by byte, in records of a byte each, keeps nobody busy."""
    data = hellos.records(hellos.message([SNI, (PADDING, bytes(10_000))]), size)
    at, looks = 0, 0
    while (hello := client_hello(data[:at])).verdict is Verdict.NEED_MORE:
        assert 0 < hello.missing <= len(data) - at
        at, looks = at + hello.missing, looks + 1
    assert (hello, hello.missing) == (named(), 0)
    assert looks < 100
    assert client_hello(data[:9], most=20).missing <= 11


def test_the_bound() -> None:
    fits = hellos.hello((PADDING, bytes(60_000)), SNI)
    assert client_hello(fits) == named()
    assert client_hello(fits, most=len(fits)) == named()
    too_long = ClientHello(Verdict.NOT_PARSED, reason="longer than 4096 bytes")
    assert client_hello(fits[:9], most=4096) == too_long  # its length says so
    spread = hellos.records(hellos.message([SNI, (PADDING, bytes(2000))]), 1)
    assert client_hello(spread[:4095], most=4096) == ClientHello(Verdict.NEED_MORE)
    assert client_hello(spread[:4096], most=4096) == too_long
    assert client_hello(spread, most=4096) == too_long
    assert client_hello(spread) == named()
    longest = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"
    assert client_hello(longest).reason == f"longer than {MOST} bytes"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",  # an alert
        b"\x16\x02",
        b"\x16\x03\x05",
        b"\x16\x03\x01\x00\x00",  # RFC 8446 5.1: no empty handshake records
        b"\x16\x03\x01\x40\x01",
        b"\x80\x2e\x04",
        b"\x80\x2e\x01\x00\x02",  # SSL 2 itself
        b"\0",
    ],
)
def test_not_tls(data: bytes) -> None:
    assert client_hello(data) == ClientHello(Verdict.NOT_TLS)
    for at in range(len(data)):
        assert client_hello(data[:at]).verdict in (Verdict.NEED_MORE, Verdict.NOT_TLS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (hellos.records(b"\x02\x00\x00\x01\x00"), "handshake message 2 where a ClientHello"),
        (hellos.records(b"\x01\x00\x00\x01\x00"), "has less in it than it says"),
        (hellos.hello(SNI, SNI), "OpenSSL: "),
        (hellos.hello(hellos.server_name(b"a.example", b"b.example")), "OpenSSL: "),
        (hellos.hello(hellos.server_name(b"a\0b")), "OpenSSL: "),
        (hellos.hello(hellos.server_name(b"a" * 256)), "OpenSSL: "),
        (hellos.hello(hellos.server_name(b"")), "the name is empty"),
        (hellos.hello(hellos.server_name("bücher.example".encode())), "the name is not ASCII"),
        (hellos.hello((0, b"")), "OpenSSL: "),
        (hellos.hello(SNI, (16, b"\0\5\2h2")), ""),
        (hellos.hello(SNI, suites=()), "OpenSSL: "),
        (
            hellos.records(hellos.message([SNI]), 20)[:25] + b"\x17\x03\x01\x00\x01",
            "another record in the middle",
        ),
    ],
)
def test_not_parsed(data: bytes, reason: str) -> None:
    got = client_hello(data)
    assert (got.verdict, got.name) == (Verdict.NOT_PARSED, "")
    assert reason in got.reason
    assert got.reason


def test_many_threads_look_at_once() -> None:
    """All through one context: nobody gets another's name."""
    wrong: list[str] = []

    def look(number: int) -> None:
        name = f"host{number}.example"
        data = hellos.hello(hellos.server_name(name.encode()))
        wrong.extend(got.name for _ in range(50) if (got := client_hello(data)).name != name)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


HELLOS = st.one_of(
    st.sampled_from([bytes.fromhex(one["hello"]) for one in RECORDED]),
    st.builds(
        lambda size, exts, more: hellos.records(hellos.message([SNI, *exts]), size) + more,
        st.integers(1, 300),
        st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=40)), max_size=4),
        st.binary(max_size=10),
    ),
    st.just(hellos.ssl2()),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A hello with some of its bytes changed, cut out or put in."""
    data = bytearray(draw(HELLOS))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@given(st.one_of(damaged(), st.binary(max_size=80)), st.lists(st.integers(0, 2000), max_size=8))
def test_any_bytes_split_anyhow_give_one_verdict(data: bytes, cuts: list[int]) -> None:
    """Whatever is seen first of it: a verdict stands, and until then it is NEED_MORE."""
    whole = client_hello(data)
    for at in sorted(cuts):
        part = client_hello(data[:at])
        assert part == whole or part.verdict is Verdict.NEED_MORE
    assert client_hello(data + b"\x16\x03") == whole or whole.verdict is Verdict.NEED_MORE
    assert (looks_like_tls(data) is False) == (whole.verdict is Verdict.NOT_TLS)


def test_no_socket_in_protocols() -> None:
    for file in Path(protocols.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert "socket" not in {name.name for name in node.names}, file
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("socket", "asyncio", "lusca_comm.sockets"), file
    assert "lusca_comm.protocols.sni" in sys.modules
