"""The name in a TLS ClientHello, before anything is answered: RFC 8446 4.1.2, RFC 6066 3.

OpenSSL, by way of :mod:`ssl`, judges whether it is a ClientHello and what name it asks for. What is
done here before that is putting a hello together that came in several records, and making OpenSSL
indifferent to what the client offers (:func:`_for_looking`). Nothing is decrypted, and no byte is
taken from the client: a verdict is about a copy, such as what ``peek`` returned.
"""

from __future__ import annotations

import enum
import functools
import ssl
from dataclasses import dataclass, field

__all__ = ["MOST", "ClientHello", "Verdict", "client_hello", "looks_like_tls"]

MOST = 1 << 16
"""Bytes that a hello may take, with the headers of its records. Post-quantum key shares make it
2 KB and more; OpenSSL itself stops at twice this number (ssl/statem/statem_srvr.c)."""

_RECORD = 1 << 14  # RFC 8446 5.1: the most in one record
_TLS_1_2 = b"\x03\x03"
_SERVER_NAME, _ALPN, _ECH = 0, 16, 0xFE0D  # IANA, TLS ExtensionType Values


class Verdict(enum.Enum):
    """What can be said about the first bytes of a connection."""

    NAME = "name"
    """A ClientHello that asks for a server by name."""
    NO_SNI = "no SNI"
    """A ClientHello without a name."""
    NOT_TLS = "not TLS"
    """Something else: no further byte can make a ClientHello of it."""
    NOT_PARSED = "not parsed"
    """It begins like TLS, and is no ClientHello that OpenSSL takes, or is longer than allowed."""
    NEED_MORE = "need more"
    """The beginning of a ClientHello, or nothing yet."""


@dataclass(frozen=True)
class ClientHello:
    """A verdict, and with ``NAME`` and ``NO_SNI`` what else the hello offers."""

    verdict: Verdict
    name: str = ""
    """As it was sent: ASCII, of any case, 255 bytes at most; not checked to be a host name. Where
    the hello is encrypted (``ech``) it is the outer name, of who decrypts it."""
    alpn: tuple[str, ...] = ()
    """The application protocols offered, in the client's order: ``h2``, ``http/1.1``."""
    ech: bool = False
    """There is an encrypted_client_hello extension. Browsers send a meaningless one too (GREASE,
    RFC 9849 6.2), and nobody on the way can tell the two apart."""
    reason: str = ""
    """With ``NOT_PARSED``: why."""
    missing: int = field(default=0, compare=False)
    """With ``NEED_MORE``: with fewer bytes than these no hello is complete. Who waits for so many
    judges a hello less than a hundred times, whatever it comes in; who does so for each byte does
    the work of all records each time."""


class _Short(Exception):
    """The bytes end before what is looked for does: so many are missing at least."""

    def __init__(self, missing: int = 1) -> None:
        self.missing = missing


class _Malformed(Exception):
    pass


def client_hello(data: bytes | bytearray | memoryview, most: int = MOST) -> ClientHello:
    """The verdict about a connection whose client has sent ``data`` so far.

    A verdict other than ``NEED_MORE`` stands: it is the same for all that may follow ``data``, and
    however the bytes were split. ``NEED_MORE`` comes only for fewer than ``most`` bytes. Never
    raises.
    """
    data = bytes(data[:most])
    if not (looks := looks_like_tls(data)):
        if looks is None and len(data) < most:
            return ClientHello(Verdict.NEED_MORE, missing=1)
        return ClientHello(Verdict.NOT_TLS)
    try:
        return _judge(data, most)
    except _Short as short:
        if len(data) < most:
            return ClientHello(Verdict.NEED_MORE, missing=min(short.missing, most - len(data)))
        return ClientHello(Verdict.NOT_PARSED, reason=f"longer than {most} bytes")
    except _Malformed as why:
        return ClientHello(Verdict.NOT_PARSED, reason=str(why))


