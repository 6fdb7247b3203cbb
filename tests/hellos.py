"""ClientHellos made to order, and split into records: RFC 8446 4.1.2."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

TLS13 = (43, b"\x02\x03\x04")  # supported_versions: TLS 1.3 alone


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def server_name(*names: bytes) -> tuple[int, bytes]:
    return 0, vector(2, b"".join(b"\0" + vector(2, name) for name in names))


def alpn(*protocols: bytes) -> tuple[int, bytes]:
    return 16, vector(2, b"".join(vector(1, protocol) for protocol in protocols))


def message(
    extensions: Iterable[tuple[int, bytes]] = (),
    *,
    version: int = 0x0303,
    suites: Sequence[int] = (0xC02F,),
) -> bytes:
    """The handshake message."""
    listed = b"".join(struct.pack(">H", kind) + vector(2, value) for kind, value in extensions)
    body = struct.pack(">H", version) + bytes(32) + vector(1, b"s" * 32)
    body += vector(2, b"".join(struct.pack(">H", suite) for suite in suites))
    body += vector(1, b"\0") + vector(2, listed)
    return b"\x01" + vector(3, body)


def records(data: bytes, size: int = 1 << 14) -> bytes:
    parts = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(b"\x16\x03\x01" + vector(2, part) for part in parts)


def hello(
    *extensions: tuple[int, bytes], version: int = 0x0303, suites: Sequence[int] = (0xC02F,)
) -> bytes:
    return records(message(extensions, version=version, suites=suites))


def ssl2(name: bytes = b"") -> bytes:
    """In the form of SSL 2 (RFC 5246 E.2), as OpenSSL 0.9.8 began."""
    suites = b"\x00\x00\x2f\x00\x00\x35"
    body = b"\x01\x03\x01" + struct.pack(">HHH", len(suites), 0, 16) + suites + b"c" * 16
    return struct.pack(">H", 0x8000 | len(body)) + body
