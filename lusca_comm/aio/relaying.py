"""Relaying by the data plane of the loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import Any

from ..errors import CommError
from ..handover import check_arguments
from ..relay import RESETS
from ..relayed import RelayResult
from .connecting import Answer, Connecting, Upstream
from .planes import LoopPlane, reset
from .sides import Side, TransportSide, side_of

__all__ = ["relay"]


async def relay(
    client: Any,
    upstream: Any,
    *,
    prefix: bytes = b"",
    limit_up: int | None = None,
    limit_down: int | None = None,
    idle: float | None = None,
    total: float | None = None,
) -> RelayResult:
    """Relays between two connections until both have ended, in C, by the data plane of the loop.

    Each is a :class:`Connection`, an :class:`Upstream`, a socket, an asyncio or uvloop transport,
    or ``(reader, writer)``. `upstream` may be what :func:`connect` returned, not awaited: then
    connecting is the plane's work as well.

    Both are taken over: what their readers hold is relayed, what their writers have not sent yet
    goes out first, and then streams and transports are closed while their connections go on.
    Half-closes are passed on, a reset is passed on as a reset. At the end both are closed, unless a
    limit ended the relay: then they are given back (``result.client``, ``result.upstream``), with
    every byte beyond the limit still to be read; in place of streams and transports as sockets.

    Cancelled, it resets both.

    :param prefix: bytes for the upstream before anything from the client; they count as up.
    :param limit_up: bytes to deliver upstream at most. The relay ends once every direction that
        has a limit has reached it.
    :param limit_down: bytes to deliver to the client at most.
    :param idle: seconds without a byte in either direction, then the relay ends.
    :param total: seconds in all.
    :returns: how it ended, a reset included.
    :raises CommError: the upstream was not reached, and the client is as it was; EBADF closed;
        EINVAL a negative limit.
    :raises TypeError: what is no connection, or TLS.
    """
    limits = limit_up, limit_down
    first = check_arguments(relay, prefix, limits, (idle, total))
    loop = asyncio.get_running_loop()
    times = idle, total
    if isinstance(upstream, Connecting | Upstream):
        answer = upstream._answer(client)
        if answer is not None:
            return await _answer(loop, upstream, answer, first, limits, times)
    near, far, connecting = side_of(client), None, None
    if isinstance(upstream, Connecting):
        if near._keeps:
            connecting = upstream
        else:
            await _relayable(near)
            assert isinstance(near, TransportSide)
            with near.held():
                made = await upstream
                try:
                    return await relay(
                        client,
                        made,
                        prefix=first,
                        limit_up=limit_up,
                        limit_down=limit_down,
                        idle=idle,
                        total=total,
                    )
                except BaseException:
                    made.reset()
                    raise
    if connecting is None:
        far = side_of(upstream)
        if client is upstream:
            raise CommError(errno.EINVAL, "client and upstream are the same connection")
    settle = await _relayable(near, far)
    request = None if connecting is None else connecting.request()
    held_up = held_down = b""
    if settle:
        began = loop.time()
        room_up = None if limit_up is None else limit_up - len(first)
        settled = await _settle(loop, near, far, (room_up, limit_down), times)
        if isinstance(settled, RelayResult):
            return settled
        held_up, held_down = settled
        if total is not None:
            times = idle, max(0.0, total - (loop.time() - began))
    up, later_up = _cut(first + held_up, limit_up)
    down, later_down = _cut(held_down, limit_down)
    # From here on nothing waits, until the plane has it.
    plane = LoopPlane.of(loop)
    plane.use()
    try:
        fd, other = _give(near, far)
    except BaseException:
        plane.leave()
        raise
    trail = 0 if far is None else far._give_trail()
    result = await plane.relay(fd, other, request, (up, down), limits, times, trail)
    if result.client is None:
        return result
    if connecting is not None:
        if result.end == "connect":
            near._take_back(result.client, held_up)
            raise connecting.failure(result.errno)
        far = connecting._given_back(loop, result.upstream)
    assert far is not None
    return result._replace(
        client=near._take_back(result.client, later_up),
        upstream=far._take_back(result.upstream, later_down),
    )


async def _answer(
    loop: asyncio.AbstractEventLoop,
    upstream: Connecting | Upstream,
    answer: Answer,
    prefix: bytes,
    limits: tuple[int | None, int | None],
    times: tuple[float | None, float | None],
) -> RelayResult:
    """A connection that nobody has touched: the plane only has to be told."""
    plane = LoopPlane.of(loop)
    plane.use()
    conn, action, to, timeout = answer
    fd, trail = upstream._hand()
    question = conn._give_question()
    result = await plane.answer(
        question, action, to, timeout, prefix, limits, times, upstream=fd, trail=trail
    )
    if result.client is None:
        return result
    client = conn._take_back(result.client, b"")
    if result.end == "connect":
        assert isinstance(upstream, Connecting)
        raise upstream.failure(result.errno)
    return result._replace(client=client, upstream=upstream._given_back(loop, result.upstream))


async def _relayable(*sides: Side | None) -> bool:
    """Whether one has to settle. Raises TypeError, CommError."""
    asked = [side._relayable for side in sides if side is not None]
    try:
        return True in [ask() for ask in asked]
    except CommError as why:
        if why.errno != errno.EBADF:
            raise
    await asyncio.sleep(0)  # a transport that is closing tells why
    return True in [ask() for ask in asked]


def _give(near: Side, far: Side | None) -> tuple[int, int]:
    """Both descriptors. A transport's is another one, which can be one too many (EMFILE)."""
    fd = near._give()
    try:
        return fd, -1 if far is None else far._give()
    except BaseException:
        reset(fd)
        raise


