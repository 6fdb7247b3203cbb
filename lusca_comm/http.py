"""HTTP sessions in the data plane: Python sees the head of every request, and no other byte.

A session is a client's connection with one exchange after the other on it. The plane frames each
message (one judge, csrc/framer*.c), asks what to do with a request, writes its head anew, keeps
connections to upstreams, and moves the bodies. ``decide`` is called with every request that waits,
and the answers go back in one call.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import engines, intercept
from ._shim import ffi, lib
from .address import Address, descriptor, to_shim
from .constants import COMM_REUSEADDR, COMM_SELECT_READ
from .errors import CommError
from .handover import check, lent, milliseconds
from .http_exchange import Exchange
from .http_messages import RESPONSE, Request, Response
from .http_wire import FIRST, QUESTION, described
from .intercept_relay import InterceptRelays
from .policy import Rule, table
from .reactor.timers import seconds_of
from .sockets import socket_of
from .spoof import set_mark

if TYPE_CHECKING:
    from .plane import Plane

__all__ = ["Exchange", "HttpLimits", "HttpService", "HttpServices", "Request", "Response"]

_ROOM = 1 << 20  # bytes of questions that are fetched at once
_LARGEST = 300 * 1024  # no question has more
_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class HttpLimits(NamedTuple):
    """What a service puts up with. Bytes, seconds."""

    line: int = 16384
    """Of a line of a head. A start line beyond it deserves 414, a field 431."""
    head: int = 65536
    """Of a head (431), at most 262144; and of a chunked body's trailers."""
    fields: int = 256
    """Their number in a head (431)."""
    body: int | None = None
    """Of a request's body (413); None: no limit."""
    head_time: float = 30.0
    """For a whole head (408), and for a connection's first byte (state "silent")."""
    idle_time: float = 60.0
    """Between two requests; then the connection is closed."""
    body_time: float = 60.0
    """Without a byte of a body."""
    connect_time: float = 30.0
    response_time: float = 120.0
    """From the last byte of a request to the first of its response."""
    tunnel_time: float = 3600.0
    """Without a byte of a tunnel."""
    pool_idle: float = 30.0
    """That an upstream without a client is kept."""
    pool_size: int = 1024
    """Upstreams without a client that are kept."""


def _how(
    limits: HttpLimits, fields: Sequence[str], append: bytes, exchanges: bool
) -> tuple[Any, list[Any]]:
    """``struct lc_http_how``, and what has to live as long as it."""
    how = ffi.new("struct lc_http_how *")
    how.limits.line, how.limits.head, how.limits.fields = limits[:3]
    how.body = (1 << 64) - 1 if limits.body is None else limits.body
    for name in (
        "head_time",
        "idle_time",
        "body_time",
        "connect_time",
        "response_time",
        "tunnel_time",
        "pool_idle",
    ):
        seconds = seconds_of(getattr(limits, name), name)
        if seconds <= 0:
            raise CommError(errno.EINVAL, f"{name} is {seconds}: seconds, more than 0")
        setattr(how, name, milliseconds(seconds))
    how.pool_size = limits.pool_size
    try:
        how.spoofer = engines.spoofer("spoof")
    except CommError:
        how.spoofer = -1
    how.exchanges = exchanges
    if any(len(name) > 255 for name in fields):
        raise CommError(errno.EINVAL, "the name of a field has 255 bytes at most")
    names = b"".join(b"%c%s" % (len(name), name.encode("ascii")) for name in fields)
    held = [ffi.from_buffer("char[]", names), ffi.from_buffer("uint8_t[]", append)]
    how.fields, how.names, how.field = len(fields), len(names), held[0]
    how.append, how.append_size = held[1], len(append)
    return how, held


class _Listener:
    """One listening socket of a service."""

    on_done = None  # of the relays that its policy began

    def __init__(
        self,
        service: HttpService,
        engine: str | None,
        on_refused: Callable[[CommError], object] | None,
    ) -> None:
        self._service = service
        self._engine = engine
        self._on_refused = on_refused
        self.number = -1

    def _refusal(self, done: Any) -> CommError:
        return intercept.refusal(done.err, self._engine, done.peer, done.original)

    def _refused(self, why: CommError) -> None:
        if self._on_refused is not None:
            self._on_refused(why)

    def _closed(self) -> None:
        if self in self._service._listeners:
            self._service._listeners.remove(self)


