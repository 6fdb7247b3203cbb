"""A whole listener in the data plane: accept, original destination, policy, connect, relay, and
Python is woken only for what the policy leaves to it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from . import engines, intercept
from ._shim import ffi, lib
from .address import Address, descriptor, from_shim, shim_of
from .constants import COMM_REUSEADDR, COMM_TRANSPARENT_PORT
from .errors import CommError
from .framed import FramedReads
from .handover import check, milliseconds
from .plane import Plane
from .policy import Rule, table
from .reactor.timers import seconds_of
from .relayed import Relay, RelayResult
from .sockets import socket_of
from .spoof import set_mark

__all__ = ["InterceptRelay", "InterceptRelays", "Question"]


# struct lc_done: the original destination stands behind the peer
_ENDS = 2 * ffi.sizeof("struct lc_addr")


class Question:
    """A connection that the policy leaves to ``decide``. It is answered once, in ``decide`` or
    later; until then the client waits, and nothing of it has been read."""

    __slots__ = ("_ends", "_engine", "_fd", "_id", "_listener")

    def __init__(self, listener: InterceptRelay, done: Any) -> None:
        self._listener = listener
        self._id: int = done.id
        self._fd: int = done.client
        self._engine: int = done.engine
        # As they are: many a decision looks at one of them, or at none.
        self._ends: bytes = ffi.buffer(ffi.addressof(done, "peer"), _ENDS)[:]

    @property
    def peer(self) -> Address | None:
        """The client."""
        return from_shim(ffi.from_buffer("struct lc_addr *", self._ends))

    @property
    def original(self) -> Address | None:
        """Where it was going."""
        return from_shim(ffi.from_buffer("struct lc_addr[2]", self._ends)[1])

    @property
    def ends(self) -> Any:
        """Both as ``struct lc_addr[2]``, which lives as long as somebody has it."""
        return ffi.from_buffer("struct lc_addr[2]", self._ends)

    @property
    def engine(self) -> str:
        """Who told where it was going."""
        return engines.name_of(self._engine)

    @property
    def answered(self) -> bool:
        return self._fd < 0

    def relay(self, to: Address | None = None, *, spoof: bool = False) -> None:
        """Relays, to the original destination or to another address; in the client's name where
        `spoof` is set."""
        self._answer(lib.LC_SPOOF if spoof else lib.LC_RELAY, to)

    def fileno(self) -> int:
        """The descriptor, to look at; -1: it was answered."""
        return self._fd

    def give(self) -> tuple[int, int]:
        """Id and descriptor, for an answer that is sent together with others."""
        fd = self._fd
        self._used()
        return self._id, fd

    def deny(self) -> None:
        """Resets the connection."""
        self._answer(lib.LC_DENY)

    def take(self) -> socket.socket:
        """The connection is the caller's. Where a reactor asked, it is in its table.

        :raises CommError: ESRCH: the plane was stopped, and the connection with it.
        """
        fd, id = self._fd, self._id
        self._used()
        return self._listener._take(id, fd)

    def _answer(self, action: int, to: Address | None = None) -> None:
        there = None if to is None else shim_of(to)
        self._used()
        self._listener._answers.append((self._id, action, there))
        self._listener._soon()

    def _used(self) -> None:
        if self._fd < 0:
            raise CommError(errno.EALREADY, "this connection was decided already")
        self._fd = -1


class InterceptRelay:
    """A listener in a data plane."""

    def __init__(
        self,
        plane: Plane,
        lsock: Any,
        policy: Sequence[Rule | tuple[Any, ...]] | None,
        decide: Callable[[list[Question]], object] | None,
        on_done: Callable[[RelayResult], object] | None,
        on_failed: Callable[[RelayResult], object] | None,
        on_refused: Callable[[CommError], object] | None,
        engine: str | None,
        mark: int | None,
        keep_port: bool,
        connect_timeout: float | None,
        idle: float | None,
        total: float | None,
        defer: Callable[[Callable[[], object]], object] | None,
        adopt: Callable[[int], socket.socket],
    ) -> None:
        for seconds in (connect_timeout, idle, total):
            if seconds is not None and seconds_of(seconds, "a time-out") < 0:
                raise CommError(errno.EINVAL, "times are not negative")
        for fn in (decide, on_done, on_failed, on_refused):
            if fn is not None and not callable(fn):
                raise TypeError(f"{fn!r} is not callable")
        self._plane = plane
        self._user_decide = decide
        if on_done is not None and on_failed is not None:
            raise CommError(errno.EINVAL, "on_done is told of failures too: one of the two")
        self.on_done = on_done if on_done is not None else on_failed
        self._on_refused = on_refused
        self._engine = engine
        self._open = True
        self.on_closed: Callable[[], object] | None = None
        """Called once the listener is closed, and every connection that came by it has left the
        plane."""
        self._defer = defer
        self._adopt = adopt
        self._answers: list[tuple[int, int, Any]] = []
        self._deciding = False
        self._number = -1
        rules, count = self._table(policy or ())
        how = ffi.new("struct lc_listen *")
        how.engine = engines.asked(engine)[0]
        how.spoofer = self._spoofer(policy or ())
        how.flags = COMM_REUSEADDR | (COMM_TRANSPARENT_PORT if keep_port else 0)
        set_mark(how, mark)
        how.report = (
            lib.LC_REPORT_ALL
            if on_done is not None
            else lib.LC_REPORT_FAILED
            if on_failed is not None
            else lib.LC_REPORT_NONE
        )
        how.refusals = on_refused is not None
        how.timeout = milliseconds(connect_timeout)
        how.idle, how.total = milliseconds(idle), milliseconds(total)
        self._configure(how)
        fd = os.dup(descriptor(lsock))
        os.set_blocking(fd, False)
        try:
            self._number = plane.listen(self, fd, how, rules, count)
        except BaseException:
            os.close(fd)
            raise

    def _configure(self, how: Any) -> None:
        """What else the plane is to know of this listener."""

    def _table(self, policy: Sequence[Rule | tuple[Any, ...]]) -> tuple[Any, int]:
        return table(policy, "relay" if self._user_decide is None else "ask")

    def _spoofer(self, policy: Sequence[Rule | tuple[Any, ...]]) -> int:
        try:
            return engines.spoofer("spoof")
        except CommError:
            if any(rule[0] == "spoof" for rule in policy):
                raise
            return -1

    def set_policy(self, policy: Sequence[Rule | tuple[Any, ...]]) -> None:
        """Another table in the place of the one there is; the next connection sees it."""
        if not self._open:
            raise CommError(errno.EBADF, "this listener was closed")
        rules, count = self._table(policy)
        check(lib.lc_plane_policy(self._plane._open(), self._number, rules, count))

    def close(self) -> None:
        """Takes no connections any more. Relays under way go on; the listening socket is its
        owner's to close. Idempotent."""
        if self._open:
            check(lib.lc_plane_unlisten(self._plane._open(), self._number))
            self._open = False

    # -- questions and answers -----------------------------------------------------------------

    def _question(self, done: Any) -> Question:
        return Question(self, done)

    def _decide(self, questions: list[Question]) -> None:
        assert self._user_decide is not None
        self._deciding = True
        try:
            self._user_decide(questions)
        except BaseException:
            for question in questions:
                if not question.answered:
                    question.deny()
            raise
        finally:
            self._deciding = False
            self._send()

    def _soon(self) -> None:
        if self._deciding:
            return
        if self._defer is None:
            self._send()
        elif len(self._answers) == 1:
            self._defer(self._send)

    def _send(self) -> None:
        answers, self._answers = self._answers, []
        if not answers:
            return
        out = ffi.new("struct lc_answer[]", len(answers))
        for (id, action, to), answer in zip(answers, out, strict=True):
            answer.id, answer.action = id, action
            if to is not None:
                answer.to = to[0]
        check(lib.lc_plane_answer(self._plane._open(), out, len(answers)))

    def _take(self, id: int, fd: int) -> socket.socket:
        answer = ffi.new("struct lc_answer *")
        answer.id, answer.action = id, lib.LC_HAND_OVER
        if check(lib.lc_plane_answer(self._plane._open(), answer, 1)) == 0:
            raise CommError(errno.ESRCH, "this connection is gone: the plane was stopped")
        return self._adopt(fd)

    # -- what the plane tells ------------------------------------------------------------------

    def _refusal(self, done: Any) -> CommError:
        return intercept.refusal(done.err, self._engine, done.peer, done.original)

    def _refused(self, why: CommError) -> None:
        if self._on_refused is not None:
            self._on_refused(why)

    def _closed(self) -> None:
        self._open = False
        if self.on_closed is not None:
            self.on_closed()

    # -- as the owner of relays that are told of -----------------------------------------------

    def _kill(self, relay: Relay) -> None:
        self._plane.kill_id(relay._id)

    def _given_back(self, _relay: Relay, fds: tuple[int, int]) -> tuple[Any, Any]:
        one, two = (self._adopt(fd) if fd >= 0 else None for fd in fds)
        return one, two

    def _ended(self, relay: Relay) -> None:
        pass


