"""The data plane of an event loop: one, from its first user to its last.

Users are servers and relays under way. Hand-overs are collected for one turn of the loop, so that
many go into the plane by one call; completions come back through a reader of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any

from .. import intercept
from .._shim import ffi, lib
from ..errors import CommError
from ..handover import check, fill_pair
from ..plane import Plane
from ..relayed import Relay, RelayResult
from ..sockets import socket_of, stream_of

__all__ = ["LoopPlane", "drop", "reset"]

_BATCH = 64
_planes: weakref.WeakValueDictionary[int, LoopPlane] = weakref.WeakValueDictionary()  # by id(loop)


def reset(fd: int) -> None:
    """Closes the connection on `fd` by a reset."""
    lib.lc_abort(fd)
    with contextlib.suppress(OSError):
        os.close(fd)


class LoopPlane:
    """As the owner of relays, see :class:`lusca_comm.relayed.Owner`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.plane = Plane()
        self.at_shutdown: weakref.WeakSet[Any] = weakref.WeakSet()
        """Told by ``loop_ends()`` when the loop shuts down, while it still runs."""
        self._users = 0
        self._fd = -1
        self._batch: list[Relay] = []
        self._answered: list[Relay] = []
        self._handed: list[int] = []
        self._pairs: Any = None
        self._answers: Any = None
        self._hows: Any = None  # of the answers
        self._holds: list[Any] = []  # what all of these point to
        self._life: AsyncGenerator[None, None] | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> LoopPlane:
        # The plane has the loop, so no other loop can have its id.
        found = _planes.get(id(loop))
        if found is None:
            found = _planes[id(loop)] = cls(loop)
        return found

    # -- its life ------------------------------------------------------------------------------

    def use(self) -> None:
        """Raises CommError where there can be no thread."""
        if self._fd < 0:
            self._fd = self.plane.fileno()
            self.loop.add_reader(self._fd, self._completions)
            self._live()
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        if self._users == 0 and not self.loop.is_closed():
            self.loop.call_soon(self._close_unused)  # completions may be in the middle of it

    def _close_unused(self) -> None:
        if self._users == 0:
            self._close()

    def _close(self) -> None:
        if self._fd < 0:
            return
        self._flush()
        self.loop.remove_reader(self._fd)
        self._fd = -1
        self.plane.close()
        life, self._life = self._life, None
        if life is not None:
            _step(life)

    def _live(self) -> None:
        """asyncio.run and its like end every asynchronous generator before they close the loop
        (loop.shutdown_asyncgens): so a server that nobody closed does not go on, in a thread, to
        accept for a loop that is no more."""
        self._life = self._until_shutdown()
        _step(self._life)

    async def _until_shutdown(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._life = None
            for one in list(self.at_shutdown):
                one.loop_ends()
            self._close()

    def _completions(self) -> None:
        for fn, args in self.plane.fetch():
            self.guarded(fn, *args)

    def guarded(self, fn: Callable[..., object], *args: Any) -> None:
        try:
            fn(*args)
        except Exception as why:
            self.loop.call_exception_handler(
                {"message": f"exception in {fn!r}, called by a data plane", "exception": why}
            )

    # -- relays --------------------------------------------------------------------------------

    async def relay(
        self,
        client: int,
        upstream: int,
        connect: tuple[Any, Any, int] | None,
        prefixes: tuple[bytes, bytes],
        limits: tuple[int | None, int | None],
        times: tuple[float | None, float | None],
        trail: int,
    ) -> RelayResult:
        """Hands descriptors over, which are the plane's from now on, and waits for the end.
        :meth:`use` comes first. Cancelled, it ends the relay ("killed").

        :param connect: ``struct lc_open``, ``struct lc_addr`` and milliseconds, where `upstream`
            is -1.
        """
        pair = self._next_pair()
        pair.client, pair.upstream, pair.trail = client, upstream, trail
        if connect is not None:
            pair.open, pair.to, pair.timeout = connect
        held = fill_pair(pair, prefixes[0], limits, times, prefixes[1])
        if held is not None or connect is not None:
            self._holds.append((held, connect))
        return await self._end_of(self._batch)

    def _next_pair(self) -> Any:
        if len(self._batch) == _BATCH:
            self._flush()
        if self._pairs is None:
            self._pairs = ffi.new("struct lc_pair[]", _BATCH)
        return self._pairs[len(self._batch)]

    async def connect(self, request: Any, to: Any, timeout: int, family: int) -> RelayResult:
        """Connects. The end is "connected", with the socket, of the `family`, in ``upstream``, and
        what the loop guard has of it in ``data``; or another, with an errno. :meth:`use` comes
        first. Cancelled, it leaves nothing.

        :param request: ``struct lc_open``.
        :param to: ``struct lc_addr``.
        :param timeout: milliseconds; -1: the kernel's.
        """
        pair = self._next_pair()
        pair.client = pair.upstream = -1
        pair.open, pair.to, pair.timeout = request, to, timeout
        pair.prefix_size = pair.prefix_down_size = pair.trail = 0
        self._holds.append((request, to))
        return await self._end_of(self._batch, family)

    def hand_over(self, question: int) -> None:
        """The descriptor of a question is the caller's from now on. The plane, which does not touch
        it anyway, is told together with others."""
        self._soon()
        self._handed.append(question)

    async def answer(
        self,
        question: int,
        action: int,
        to: Any,
        timeout: int,
        prefix: bytes,
        limits: tuple[int | None, int | None],
        times: tuple[float | None, float | None],
        upstream: int = -1,
        trail: int = 0,
    ) -> RelayResult:
        """As :meth:`relay`, for a connection that is still a question, by its answer.

        :param to: ``struct lc_addr``; None: where it was going.
        :param upstream: of LC_JOIN, as `trail`.
        """
        if len(self._answered) == _BATCH:
            self._flush()
        if self._answers is None:
            self._answers = ffi.new("struct lc_answer[]", _BATCH)
            self._hows = ffi.new("struct lc_pair[]", _BATCH)
        i = len(self._answered)
        answer, how = self._answers[i], self._hows[i]
        answer.id, answer.action, answer.how = question, action, ffi.addressof(how)
        if to is None:
            answer.to.family = 0
        else:
            answer.to = to[0]
        how.timeout, how.upstream, how.trail = timeout, upstream, trail
        held = fill_pair(how, prefix, limits, times)
        if held is not None:
            self._holds.append(held)
        return await self._end_of(self._answered)

    async def _end_of(self, batch: list[Relay], family: int | None = None) -> RelayResult:
        """The end of a relay, which joins `batch`.

        :param family: of the socket that it makes."""
        self._soon()
        end: asyncio.Future[RelayResult] = self.loop.create_future()
        relay = Relay(self, functools.partial(_tell, end), family)
        batch.append(relay)
        try:
            return await end
        except BaseException:
            relay.kill()
            if end.done() and not end.cancelled():
                drop(end.result())
            raise

    def _soon(self) -> None:
        if not (self._batch or self._answered or self._handed):
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        answered, self._answered = self._answered, []
        if self._handed:
            handed, self._handed = self._handed, []
            answers = ffi.new("struct lc_answer[]", len(handed))
            for answer, question in zip(answers, handed, strict=True):
                answer.id, answer.action = question, lib.LC_HAND_OVER
            with contextlib.suppress(CommError):  # it was stopped, and its questions with it
                check(lib.lc_plane_answer(self.plane._open(), answers, len(handed)))
        try:
            if batch:
                self.plane.submit(self._pairs, batch)
        except CommError as why:
            for relay, pair in zip(batch, self._pairs, strict=False):
                self._refused(relay, pair.client, pair, why)
        try:
            if answered:
                self.plane.answer(self._answers, answered)
        except CommError as why:
            for relay, how in zip(answered, self._hows, strict=False):
                self._refused(relay, -1, how, why)
        self._holds.clear()

    def _refused(self, relay: Relay, client: int, pair: Any, why: CommError) -> None:
        for fd in (client, pair.upstream):
            if fd >= 0:
                reset(fd)
        if pair.trail:
            intercept.forget_outgoing(pair.trail)
        code = why.errno or errno.EIO
        relay._result = RelayResult(0, 0, 0.0, "error", code, "", None, None, None)
        self._ended(relay)
        self.guarded(relay._on_done, relay._result)

    # -- as their owner ------------------------------------------------------------------------

    def _kill(self, relay: Relay) -> None:
        if relay._plane is None:
            self._flush()
        if relay._plane is not None and self.plane.started:
            self.plane.kill_id(relay._id)

    def _given_back(
        self, relay: Relay, fds: tuple[int, int]
    ) -> tuple[socket.socket | None, socket.socket | None]:
        if relay._data is not None and fds[1] >= 0:
            return None, stream_of(fds[1], relay._data)
        one, two = (socket_of(fd) if fd >= 0 else None for fd in fds)
        return one, two

    def _ended(self, _relay: Relay) -> None:
        self.leave()


def _step(generator: AsyncGenerator[None, None]) -> None:
    """To its next yield or its end; it waits for nothing in between."""
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        generator.__anext__().send(None)


def _tell(end: asyncio.Future[RelayResult], result: RelayResult) -> None:
    if end.done():  # cancelled
        drop(result)
    else:
        end.set_result(result)


def drop(result: RelayResult) -> None:
    """Nobody is there to take what is given back."""
    for sock in (result.client, result.upstream):
        if sock is not None:
            reset(sock.detach())
    if result.end == "connected" and result.data:
        intercept.forget_outgoing(result.data)
