"""Which protocol a connection begins with, by its first bytes, and who speaks first.

In SMTP, MySQL, FTP, IMAP and POP3 the server does, and a proxy that waits for the client's first
bytes waits for ever; in SSH either may begin. So there is a time limit: a client that is silent for
so long waits for its server, and the proxy must go there first.

The recognisers are a table: name and function. Each says True, False, or None while it needs more
bytes; once it has said True or False it says so for every continuation. The first in the table that
does not say False decides, so that the verdict does not depend on how the bytes were split.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from .sni import looks_like_tls

__all__ = ["LIMIT", "MOST", "PROTOCOLS", "SERVER_FIRST", "UNKNOWN", "Detector", "detect"]

LIMIT: Final = 0.3
"""Seconds that a client may be silent before it is taken to wait for its server. It delays each
server-first connection once; a client slower than this loses no bytes, only its protocol's name."""

MOST: Final = 257
"""No verdict needs more bytes than this."""

SERVER_FIRST: Final = "server-first"
"""The client is silent: connect to the server, and relay what that says."""

UNKNOWN: Final = "unknown"
"""The client has spoken, and it is none of these."""

Recogniser = Callable[[bytes], "bool | None"]


def _begins(*beginnings: bytes) -> Recogniser:
    def recognise(data: bytes) -> bool | None:
        if data.startswith(beginnings):
            return True
        return None if any(beginning.startswith(data) for beginning in beginnings) else False

    return recognise


def _tls(data: bytes) -> bool | None:
    if not (looks := looks_like_tls(data)):
        return looks
    if data[0] & 0x80:
        return True
    return data[5] == 1 if len(data) > 5 else None


_METHOD: Final = re.compile(rb"[A-Z][A-Z_-]{0,31}\Z")


def _http1(data: bytes) -> bool | None:
    """A method, a blank, and what a target begins with (RFC 9112 3.2): a path, ``*``, an absolute
    URI, or, after CONNECT, a host."""
    method, blank, target = data.partition(b" ")
    if not blank:
        return None if _METHOD.match(method) else False
    if len(method) < 3 or not _METHOD.match(method):
        return False
    if method == b"CONNECT":
        return target[:1] not in (b" ", b"\r", b"\n") if target else None
    return _begins(b"/", b"* ", b"http://", b"https://")(target)


def _dns(data: bytes) -> bool | None:
    """A query with its length before it (RFC 7766 8): one question, no answer, nothing reserved."""
    if len(data) < 14:
        return False if data[4:5] and data[4] & 0xF8 else None
    length, flags = int.from_bytes(data[:2], "big"), int.from_bytes(data[4:6], "big")
    counts = [int.from_bytes(data[at : at + 2], "big") for at in range(6, 14, 2)]
    return length >= 17 and not flags & 0xF8CF and counts[:3] == [1, 0, 0] and counts[3] <= 2


def _socks4(data: bytes) -> bool | None:
    """Version, command 1 or 2, port, address."""
    if data[0] != 4 or data[1:2] not in (b"", b"\1", b"\2"):
        return False
    return None if len(data) < 8 else True


def _socks5(data: bytes) -> bool | None:
    """Version, and as many methods as are announced (RFC 1928 3)."""
    if data[0] != 5 or data[1:2] == b"\0":
        return False
    return None if len(data) < 2 or len(data) < 2 + data[1] else True


def _postgresql(data: bytes) -> bool | None:
    """SSLRequest, GSSENCRequest, CancelRequest or a startup message of version 3."""
    if data[0]:
        return False
    if len(data) < 8:
        return None
    length, code = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
    return {80877103: 8, 80877104: 8, 80877102: 16}.get(code) == length or (
        code >> 16 == 3 and 9 <= length <= 10000
    )


_RECOGNISERS: Final[tuple[tuple[str, Recogniser], ...]] = (
    ("tls", _tls),
    ("http/2", _begins(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
    ("proxy", _begins(b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n")),
    ("ssh", _begins(b"SSH-")),
    ("smtp", _begins(b"EHLO ", b"HELO ", b"LHLO ")),
    ("http/1", _http1),
    ("bittorrent", _begins(b"\x13BitTorrent protocol")),
    ("socks4", _socks4),
    ("socks5", _socks5),
    ("postgresql", _postgresql),
    ("dns", _dns),
)

PROTOCOLS: Final = tuple(name for name, _ in _RECOGNISERS)
"""What :func:`detect` can tell: ``proxy`` is the PROXY protocol's header, ``smtp`` a client that
speaks before its turn, ``dns`` is DNS over TCP."""


def detect(data: bytes | bytearray | memoryview) -> str | None:
    """The protocol of a connection whose client has sent ``data`` so far: one of ``PROTOCOLS``,
    ``UNKNOWN``, or None while more bytes are needed. Never raises; for no client is it None any
    more after ``MOST`` bytes."""
    data = bytes(data[:MOST])
    if not data:
        return None
    for name, recognise in _RECOGNISERS:
        answer = recognise(data)
        if answer is None:
            return None
        if answer:
            return name
    return UNKNOWN


class Detector:
    """:func:`detect` over time, without a clock of its own.

    The caller feeds it what the client sent, and calls :meth:`silence` when ``limit`` seconds have
    gone by since the connection began and :attr:`verdict` is still None.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self.verdict: str | None = None
        """One of ``PROTOCOLS``, ``SERVER_FIRST``, ``UNKNOWN``; None while it is open. The first
        verdict stands."""
        self._data = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> str | None:
        """More bytes of the client's, in order. The verdict."""
        if self.verdict is None:
            self._data += data[: MOST - len(self._data)]
            self.verdict = detect(self._data)
        return self.verdict

    def silence(self) -> str:
        """The time is over: ``SERVER_FIRST`` if the client has said nothing, ``UNKNOWN`` if not
        enough, unless there is a verdict already."""
        if self.verdict is None:
            self.verdict = UNKNOWN if self._data else SERVER_FIRST
        return self.verdict
