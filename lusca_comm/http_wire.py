"""How questions, answers and exchanges are laid out in bytes: csrc/shim.h, by field."""

from __future__ import annotations

import functools
from struct import Struct

from ._shim import ffi, lib
from .address import Address, from_shim, shim_of
from .spoof import checked_mark

FIRST = Struct("@8xIHB")  # of an exchange, behind its id
QUESTION = Struct("@8xIHB121xQ")  # the same of an event, and `like`
_EVENT = Struct("@QIHBBHHHBBiiIIQ6I2I28s28sQ")
_ANSWER = Struct("@IBBHIIII28s28s")  # without the id
SPAN = Struct("@II").unpack_from
STATUS = Struct("@HH").unpack_from
INT = Struct("@i").unpack_from
FLAGS = Struct("@II").unpack_from
LENGTH = Struct("@Q").unpack_from
COUNTS = Struct("@QQd").unpack_from

ABSENT = 0xFFFFFFFF
_NOBODY = bytes(28)
_PADDING = (b"", b"\0" * 7, b"\0" * 6, b"\0" * 5, b"\0" * 4, b"\0" * 3, b"\0" * 2, b"\0")


def described(fields: int) -> int:
    """Where in a question its head begins."""
    return int(_EVENT.size + fields * ffi.sizeof("struct lc_span"))


@functools.lru_cache(maxsize=8192)
def _told(packed: bytes) -> Address | None:
    return from_shim(ffi.from_buffer("struct lc_addr *", packed))


def address_at(raw: bytes, at: int) -> Address | None:
    return _told(raw[at : at + 28])


def packed(address: Address | None) -> bytes:
    return _NOBODY if address is None else bytes(ffi.buffer(shim_of(address)))


def packed_answer(
    action: int,
    flags: int = 0,
    mark: int | None = None,
    start: bytes = b"",
    drop: bytes = b"",
    append: bytes = b"",
    to: bytes = _NOBODY,
    source: bytes = _NOBODY,
) -> bytes:
    """``struct lc_http_answer`` and what follows it, but for the id. Raises CommError (EINVAL) or
    TypeError for a mark that is none."""
    if mark is not None:
        mark = checked_mark(mark)
        flags |= lib.LC_HTTP_MARK
    size = 8 + _ANSWER.size + len(start) + len(drop) + len(append)
    pad = _PADDING[size & 7]
    fixed = _ANSWER.pack(
        size + len(pad), action, flags, 0, mark or 0, len(start), len(drop), len(append), to, source
    )
    return b"".join((fixed, start, drop, append, pad))


EXCHANGE = int(ffi.sizeof("struct lc_http_exchange"))

if not QUESTION.size == _EVENT.size == ffi.sizeof("struct lc_http_event"):
    raise ImportError("csrc/shim.h and http_wire.py do not agree")
