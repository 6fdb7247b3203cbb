"""Framed reads: the data plane reads from a connection until a framer of csrc has its verdict, so
that Python is woken once for each message, and never takes one apart."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ._shim import ffi, lib
from .errors import CommError
from .fdtable import Entry
from .handover import check, check_arguments, milliseconds
from .plane import Plane
from .relay import Relays
from .relayed import Relay, RelayResult

__all__ = ["Framed", "FramedRead", "FramedReads"]

FRAMERS = {
    "http request": lib.LC_FRAMER_HTTP_REQUEST,
    "http response": lib.LC_FRAMER_HTTP_RESPONSE,
    "tls": lib.LC_FRAMER_TLS_HELLO,
    "length16": lib.LC_FRAMER_LENGTH16,
}
VERDICTS = {
    lib.LC_HEAD_WHOLE: "whole",
    lib.LC_HEAD_REFUSED: "refused",
    lib.LC_HEAD_OTHER: "other",
    lib.LC_HEAD_H2: "h2",
}
ENDS = {lib.LC_END_EOF: "eof", lib.LC_END_IDLE: "time"}


ABOUT = {"HEAD": lib.LC_HEAD_IS_HEAD, "CONNECT": lib.LC_HEAD_CONNECT}
LIMITS = (16384, 65536, 256)


class FramedRead(NamedTuple):
    """What came of a framed read."""

    verdict: str
    """"whole", "refused", "other" (another protocol), "h2" (the preface of HTTP/2); "eof", "time":
    the peer ended, or the time was over, before there was one; "reset", "error", "killed"."""
    sock: Any
    """The socket, given back; None after "reset", "error" and "killed": it is closed."""
    read: bytes
    """All that was read, the prefix included. What is behind the message may be the next one, and
    is no longer in the socket: the `prefix` of the next framed read, or, all of it, of a relay."""
    size: int
    """Bytes of the message ("whole"), the head alone of HTTP: ``read[size:]`` is behind it."""
    start: tuple[tuple[int, int], ...]
    """Where in `read`, and how many bytes: method, target and version of a request; version, code
    and reason of a response; the payload of "length16"; nothing of "tls"."""
    why: str
    """What a refusal, or another protocol, was found by."""
    status: int
    """What an HTTP refusal deserves, else 0."""
    errno: int
    data: Any
    head: Any
    """``struct lc_head`` of csrc/shim.h, or None."""

    def values(self, name: bytes) -> list[bytes]:
        """The values of the HTTP fields called `name`, in any case."""
        if self.verdict != "whole" or not self.start:
            return []
        out = ffi.new("struct lc_span[]", self.head.fields or 1)
        n = lib.lc_head_find(self.read, self.head, name, len(name), out, self.head.fields)
        return [self.read[span.at : span.at + span.size] for span in out[0:n]]


class Framed(Relay):
    """A framed read under way: :meth:`kill` ends it, and resets the connection."""

    __slots__ = ("_callback", "_framed", "_held", "_how")

    def __init__(
        self,
        owner: Any,
        framer: str,
        callback: Callable[[FramedRead], object],
        *,
        timeout: float | None = None,
        prefix: bytes = b"",
        limits: Sequence[int] = LIMITS,
        answers: str = "GET",
        data: Any = None,
    ) -> None:
        super().__init__(owner, self._tell, data)
        if framer not in FRAMERS:
            raise CommError(errno.EINVAL, f"no framer {framer!r}; there are {', '.join(FRAMERS)}")
        if not all(0 <= limit < 1 << 31 for limit in limits):
            raise CommError(errno.EINVAL, f"limits {limits!r} are out of bounds")
        self._callback = callback
        self._framed: Any = None
        first = check_arguments(callback, prefix, (None, None), (timeout,))
        self._held = ffi.from_buffer("uint8_t[]", first)
        how = self._how = ffi.new("struct lc_framing *")
        how.framer, how.about = FRAMERS[framer], ABOUT.get(answers, 0)
        how.limits.line, how.limits.head, how.limits.fields = limits
        how.timeout = milliseconds(timeout)
        how.prefix, how.prefix_size = self._held, len(first)

    def _submit(self, plane: Plane, fd: int) -> None:
        """Gives the descriptor to the plane."""
        id = ffi.new("uint64_t *")
        opened = plane._open()
        with plane._lock:
            check(lib.lc_plane_framed(opened, fd, self._how, id))
            self._id, self._plane = id[0], plane
            plane._put(self)

    def _tell(self, result: RelayResult) -> object:
        if self._framed is None:
            return self._callback(
                FramedRead(result.end, None, b"", 0, (), "", 0, result.errno, self._data, None)
            )
        end, head, read = self._framed
        http = self._how.framer <= lib.LC_FRAMER_HTTP_RESPONSE
        start = [(span.at, span.size) for span in head.start]
        parts = 3 if http else 1 if self._how.framer == lib.LC_FRAMER_LENGTH16 else 0
        whole = head.state == lib.LC_HEAD_WHOLE
        return self._callback(
            FramedRead(
                ENDS.get(end) or VERDICTS[head.state],
                result.client,
                read,
                head.size if whole else 0,
                tuple(start[:parts]) if whole else (),
                ffi.string(lib.lc_bad_text(head.why)).decode(),
                head.status if http else 0,
                0,
                self._data,
                head,
            )
        )


def take(done: Any) -> tuple[int, Any, bytes]:
    """What a completion brought: how it ended, the head, the bytes."""
    framed = done.framed
    try:
        head = ffi.new("struct lc_head *", framed.head)
        return framed.end, head, ffi.buffer(framed.bytes, framed.size)[:]
    finally:
        lib.lc_framed_free(framed)


class FramedReads(Relays):
    """A loop with framed reads."""

    def framed_read(
        self,
        sock: Any,
        framer: str,
        callback: Callable[[FramedRead], object],
        *,
        timeout: float | None = None,
        prefix: bytes = b"",
        limits: Sequence[int] = LIMITS,
        answers: str = "GET",
        data: Any = None,
    ) -> Framed:
        """Reads from `sock` in the data plane until the framer has a verdict on what came, and
        calls ``callback(FramedRead)``: with the socket, given back, and all that was read.

        The socket is taken over as by :meth:`relay`; meanwhile the object has no descriptor.

        :param framer: "http request", "http response": a head; "tls": the ClientHello, over as
            many records as it takes; "length16": a message behind two bytes of length, as DNS
            over TCP has them.
        :param timeout: seconds; then the verdict is "time", and the socket is given back, too.
        :param prefix: bytes that were read already, to be judged first.
        :param limits: bytes of a line, bytes of the whole, number of fields.
        :param answers: the method of the request that an "http response" answers.
        :raises CommError: EINVAL, EBADF, EBUSY (relayed, or read already).
        """
        framed = Framed(
            self,
            framer,
            callback,
            timeout=timeout,
            prefix=prefix,
            limits=limits,
            answers=answers,
            data=data,
        )
        entry = self._relayable(sock)
        if entry.error:
            self._broken_already(framed, (entry, entry))
        else:
            self._take_over(framed, (entry,), b"", (None, None), (None, None))
        return framed

    def _enlist(self, relay: Relay, entries: tuple[Entry, ...], *args: Any) -> None:
        if not isinstance(relay, Framed):
            super()._enlist(relay, entries, *args)
            return
        relay._kept = entries
        self._leave_table(entries[0], relay)
        try:
            self._watch_plane()
            relay._submit(self.plane, entries[0].fd)
        except CommError as why:
            pair = ffi.new("struct lc_pair *", {"client": entries[0].fd, "upstream": -1})
            self._refused(relay, pair, why.errno or errno.EIO)
