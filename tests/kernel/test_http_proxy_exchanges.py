"""Requests and responses of every shape through examples/http_proxy, and peers that misbehave: the
right answer or a clean reset, nothing left behind, and the proxy going on."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from kernel.http_lab import (
    INTERCEPT,
    NAME,
    V4,
    Service,
    get,
    know,
    opened_lab,
    pattern,
    seen,
    serve,
    status,
    talk,
)
from kernel.proxying import intercept

from lusca_comm.lab import Topology, wait_for

HOST = f"Host: {NAME}"


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with opened_lab() as net:
        intercept(net.router, port=INTERCEPT, spoof=True)
        serve(net)
        yield net


@pytest.fixture(scope="module")
def running(net: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("proxy")
    know(net.router, folder)
    times = ("--head-time", "2", "--response-time", "2", "--body-time", "2", "--idle-time", "20")
    sizes = ("--max-body", "1000000", "--max-fields", "50", "--max-line", "8192")
    proxy = Service(net.router, folder, "--spoof", *times, *sizes)
    ask(net, get("/pattern?3000000", HOST))  # the plane has its scratch pipe from now on
    yield proxy
    proxy.end()


numbers = itertools.count()


@pytest.fixture
def proxy(net: Topology, running: Service) -> Iterator[Service]:
    """The same for all, which has no more descriptors open after a test than before it."""
    path = f"/seen?{next(numbers)}"  # it works, and has what it keeps for itself
    ask(net, get(path, HOST))
    wait_for(lambda: running.lines()[-1]["uri"].endswith(path), 20, "its line in the access log")
    settled = wait_for(lambda: _settled(running), 20, "descriptors at rest")
    yield running
    assert seen(ask(net, get("/seen", HOST)))["peer"] == net.client_ip[V4]
    wait_for(lambda: running.descriptors() <= settled + POOLED, 20, "no descriptor is left")


POOLED = 1  # a test may leave an idle connection to the origin


def _settled(proxy: Service) -> int:
    counts = {proxy.descriptors() for _ in range(3)}
    return counts.pop() if len(counts) == 1 else 0


def ask(net: Topology, *parts: bytes, **how: Any) -> bytes:
    return net.client.run(talk, (net.origin_ip[V4], 80), *parts, **how)


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


# -- shapes --------------------------------------------------------------------------------------


def test_bodies_by_length(net: Topology, proxy: Service) -> None:
    data = pattern(300_000)
    request = b"POST /seen HTTP/1.1\r\n%s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    told = seen(ask(net, request % (HOST.encode(), len(data)), data[:1000], data[1000:]))
    assert (told["size"], told["body"]) == (len(data), hashlib.sha256(data).hexdigest())
    answer = ask(net, get("/pattern?500000", HOST))
    assert body_of(answer) == pattern(500_000)
    assert proxy.lines()[-1]["up"] > 0


def test_chunked_both_ways_with_trailers(net: Topology, proxy: Service) -> None:
    head = f"POST /seen HTTP/1.1\r\n{HOST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    told = seen(
        ask(net, head.encode() + b"\r\n3;a=b\r\nabc\r\n", b"2\r\nde\r\n0\r\nX-End: up\r\n\r\n")
    )
    assert told["body"] == hashlib.sha256(b"abcde").hexdigest()
    assert told["trailers"] == [["x-end", "up"]]
    answer = ask(net, get("/chunked", HOST))
    assert body_of(answer) == b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-End: yes\r\n\r\n"


def test_a_body_until_close(net: Topology, proxy: Service) -> None:
    answer = ask(net, get("/until-close", HOST))
    assert body_of(answer) == pattern(100_000)
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("code", [204, 304])
def test_no_body(net: Topology, proxy: Service, code: int) -> None:
    answer = ask(net, get(f"/empty?{code}", HOST))
    assert (status(answer), body_of(answer)) == (code, b"")


def test_head(net: Topology, proxy: Service) -> None:
    answer = ask(net, get("/pattern?5000", HOST, method="HEAD"))
    assert b"\r\nContent-Length: 5000\r\n" in answer
    assert body_of(answer) == b""


def test_interim_responses(net: Topology, proxy: Service) -> None:
    answer = ask(net, get("/hints", HOST))
    assert answer.startswith(b"HTTP/1.1 103 ")
    assert answer.endswith(b"\r\n\r\nhinted")


def test_expect_continue(net: Topology, proxy: Service) -> None:
    head = f"POST /seen HTTP/1.1\r\n{HOST}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"

    def client() -> list[bytes]:
        with socket.create_connection((net.origin_ip[V4], 80), 20) as sock:
            sock.sendall(head.encode())
            first = sock.recv(65536)
            sock.sendall(b"body")
            sock.shutdown(socket.SHUT_WR)
            return [first, b"".join(iter(lambda: sock.recv(65536), b""))]

    first, rest = net.client.run(client)
    assert first.startswith(b"HTTP/1.1 100 ")
    assert seen(rest)["size"] == 4


def test_pipelined_requests_are_answered_in_order(net: Topology, proxy: Service) -> None:
    before = len(proxy.lines())
    one = f"GET /pattern?{{}} HTTP/1.1\r\n{HOST}\r\n\r\n"
    sizes = [1, 70_000, 2, 30_000]
    requests = "".join(one.format(size) for size in sizes).encode()
    answer = ask(net, requests + get("/chunked", HOST))
    for size in sizes:
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert f"\r\nContent-Length: {size}".encode() in head
        assert rest[:size] == pattern(size)
        answer = rest[size:]
    assert answer.endswith(b"X-End: yes\r\n\r\n")
    wait_for(lambda: len(proxy.lines()) == before + 5, 20, "five lines")
    assert [line["status"] for line in proxy.lines()[before:]] == [200] * 5


def test_connections_are_kept_on_both_sides(net: Topology, proxy: Service) -> None:
    ask(net, get("/closes", HOST))  # so that there is none in the pool
    one = f"GET /seen HTTP/1.1\r\n{HOST}\r\n\r\n".encode()
    answer = ask(net, one, one, get("/seen", HOST))
    numbers = answer.split(b'"number": ')[1:]
    assert [int(part.partition(b",")[0]) for part in numbers] == [0, 1, 2]


def test_a_spoofed_connection_serves_its_client_alone(net: Topology, proxy: Service) -> None:
    other = "192.0.2.3"
    net.client.route(f"{other}/32", local=True)
    one, two, again = (
        seen(ask(net, get("/seen", HOST), source=source)) for source in ("", other, "")
    )
    assert (two["peer"], two["number"]) == (other, 0)
    assert (again["peer"], again["port"]) == (net.client_ip[V4], one["port"])
    assert again["number"] == one["number"] + 1


def test_an_old_client(net: Topology, proxy: Service) -> None:
    told = seen(ask(net, get("/seen", version="1.0")))
    assert told["start"][2] == "HTTP/1.0"  # so the origin sends nothing in chunks
    assert dict(told["fields"])["via"].startswith("1.0 ")
    assert status(ask(net, f"GET /chunked HTTP/1.0\r\n{HOST}\r\n\r\n".encode())) == 502


def test_hop_by_hop_fields_stay_here(net: Topology, proxy: Service) -> None:
    fields = ("Connection: X-Mine, close", "X-Mine: 1", "Keep-Alive: 5", "Proxy-Connection: a")
    lines = [f"GET /seen HTTP/1.1\r\n{HOST}", *fields, "TE: gzip", "\r\n"]
    told = seen(ask(net, "\r\n".join(lines).encode()))
    names = {name for name, _ in told["fields"]}
    assert not names & {"x-mine", "keep-alive", "proxy-connection", "te"}


def test_websocket(net: Topology, proxy: Service) -> None:
    request = (
        f"GET /websocket HTTP/1.1\r\n{HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = ask(net, request.encode() + b"\x81\x05hello", shut=True)
    head, _, echoed = answer.partition(b"\r\n\r\n")
    assert status(head) == 101
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert echoed == b"\x81\x05hello"
    wait_for(lambda: proxy.lines()[-1]["uri"].endswith("/websocket"), 20, "its line")
    assert (proxy.lines()[-1]["status"], proxy.lines()[-1]["down"]) == (101, len(answer))


def test_no_way_past_the_rules_by_h2c(net: Topology, proxy: Service) -> None:
    fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    lines = [f"GET /seen HTTP/1.1\r\n{HOST}", *fields, "\r\n"]
    told = seen(ask(net, "\r\n".join(lines).encode(), shut=True))
    assert "upgrade" not in {name for name, _ in told["fields"]}


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (f"GET / HTTP/1.1\r\n{HOST}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (
            f"GET / HTTP/1.1\r\n{HOST}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (f"GET / HTTP/1.1\r\n{HOST}\r\n{HOST}\r\n\r\n", 400),
        (f"GET / HTTP/1.1\r\n{HOST}\r\nX : y\r\n\r\n", 400),
        (f"GET / HTTP/1.1\r\n{HOST}\r\nX: a\r\n b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (f"GET /{'a' * 9000} HTTP/1.1\r\n{HOST}\r\n\r\n", 414),
        (f"GET / HTTP/1.1\r\n{HOST}\r\n" + "X: y\r\n" * 60 + "\r\n", 431),
        (f"GET / HTTP/2.0\r\n{HOST}\r\n\r\n", 505),
        (f"POST / HTTP/1.1\r\n{HOST}\r\nContent-Length: 2000000\r\n\r\n", 413),
        ("POST / HTTP/1.0\r\n\r\n", 411),
        (f"GET ftp://{NAME}/ HTTP/1.1\r\n{HOST}\r\nConnection: close\r\n\r\n", 501),
    ],
)
def test_refused(net: Topology, proxy: Service, request_: str, code: int) -> None:
    answer = ask(net, request_.encode())
    assert status(answer) == code
    assert f"<h1>{code} ".encode() in answer
    assert b"\r\nProxy-Status: " in answer


def test_what_comes_behind_a_refused_request_is_none(net: Topology, proxy: Service) -> None:
    bad = f"GET / HTTP/1.1\r\n{HOST}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"
    answer = ask(net, bad.encode() + get("/seen", HOST))
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1


# -- clients that misbehave ----------------------------------------------------------------------


def test_a_slow_head(net: Topology, proxy: Service) -> None:
    assert status(ask(net, b"GET / HTTP/1.1\r\nHost:")) == 408


def test_a_client_that_says_nothing(net: Topology, proxy: Service) -> None:
    """It would be a way past the rules: waiting, and then a request in the tunnel."""
    assert status(ask(net)) == 408


@pytest.mark.parametrize("end", ["close", "reset", "stall"])
@pytest.mark.parametrize(
    "begin",
    [
        b"GET /see",
        b"POST /seen HTTP/1.1\r\nHost: www.example.org\r\nContent-Length: 10\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: www.example.org\r\nTransfer-Encoding: chunked\r\n\r\n9\r\na",
        b"GET /pattern?9000000 HTTP/1.1\r\nHost: www.example.org\r\n\r\n",
    ],
    ids=["head", "length", "chunked", "response"],
)
def test_a_client_that_goes(net: Topology, proxy: Service, begin: bytes, end: str) -> None:
    def client() -> bytes:
        with socket.create_connection((net.origin_ip[V4], 80), 20) as sock:
            sock.sendall(begin)
            if end == "stall":
                got = b""
                with contextlib.suppress(ConnectionError):
                    while not begin.startswith(b"GET /pat") and (chunk := sock.recv(65536)):
                        got += chunk
                return got
            if end == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return b""

    got = net.client.run(client)
    assert b" 200 " not in got


def test_bytes_that_are_no_chunks(net: Topology, proxy: Service) -> None:
    head = f"POST /seen HTTP/1.1\r\n{HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = ask(net, head.encode() + b"xyz\r\nabc\r\n0\r\n\r\n")
    assert answer == b"RESET" or status(answer) == 400


# -- origins that misbehave ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("nothing", 502),
        ("resets", 502),
        ("garbage", 502),
        ("two-lengths", 502),
        ("stalls", 504),
    ],
)
def test_an_origin_without_an_answer(net: Topology, proxy: Service, path: str, code: int) -> None:
    before = len(proxy.lines())
    answer = ask(net, get(f"/{path}", HOST))
    assert status(answer) == code
    wait_for(lambda: len(proxy.lines()) > before, 20, "a line")
    assert proxy.lines()[before]["status"] == code


@pytest.mark.parametrize("path", ["dies", "dies-chunked", "resets?1", "stalls?1"])
def test_an_origin_that_dies_in_its_answer(net: Topology, proxy: Service, path: str) -> None:
    """Half an answer never looks whole."""
    answer = ask(net, get(f"/{path}", HOST))
    assert b"part" in answer or answer == b"RESET"
    assert answer.endswith(b"RESET") or b"\r\n0\r\n" not in answer
    if b"Content-Length: 1000" in answer:
        assert len(body_of(answer)) < 1000


def test_an_origin_that_says_too_much(net: Topology, proxy: Service) -> None:
    answer = ask(net, f"GET /too-much HTTP/1.1\r\n{HOST}\r\n\r\n".encode() + get("/seen", HOST))
    assert b"smuggled" not in answer
    assert b'"number": 0' in answer


def test_a_kept_connection_that_the_origin_has_closed(net: Topology, proxy: Service) -> None:
    """Tried again on a fresh one, if that is safe."""
    first = f"GET /seen HTTP/1.1\r\n{HOST}\r\n\r\n".encode()
    assert b'"number": 0' in ask(net, first, get("/closes-at", HOST)).rpartition(b"\r\n\r\n")[2]
    post = f"POST /closes-at HTTP/1.1\r\n{HOST}\r\nContent-Length: 1\r\n\r\nx".encode()
    answer = ask(net, first + post + get("/seen", HOST))
    assert b"HTTP/1.1 502 " in answer


def test_an_answer_before_the_body_is_there(net: Topology, proxy: Service) -> None:
    head = f"POST /refuses-body HTTP/1.1\r\n{HOST}\r\nContent-Length: 900000\r\n\r\n"
    answer = ask(net, head.encode(), pattern(500_000))
    assert answer == b"RESET" or status(answer) == 413
