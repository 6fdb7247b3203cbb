"""Heads written anew: nothing but what was judged, and judged the same by the same judge."""

from __future__ import annotations

import json

import pytest
from framers import ABOUT, OF_THIS_HOP, REQUEST, RESPONSE, Head, judge, raw, vectors
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from lusca_comm._shim import lib

CLOSE, UPGRADE = lib.LC_EDIT_CLOSE, lib.LC_EDIT_UPGRADE
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(("about", "told", "data", "out"), vectors("edits.txt", 4))
def test_an_edit_is_what_the_corpus_says(about: str, told: str, data: str, out: str) -> None:
    edit = json.loads(told)
    what = sum(getattr(lib, f"LC_EDIT_{name.upper()}") for name in edit.pop("what", "").split())
    framer = RESPONSE if data.startswith("HTTP/") else REQUEST
    head = judge(raw(data), framer, ABOUT[about])
    written = head.edit(what=what, **{name: text.encode() for name, text in edit.items()})
    assert written == raw(out)
    assert judge(written, framer, ABOUT[about]).h.body == head.h.body


@pytest.mark.parametrize(
    "told",
    [
        {"append": line}
        for line in (
            b"X: y",
            b"X: y\n",
            b"X: y\r\n\r\n",
            b"X: y\r\n\r\nGET / HTTP/1.1\r\n",
            b"X\r\n",
            b"X : y\r\n",
            b": y\r\n",
            b" X: y\r\n",
            b"X: \0\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"transfer_encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"Upgrade: x\r\n",
            b"TE: trailers\r\n",
            b"Expect: 100-continue\r\n",
            b"Host: b\r\n",
        )
    ]
    + [
        {"start": line}
        for line in (
            b"",
            b"GET / HTTP/1.1",
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: y\r\n",
            b"\r\nGET / HTTP/1.1\r\n",
            b"GET / x HTTP/1.1\r\n",
            b"GET / HTTP/2.0\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET x HTTP/1.1\r\n",
            b"HEAD / HTTP/1.1\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n",
            b"HTTP/1.1 200 OK\r\n",
        )
    ]
    + [{"drop": b"host"}],
)
def test_what_would_change_a_request_is_refused(told: dict[str, bytes]) -> None:
    assert judge(GET + b"\r\n").edit(**told) is None


@pytest.mark.parametrize(
    ("code", "about", "start"),
    [
        (200, "-", b"GET / HTTP/1.1\r\n"),
        (200, "-", b"HTTP/1.1 204 x\r\n"),
        (200, "-", b"HTTP/1.1 304 x\r\n"),
        (200, "-", b"HTTP/1.1 100 x\r\n"),
        (204, "-", b"HTTP/1.1 200 x\r\n"),
        (304, "-", b"HTTP/1.1 204 x\r\n"),
        (100, "-", b"HTTP/1.1 101 x\r\n"),
        (407, "CONNECT", b"HTTP/1.1 200 x\r\n"),
        (200, "CONNECT", b"HTTP/1.1 502 x\r\n"),
    ],
)
def test_what_would_change_a_response_is_refused(code: int, about: str, start: bytes) -> None:
    head = judge(b"HTTP/1.1 %d x\r\nContent-Length: 1\r\n\r\n" % code, RESPONSE, ABOUT[about])
    assert head.edit(start=start) is None
    assert head.edit(start=b"HTTP/1.1 %d y\r\n" % code) is not None


def test_only_whole_heads_are_written() -> None:
    assert judge(GET).edit() is None
    assert judge(GET + b"Host: b\r\n\r\n").edit() is None


# -- round trips

token = st.text("aAzZ09!#$%&'*+-.^_`|~", min_size=1, max_size=8).map(str.encode)
of_the_hop = st.sampled_from(
    [
        b"Connection: close",
        b"connection: x, keep-alive , y",
        b"Connection: upgrade",
        b"Upgrade: websocket",
        b"Keep-Alive: 5",
        b"TE: trailers",
        b"Proxy-Authorization: x",
        b"Expect: 100-continue",
    ]
)
value = st.binary(max_size=12).map(
    lambda v: bytes(c for c in v if c == 9 or (c >= 32 and c != 127))
)
spaces = st.sampled_from([b"", b" ", b"\t ", b"  "])
field = st.builds(
    lambda name, left, text, right: name + b":" + left + text + right, token, spaces, value, spaces
)
framing = st.sampled_from(
    [b"", b"Content-Length: 0", b"Content-Length: 012", b"Transfer-Encoding: Chunked"]
)


