"""Netlink with nothing between the caller and the kernel: attributes, requests, dumps, batches.

Why not pyroute2's own sockets: each runs an event loop, so none of them can be opened while
asyncio runs in the thread; an nftables attribute it has no name for is left out without a word;
and its batches don't say which message, let alone which expression, the kernel refused.

Formats: netlink(7), include/uapi/linux/netlink.h and netfilter/nfnetlink.h. Headers are in the
machine's byte order; nftables numbers are big-endian, rtnetlink's are not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias, Union

from lusca_comm.errors import CommError

Attr: TypeAlias = tuple[int, Union[bytes, "Attrs"]]
Attrs: TypeAlias = Sequence[Attr]

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
F_REQUEST: Final = 0x1
F_ACK: Final = 0x4
F_DUMP: Final = 0x300
F_EXCL: Final = 0x200
F_CREATE: Final = 0x400
F_APPEND: Final = 0x800
NESTED: Final = 0x8000

_ERROR: Final = 2
_DONE: Final = 3
_OVERRUN: Final = 4
_F_DUMP_INTR: Final = 0x10
_F_ACK_TLVS: Final = 0x200
_SOL_NETLINK: Final = 270
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_GET_STRICT_CHK: Final = 12
_ACK_MSG: Final = 1
_ACK_OFFS: Final = 2
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17
_SUBSYS_NFTABLES: Final = 10
_SO_SNDBUFFORCE: Final = 32
_HEADER: Final = struct.Struct("=IHHII")
_TIMEOUT: Final = 10.0


@dataclasses.dataclass(frozen=True)
class Message:
    """One request: type, flags, the fixed header of its family, and attributes."""

    kind: int
    flags: int
    header: bytes
    attrs: Attrs

    def encode(self, sequence: int) -> bytes:
        body = self.header + pack(self.attrs)
        size = _HEADER.size + len(body)
        return _HEADER.pack(size, self.kind, self.flags | F_REQUEST, sequence, 0) + body


class Refused(CommError):
    """The kernel refused a message, with the error `number`.

    ``index``: which one of those sent. ``offset``: of the attribute it stumbled over, in that
    message, or None (kernels before 4.12, and many errors since, don't say).
    """

    def __init__(self, number: int, text: str, index: int = 0, offset: int | None = None) -> None:
        super().__init__(number, text)
        self.number = number
        self.index = index
        self.offset = offset


def pack(attrs: Attrs) -> bytes:
    """Attributes in the kernel's TLV form; a value that is a sequence is a nest of attributes."""
    out = bytearray()
    for kind, value in attrs:
        if not isinstance(value, bytes):
            kind, value = kind | NESTED, pack(value)
        out += struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)
    return bytes(out)


