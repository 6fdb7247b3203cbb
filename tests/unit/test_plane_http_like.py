"""Request.like: which requests the data plane says are alike."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from http_sessions import Peer, Proxy, proxying, wait_for
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm.http import Request
from lusca_comm.protocols.http_intercept import Rules, forwarded, intercepted, loops

NAMED = ("host", "via", "X-Named")
DONE = b"HTTP/1.1 204 x\r\nConnection: close\r\n\r\n"
ORIGINALS = (None, ("198.51.100.2", 80), ("198.51.100.2", 81), ("2001:db8::2", 80))


def respond(requests: list[Request]) -> None:
    for request in requests:
        request.respond(DONE, close=True)


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with proxying(decide=respond, fields=NAMED) as proxy:
        yield proxy


def ask(proxy: Proxy, head: bytes, original: Any = None, peer: str = "127.0.0.1") -> Request:
    """What is seen of a request of a connection of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), 10, (peer, 0))
        accepted, _ = server.accept()
    proxy.seen.clear()
    proxy.service.serve(accepted, original=original)
    with client:
        Peer(client).send(head)
        wait_for(lambda: proxy.seen)
        return proxy.seen[0]


def get(*lines: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((start, *lines, b"", b""))


HOST = b"Host: example.org"
USUAL = get(HOST)
SAME = {
    "path": get(HOST, start=b"GET /other?x=1 HTTP/1.1"),
    "fields that nobody named": get(HOST, b"Cookie: 1"),
    "their order": get(b"Cookie: 1", HOST),
    "the name's case, and space around the value": get(b"hOST: \texample.org "),
    "blank lines before": b"\r\n" + USUAL,
}
OTHER = {
    "method": get(HOST, start=b"DELETE / HTTP/1.1"),
    "method, unknown": get(HOST, start=b"GEt / HTTP/1.1"),
    "version": get(HOST, start=b"GET / HTTP/1.0"),
    "absolute": get(HOST, start=b"GET http://example.org/ HTTP/1.1"),
    "Host": get(b"Host: example.orG"),
    "Host, empty": get(b"Host:"),
    "Host, none": get(start=b"GET / HTTP/1.0"),
    "named": get(HOST, b"x-named: 1"),
    "named, empty": get(HOST, b"x-named:"),
    "Via": get(HOST, b"Via: 1.1 a"),
    "length": get(HOST, b"Content-Length: 0"),
    "chunked": get(HOST, b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "upgrade": get(HOST, b"Connection: upgrade", b"Upgrade: websocket"),
    "close": get(HOST, b"Connection: close"),
}


@pytest.mark.parametrize("head", SAME.values(), ids=SAME.keys())
def test_alike(proxy: Proxy, head: bytes) -> None:
    usual = ask(proxy, USUAL).like
    assert usual
    assert ask(proxy, head).like == usual


@pytest.mark.parametrize("head", OTHER.values(), ids=OTHER.keys())
def test_not_alike(proxy: Proxy, head: bytes) -> None:
    usual, other = ask(proxy, USUAL).like, ask(proxy, head).like
    assert other
    assert other != usual


def test_the_ends_of_the_connection_count(proxy: Proxy) -> None:
    likes = [ask(proxy, USUAL, original).like for original in ORIGINALS]
    likes += [ask(proxy, USUAL, original, "127.0.0.2").like for original in ORIGINALS]
    assert len(set(likes)) == 2 * len(ORIGINALS)


def test_values_are_all_of_them_and_each_for_itself(proxy: Proxy) -> None:
    fields = [
        (b"Via: a", b"Via: b"),
        (b"Via: b", b"Via: a"),
        (b"Via: a", b"Via: b", b"Via:"),
        (b"Via: a, b",),
        (b"Via: a", b"X-Named: b"),
        (b"Via: ab",),
        (b"Via: a",),
    ]
    assert len({ask(proxy, get(HOST, *lines)).like for lines in fields}) == len(fields)


def named(size: int) -> bytes:
    return get(HOST, b"X-Named: " + b"x" * size)


def test_what_is_long_or_no_request_is_like_nothing(proxy: Proxy) -> None:
    longest = next(n for n in range(1, 1025) if not ask(proxy, named(n)).like)
    assert longest > 512  # what is not the field's is small
    assert ask(proxy, named(longest - 1)).like == ask(proxy, named(longest - 1)).like
    for head in (
        named(10000),
        get(HOST, *[b"X-Named:"] * 200),
        get(HOST, HOST),
        b"\0\0",
    ):
        request = ask(proxy, head)
        assert request.like == 0
    long_path = get(HOST, start=b"GET /" + b"x" * 10000 + b" HTTP/1.1")
    assert ask(proxy, long_path).like == ask(proxy, USUAL).like


def test_more_kinds_than_numbers_are_kept_for() -> None:
    """What was forgotten gets another number, never that of something else."""
    kinds, said = 20_000, b"HTTP/1.1 204 x\r\n\r\n"

    def respond(requests: list[Request]) -> None:
        for request in requests:
            request.respond(said)

    with proxying(decide=respond, fields=NAMED, append_response=b"") as proxy:
        client = proxy.client()
        for begin in (0, 0, kinds):  # again, when most are forgotten
            for i in range(begin, begin + kinds, 50):
                client.send(b"".join(get(HOST, b"X-Named: %d" % j) for j in range(i, i + 50)))
                client.exactly(50 * len(said))
        known: dict[int, bytes | None] = {}
        for request in proxy.seen:
            name = request.field("x-named")
            assert request.like
            assert known.setdefault(request.like, name) == name
        assert len(proxy.seen) == 3 * kinds
        assert len(known) > 2 * kinds


def test_failed_in_vain_it_is_like_nothing() -> None:
    def forward(requests: list[Request]) -> None:
        for request in requests:
            if request.state == "failed":
                request.respond(DONE, close=True)
            else:
                request.forward(("127.0.0.1", 1))

    with proxying(decide=forward) as proxy:
        client = proxy.client()
        client.send(USUAL)
        client.head()
        first, second = proxy.seen
        assert first.like
        assert (second.state, second.like) == ("failed", 0)


def verdict(request: Request) -> tuple[object, ...]:
    """What the rules say of it, and whatever else a rule might look at."""
    rules = Rules("off", pseudonym="me")
    host, via = request.fields("host"), request.fields("via")
    original = request.original
    if original is not None:
        said = intercepted(rules, request.method, request.target, host, original)
    else:
        said = forwarded(rules, request.method, request.target, host, ("192.0.2.9",))
    seen = (request.method, request.version, request.form, request.authority)
    flags = (request.expect, request.upgrade, request.connect, request.length is None)
    fields = [(name, request.fields(name), request.field(name)) for name in NAMED]
    rule = (said.action, said.base, said.host, said.to, said.field, said.origin_form, said.status)
    there = (original, request.peer and request.peer[0], request.engine)
    return rule, loops(rules, via), seen, flags, repr(fields), there


HEADS = st.builds(
    lambda method, target, version, fields: get(
        *fields, start=b"%s %s HTTP/1.%d" % (method, target, version)
    ),
    st.sampled_from([b"GET", b"POST", b"OPTIONS", b"CONNECT", b"X"]),
    st.sampled_from(
        [b"/", b"/a", b"*", b"http://a/", b"http://a", b"http://a?b", b"https://a/b", b"a:443"]
    ),
    st.integers(0, 1),
    st.lists(
        st.sampled_from(
            [
                b"Host: a",
                b"Host:",
                b"Host: a:80",
                b"Via: 1.1 me",
                b"Via: 1.1 m",
                b"X-Named: me",
                b"X-Other: a",
                b"Content-Length: 0",
                b"Expect: 100-continue",
                b"Connection: close",
            ]
        ),
        max_size=4,
    ),
)


@given(st.lists(st.tuples(HEADS, st.sampled_from(ORIGINALS[:2])), min_size=2, max_size=6))
def test_of_two_that_are_alike_the_rules_say_the_same(
    proxy: Proxy, asked: list[tuple[bytes, Any]]
) -> None:
    said: dict[int, tuple[object, ...]] = {}
    for head, original in asked:
        request = ask(proxy, head, original)
        if request.like:
            assert said.setdefault(request.like, verdict(request)) == verdict(request)