class InterceptRelays(FramedReads):
    """A loop whose data plane takes connections by itself."""

    def intercept_relay(
        self,
        lsock: Any,
        *,
        policy: Sequence[Rule | tuple[Any, ...]] | None = None,
        decide: Callable[[list[Question]], object] | None = None,
        on_done: Callable[[RelayResult], object] | None = None,
        on_failed: Callable[[RelayResult], object] | None = None,
        on_refused: Callable[[CommError], object] | None = None,
        engine: str | None = None,
        mark: int | None = None,
        keep_port: bool = False,
        connect_timeout: float | None = 30,
        idle: float | None = None,
        total: float | None = None,
    ) -> InterceptRelay:
        """Hands a listening socket to the data plane, which accepts, finds out where each
        connection was going, and does what `policy` says, without waking Python.

        A connection that was not intercepted, or that would be a loop, is reset. So is one whose
        upstream is not reached, unless `on_done` or `on_failed` is there: it gets the client back
        in ``result.client`` (end "connect").

        :param lsock: listening (:meth:`comm_listen`). It stays the caller's, and open, but nobody
            else may accept from it.
        :param policy: :class:`Rule` rows; the first that matches the original destination counts.
            What none matches goes to `decide`, or is relayed where there is none.
        :param decide: ``decide(questions)``: called with every :class:`Question` that waits; the
            answers given in it go back in one call. If it raises, those not answered are denied.
        :param on_done: ``on_done(RelayResult)`` for every connection that was to be relayed; None:
            they are only counted (``reactor.plane.totals()``).
        :param on_failed: the same for those whose upstream was not reached, and no others: the rest
            costs Python nothing.
        :param on_refused: ``on_refused(CommError)`` for every connection that was reset because
            nothing intercepted it, or because relaying it would be a loop (ELOOP).
        :param engine: that tells original destinations; None: found out per connection.
        :param mark: SO_MARK of the outgoing sockets.
        :param keep_port: where a connection is spoofed, its port too, if it can be had.
        :param connect_timeout: seconds.
        :param idle: seconds without a byte, then a relay ends.
        :param total: seconds in all.
        :raises CommError: ENOTSUP "spoof" in the policy and no engine can; EINVAL a rule.
        """
        entry = self._entry(lsock)
        listener = InterceptRelay(
            self.plane,
            entry.sock,
            policy,
            decide,
            on_done,
            on_failed,
            on_refused,
            engine,
            mark,
            keep_port,
            connect_timeout,
            idle,
            total,
            lambda fn: self._ready.append((fn, ())),
            self._adopt_fd,
        )
        self._arm(entry, 1, None)
        self._watch_plane()
        return listener

    def _adopt_fd(self, fd: int) -> socket.socket:
        sock = socket_of(fd)
        self.table.add(sock, fd)
        return sock


def intercept_relay(plane: Plane, lsock: Any, **options: Any) -> InterceptRelay:
    """:meth:`Reactor.intercept_relay` with no reactor: `decide` and `on_done` are called by
    :meth:`Plane.run_completions`, answers given outside of them go back at once."""
    defaults: dict[str, Any] = dict.fromkeys(
        (
            "policy",
            "decide",
            "on_done",
            "on_failed",
            "on_refused",
            "engine",
            "mark",
            "idle",
            "total",
        )
    )
    defaults |= {"keep_port": False, "connect_timeout": 30}
    return InterceptRelay(plane, lsock, defer=None, adopt=socket_of, **(defaults | options))