class HttpService:
    """What is done with the requests of some listeners."""

    def __init__(
        self,
        plane: Plane,
        decide: Callable[[list[Request]], object],
        *,
        fields: Sequence[str] = ("host",),
        limits: HttpLimits | None = None,
        append_response: bytes = b"Via: 1.1 lusca_comm\r\n",
        on_exchange: Callable[[list[Exchange]], object] | None = None,
        decide_response: Callable[[list[Response]], object] | None = None,
        defer: Callable[[Callable[[], object]], object] | None = None,
        adopt: Callable[[int], socket.socket] = socket_of,
        claim: Callable[[Any, bool], Any] | None = None,
    ) -> None:
        for fn in (decide, on_exchange, decide_response):
            if fn is not None and not callable(fn):
                raise TypeError(f"{fn!r} is not callable")
        self._plane = plane
        self._user_decide = decide
        self._user_decide_response = decide_response
        self._on_exchange = on_exchange
        self._defer = defer
        self._adopt = adopt
        self._claim = claim
        self._answers: list[bytes] = []
        self._tails: dict[Any, bytes] = {}
        self._deciding = False
        self._listeners: list[_Listener] = []
        fields = tuple(dict.fromkeys(name.lower() for name in fields))
        self._names = {name: i for i, name in enumerate(fields)}
        self._head_at = described(len(fields))
        self._limits = limits or HttpLimits()
        how, held = _how(self._limits, fields, append_response, on_exchange is not None)
        self._how = how
        self._spoofer: int = how.spoofer
        shim = plane._open()
        with plane._lock:
            what = "an HTTP service (a head of 262144 bytes at most; append_response: field lines)"
            self._number = check(lib.lc_http_service(shim, how), what)
            plane._services.append(self)
            plane._fetch_http = fetch
            plane._exchanges |= on_exchange is not None
        del held

    # -- connections ---------------------------------------------------------------------------

    def listen(
        self,
        lsock: Any,
        *,
        engine: str | None = None,
        intercepted: bool = True,
        mark: int | None = None,
        policy: Sequence[Rule | tuple[Any, ...]] = (),
        on_refused: Callable[[CommError], object] | None = None,
    ) -> None:
        """Has the plane accept from a listening socket, which stays the caller's, and open; but
        nobody else may accept from it.

        :param engine: that tells original destinations; None: found out per connection.
        :param intercepted: connections were meant for somebody else. One that was not intercepted,
            or that would be a loop, is reset. False: clients know this proxy, and
            ``request.original`` is None.
        :param mark: SO_MARK of the connections to upstreams, where an answer names none.
        :param policy: :class:`Rule` rows, as those of ``intercept_relay``; what none matches, and
            what one asks about, is HTTP.
        :param on_refused: ``on_refused(CommError)`` for every connection that was reset because
            nothing intercepted it, or because serving it would be a loop (ELOOP).
        """
        rules, count = table(policy, "ask")
        how = ffi.new("struct lc_listen *")
        how.engine = engines.asked(engine)[0] if intercepted else -1
        how.direct = not intercepted
        how.spoofer = self._spoofer
        how.flags = COMM_REUSEADDR
        how.service = self._number + 1
        set_mark(how, mark)
        how.report = lib.LC_REPORT_NONE
        how.refusals = on_refused is not None
        how.idle = how.total = -1
        how.timeout = milliseconds(self._limits.connect_time)
        if self._claim is not None:
            lsock = self._claim(lsock, True)
        listener = _Listener(self, engine, on_refused)
        fd = os.dup(descriptor(lsock))
        os.set_blocking(fd, False)
        try:
            listener.number = self._plane.listen(listener, fd, how, rules, count)
            self._listeners.append(listener)
        except BaseException:
            os.close(fd)
            raise

    def serve(self, sock: Any, *, original: Address | None = None, prefix: bytes = b"") -> None:
        """Takes over a connection that was accepted elsewhere.

        :param original: where it was going.
        :param prefix: what was read of it already.
        """
        if self._claim is not None:
            sock = self._claim(sock, False)
        there = ffi.new("struct lc_addr *") if original is None else to_shim(original)
        held = ffi.from_buffer("uint8_t[]", prefix)
        with lent(sock) as (fd,):
            plane = self._plane._open()
            check(lib.lc_http_serve(plane, self._number, fd, there, held, len(prefix)))

    def close(self) -> None:
        """Takes no connections any more. Sessions under way go on; the listening sockets are their
        owner's to close."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            check(lib.lc_plane_unlisten(self._plane._open(), listener.number))

    # -- questions and answers -----------------------------------------------------------------

    def _decide(self, requests: list[Request]) -> None:
        self._ask(self._user_decide, requests)

    def _decide_responses(self, responses: list[Response]) -> None:
        def pass_on(waiting: list[Response]) -> None:
            for response in waiting:
                response.forward()

        self._ask(self._user_decide_response or pass_on, responses)

    def _ask(self, decide: Callable[[list[Any]], object], waiting: list[Any]) -> None:
        """If `decide` raises, those not answered get a 500."""
        self._deciding = True
        try:
            decide(waiting)
        except BaseException:
            for message in waiting:
                if not message.answered:
                    message._give_up(_ERROR)
            raise
        finally:
            self._deciding = False
            self._send()

    def _soon(self) -> None:
        if self._defer is None:
            self._send()
        elif len(self._answers) == 1:
            self._defer(self._send)

    def _send(self) -> None:
        answers, self._answers = self._answers, []
        if not answers:
            return
        packed = b"".join(answers)
        held = ffi.from_buffer("uint8_t[]", packed)
        code = lib.lc_http_answer(self._plane._open(), held, len(packed))
        if code != -errno.ESHUTDOWN:  # then there is nobody to be answered
            check(code)

    def _take(self, id: int) -> tuple[socket.socket, bytes]:
        out, size = ffi.new("uint8_t[]", _LARGEST), ffi.new("size_t *")
        call = lib.lc_http_take(self._plane._open(), id, out, _LARGEST, size)
        fd = check(call, "this connection is gone")
        return self._adopt(fd), ffi.buffer(out, size[0])[:]


def _fetched(plane: Plane, call: Any) -> tuple[Any, int]:
    """What `call` has for us, and how much. Under the plane's lock: the next one writes over it."""
    if plane._http_out is None:
        plane._http_out = ffi.new("uint8_t[]", _ROOM)
    n = check(call(plane._plane, plane._http_out, _ROOM))
    return ffi.buffer(plane._http_out, n), n


