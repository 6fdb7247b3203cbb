"""Beside h11: a message that we accept is the same message to h11. What we refuse it may accept."""

from __future__ import annotations

from typing import Any, NamedTuple

import h11
import pytest
from framers import (
    ABOUT,
    REQUEST,
    RESPONSE,
    WHOLE,
    Chunks,
    decoded,
    edits,
    judge,
    mutated,
    raw,
    vectors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lusca_comm._shim import lib

ROWS = [(REQUEST, 0, raw(data)) for _, _, data in vectors("requests.txt", 3)]
ROWS += [(RESPONSE, ABOUT[about], raw(data)) for _, about, _, data in vectors("responses.txt", 4)]
BODIES = [raw(data) for _, _, data, _ in vectors("chunks.txt", 4)]


class Message(NamedTuple):
    start: tuple[bytes | int, ...]
    fields: list[tuple[bytes, bytes]]
    body: bytes
    ended: bool
    rest: bytes


# h11 writes these as it understands them, and the judge of lengths is what is compared here.
FRAMING = (b"content-length", b"transfer-encoding")


def ours(framer: int, about: int, data: bytes) -> Message | None:
    """None: refused, or not whole yet."""
    head = judge(data, framer, about)
    if head.h.state != WHOLE:
        return None
    body, ended, rest = b"", True, data[head.h.size :]
    if head.h.body == lib.LC_BODY_LENGTH:
        body, rest = rest[: head.h.length], rest[head.h.length :]
        ended = len(body) == head.h.length
    elif head.h.body == lib.LC_BODY_CLOSE:
        body, ended, rest = rest, False, b""
    elif head.h.body == lib.LC_BODY_CHUNKED:
        walker = Chunks().feed(rest)
        if walker.state != WHOLE:
            return None
        body, rest = decoded(walker.out)[0], walker.rest
    start: tuple[bytes | int, ...] = (head.h.code, head.h.minor)
    if framer == REQUEST:
        start = (*head.start[:2], head.h.minor)
    fields = [(name.lower(), value) for name, value in head.fields if name.lower() not in FRAMING]
    return Message(start, fields, body, ended, rest)


def reader(framer: int, about: int) -> h11.Connection:
    if framer == REQUEST:
        return h11.Connection(h11.SERVER)
    conn = h11.Connection(h11.CLIENT)
    method, target, fields = "GET", "/", [("Host", "a")]
    if about & lib.LC_HEAD_IS_HEAD:
        method = "HEAD"
    if about & lib.LC_HEAD_CONNECT:
        method, target = "CONNECT", "a:443"
    if about & lib.LC_HEAD_UPGRADE:
        fields += [("Upgrade", "x"), ("Connection", "upgrade")]
    conn.send(h11.Request(method=method, target=target, headers=fields))
    conn.send(h11.EndOfMessage())
    return conn


def theirs(framer: int, about: int, data: bytes) -> Message:
    conn = reader(framer, about)
    # Blank lines before a request it leaves to its caller.
    conn.receive_data(data.lstrip(b"\r\n") if framer == REQUEST else data)
    event: Any = conn.next_event()
    start: tuple[bytes | int, ...] = (int(event.http_version[2:]),)
    start = (
        (event.method, event.target, *start) if framer == REQUEST else (event.status_code, *start)
    )
    fields = [(name, value) for name, value in event.headers if name not in FRAMING]
    body, ended = b"", isinstance(event, h11.InformationalResponse)
    while not ended:
        part = conn.next_event()
        if part in (h11.NEED_DATA, h11.PAUSED):
            break
        if isinstance(part, h11.Data):
            body += part.data
        ended = isinstance(part, h11.EndOfMessage)
    ended = ended or conn.their_state is h11.SWITCHED_PROTOCOL
    return Message(start, fields, body, ended, bytes(conn.trailing_data[0]))


@pytest.mark.parametrize(("framer", "about", "data"), ROWS)
def test_the_corpus(framer: int, about: int, data: bytes) -> None:
    for tail in (b"", b"5\r\nhello\r\n0\r\n\r\nGET"):
        message = ours(framer, about, data + tail)
        if message is not None:
            assert message == theirs(framer, about, data + tail)


bodies = st.sampled_from(BODIES) | st.binary(max_size=30)


@settings(max_examples=1000)
@given(st.sampled_from(ROWS), bodies, edits)
def test_what_we_accept(row: tuple[int, int, bytes], tail: bytes, changes: Any) -> None:
    framer, about, data = row
    data = mutated(data + tail, changes)
    message = ours(framer, about, data)
    if message is not None:
        assert message == theirs(framer, about, data)
