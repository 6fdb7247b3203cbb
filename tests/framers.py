"""The framers of csrc as tests call them, and the vectors of tests/vectors/http."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from lusca_comm._shim import ffi, lib

VECTORS = Path(__file__).parent / "vectors" / "http"
MORE, WHOLE, REFUSED, OTHER, H2 = range(5)
REQUEST, RESPONSE, HELLO, LENGTH16 = range(4)
BODIES = ("none", "length", "chunked", "close")
WHY = {getattr(lib, name): name[7:] for name in dir(lib) if name.startswith("LC_BAD_")}
ABOUT = {
    "-": 0,
    "HEAD": lib.LC_HEAD_IS_HEAD,
    "CONNECT": lib.LC_HEAD_CONNECT,
    "UPGRADE": lib.LC_HEAD_UPGRADE,
    "OLD": lib.LC_HEAD_OLD,
}
OF_THIS_HOP = {
    b"connection",
    b"content-length",
    b"expect",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"transfer-encoding",
    b"upgrade",
}


def vectors(name: str, columns: int) -> list[list[Any]]:
    """The rows of a file, the bytes (from the last column but `columns` on) decoded."""
    rows: list[list[Any]] = []
    for line in (VECTORS / name).read_text("ascii").splitlines():
        if line and not line.startswith("#"):
            row: list[Any] = (line + " ").split(" | ", columns - 1)
            assert len(row) == columns, line
            row[-1] = row[-1][:-1]
            rows.append(row)
    return rows


def raw(text: str) -> bytes:
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


class Limits(NamedTuple):
    line: int = 16384
    head: int = 65536
    fields: int = 256


WIDE = Limits()


class Head:
    """A head fed piece by piece. Each piece is put behind a copy of what was there, in memory of
    exactly that size, so that a sanitizer sees each byte read beyond it."""

    def __init__(self, framer: int = REQUEST, about: int = 0, limits: Limits = WIDE) -> None:
        self.framer, self.about = framer, about
        self.limits = ffi.new("struct lc_limits *", limits)
        self.h = ffi.new("struct lc_head *")
        self.bytes = b""

    def feed(self, data: bytes) -> Head:
        self.bytes += data
        given = ffi.new("uint8_t[]", self.bytes)
        size = len(self.bytes)
        state = lib.lc_frame_head(self.framer, given, size, self.limits, self.about, self.h)
        assert state == self.h.state
        return self

    @property
    def verdict(self) -> str:
        h = self.h
        if h.state == WHOLE:
            return f"length {h.length}" if h.body == lib.LC_BODY_LENGTH else BODIES[h.body]
        if h.state == REFUSED:
            return f"{h.status} {WHY[h.why]}"
        return f"other {WHY[h.why]}" if h.state == OTHER else "h2" if h.state == H2 else "more"

    @property
    def told(self) -> tuple[Any, ...]:
        """All that a caller may look at once there is a verdict."""
        h = self.h
        if h.state != WHOLE:
            return (h.state, h.why, h.status)
        spans = [h.start[0], h.start[1], h.start[2], h.authority, h.host]
        return (
            *(h.body, h.code, h.minor, h.form, h.flags, h.length, h.size, h.fields),
            *((span.at, span.size) for span in spans),
        )

    def text(self, span: Any) -> bytes:
        return self.bytes[span.at : span.at + span.size]

    @property
    def start(self) -> list[bytes]:
        return [self.text(span) for span in self.h.start]

    def find(self, name: bytes) -> list[bytes]:
        out = ffi.new("struct lc_span[]", 64)
        n = lib.lc_head_find(self.bytes, self.h, name, len(name), out, 64)
        return [self.text(span) for span in out[0:n]]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """As the wire has them, taken apart by Python's own means."""
        lines = self.bytes[: self.h.size].lstrip(b"\r\n").split(b"\r\n")[1:-2]
        pairs = [line.split(b":", 1) for line in lines]
        return [(name, value.strip(b" \t")) for name, value in pairs]

    def edit(
        self,
        *,
        start: bytes | None = None,
        drop: bytes = b"",
        append: bytes = b"",
        what: int = 0,
    ) -> bytes | None:
        """None: -EINVAL."""
        kept = [ffi.new("uint8_t[]", start or b""), ffi.new("char[]", drop or b"\0")]
        kept.append(ffi.new("uint8_t[]", append or b"\0"))
        told = ffi.new("struct lc_edit *")
        told.start, told.start_size = (
            (kept[0] if start is not None else ffi.NULL),
            len(start or b""),
        )
        told.drop, told.drop_size = kept[1], len(drop)
        told.append, told.append_size = kept[2], len(append)
        told.what = what
        room = lib.lc_edit_room(self.h, told)
        out = ffi.new("uint8_t[]", room)
        head = ffi.new("uint8_t[]", self.bytes[: self.h.size])
        size = lib.lc_head_edit(head, self.h, told, out, room)
        assert (size >= 0) == (lib.lc_edit_check(self.h, told) == 0)
        assert size < 0 or lib.lc_head_edit(head, self.h, told, out, room - 1) < 0
        return bytes(ffi.buffer(out, size)) if size >= 0 else None


def judge(data: bytes, framer: int = REQUEST, about: int = 0, limits: Limits = WIDE) -> Head:
    return Head(framer, about, limits).feed(data)


class Chunks:
    """A body fed piece by piece; what the walker leaves is given again."""

    def __init__(self, limits: Limits = WIDE) -> None:
        self.c = ffi.new("struct lc_chunks *")
        self.limits = ffi.new("struct lc_limits *", limits)
        self.state = MORE
        self.out = b""
        self.rest = b""

    def feed(self, data: bytes) -> Chunks:
        given = self.rest + data
        buffer = ffi.new("uint8_t[]", given)
        counts = ffi.new("size_t[2]")
        self.state = lib.lc_chunks_walk(self.c, self.limits, buffer, len(given), counts, counts + 1)
        used, kept = counts
        assert kept <= used <= len(given)
        self.out += bytes(ffi.buffer(buffer, kept))
        self.rest = given[used:]
        return self

    @property
    def verdict(self) -> str:
        if self.state == WHOLE:
            return f"whole {len(self.rest)}"
        return WHY[self.c.why] if self.state == REFUSED else "more"


def split(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in at), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


cuts = st.lists(st.integers(0, 2000), max_size=6)


def decoded(chunked: bytes) -> tuple[bytes, bytes]:
    """The data and the trailers of what has neither extensions nor faults."""
    body = b""
    while True:
        size, chunked = chunked.split(b"\r\n", 1)
        if int(size, 16) == 0:
            return body, chunked
        body += chunked[: int(size, 16)]
        chunked = chunked[int(size, 16) + 2 :]


def mutated(data: bytes, edits: list[tuple[int, int, int]]) -> bytes:
    """Each edit puts, removes or repeats a byte."""
    out = bytearray(data)
    for kind, at, byte in edits:
        at %= len(out) + 1
        if kind == 0:
            out.insert(at, byte)
        elif at < len(out):
            if kind == 1:
                del out[at]
            else:
                out[at] = byte
    return bytes(out)


edits = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 300),
        st.sampled_from(b"\r\n\t\0 :;,0159afx\x7f\x80HT/") | st.integers(0, 255),
    ),
    max_size=4,
)