class _Broken(Exception):
    def __init__(self, side: str, why: OSError) -> None:
        super().__init__(side, why)
        self.side = side
        self.why = why


async def _settle(
    loop: asyncio.AbstractEventLoop,
    near: Side,
    far: Side | None,
    room: tuple[int | None, int | None],
    times: tuple[float | None, float | None],
) -> tuple[bytes, bytes] | RelayResult:
    """What readers hold, once all that writers had is in the kernel; or how it ended already.

    Raises CommError: they hold more than there is room for, and are as they were."""
    began = loop.time()
    limit = min((seconds for seconds in times if seconds is not None), default=None)
    try:
        return await asyncio.wait_for(_both(near, far, room), limit)
    except CommError:
        raise
    except asyncio.TimeoutError:
        end, code, side = "idle" if limit == times[0] else "total", 0, ""
    except _Broken as broken:
        code, side = broken.why.errno or errno.EIO, broken.side
        end = "reset" if code in RESETS else "error"
    except BaseException:
        _reset(near, far)
        raise
    _reset(near, far)
    return RelayResult(0, 0, loop.time() - began, end, code, side, None, None, None)


async def _both(
    near: Side, far: Side | None, room: tuple[int | None, int | None]
) -> tuple[bytes, bytes]:
    limited = [
        (side, most)
        for side, most in zip((near, far), room, strict=True)
        if isinstance(side, TransportSide)
    ]
    with contextlib.ExitStack() as held:
        for side, _ in limited:
            held.enter_context(side.held())
        for side, _ in limited:
            await side.made()
        for side, most in limited:
            side.check_room(most)
    # From here on neither can be what it was.
    return await _settled("client", near), await _settled("upstream", far)


async def _settled(name: str, side: Side | None) -> bytes:
    try:
        return b"" if side is None else await side._settle()
    except OSError as why:
        raise _Broken(name, why) from why


def _reset(*sides: Side | None) -> None:
    for side in sides:
        if side is not None:
            side.reset()


def _cut(held: bytes, limit: int | None) -> tuple[bytes, bytes]:
    """What goes now, and what is beyond the limit."""
    return held[:limit], b"" if limit is None else held[limit:]
