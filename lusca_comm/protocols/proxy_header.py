"""The PROXY protocol's header, versions 1 and 2, in and out: who the client really is, for a server
behind a relay. https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

The addresses are read and written by the package proxy-protocol (the extra ``proxy``). Before it
comes what it leaves to its caller: where the header ends, and all that the specification forbids.
It reads the port ``8_0`` as 80, takes what follows a header for a part of it, keeps one TLV
of a type, and sorts the TLVs before it compares a checksum, which is over the bytes as they came.
"""

from __future__ import annotations

import errno
import re
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from types import ModuleType
from typing import Any, Final, Literal

from lusca_comm.errors import CommError

__all__ = ["MOST", "Header", "pack", "parse"]

MOST: Final = 4096
"""Bytes that a header may take. The lengths in version 2 would allow 64 KB."""

Endpoint = tuple[str, int] | str | None
"""``(host, port)``; of a Unix socket its path; None where the header names nobody."""

Transport = Literal["stream", "dgram", ""]

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V1_LINE: Final = 107  # section 2.1: the longest, with CRLF
_PORT: Final = rb"(?:0|[1-9][0-9]{0,4})"
_V1: Final = re.compile(
    rb"PROXY (?:(UNKNOWN)(?: [^\r\n]*)?"
    rb"|TCP4 [0-9.]{7,15} [0-9.]{7,15} %b %b"
    rb"|TCP6 [0-9a-fA-F:.]{2,39} [0-9a-fA-F:.]{2,39} %b %b)\r\n" % ((_PORT,) * 4)
)
_ADDRESSES: Final = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
"""Section 2.2: family and transport, and the size of what they stand for. No others are legal."""
_TRANSPORTS: Final[tuple[Transport, ...]] = ("", "stream", "dgram")
_CRC32C: Final = 3
_PATH: Final = 108


@dataclass(frozen=True)
class Header:
    """What a header says.

    ``local``: the proxy speaks for itself, as in a health check; the connection's own addresses
    count. Otherwise ``source`` connected to ``destination``, or both are None: UNKNOWN, somebody
    in a family that the header has no form for.
    """

    source: Endpoint = None
    destination: Endpoint = None
    version: Literal[1, 2] = 2
    local: bool = False
    transport: Transport = "stream"
    """"" for ``local`` and UNKNOWN. Version 1 knows streams alone."""
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """Types and values, in the order in which they came; version 2 only, and not of ``local``. The
    checksum is verified and left out, since it is of one header's bytes alone."""


def parse(data: bytes | bytearray | memoryview, most: int = MOST) -> tuple[Header, int] | None:
    """The header at the beginning of ``data``, and its size: the connection's own bytes follow it.

    None while it is not all there; never for ``most`` bytes or more. Whether a connection has a
    header is to be agreed on beforehand: one that may be left out, everybody can forge.

    :raises CommError: EPROTO for what is no header, or one that breaks the specification: reset the
        connection. ENOSYS without the package.
    """
    data = bytes(data[:most])
    for signature, limit, whole in (
        (_SIGNATURE, most, _version2),
        (b"PROXY ", min(most, _V1_LINE), _version1),
    ):
        if data.startswith(signature):
            got = whole(data, limit)
            if got is None and len(data) >= limit:
                raise _wrong(f"it is longer than {limit} bytes")
            return got
        if signature.startswith(data) and len(data) < most:
            return None
    raise _wrong(f"it begins with {data[:12]!r}")


def pack(header: Header) -> bytes:
    """The bytes of a header; version 2 gets a checksum.

    :raises CommError: EINVAL for what the version has no form for: source and destination of
        different families, a path that is too long, TLVs in version 1, a checksum of the caller's,
        a type of TLV twice. ENOSYS without the package.
    """
    package = _package()
    if header.version == 1 and (header.tlvs or header.local or header.transport == "dgram"):
        raise CommError(errno.EINVAL, "PROXY version 1 has no datagrams, no LOCAL and no TLVs")
    tlvs = dict(header.tlvs)
    if len(tlvs) != len(header.tlvs) or _CRC32C in tlvs:
        raise CommError(errno.EINVAL, "a type of TLV twice, or a checksum, in a PROXY header")
    version = package.v1.ProxyProtocolV1() if header.version == 1 else package.v2.ProxyProtocolV2()
    try:
        return bytes(version.pack(_result(package, header, tlvs)))
    except (KeyError, TypeError, ValueError, struct.error) as why:
        raise CommError(errno.EINVAL, f"{header} has no PROXY header: {why}") from why


def _wrong(text: str) -> CommError:
    return CommError(errno.EPROTO, f"no PROXY protocol header: {text}")


def _package() -> Any:
    """Loaded where it is needed, since it is an extra."""
    try:
        import proxyprotocol.checksum
        import proxyprotocol.result
        import proxyprotocol.tlv
        import proxyprotocol.v1
        import proxyprotocol.v2
    except ImportError:
        raise _missing("proxy-protocol") from None
    package: ModuleType = proxyprotocol
    return package


