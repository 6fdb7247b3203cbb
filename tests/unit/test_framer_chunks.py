"""Chunked bodies: what goes on to the next hop is the body that came in."""

from __future__ import annotations

import re

import pytest
from framers import MORE, Chunks, Limits, cuts, decoded, split
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

Piece = tuple[bytes, bytes, bytes]


@st.composite
def pieces(draw: DrawFn) -> list[Piece]:
    """(size line without its end, data, trailers): the last has a size of 0."""
    out: list[Piece] = []
    extension = st.sampled_from([b"", b"", b";a", b';a="b;c\x80" \t;d=e'])
    for data in draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5)):
        size = draw(st.sampled_from([b"%x", b"%X", b"%04x", b"%016X"])) % len(data)
        out.append((size + draw(extension), data, b""))
    lines = draw(st.lists(st.sampled_from([b"X: y", b"Sum:\t12 \t", b"Z:"]), max_size=3))
    last = draw(st.sampled_from([b"0", b"000"])) + draw(extension)
    return [*out, (last, b"", b"".join(line + b"\r\n" for line in lines))]


def wire(made: list[Piece]) -> bytes:
    chunks = [size + b"\r\n" + data + b"\r\n" for size, data, _ in made[:-1]]
    return b"".join(chunks) + made[-1][0] + b"\r\n" + made[-1][2] + b"\r\n"


@given(pieces(), st.binary(max_size=9), cuts)
def test_the_body_is_the_same(made: list[Piece], behind: bytes, at: list[int]) -> None:
    data = wire(made)
    walker = Chunks()
    for piece in split(data, at):
        walker.feed(piece)
    assert walker.verdict == "whole 0"
    assert Chunks().feed(data + behind).verdict == f"whole {len(behind)}"
    body, trailers = decoded(walker.out)
    assert body == b"".join(data for _, data, _ in made)
    wanted = [
        re.sub(rb":[ \t]+", b": ", line.rstrip(b" \t")) for line in made[-1][2].split(b"\r\n")
    ]
    assert trailers.split(b"\r\n")[:-1] == wanted
    # What goes on goes through the next hop as it is.
    assert Chunks().feed(walker.out).out == walker.out


@given(pieces(), st.lists(st.integers(1, 50)))
def test_data_may_go_past_the_walker(made: list[Piece], takes: list[int]) -> None:
    """As splice moves it: `left` is taken down by who moved that many bytes."""
    data, out, walker = wire(made), b"", Chunks()
    while walker.state == MORE:
        left = min(walker.c.left, takes.pop() if takes else 3)
        out, data = out + data[:left], data[left:]
        walker.c.left -= left
        walker.feed(data[:1])
        data = data[1:]
        out, walker.out = out + walker.out, b""
    assert (walker.verdict, data) == ("whole 0", b"")
    assert out == Chunks().feed(wire(made)).out


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        (Limits(4, 14, 2), "whole 0"),
        (Limits(3, 14, 2), "LONG_LINE"),
        (Limits(4, 13, 2), "LONG_HEAD"),
        (Limits(4, 12, 2), "LONG_HEAD"),
        (Limits(4, 14, 1), "FIELDS"),
    ],
)
def test_limits_of_trailers(limits: Limits, verdict: str) -> None:
    assert Chunks(limits).feed(b"0\r\nX: y\r\nX: z\r\n\r\n").verdict == verdict


def test_an_extension_is_as_long_as_it_may_be() -> None:
    assert Chunks().feed(b"1;" + 255 * b"x" + b"\r\nx\r\n0\r\n\r\n").verdict == "whole 0"
    assert Chunks().feed(b"1;" + 256 * b"x").verdict == "CHUNK_LINE"


def test_what_has_ended_takes_nothing() -> None:
    walker = Chunks().feed(b"0\r\n\r\n")
    assert walker.feed(b"5\r\nhello").verdict == "whole 8"
    refused = Chunks().feed(b"x")
    assert refused.feed(b"0\r\n\r\n").verdict == "CHUNK_SIZE"