def unpack(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of one level, without the flag bits of their types."""
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if not 4 <= size <= len(data):
            return
        yield kind & 0x3FFF, data[4:size]
        data = data[(size + 3) & ~3 :]


def holds(answer: bytes, sent: Attrs) -> bool:
    """Whether `answer` has every attribute of `sent` with its value, whatever else it has.

    A repeated type is a list: its members must be the same in number and order. The kernel adds
    attributes (handles, defaults) to what it was sent, and may order them anew.
    """
    got: dict[int, list[bytes]] = {}
    for kind, value in unpack(answer):
        got.setdefault(kind, []).append(value)
    wanted: dict[int, list[bytes | Attrs]] = {}
    for kind, want in sent:
        wanted.setdefault(kind, []).append(want)
    return all(
        len(got.get(kind, ())) == len(values)
        and all(
            have == want if isinstance(want, bytes) else holds(have, want)
            for have, want in zip(got[kind], values, strict=True)
        )
        for kind, values in wanted.items()
    )


def be32(number: int) -> bytes:
    return struct.pack(">I", number)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def zstr(text: str) -> bytes:
    return text.encode() + b"\0"


class Netlink:
    """A socket to one netlink family, in the calling thread's network namespace."""

    def __init__(self, family: int) -> None:
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        except OSError as why:
            what = "nfnetlink" if family == NETLINK_NETFILTER else "rtnetlink"
            raise CommError(
                why.errno or errno.EPROTONOSUPPORT, f"this kernel has no {what}: {why.strerror}"
            ) from None
        self._sock.settimeout(_TIMEOUT)
        self._sock.bind((0, 0))
        with contextlib.suppress(OSError):  # before 4.12 errors come without a place
            self._sock.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._sock.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # no copy of the request in them
        with contextlib.suppress(OSError):  # before 4.20 a dump of routes gives all tables
            self._sock.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def request(self, message: Message) -> None:
        """Send one message and wait for the kernel's word. Raises Refused."""
        self._transact([message])

    def nft_batch(self, messages: Sequence[Message]) -> None:
        """Send nftables messages as one transaction: all of them take effect, or none. Refused."""
        frame = struct.pack(">BBH", socket.AF_UNSPEC, 0, _SUBSYS_NFTABLES)
        self._sequence += 1
        begin = self._sequence
        self._transact(
            messages,
            Message(_BATCH_BEGIN, 0, frame, ()).encode(begin),
            Message(_BATCH_END, 0, frame, ()).encode(begin),
        )

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """Every answer to a dump request, as (type, body); none if what is asked about (a routing
        table, a set) isn't there. Raises Refused."""
        while True:
            self._sequence += 1
            self._send(dataclasses.replace(message, flags=F_DUMP).encode(self._sequence))
            answers = []
            interrupted = False
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted |= bool(flags & _F_DUMP_INTR)
                if kind in (_ERROR, _DONE):
                    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if number == errno.ENOENT:
                        return []
                    if number:
                        raise Refused(number, os.strerror(number))
                    break
                answers.append((kind, body))
            if not interrupted:  # else something changed meanwhile, and the answer is torn
                return answers

    def _transact(self, messages: Sequence[Message], begin: bytes = b"", end: bytes = b"") -> None:
        first = self._sequence + 1
        self._sequence += len(messages)
        frames = [
            dataclasses.replace(message, flags=message.flags | F_ACK).encode(first + index)
            for index, message in enumerate(messages)
        ]
        self._send(begin + b"".join(frames) + end)
        waiting = set(range(len(messages)))
        refused: Refused | None = None
        for kind, flags, sequence, body in self._receive():
            index = sequence - first
            if kind != _ERROR or index < -1:
                continue
            number = -struct.unpack_from("=i", body)[0]
            if number and (refused is None or index < refused.index):
                refused = _refused(number, flags, body, max(index, 0))
            # An error under the frame's own number (no rights, commit failed) is the only answer.
            waiting = waiting - {index} if index >= 0 else set()
            if not waiting:
                break
        if refused is not None:
            raise refused

    def _send(self, data: bytes) -> None:
        # A batch goes in one piece. Beyond net.core.wmem_max only root's option reaches.
        for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, option, len(data) + (1 << 18))
                break
        try:
            self._sock.sendto(data, (0, 0))
        except OSError as why:
            raise CommError(
                why.errno or errno.EIO,
                f"netlink would not take {len(data)} bytes at once ({why.strerror}): sysctl -w "
                f"net.core.wmem_max={2 * len(data)}",
            ) from None

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except TimeoutError:
                raise CommError(
                    errno.ETIMEDOUT, f"no answer from netlink in {_TIMEOUT:.0f} s"
                ) from None
            while len(data) >= _HEADER.size:
                size, kind, flags, sequence, _ = _HEADER.unpack_from(data)
                if kind == _OVERRUN or not _HEADER.size <= size <= len(data):
                    raise CommError(errno.EIO, "netlink lost part of an answer")
                yield kind, flags, sequence, data[_HEADER.size : size]
                data = data[(size + 3) & ~3 :]


def _refused(number: int, flags: int, body: bytes, index: int) -> Refused:
    """The error with what the extended acknowledgement adds to it."""
    text, offset = os.strerror(number), None
    if flags & _F_ACK_TLVS:
        for kind, value in unpack(body[4 + _HEADER.size :]):
            if kind == _ACK_MSG:
                text += ": " + value.rstrip(b"\0").decode(errors="replace")
            elif kind == _ACK_OFFS:
                offset = struct.unpack("=I", value)[0]
    return Refused(number, text, index, offset)
