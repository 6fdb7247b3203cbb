"""Relaying between two connections until both have ended.

Half-closes are passed on, a reset is passed on as a reset, and a side that does not read stops the
other from being read.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ._shim import lib
from .buffered import Buffered
from .constants import COMM_ERR_CLOSING, COMM_SELECT_READ, COMM_SELECT_WRITE
from .errors import CommError
from .fdtable import Entry
from .reactor.timers import Timer, seconds_of
from .sockets import socket_of

__all__ = ["Relay", "RelayResult", "Relays"]

_CHUNK = 65160  # a multiple of the usual MSS: clearly better than a power of two
_ROUNDS = 16  # reads of one direction before others get their turn
_RESET = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)


class RelayResult(NamedTuple):
    """How a relay ended."""

    up: int
    """Bytes delivered to the upstream, the prefix included."""
    down: int
    """Bytes delivered to the client."""
    seconds: float
    end: str
    """"eof" both sides have ended, "reset", "idle", "total", "limit", "killed" or "error"."""
    errno: int
    """Of a reset or an error, else 0."""
    side: str
    """"client" or "upstream": where the reset or the error came from, else ""."""
    client: Any
    """The socket, where it is given back (end "limit"); else None, and it is closed."""
    upstream: Any
    data: Any


class _Direction:
    """One way through the relay: what was read and not yet written, and how much may still go."""

    __slots__ = ("count", "dst", "ended", "left", "limit", "relay", "side", "src")

    def __init__(self, relay: Relay, src: Entry, dst: Entry, side: str, limit: int | None) -> None:
        self.relay = relay
        self.src = src
        self.dst = dst
        self.side = side  # of src
        self.limit = limit
        self.left = memoryview(b"")
        self.count = 0
        self.ended = False

    @property
    def full(self) -> bool:
        return self.limit is not None and self.count >= self.limit

    def pump(self, _sock: Any = None, _data: Any = None) -> None:
        """Moves bytes until one side would block, the source ends, or others shall have a turn."""
        loop = self.relay._loop
        for _ in range(_ROUNDS):
            if self.left and not self._write():
                return
            if self.full:
                self._end()
                self.relay._limit_reached()
                return
            if not self._read():
                return
        if self.left:
            loop._arm(self.dst, COMM_SELECT_WRITE, self.pump)
        else:
            loop._arm(self.src, COMM_SELECT_READ, self.pump)

    def _read(self) -> bool:
        """Whether something came; else the direction waits, or has ended."""
        relay, loop = self.relay, self.relay._loop
        size = _CHUNK if self.limit is None else min(_CHUNK, self.limit - self.count)
        loop.system_calls["read"] += 1
        try:
            data = self.src.sock.recv(size)
        except (BlockingIOError, InterruptedError):
            loop._arm(self.src, COMM_SELECT_READ, self.pump)
            return False
        except OSError as why:
            relay._broke(why.errno or errno.EIO, self.side)
            return False
        relay._alive()
        if data:
            self.src.bytes_in += len(data)
            self.left = memoryview(data)
            return True
        with contextlib.suppress(OSError):
            self.dst.sock.shutdown(socket.SHUT_WR)
        self._end()
        relay._direction_ended()
        return False

    def _write(self) -> bool:
        """Whether all is written and reading goes on; else the direction waits, or has ended."""
        relay, loop = self.relay, self.relay._loop
        loop.system_calls["write"] += 1
        try:
            sent = self.dst.sock.send(self.left)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as why:
            relay._broke(why.errno or errno.EIO, "upstream" if self.side == "client" else "client")
            return False
        if sent:
            relay._alive()
        self.count += sent
        self.dst.bytes_out += sent
        self.left = self.left[sent:]
        if self.left:
            loop._arm(self.dst, COMM_SELECT_WRITE, self.pump)
            return False
        if relay.stopping:
            relay._limit_reached()
            return False
        return True

    def _end(self) -> None:
        """Nothing more is read, but a reset is still to be heard of."""
        self.ended = True
        self.src.hangup_handler = self._hung_up
        self.relay._loop._touch(self.src)

    def _hung_up(self) -> None:
        code = lib.lc_error(self.src.fd)
        if code:
            self.relay._broke(abs(code), self.side)


class Relay:
    """A relay under way."""

    def __init__(
        self,
        loop: Relays,
        client: Entry,
        upstream: Entry,
        on_done: Callable[[RelayResult], object],
        prefix: bytes,
        limits: tuple[int | None, int | None],
        times: tuple[float | None, float | None],
        data: Any,
    ) -> None:
        self._loop = loop
        self._client = client
        self._upstream = upstream
        self._on_done = on_done
        self._data = data
        self._up = _Direction(self, client, upstream, "client", limits[0])
        self._down = _Direction(self, upstream, client, "upstream", limits[1])
        self._up.left = memoryview(prefix)
        self._limited = [d for d in (self._up, self._down) if d.limit is not None]
        self._began = time.monotonic()
        self._idle, total = times
        self._idle_timer: Timer | None = None
        self._total_timer: Timer | None = None
        if self._idle is not None:
            due = self._began + self._idle
            self._idle_timer = loop.timers.schedule(due, self._end, "idle")
        if total is not None:
            self._total_timer = loop.timers.schedule(self._began + total, self._end, "total")
        self.ended = False
        self.stopping = False  # at the limit

    @property
    def up(self) -> int:
        """Bytes delivered to the upstream so far."""
        return self._up.count

    @property
    def down(self) -> int:
        """Bytes delivered to the client so far."""
        return self._down.count

    def kill(self) -> None:
        """Ends the relay now, with a reset to both sides. Idempotent."""
        self._loop._check_thread()
        self._end("killed")

    def _start(self) -> None:
        if not self.ended:
            self._up.pump()
        if not self.ended:
            self._down.pump()

    def _alive(self) -> None:
        if self._idle_timer is not None and self._idle is not None:
            self._loop.timers.move(self._idle_timer, time.monotonic() + self._idle)

    def _direction_ended(self) -> None:
        if self._up.ended and self._down.ended:
            # One that has reached its limit has not come to its end: its sender may go on.
            self._end("limit" if self._up.full or self._down.full else "eof")

    def _limit_reached(self) -> None:
        """The end, once what the other direction has read is delivered: the sockets that are given
        back owe nothing."""
        if all(d.ended for d in self._limited):
            self.stopping = True
            if self._up.left or self._down.left:
                self._loop._arm(self._client, COMM_SELECT_READ, None)
                self._loop._arm(self._upstream, COMM_SELECT_READ, None)
            else:
                self._end("limit")

    def _broke(self, code: int, side: str) -> None:
        self._end("reset" if code in _RESET else "error", code, side)

    def _end(self, end: str, code: int = 0, side: str = "") -> None:
        if self.ended:
            return
        self.ended = True
        loop = self._loop
        for timer in (self._idle_timer, self._total_timer):
            if timer is not None:
                loop.timers.cancel(timer)
        given_back = end == "limit"
        both = (self._client, self._upstream)
        for entry in both:
            entry.pending.pop("relay", None)
            entry.hangup_handler = None
        for entry in both:
            if given_back:
                loop._arm(entry, COMM_SELECT_READ | COMM_SELECT_WRITE, None)
            elif end == "eof":
                # Both ends of the stream went out when they came in: a dup or a forked child that
                # holds the file does not hold them back.
                loop._close_entry(entry)
            else:
                # A half-finished stream must not look like a whole one.
                loop._abort_entry(entry)
        result = RelayResult(
            self.up,
            self.down,
            time.monotonic() - self._began,
            end,
            code,
            side,
            self._client.sock if given_back else None,
            self._upstream.sock if given_back else None,
            self._data,
        )
        loop._ready.append((self._on_done, (result,)))


class Relays(Buffered):
    """A loop that relays."""

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
        """Relays between two connected sockets and calls ``on_done(RelayResult)`` at the end.

        Both sockets are taken over: their select slots and deadlines are cancelled, what is still
        queued by comm_write goes out first. At the end they are closed and their close handlers
        run, unless a limit ended the relay: then they are given back, open, with every byte beyond
        the limit still unread in them.

        :param prefix: bytes for the upstream before anything from the client; they count as up.
        :param limit_up: bytes to deliver upstream at most. The relay ends once every direction
            that has a limit has reached it.
        :param limit_down: bytes to deliver to the client at most.
        :param idle: seconds without a byte in either direction, then the relay ends.
        :param total: seconds in all.
        :raises CommError: EBADF, EINVAL (a negative limit), EBUSY (relayed already).
        """
        if not callable(on_done):
            raise TypeError(f"on_done {on_done!r} is not callable")
        for limit in (limit_up, limit_down):
            if limit is not None and limit < 0:
                raise CommError(errno.EINVAL, "limits are not negative")
        for seconds in (idle, total):
            if seconds is not None and seconds_of(seconds, "idle or total") < 0:
                raise CommError(errno.EINVAL, "times are not negative")
        first = memoryview(prefix).tobytes()
        if limit_up is not None and len(first) > limit_up:
            raise CommError(errno.EINVAL, "the prefix is longer than limit_up")
        one, two = self._entry(client), self._entry(upstream)
        if one is two:
            raise CommError(errno.EINVAL, "client and upstream are the same socket")
        for entry in (one, two):
            self._refuse_while(entry, "connect", "relay", "lingering close")
            self._own_socket(entry)
        for entry in (one, two):
            self._take_over(entry)
        relay = Relay(self, one, two, on_done, first, (limit_up, limit_down), (idle, total), data)
        for entry in (one, two):
            entry.pending["relay"] = lambda _status: relay._end("killed")
        self._ready.append((self._when_flushed, ((one, two), relay._start)))
        return relay

    def _own_socket(self, entry: Entry) -> None:
        """A relay owns its sockets; a plain fd becomes the socket object that it always could have
        been."""
        if entry.identity is not None:
            self.table.own(entry, socket_of(entry.fd))
        if not isinstance(entry.sock, socket.socket):
            raise TypeError(f"{entry.sock!r} belongs to another library: a relay takes sockets")
        if entry.sock.type != socket.SOCK_STREAM:
            raise CommError(errno.EPROTOTYPE, f"descriptor {entry.fd} is no stream")

    def _take_over(self, entry: Entry) -> None:
        self._unblock(entry)
        self._clear_deadline(entry)
        entry.deferred = False
        read = entry.pending.pop("read", None)
        if read is not None:
            self._ready.append((read, (COMM_ERR_CLOSING,)))
        self._arm(entry, COMM_SELECT_READ, None)
        if not entry.write_queue:
            self._arm(entry, COMM_SELECT_WRITE, None)
