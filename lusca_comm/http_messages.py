"""Requests and responses as Python sees them: one bytes object each, whose parts are looked up when
they are asked for. What they are cut out of is the C framer's verdict; nothing is parsed again."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ._shim import ffi, lib
from .address import Address
from .engines import name_of
from .errors import CommError
from .http_wire import (
    ABSENT,
    FLAGS,
    INT,
    LENGTH,
    SPAN,
    STATUS,
    address_at,
    packed,
    packed_answer,
)

if TYPE_CHECKING:
    from .http import HttpService

__all__ = ["Request", "Response"]

STATES = {
    lib.LC_HTTP_REQUEST: "request",
    lib.LC_HTTP_REFUSED: "refused",
    lib.LC_HTTP_OTHER: "other",
    lib.LC_HTTP_H2: "h2",
    lib.LC_HTTP_SILENT: "silent",
    lib.LC_HTTP_FAILED: "failed",
    lib.LC_HTTP_RESPONSE: "response",
}
RESPONSE = lib.LC_HTTP_RESPONSE
_TAILS = 1024  # answers kept
_FAILED = ("", "connect", "response", "time")
_FORMS = ("", "origin", "absolute", "authority", "asterisk")


class _Message:
    """A head, and the way to answer."""

    __slots__ = ("_answered", "_raw", "_service", "data")

    def __init__(self, service: HttpService, raw: bytes) -> None:
        self._service = service
        self._raw = raw
        self._answered = False

    @property
    def id(self) -> int:
        """Of the session."""
        return int(LENGTH(self._raw, 0)[0])

    @property
    def answered(self) -> bool:
        return self._answered

    @property
    def head(self) -> bytes:
        """As it came, blank line included; where it is no request: all that came."""
        at = self._service._head_at
        return self._raw[at : at + FLAGS(self._raw, 32)[1]]

    def _start(self, i: int) -> bytes:
        at, size = SPAN(self._raw, 48 + 8 * i)
        at += self._service._head_at
        return self._raw[at : at + size]

    def field(self, name: str) -> bytes | None:
        """The first value of a field, without the space around it; None: there is none."""
        i = self._service._names.get(name)
        if i is None:
            i = self._service._names.get(name.lower())
        if i is None:
            values = self.fields(name)
            return values[0] if values else None
        at, size = SPAN(self._raw, 144 + 8 * i)
        if at == ABSENT:
            return None
        at += self._service._head_at
        return self._raw[at : at + size]

    def fields(self, name: str) -> list[bytes]:
        """All values of a field, in their order."""
        bytes_ = self.head
        head = ffi.new("struct lc_head *")
        held = ffi.from_buffer("uint8_t[]", bytes_)
        about = lib.LC_HEAD_ANY_HOST  # it was judged whole already
        lib.lc_frame_head(self._framer(), held, len(bytes_), self._limits(), about, head)
        if head.state != lib.LC_HEAD_WHOLE:
            return []
        wanted = name.encode("ascii")
        spans = ffi.new("struct lc_span[]", head.fields)
        count = lib.lc_head_find(held, head, wanted, len(wanted), spans, head.fields)
        return [bytes_[s.at : s.at + s.size] for s in spans[0:count]]

    def _framer(self) -> int:
        return int(lib.LC_FRAMER_HTTP_REQUEST)

    def _limits(self) -> Any:
        return ffi.addressof(self._service._how, "limits")

    @property
    def peer(self) -> Address | None:
        """The client."""
        return address_at(self._raw, 80)

    @property
    def original(self) -> Address | None:
        """Where the client was going; None: to this proxy."""
        return address_at(self._raw, 108)

    @property
    def engine(self) -> str:
        """Who told where it was going."""
        row = INT(self._raw, 28)[0]
        return "" if row < 0 else name_of(row)

    @property
    def length(self) -> int | None:
        """Bytes of the body; None: there is none; -1: it is chunked, or goes on until the end."""
        body = self._raw[22]
        if body == lib.LC_BODY_NONE:
            return None
        return int(LENGTH(self._raw, 40)[0]) if body == lib.LC_BODY_LENGTH else -1

    def _flag(self, flag: int) -> bool:
        return bool(FLAGS(self._raw, 32)[0] & flag)

    def _answer(self, answer: bytes) -> None:
        """Sends it on as another request of this service was: what :meth:`forward` worked out then,
        at a fraction of its cost. Which requests may go as one did, :attr:`like` tells."""
        if self._answered:
            raise CommError(errno.EALREADY, "this was answered already")
        self._answered = True
        service = self._service
        service._answers.append(self._raw[:8] + answer)
        if not service._deciding:
            service._soon()

    def _give_up(self, error: bytes) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.head[:60]!r}>"


class Request(_Message):
    """A request that waits to be told where it goes: :meth:`forward`, :meth:`respond`,
    :meth:`tunnel`, :meth:`take` or :meth:`deny`, once."""

    __slots__ = ("like",)

    def __init__(self, service: HttpService, raw: bytes, like: int) -> None:
        self._service = service
        self._raw = raw
        self._answered = False
        self.like = like
        """A number for all that a verdict may depend on. Two requests of a loop's services that
        have the same, and not 0, differ at most in what follows the first byte of the path, in
        fields that the service did not name, in the client's port, the body's length and the
        session: one that looks at nothing else may answer the second as the first
        (:meth:`again`). A number is never used for anything else; where there are very many, the
        same things may get another one. 0: it is too much (1024 bytes), or the state is another
        one than "request"."""

    @property
    def state(self) -> str:
        """ "request": a whole head. "refused": it deserves :attr:`status`, and nothing more of this
        connection is read. "other": another protocol. "h2": HTTP/2 with prior knowledge. "silent":
        nothing came within the time for a head. "failed": it was forwarded, or tunnelled, in
        vain (:attr:`failed`, :attr:`errno`)."""
        return STATES[self._raw[14]]

    @property
    def status(self) -> int:
        """Of the response that a state other than "request" deserves; else 0."""
        return int(STATUS(self._raw, 16)[0])

    @property
    def why(self) -> str:
        """What the judge did not like."""
        return str(ffi.string(lib.lc_bad_text(STATUS(self._raw, 16)[1])), "ascii")

    @property
    def failed(self) -> str:
        """ "connect": the upstream was not reached. "response": it went away, or answered with what
        is no HTTP. "time": it took too long. Else ""."""
        return _FAILED[self._raw[15]]

    @property
    def errno(self) -> int:
        """Of a failure, else 0."""
        return int(INT(self._raw, 24)[0])

    @property
    def method(self) -> bytes:
        return self._start(0)

    @property
    def target(self) -> bytes:
        return self._start(1)

    @property
    def version(self) -> bytes:
        return self._start(2)

    @property
    def form(self) -> str:
        """Of the target: "origin", "absolute", "authority" or "asterisk"."""
        return _FORMS[self._raw[23]]

    @property
    def authority(self) -> bytes:
        """Within an absolute or an authority form; else b""."""
        at, size = SPAN(self._raw, 72)
        at += self._service._head_at
        return self._raw[at : at + size]

    @property
    def expect(self) -> bool:
        """The client waits for 100 (Continue)."""
        return self._flag(lib.LC_HEAD_EXPECT)

    @property
    def upgrade(self) -> bool:
        """It asks for another protocol."""
        return self._flag(lib.LC_HEAD_UPGRADE)

    @property
    def keep_alive(self) -> bool:
        """The client goes on with this connection."""
        return self._flag(lib.LC_HEAD_KEEP)

    @property
    def connect(self) -> bool:
        return self._flag(lib.LC_HEAD_CONNECT)

    def forward(
        self,
        to: Address | None = None,
        *,
        source: Address | None = None,
        spoof: bool = False,
        mark: int | None = None,
        start: bytes | None = None,
        drop: Iterable[str] = (),
        append: bytes = b"",
        origin_form: bool = False,
        keep_upgrade: bool = False,
        retry: bool = True,
        on_response: bool = False,
    ) -> bytes:
        """Sends it on, its head written anew, over a connection that was used before or a new one,
        and the response back. Where that fails before a byte of the response was passed on, the
        request comes again, in state "failed".

        :param to: None: the original destination.
        :param source: connects from there; its port counts for nothing where `spoof` is set.
        :param spoof: in the client's name, or that of `source`.
        :param mark: SO_MARK of the connection; None: the listener's.
        :param start: a start line, CRLF included, in the place of the one that came.
        :param drop: names of fields that do not go along. Those of this hop never do.
        :param append: field lines that do, CRLFs included. An intercepted request may have come
            without Host, which HTTP/1.1 needs: then it is to be among them.
        :param origin_form: a target with a scheme goes without it: ``http://name/a`` as ``/a``.
        :param keep_upgrade: a switch of protocols may follow: then both sides are relayed.
        :param retry: a used connection that was closed meanwhile is replaced by a new one, once,
            if the request has no body and is idempotent.
        :param on_response: ``decide_response`` is asked about the head of the response.
        :returns: what :meth:`again` takes.
        """
        service = self._service
        key = (
            to, source, spoof, mark, start, drop, append, origin_form, keep_upgrade, retry,
            on_response,
        )  # fmt: skip
        try:
            tail = service._tails.get(key)
        except TypeError:  # a list
            tail = key = None  # type: ignore[assignment]
        if tail is None:
            flags = (
                (lib.LC_HTTP_SPOOF if spoof else 0)
                | (lib.LC_HTTP_RETRY if retry else 0)
                | (lib.LC_HTTP_ORIGIN_FORM if origin_form else 0)
                | (lib.LC_HTTP_UPGRADE if keep_upgrade else 0)
                | (lib.LC_HTTP_ON_RESPONSE if on_response else 0)
            )
            names = ",".join(drop).encode("ascii")
            tail = packed_answer(
                lib.LC_HTTP_FORWARD,
                flags,
                mark,
                start or b"",
                names,
                append,
                packed(to),
                packed(source),
            )
            if key is not None:
                if len(service._tails) >= _TAILS:
                    service._tails.clear()
                service._tails[key] = tail
        self._answer(tail)
        return tail

    again = _Message._answer

    def respond(self, response: bytes, *, close: bool = False) -> None:
        """Answers with a whole response, which the caller framed.

        :param close: it is the last one of this connection. It is, too, where the request has a
            body that is still coming, or where the state is not "request".
        """
        flags = lib.LC_HTTP_CLOSE if close else 0
        self._answer(packed_answer(lib.LC_HTTP_RESPOND, flags, append=response))

    def tunnel(
        self,
        to: Address | None = None,
        *,
        source: Address | None = None,
        spoof: bool = False,
        mark: int | None = None,
        reply: bytes = b"",
    ) -> None:
        """Connects and relays: what CONNECT asks for, and what is no HTTP. Everything that was
        read goes along, but for a CONNECT's head.

        :param reply: what the client gets once there is a connection.
        """
        flags = lib.LC_HTTP_SPOOF if spoof else 0
        self._answer(
            packed_answer(
                lib.LC_HTTP_TUNNEL,
                flags,
                mark,
                append=reply,
                to=packed(to),
                source=packed(source),
            )
        )

    def take(self) -> tuple[socket.socket, bytes]:
        """The connection is the caller's, and so is what was read of it.

        :raises CommError: ESRCH: the client is gone.
        """
        if self._answered:
            raise CommError(errno.EALREADY, "this was answered already")
        taken = self._service._take(self.id)
        self._answered = True
        return taken

    def deny(self) -> None:
        """Resets the connection."""
        self._answer(_DENY)

    def _give_up(self, error: bytes) -> None:
        if self._raw[14] in (lib.LC_HTTP_OTHER, lib.LC_HTTP_H2, lib.LC_HTTP_SILENT):
            self.deny()
        else:
            self.respond(error, close=True)


_DENY = packed_answer(lib.LC_HTTP_DENY)


class Response(_Message):
    """The head of a response, to a request that was forwarded with ``on_response``. Its body
    waits."""

    __slots__ = ()

    @property
    def status(self) -> int:
        return int(STATUS(self._raw, 16)[0])

    def _framer(self) -> int:
        return int(lib.LC_FRAMER_HTTP_RESPONSE)

    def forward(
        self, *, start: bytes | None = None, drop: Iterable[str] = (), append: bytes = b""
    ) -> None:
        """Passes it on, body and all.

        :param start: a status line, CRLF included, in the place of the one that came.
        :param drop: names of fields that do not go along.
        :param append: field lines that do, CRLFs included.
        """
        names = ",".join(drop).encode("ascii")
        self._answer(packed_answer(lib.LC_HTTP_FORWARD, 0, None, start or b"", names, append))

    def replace(self, response: bytes, *, close: bool = False) -> None:
        """The client gets a whole response of the caller's; the upstream is closed."""
        self._answer(
            packed_answer(lib.LC_HTTP_RESPOND, lib.LC_HTTP_CLOSE if close else 0, append=response)
        )

    def deny(self) -> None:
        """Resets both connections."""
        self._answer(_DENY)

    def _give_up(self, error: bytes) -> None:
        self.replace(error, close=True)
