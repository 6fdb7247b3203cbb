"""A data plane: relays that run in a C thread, which never waits for Python (csrc/plane*.c).

A :class:`Plane` takes sockets and tells of ends; one descriptor becomes readable when there is
something to fetch. So it serves a reactor, an asyncio loop (``loop.add_reader(plane.fileno(),
plane.run_completions)``) and plain threads alike.
"""

from __future__ import annotations

import errno
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._shim import ffi, lib
from .address import Address
from .handover import check, check_arguments, connect_request, fill_pair, lent, milliseconds
from .relayed import ENDS, SIDES, Relay, RelayResult, Totals
from .sockets import socket_of

__all__ = ["Plane"]

_BATCH = 64


class Plane:
    """One thread of relays. It begins with the first call that needs it, so after privileges were
    dropped, and with the capabilities of the thread that calls.

    Every method may be called from any thread. A forked child has to make its own.
    """

    _over = False  # it is being collected
    _free = staticmethod(lib.lc_plane_free)  # globals may be gone as the interpreter ends

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plane: Any = None
        self._relays: list[Relay | None] = []  # by slot
        self._listeners: list[Any] = []  # by number
        self._services: list[Any] = []  # of HTTP, by number
        self._fetch_http: Any = None  # http.fetch, once there is one
        self._exchanges = False  # one of them wants to be told of these
        self._http_out: Any = None
        self._done: Any = None
        self._counts = ffi.new("uint64_t[2]")
        self.on_drained: Callable[[], object] | None = None
        """Called by :meth:`run_completions` once a drained plane has nothing left."""

    def _open(self) -> Any:
        if self._plane is None:
            with self._lock:
                if self._plane is None:
                    if self._over:
                        check(-errno.ESRCH)
                    out = ffi.new("struct lc_plane **")
                    check(lib.lc_plane_open(out), "no thread for the data plane")
                    self._plane = out[0]
        return self._plane

    @property
    def started(self) -> bool:
        return self._plane is not None

    def fileno(self) -> int:
        """Readable while there are completions to fetch (:meth:`run_completions`)."""
        return check(lib.lc_plane_fd(self._open()))

    # -- relays --------------------------------------------------------------------------------

    def relay(
        self,
        client: Any,
        upstream: Any,
        on_done: Callable[[RelayResult], object],
        *,
        prefix: bytes = b"",
        limit_up: int | None = None,
        limit_down: int | None = None,
        idle: float | None = None,
        total: float | None = None,
        data: Any = None,
    ) -> Relay:
        """As :func:`lusca_comm.relay`, with no reactor: both sockets are detached, so that the
        plane owns them; ``on_done`` is called by :meth:`run_completions`."""
        limits, times = (limit_up, limit_down), (idle, total)
        first = check_arguments(on_done, prefix, limits, times)
        pair = ffi.new("struct lc_pair *")
        relay = Relay(self, on_done, data)
        held = fill_pair(pair, first, limits, times)
        with lent(client, upstream) as fds:
            pair.client, pair.upstream = fds
            self.submit(pair, [relay])
        del held
        return relay

    def connect_relay(
        self,
        client: Any,
        address: Address,
        on_done: Callable[[RelayResult], object],
        *,
        source: Address | None = None,
        flags: int = 0,
        mark: int | None = None,
        timeout: float | None = None,
        prefix: bytes = b"",
        limit_up: int | None = None,
        limit_down: int | None = None,
        idle: float | None = None,
        total: float | None = None,
        data: Any = None,
    ) -> Relay:
        """As :meth:`Reactor.connect_relay`, with no reactor."""
        limits, times = (limit_up, limit_down), (idle, total)
        first = check_arguments(on_done, prefix, limits, (*times, timeout))
        request, there = connect_request(source, address, flags, mark)
        pair = ffi.new("struct lc_pair *")
        pair.upstream = -1
        pair.open, pair.to, pair.timeout = request, there, milliseconds(timeout)
        relay = Relay(self, on_done, data)
        held = fill_pair(pair, first, limits, times)
        with lent(client) as (pair.client,):
            self.submit(pair, [relay])
        del held
        return relay

    def framed_read(
        self, sock: Any, framer: str, callback: Callable[[Any], object], **options: Any
    ) -> Any:
        """As :meth:`Reactor.framed_read`, with no reactor."""
        from .framed import Framed

        framed = Framed(self, framer, callback, **options)
        with lent(sock) as (fd,):
            framed._submit(self, fd)
        return framed

    def submit(self, pairs: Any, relays: Sequence[Relay]) -> None:
        """Hands ``struct lc_pair`` over, one for each of `relays`; all or none."""
        plane = self._open()
        with self._lock:
            check(lib.lc_plane_submit(plane, pairs, len(relays)))
            for i, relay in enumerate(relays):
                relay._id = pairs[i].id
                relay._plane = self
                self._put(relay)

    def answer(self, answers: Any, relays: Sequence[Relay]) -> None:
        """Answers questions (``struct lc_answer``) that go on as `relays`."""
        plane = self._open()
        with self._lock:
            check(lib.lc_plane_answer(plane, answers, len(relays)))
            for i, relay in enumerate(relays):
                relay._id = answers[i].id
                relay._plane = self
                self._put(relay)

    def _put(self, relay: Relay) -> None:
        slot = relay._id & 0xFFFFFFFF
        table = self._relays
        if slot >= len(table):
            table.extend([None] * (slot + 1 - len(table)))
        table[slot] = relay

    def counts(self, id: int) -> tuple[int, int]:
        """Bytes up and down of a relay under way; (0, 0) of any other."""
        out = self._counts
        if self._plane is None or lib.lc_plane_counts(self._plane, id, out, out + 1) < 0:
            return 0, 0
        return out[0], out[1]

    def kill_id(self, id: int) -> None:
        if self._plane is None:
            return
        check(lib.lc_plane_kill(self._plane, id))

    def find(self, fd: int) -> Relay | None:
        """The relay that owns the descriptor `fd`."""
        if self._plane is None:
            return None
        id = ffi.new("uint64_t *")
        if not lib.lc_plane_find(self._plane, fd, id):
            return None
        slot = id[0] & 0xFFFFFFFF
        relay = self._relays[slot] if slot < len(self._relays) else None
        return relay if relay is not None and relay._id == id[0] else None

    def listen(self, listener: Any, fd: int, how: Any, rules: Any, count: int) -> int:
        """Gives the listening descriptor `fd` to the plane; the listener's number."""
        plane = self._open()
        with self._lock:
            number = check(lib.lc_plane_listen(plane, fd, how, rules, count))
            self._listeners.extend([None] * (number + 1 - len(self._listeners)))
            self._listeners[number] = listener
        return number

    # -- HTTP: http.py -------------------------------------------------------------------------

    def http_service(self, decide: Callable[[list[Any]], object], **options: Any) -> Any:
        """As :meth:`Reactor.http_service`, with no reactor: what waits is called by
        :meth:`run_completions`; answers are given in the thread that calls that. Those given
        outside of it go back at once, or, with `defer`, when ``defer(fn)`` has `fn` called."""
        from .http import HttpService

        return HttpService(self, decide, **options)

    # -- completions ---------------------------------------------------------------------------

    def fetch(self) -> Iterator[tuple[Callable[..., object], tuple[Any, ...]]]:
        """What to call, and with what, for every completion there is."""
        if self._plane is None:
            return
        if self._done is None:
            self._done = ffi.new("struct lc_done[]", _BATCH)
        table, n = self._relays, _BATCH
        while n == _BATCH:
            found: list[tuple[Relay, RelayResult]] = []
            questions: dict[Any, list[Any]] = {}
            refused: list[tuple[Any, Any]] = []
            closed: list[Any] = []
            drained = False
            with self._lock:
                n = check(lib.lc_plane_reap(self._plane, self._done, _BATCH))
                for i in range(n):
                    done = self._done[i]
                    what = done.what
                    if what in ENDS:
                        slot = done.id & 0xFFFFFFFF
                        relay = table[slot] if slot < len(table) else None
                        if relay is None or relay._id != done.id:
                            relay = self._of_listener(done)
                        else:
                            table[slot] = None
                        if relay is not None:
                            found.append((relay, self._result(relay, done, what)))
                    elif what == lib.LC_DRAINED:
                        drained = True
                    else:
                        listener = self._listeners[done.listener]
                        if what == lib.LC_ASKED:
                            questions.setdefault(listener, []).append(listener._question(done))
                        elif what == lib.LC_REFUSED:
                            refused.append((listener, listener._refusal(done)))
                        else:  # LC_CLOSED
                            closed.append(listener)
                            self._listeners[done.listener] = None
            for relay, result in found:
                relay._result = result
                relay._owner._ended(relay)
                yield relay._on_done, (result,)
            for listener, asked in questions.items():
                yield listener._decide, (asked,)
            for listener, refusal in refused:
                yield listener._refused, (refusal,)
            for listener in closed:
                yield listener._closed, ()
            if drained and self.on_drained is not None:
                yield self.on_drained, ()
        if self._fetch_http is not None:
            yield from self._fetch_http(self)

    def _of_listener(self, done: Any) -> Relay | None:
        if done.listener < 0:
            return None
        listener = self._listeners[done.listener]
        if listener.on_done is None:
            return None
        return Relay(listener, listener.on_done, None)

    @staticmethod
    def _result(relay: Relay, done: Any, what: int) -> RelayResult:
        client = upstream = None
        data, fds = relay._data, (done.client, done.upstream)
        if what == lib.LC_FRAMED:
            from .framed import Framed, take

            assert isinstance(relay, Framed)
            relay._framed = take(done)
        elif what == lib.LC_CONNECTED:
            data = done.trail
        if fds != (-1, -1):
            client, upstream = relay._owner._given_back(relay, fds)
        return RelayResult(
            done.up,
            done.down,
            done.seconds,
            ENDS[what],
            done.err,
            SIDES[done.side],
            client,
            upstream,
            data,
        )

    def run_completions(self, wait: float | None = 0) -> int:
        """Calls what waits to be called, and returns how much that was.

        :param wait: seconds to wait for the first one; None: without limit.
        """
        if wait != 0:
            poll = select.poll()
            poll.register(self.fileno(), select.POLLIN)
            poll.poll(None if wait is None else wait * 1000)
        count = 0
        for fn, args in self.fetch():
            count += 1
            fn(*args)
        return count

    # -- as an owner ---------------------------------------------------------------------------

    def _kill(self, relay: Relay) -> None:
        self.kill_id(relay._id)

    def _given_back(self, _relay: Relay, fds: tuple[int, int]) -> tuple[Any, Any]:
        one, two = (socket_of(fd) if fd >= 0 else None for fd in fds)
        return one, two

    def _ended(self, relay: Relay) -> None:
        pass

    # -- all of it -----------------------------------------------------------------------------

    def totals(self) -> Totals:
        if self._plane is None:
            return Totals(*[0] * len(Totals._fields))
        out = ffi.new("struct lc_totals *")
        check(lib.lc_plane_totals(self._plane, out))
        return Totals(*(getattr(out, name) for name in Totals._fields))

    def drain(self) -> None:
        """Takes nothing new, closes the listeners, lets what runs come to its end; then
        :attr:`on_drained`."""
        check(lib.lc_plane_drain(self._open()))

    def stop(self) -> None:
        """Ends every relay ("killed") and the thread. What has ended can still be fetched."""
        if self._plane is not None:
            check(lib.lc_plane_stop(self._plane))

    def close(self) -> None:
        """:meth:`stop`, and the descriptors are given back: what was not fetched is forgotten."""
        plane, self._plane = self._plane, None
        if plane is not None:
            self._free(plane)

    def __del__(self) -> None:
        # In a cycle that is collected others may still call it: what it frees they must not find,
        # and no thread may begin again. ffi.gc frees under a pointer that is still there.
        self._over = True
        self.close()