def _missing(package: str) -> CommError:
    return CommError(
        errno.ENOSYS, f"the PROXY protocol needs {package}: pip install 'lusca-comm[proxy]'"
    )


# -- in ----------------------------------------------------------------------------------------


def _version1(data: bytes, limit: int) -> tuple[Header, int] | None:
    end = data.find(b"\n", 0, limit) + 1
    if not end:
        return None
    line = data[:end]
    if (match := _V1.fullmatch(line)) is None:
        raise _wrong(f"{line!r}")
    if match[1]:
        return Header(version=1, transport=""), end
    return _header(_package().v1.ProxyProtocolV1().unpack_line, line, version=1), end


def _version2(data: bytes, most: int) -> tuple[Header, int] | None:
    if len(data) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    if command not in (0x20, 0x21):
        raise _wrong(f"version and command {command:#x}")
    size = 16 + length
    if size > most:
        raise _wrong(f"it is longer than {most} bytes")
    if command == 0x20:  # section 2.2: what follows is to be skipped, whatever it is
        return (Header(local=True, transport=""), size) if len(data) >= size else None
    if family not in _ADDRESSES:
        raise _wrong(f"family and transport {family:#x}")
    tlvs_at = 16 + _ADDRESSES[family]
    if tlvs_at > size:
        raise _wrong(f"{length} bytes for addresses of family and transport {family:#x}")
    if len(data) < size:
        return None
    header = data[:size]
    tlvs = _tlvs(header, tlvs_at)
    if not family:
        return Header(transport="", tlvs=tlvs), size
    version2 = _package().v2.ProxyProtocolV2()

    def unpack(header: bytes) -> Any:
        return version2.unpack_data(version2.unpack_header(header), b"", header[16:tlvs_at])

    return _header(unpack, header, transport=_TRANSPORTS[family & 0xF], tlvs=tlvs), size


def _header(unpack: Any, data: bytes, **more: Any) -> Header:
    try:
        result = unpack(data)
        source, destination = result.peername, result.sockname
    except (ValueError, struct.error) as why:  # ProxyProtocolSyntaxError is a ValueError
        raise _wrong(str(why)) from why
    if not isinstance(source, str):
        source, destination = source[:2], destination[:2]
    return Header(source, destination, **more)


def _tlvs(header: bytes, at: int) -> tuple[tuple[int, bytes], ...]:
    found = []
    checksum = None
    while at < len(header):
        if at + 3 > len(header):
            raise _wrong("a TLV is cut off")
        kind, length = struct.unpack_from("!BH", header, at)
        at += 3
        if at + length > len(header):
            raise _wrong("a TLV is cut off")
        if kind == _CRC32C:
            if checksum is not None or length != 4:
                raise _wrong("its checksum has no 4 bytes, or there are two")
            checksum = at
        else:
            found.append((kind, header[at : at + length]))
        at += length
    if checksum is not None:
        crc32c = _package().checksum.crc32c
        if crc32c is None:
            raise _missing("crc32c")
        blank = header[:checksum] + bytes(4) + header[checksum + 4 :]
        if crc32c(blank) != int.from_bytes(header[checksum : checksum + 4], "big"):
            raise _wrong("its checksum is wrong")
    return tuple(found)


# -- out ---------------------------------------------------------------------------------------


def _result(package: Any, header: Header, tlvs: dict[int, bytes]) -> Any:
    """The header as the package has it."""
    types, source, destination = package.result, header.source, header.destination
    tlv = package.tlv.ProxyProtocolTLV(init=tlvs)
    if header.local:
        return types.ProxyResultLocal(tlv=tlv)
    if source is None or destination is None:
        if source is not destination:
            raise ValueError("one of its ends is missing")
        return types.ProxyResultUnknown(tlv=tlv)
    kind = types.SocketKind["SOCK_DGRAM" if header.transport == "dgram" else "SOCK_STREAM"]
    if isinstance(source, str) and isinstance(destination, str):
        if len(max(source, destination, key=len)) > _PATH:
            raise ValueError(f"a path is longer than {_PATH} bytes")
        return types.ProxyResultUnix(source, destination, protocol=kind, tlv=tlv)
    if isinstance(source, str) or isinstance(destination, str):
        raise ValueError("its ends are of different families")
    ends = [(ip_address(host), port) for host, port, *_ in (source, destination)]
    if ends[0][0].version != ends[1][0].version:
        raise ValueError("its ends are of different families")
    if any(getattr(ip, "scope_id", None) for ip, _ in ends):
        raise ValueError("a zone means something on this machine alone")
    if not all(0 <= port <= 65535 for _, port in ends):
        raise ValueError("a port is outside 0-65535")
    form = types.ProxyResultIPv4 if ends[0][0].version == 4 else types.ProxyResultIPv6
    return form(*ends, protocol=kind, tlv=tlv)