def looks_like_tls(data: bytes) -> bool | None:
    """Whether a connection that begins with ``data`` begins with a handshake record, or with a
    ClientHello in the form of SSL 2 (RFC 5246 E.2), which has no extensions; None while that is
    open. A matter of 5 bytes."""
    if not data:
        return None
    if data[0] & 0x80:
        wanted: tuple[range, ...] = (range(0x80, 0x100), range(256), range(1, 2), range(3, 4))
    else:
        wanted = (range(0x16, 0x17), range(3, 4), range(5), range(_RECORD // 256 + 1))
    if any(byte not in values for byte, values in zip(data, wanted, strict=False)):
        return False
    if len(data) < 5:
        return None
    return data[4] <= 4 if data[0] & 0x80 else 0 < int.from_bytes(data[3:5], "big") <= _RECORD


def _judge(data: bytes, most: int) -> ClientHello:
    if data[0] & 0x80:
        size = 2 + (int.from_bytes(data[:2], "big") & 0x7FFF)
        if len(data) < size:
            raise _Short(size - len(data))
        extensions: dict[int, bytes] = {}
        name = _ask_openssl(data[:3] + _TLS_1_2 + data[5:size])
    else:
        copy, extensions = _for_looking(_message(data, most))
        name = _ask_openssl(copy)
    if name == "":
        raise _Malformed("the name is empty")
    verdict = Verdict.NO_SNI if name is None else Verdict.NAME
    return ClientHello(verdict, name or "", _protocols(extensions), _ECH in extensions)


# -- records and the hello in them -------------------------------------------------------------


class _Reader:
    """Takes what TLS is made of from the front of some bytes (RFC 8446 3)."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise _Short
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> bytes:
        """A vector with its length in front, in ``width`` bytes."""
        return self.take(self.number(width))


def _message(data: bytes, most: int) -> bytes:
    """The body of the first handshake message, out of as many records as it is spread over."""
    at, message, size = 0, bytearray(), 0
    while at + 5 <= len(data):
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at : at + 2] != b"\x16\x03" or not 0 < length <= _RECORD:
            raise _Malformed("another record in the middle of the hello")
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if not size and message:
            if message[0] != 1:
                raise _Malformed(f"handshake message {message[0]} where a ClientHello has to be")
            if len(message) >= 4:
                size = 4 + int.from_bytes(message[1:4], "big")
                if size - 4 > most:
                    raise _Malformed(f"longer than {most} bytes")
        if size and len(message) >= size:
            return bytes(message[4:size])
    raise _Short((size or 4) - len(message))


def _for_looking(body: bytes) -> tuple[bytes, dict[int, bytes]]:
    """The hello once more, for OpenSSL, and its extensions.

    OpenSSL looks at the name after it has agreed on a version and, with TLS 1.3, on a cipher: a
    client that offers only what this OpenSSL does not speak would have no name. So the copy has
    TLS 1.2 as its version (TLS 1.3 is offered in an extension) and, in place of each of its cipher
    suites, TLS_AES_128_GCM_SHA256, which every OpenSSL that can do TLS 1.3 has.
    """
    try:
        hello = _Reader(body)
        hello.take(2)
        same = hello.take(32) + _with_length(hello.vector(1), 1)
        suites = hello.vector(2)
        rest = body[hello.at :]
        hello.vector(1)
        listed = _Reader(hello.vector(2) if hello else b"")
        extensions: dict[int, bytes] = {}
        while listed:
            extensions.setdefault(listed.number(2), listed.vector(2))
    except _Short:
        raise _Malformed("the ClientHello has less in it than it says") from None
    # ssl answers a name that is no ASCII with a traceback on standard error; 5 bytes are lengths.
    if not extensions.get(_SERVER_NAME, b"")[5:].isascii():
        raise _Malformed("the name is not ASCII")
    suites = b"\x13\x01" * (len(suites) // 2) + suites[: len(suites) % 2]
    body = _TLS_1_2 + same + _with_length(suites, 2) + rest
    message = b"\x01" + _with_length(body, 3)
    parts = (message[at : at + _RECORD] for at in range(0, len(message), _RECORD))
    return b"".join(b"\x16\x03\x01" + _with_length(part, 2) for part in parts), extensions


def _with_length(data: bytes, width: int) -> bytes:
    return len(data).to_bytes(width, "big") + data


def _protocols(extensions: dict[int, bytes]) -> tuple[str, ...]:
    """RFC 7301. OpenSSL has judged the list before it told the name."""
    try:
        names = _Reader(_Reader(extensions.get(_ALPN, b"\0\0")).vector(2))
        found = []
        while names:
            found.append(names.vector(1).decode("ascii", "backslashreplace"))
        return tuple(found)
    except _Short:
        raise _Malformed("the list of application protocols is cut off") from None


# -- OpenSSL -----------------------------------------------------------------------------------


class _Look(ssl.SSLObject):
    """The server's side of a handshake that ends at the name."""

    asked = False
    name: str | None = None


@functools.cache
def _context() -> ssl.SSLContext:
    """One for all: it changes no more, and OpenSSL's contexts are shared between threads."""

    def on_name(look: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int:
        assert isinstance(look, _Look)
        look.asked, look.name = True, name
        return int(ssl.ALERT_DESCRIPTION_ACCESS_DENIED)  # it ends here

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Unlike TLSVersion.TLSv1 this is no deprecated value, whose use would be warned of.
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL 3: above level 0 there is no TLS 1.0 and 1.1
    context.sslobject_class = _Look
    context.sni_callback = on_name
    return context


def _ask_openssl(hello: bytes) -> str | None:
    """The name in a whole hello; None if there is none."""
    incoming = ssl.MemoryBIO()
    incoming.write(hello)
    look = _context().wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    assert isinstance(look, _Look)
    reason = "OpenSSL waits for more than the ClientHello"
    try:
        look.do_handshake()
    except ssl.SSLError as why:
        reason = f"OpenSSL: {why.reason or why}"
    if not look.asked:
        raise _Malformed(reason)
    return look.name
