"""As much of DNS messages as an interceptor needs: who asks for what, and short answers. RFC 1035,
EDNS of RFC 6891. Bytes in, bytes out; no I/O.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["A", "AAAA", "Malformed", "Query", "answer", "answers", "malformed", "parse_query"]

A, AAAA, OPT = 1, 28, 41
IN, ANY = 1, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
QR, TC, RD, RA, OPCODE = 0x8000, 0x0200, 0x0100, 0x0080, 0x7800
DO = 0x8000  # of EDNS: the client understands DNSSEC
BLOCKED = 15  # an "extended error", RFC 8914
OUR_SIZE = 1232  # of datagrams, such that they cross any path in one piece
HEADER = struct.Struct(">6H")
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Query(NamedTuple):
    """A standard query with one question."""

    id: int
    flags: int
    question: bytes
    """As it was sent: an answer repeats it, with its upper and lower case."""
    name: str
    """In lower case, no dot at the end. A byte that is no letter, digit, "-" or "_" is written as
    ``\\ddd``, which is in no table."""
    type: int
    size: int
    """What a datagram may have. 512 without EDNS."""
    edns: bool
    dnssec: bool


class Malformed(ValueError):
    """A query whose question can't be read here. Somebody more tolerant reads one all the same, so
    passed on it would get by the table."""


def parse_query(message: bytes) -> Query | None:
    """None: a message of another kind, which is not for us to judge: pass it on.

    What is wrong behind the question changes nothing about the name that it asks for.

    :raises Malformed: answer it with :func:`malformed`.
    """
    if len(message) < HEADER.size:
        return None
    id, flags, questions, *counts = HEADER.unpack_from(message)
    if flags & (QR | OPCODE) or questions != 1:
        return None
    try:
        name, at = _name(message, HEADER.size)
        kind, klass = struct.unpack_from(">2H", message, at)
    except (IndexError, struct.error):
        raise Malformed from None
    if klass not in (IN, ANY):
        return None
    question = message[HEADER.size : at + 4]
    try:
        edns = _edns(message, at + 4, sum(counts))
    except (IndexError, struct.error):
        edns = None
    size = 512 if edns is None else max(512, edns[0])
    return Query(
        id, flags, question, name, kind, size, edns is not None, bool(edns and edns[1] & DO)
    )


def answer(
    query: Query,
    code: int,
    addresses: Sequence[IPAddress] = (),
    *,
    size: int = 65535,
    blocked: bool = False,
) -> bytes:
    """The answer that has these addresses, or none; cut down to "ask again by TCP" where it would
    be larger than `size`."""
    flags = QR | RA | query.flags & RD | code
    records = b"".join(
        struct.pack(">HHHIH", 0xC00C, A if one.version == 4 else AAAA, IN, 60, len(one.packed))
        + one.packed
        for one in addresses
    )
    extra = _opt(query, blocked) if query.edns else b""
    if HEADER.size + len(query.question) + len(records) + len(extra) > size:
        flags, records, addresses = flags | TC, b"", ()
    header = HEADER.pack(query.id, flags, 1, len(addresses), 0, bool(extra))
    return header + query.question + records + extra


def malformed(message: bytes) -> bytes:
    """The answer to what is :class:`Malformed`: without the question."""
    id, flags, *_ = HEADER.unpack_from(message)
    return HEADER.pack(id, QR | RA | flags & RD | FORMERR, 0, 0, 0, 0)


def answers(reply: bytes, asked: bytes) -> bool:
    """Whether `reply` can be an answer to the message `asked`: the number, and the question as it
    was written. Who guesses wrong doesn't get in."""
    if len(reply) < HEADER.size or not reply[2] & 0x80 or reply[:2] != asked[:2]:
        return False
    query = parse_query(asked)
    if query is None or reply[4:6] == b"\0\0":  # some errors come without the question
        return query is None or reply[3] & 0xF not in (NOERROR, NXDOMAIN)
    return reply[HEADER.size :].startswith(query.question)


def _opt(query: Query, blocked: bool) -> bytes:
    option = struct.pack(">3H", 15, 2, BLOCKED) if blocked else b""
    flags = DO if query.dnssec else 0
    return struct.pack(">BHHIH", 0, OPT, OUR_SIZE, flags, len(option)) + option


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name and what is behind it. A question is never compressed. IndexError: it ends early."""
    labels: list[str] = []
    start = at
    while size := message[at]:
        if size > 63 or at + size >= len(message) or at + size - start > 254:
            raise IndexError("no label")
        labels.append("".join(map(_letter, message[at + 1 : at + 1 + size].lower())))
        at += 1 + size
    return ".".join(labels), at + 1


def _letter(byte: int) -> str:
    letter = chr(byte)
    return letter if letter.isascii() and (letter.isalnum() or letter in "-_") else f"\\{byte:03}"


def _edns(message: bytes, at: int, records: int) -> tuple[int, int] | None:
    """Size and flags of the OPT record, if there is one among so many."""
    for _ in range(records):
        while message[at] and message[at] < 0xC0:
            at += 1 + message[at]
        at += 2 if message[at] else 1
        kind, size, flags, length = struct.unpack_from(">HHIH", message, at)
        if kind == OPT:
            return size, flags
        at += 10 + length
    return None