@st.composite
def heads(draw: DrawFn) -> tuple[int, int, bytes]:
    framer = draw(st.sampled_from([REQUEST, RESPONSE]))
    lines = draw(st.lists(field | of_the_hop | framing.filter(bool), max_size=8))
    minor = draw(st.integers(0, 1))
    if framer == REQUEST:
        method = draw(st.sampled_from([b"GET", b"HEAD", b"POST", b"PURGE"]))
        target = draw(st.sampled_from([b"/", b"/a?b", b"http://b:81/"]))
        start = b"%s %s HTTP/1.%d" % (method, target, minor)
        lines.insert(draw(st.integers(0, len(lines))), b"hoST: a.example")
    else:
        code = draw(st.sampled_from([100, 101, 200, 204, 206, 304, 404, 599]))
        start = b"HTTP/1.%d %d some reason" % (minor, code)
    about = draw(st.sampled_from(list(ABOUT.values()))) if framer == RESPONSE else 0
    return framer, about, b"\r\n".join([start, *lines, b"", b""])


def end_to_end(head: Head) -> list[tuple[bytes, bytes]]:
    named = {
        option.strip(b" \t").lower()
        for value in head.find(b"connection")
        for option in value.split(b",")
    }
    gone = OF_THIS_HOP | (named - {b"host"})
    fields = [(name, value) for name, value in head.fields if name.lower() not in gone]
    if head.h.authority.size:
        fields = [field for field in fields if field[0].lower() != b"host"]
        fields.insert(0, (b"Host", head.text(head.h.authority)))
    return fields


@settings(max_examples=500)
@given(heads())
def test_what_is_written_is_judged_as_what_was_read(made: tuple[int, int, bytes]) -> None:
    framer, about, data = made
    head = judge(data, framer, about)
    assume(head.h.state == lib.LC_HEAD_WHOLE)
    written = head.edit(what=UPGRADE)
    again = judge(written, framer, about)
    assert again.h.state == lib.LC_HEAD_WHOLE, (written, again.verdict)
    assert (again.h.body, again.h.code, again.h.form) == (head.h.body, head.h.code, head.h.form)
    if head.h.body == lib.LC_BODY_LENGTH:
        assert again.h.length == head.h.length
    assert again.start[:2] == head.start[:2] or framer == RESPONSE
    same = ~(lib.LC_HEAD_KEEP | lib.LC_HEAD_OLD)
    assert again.h.flags & same == head.h.flags & same
    hop = OF_THIS_HOP
    assert [f for f in again.fields if f[0].lower() not in hop] == end_to_end(head)
    # Written again it stays as it is, but for the order.
    assert sorted(again.edit(what=UPGRADE).split(b"\r\n")) == sorted(written.split(b"\r\n"))


@settings(max_examples=300)
@given(heads(), st.lists(token, max_size=3), st.lists(field, max_size=3))
def test_what_is_told_is_done(
    made: tuple[int, int, bytes], drop: list[bytes], append: list[bytes]
) -> None:
    framer, about, data = made
    head = judge(data, framer, about)
    assume(head.h.state == lib.LC_HEAD_WHOLE)
    more = b"".join(line + b"\r\n" for line in append)
    written = head.edit(drop=b",".join(drop), append=more, what=CLOSE)
    again = judge(written, framer, about)
    names = {name.lower() for name in drop}
    kept = [field for field in end_to_end(head) if field[0].lower() not in names]
    added = [(line.split(b":")[0], line.split(b":", 1)[1].strip(b" \t")) for line in append]
    fields = [field for field in again.fields if field[0].lower() not in OF_THIS_HOP]
    assert fields == kept + added
    assert not again.h.flags & lib.LC_HEAD_KEEP


@pytest.mark.parametrize("row", vectors("requests.txt", 3), ids=lambda row: row[0])
def test_the_corpus_goes_round(row: list[str]) -> None:
    head = judge(raw(row[2]))
    written = head.edit()
    assert (written is not None) == (head.h.state == lib.LC_HEAD_WHOLE)
    if written is not None:
        assert judge(written).verdict == row[1]