def fetch(plane: Plane) -> Iterator[tuple[Callable[..., object], tuple[Any, ...]]]:
    """What to call, and with what, for the questions and the exchanges that there are."""
    services: list[HttpService] = plane._services
    question = QUESTION.unpack_from
    n = _ROOM
    while n > _ROOM - _LARGEST:
        asked: dict[HttpService, list[Request]] = {}
        answered: dict[HttpService, list[Response]] = {}
        last, at = -1, 0
        with plane._lock:
            batch, n = _fetched(plane, lib.lc_http_fetch)
            while at < n:
                size, number, state, like = question(batch, at)
                if number != last:
                    last, service = number, services[number]
                    requests = asked.setdefault(service, [])
                raw = batch[at : at + size]
                at += size
                if state != RESPONSE:
                    requests.append(Request(service, raw, like))
                else:
                    answered.setdefault(service, []).append(Response(service, raw))
        for service, requests in asked.items():
            yield service._decide, (requests,)
        for service, responses in answered.items():
            yield service._decide_responses, (responses,)
    if plane._exchanges:
        yield from _exchanges(plane, services)


def _exchanges(
    plane: Plane, services: list[HttpService]
) -> Iterator[tuple[Callable[..., object], tuple[Any, ...]]]:
    n = _ROOM
    while n > _ROOM - _LARGEST:
        ended: dict[HttpService, list[Exchange]] = {}
        at = 0
        with plane._lock:
            batch, n = _fetched(plane, lib.lc_http_exchanges)
            while at < n:
                size, number, _ = FIRST.unpack_from(batch, at)
                ended.setdefault(services[number], []).append(Exchange(batch[at : at + size]))
                at += size
        for service, exchanges in ended.items():
            if service._on_exchange is not None:
                yield service._on_exchange, (exchanges,)


class HttpServices(InterceptRelays):
    """A loop whose data plane speaks HTTP."""

    def http_service(
        self,
        decide: Callable[[list[Request]], object],
        *,
        fields: Sequence[str] = ("host",),
        limits: HttpLimits | None = None,
        append_response: bytes = b"Via: 1.1 lusca_comm\r\n",
        on_exchange: Callable[[list[Exchange]], object] | None = None,
        decide_response: Callable[[list[Response]], object] | None = None,
    ) -> HttpService:
        """Something that serves HTTP: :meth:`HttpService.listen` gives it connections.

        :param decide: ``decide(requests)``: called with every :class:`Request` that waits; what is
            answered in it goes back in one call. Each is answered once, in it or later: until
            then its client waits. If it raises, those not answered get a 500.
        :param fields: names whose first values :meth:`Request.field` has at once.
        :param append_response: field lines, CRLFs included, for each response.
        :param on_exchange: ``on_exchange(exchanges)`` for what has ended; None: they cost nothing.
        :param decide_response: ``decide_response(responses)``, for requests that were forwarded
            with `on_response`.
        :raises CommError: EINVAL a limit, a name in `fields`, or `append_response`; ENOSPC: a plane
            has 64 services.
        """
        service = HttpService(
            self.plane,
            decide,
            fields=fields,
            limits=limits,
            append_response=append_response,
            on_exchange=on_exchange,
            decide_response=decide_response,
            defer=lambda fn: self._ready.append((fn, ())),
            adopt=self._adopt_fd,
            claim=self._claim_for_http,
        )
        self._watch_plane()
        return service

    def _claim_for_http(self, sock: Any, listens: bool) -> Any:
        """The loop looks at this socket no more."""
        if listens:
            entry = self._entry(sock)
            self._arm(entry, COMM_SELECT_READ, None)
            return entry.sock
        return self.comm_detach(sock)
