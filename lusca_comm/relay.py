"""Relaying between two connections until both have ended, from a reactor.

The bytes move in a data plane (:mod:`lusca_comm.plane`); here are the hand-over, the descriptor
table's part, and the way back. Half-closes are passed on, a reset is passed on as a reset, and a
side that does not read stops the other from being read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import weakref
from collections.abc import Callable
from typing import Any

from ._shim import ffi
from .address import Address
from .buffered import Buffered
from .constants import COMM_ERR_CLOSING, COMM_SELECT_READ, COMM_SELECT_WRITE
from .errors import CommError
from .fdtable import Entry, Handler
from .handover import check_arguments, check_plain, connect_request, fill_pair, milliseconds
from .plane import Plane
from .relayed import Relay, RelayResult
from .sockets import socket_of

__all__ = ["Relay", "RelayResult", "Relays"]

RESETS = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)
_BATCH = 64  # pairs handed over in one call


class _Held(weakref.ref[socket.socket]):
    """A socket object that somebody keeps although its descriptor is the plane's."""

    __slots__ = ("fd", "key", "relay", "relayed")

    fd: int
    key: int
    relay: Relay
    relayed: dict[int, _Held]


def _forget(ref: Any) -> None:
    if ref.relayed.get(ref.key) is ref:
        del ref.relayed[ref.key]


class _Waiting:
    """A relay whose sockets have still something queued by comm_write."""

    __slots__ = ("args", "began", "timer")

    def __init__(self, args: tuple[Any, ...], began: float) -> None:
        self.args = args
        self.began = began
        self.timer: Any = None


class Relays(Buffered):
    """A loop that relays."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._relayed: dict[int, _Held] = {}  # by id(socket)
        self._new_planes()

    def _new_planes(self) -> None:
        self.plane = Plane()
        self._plane_fd = -1
        self._pairs: Any = None
        self._batch: list[Relay] = []
        self._batch_holds: list[Any] = []  # what the pairs point to

    def close(self) -> None:
        """Gives poller, wake-up pipe and data plane back, until they are needed again. Sockets in
        the table stay as they are; relays end ("killed"), and their ``on_done`` is called."""
        self._check_thread()
        self._hand_over()
        if self.plane.started:
            self.plane.stop()
            self._completions()
            self._watched.pop(self._plane_fd, None)
            self.plane.close()
            self._new_planes()
        super().close()

    # -- the user's calls ----------------------------------------------------------------------

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
        queued by comm_write goes out first. Then the socket objects have no descriptor any more
        (``fileno()`` is -1): it is the data plane's. At the end they are closed and their close
        handlers run, unless a limit ended the relay: then they are given back, open, with every
        byte beyond the limit still unread in them.

        :param prefix: bytes for the upstream before anything from the client; they count as up.
        :param limit_up: bytes to deliver upstream at most. The relay ends once every direction
            that has a limit has reached it.
        :param limit_down: bytes to deliver to the client at most.
        :param idle: seconds without a byte in either direction, then the relay ends.
        :param total: seconds in all.
        :raises CommError: EBADF, EINVAL (a negative limit), EBUSY (relayed already).
        """
        limits, times = (limit_up, limit_down), (idle, total)
        first = check_arguments(on_done, prefix, limits, times)
        one, two = self._relayable(client), self._relayable(upstream)
        if one is two:
            raise CommError(errno.EINVAL, "client and upstream are the same socket")
        relay = Relay(self, on_done, data)
        if one.error or two.error:
            self._broken_already(relay, (one, two))
        else:
            self._take_over(relay, (one, two), first, limits, times)
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
        """Connects to `address` in the data plane and relays `client` there, as :meth:`relay`
        does. Where the upstream is not reached, ``result.end`` is "connect", ``result.errno`` says
        why, and ``result.client`` is the client, open.

        :param source: the address to connect from, with COMM_TPROXY_REM in `flags` a foreign one
            (:meth:`comm_open`); None: the machine's.
        :param flags: of the outgoing socket: COMM_TPROXY_REM, COMM_TRANSPARENT_PORT,
            COMM_REUSEADDR.
        :param mark: SO_MARK of the outgoing socket.
        :param timeout: seconds to connect in (ETIMEDOUT).
        """
        limits, times = (limit_up, limit_down), (idle, total)
        first = check_arguments(on_done, prefix, limits, (*times, timeout))
        request, there = connect_request(source, address, flags, mark)
        entry = self._relayable(client)
        relay = Relay(self, on_done, data)
        connect = (request, there, milliseconds(timeout))
        self._take_over(relay, (entry,), first, limits, times, connect)
        return relay

    def _relayable(self, thing: Any) -> Entry:
        entry = self._entry(thing)
        self._refuse_while(entry, "connect", "relay", "lingering close")
        if entry.identity is not None:  # a plain fd becomes the socket it always could have been
            self.table.own(entry, socket_of(entry.fd))
        check_plain(entry.sock)
        return entry

    def _entry(self, thing: Any) -> Entry:
        if self.table.living(thing) is None:
            self._refuse_relayed(thing)
        return super()._entry(thing)

    def comm_detach(self, sock: Any) -> Any:
        self._refuse_relayed(sock)
        return super().comm_detach(sock)

    def _refuse_relayed(self, thing: Any) -> None:
        if self._relayed or isinstance(thing, int):
            self._check_thread()
            if self._held_by(thing) is not None:
                raise CommError(errno.EBUSY, f"{thing!r} is in the middle of a relay")

    def comm_add_close_handler(self, sock: Any, handler: Handler, data: Any = None) -> None:
        relay = None if isinstance(sock, int) else self._held_by(sock)
        if relay is None:
            super().comm_add_close_handler(sock, handler, data)
            return
        kept: tuple[Entry, ...] = relay._kept or ()
        entry = next((e for e in kept if e.sock is sock), None)
        if entry is None:
            entry = Entry(sock, self._relayed[id(sock)].fd)
            relay._kept = (*kept, entry)
        entry.close_handlers.append((handler, data))

    def _held_by(self, thing: Any) -> Relay | None:
        """The relay that owns the descriptor that `thing` once had, or is."""
        if isinstance(thing, int):
            if thing in self.table.entries or not 0 <= thing < 1 << 31 or thing is True:
                return None
            self._hand_over()
            return self.plane.find(thing)
        held = self._relayed.get(id(thing))
        if held is None or held() is not thing or held.relay.ended:
            return None
        return held.relay

    def _closing_entry(self, thing: Any) -> Entry | None:
        """Closing a socket that is relayed ends the relay."""
        if self._relayed or isinstance(thing, int):
            self._check_thread()
            relay = self._held_by(thing)
            if relay is not None:
                relay.kill()
                return None
        return super()._closing_entry(thing)

    # -- hand-over -----------------------------------------------------------------------------

    def _take_over(self, relay: Relay, entries: tuple[Entry, ...], *args: Any) -> None:
        for entry in entries:
            self._unblock(entry)
            self._clear_deadline(entry)
            entry.deferred = False
            read = entry.pending.pop("read", None)
            if read is not None:
                self._ready.append((read, (COMM_ERR_CLOSING,)))
            if entry.read_handler is not None:
                self._arm(entry, COMM_SELECT_READ, None)
            if entry.write_handler is not None and not entry.write_queue:
                self._arm(entry, COMM_SELECT_WRITE, None)
        if not any(entry.write_queue for entry in entries):
            self._enlist(relay, entries, *args)
            return
        # The end of what is queued, or of its sockets, or of the relay's time comes first.
        waiting = _Waiting(args, time.monotonic())
        relay._kept = (entries, waiting)
        for entry in entries:
            entry.pending["relay"] = lambda _status: self._abandon(relay, "killed")
        idle, total = args[2]
        times = [
            (seconds, end)
            for seconds, end in ((idle, "idle"), (total, "total"))
            if seconds is not None
        ]
        if times:
            seconds, end = min(times)
            waiting.timer = self.timers.schedule(waiting.began + seconds, self._abandon, relay, end)
        self._when_flushed(entries, lambda: self._flushed(relay))

    def _flushed(self, relay: Relay) -> None:
        if relay._result is not None:
            return
        entries, waiting = relay._kept
        relay._kept = None
        if waiting.timer is not None:
            self.timers.cancel(waiting.timer)
        for entry in entries:
            entry.pending.pop("relay", None)
        prefix, limits, (idle, total), *more = waiting.args
        if total is not None:
            total = max(0.0, total - (time.monotonic() - waiting.began))
        self._enlist(relay, entries, prefix, limits, (idle, total), *more)

    def _abandon(self, relay: Relay, end: str) -> None:
        """The end of a relay that has not begun."""
        if relay._result is not None:
            return
        entries, waiting = relay._kept
        relay._kept = None
        if waiting.timer is not None:
            self.timers.cancel(waiting.timer)
        seconds = time.monotonic() - waiting.began
        relay._result = RelayResult(0, 0, seconds, end, 0, "", None, None, relay._data)
        for entry in entries:
            entry.pending.pop("relay", None)
            self._abort_entry(entry)
        self._ready.append((relay._on_done, (relay._result,)))

    def _broken_already(self, relay: Relay, entries: tuple[Entry, Entry]) -> None:
        """An error that somebody was told of is gone from the socket, which would now read as if
        it had come to its end: the other side must learn that it has not."""
        side = "client" if entries[0].error else "upstream"
        code = entries[0].error or entries[1].error
        end = "reset" if code in RESETS else "error"
        relay._result = RelayResult(0, 0, 0.0, end, code, side, None, None, relay._data)
        for entry in entries:
            self._abort_entry(entry)
        self._ready.append((relay._on_done, (relay._result,)))

    def _enlist(
        self,
        relay: Relay,
        entries: tuple[Entry, ...],
        prefix: bytes,
        limits: tuple[int | None, int | None],
        times: tuple[float | None, float | None],
        connect: Any = None,
    ) -> None:
        if self._pairs is None:
            self._pairs = ffi.new("struct lc_pair[]", _BATCH)
        pair = self._pairs[len(self._batch)]
        pair.trail = 0
        pair.upstream = -1
        if limits != (None, None) or any(e.close_handlers or e.pending for e in entries):
            relay._kept = entries
        for entry in entries:
            if entry.outgoing is not None:
                pair.trail, entry.outgoing = entry.outgoing, None
            self._leave_table(entry, relay)
        pair.client = entries[0].fd
        if connect is not None:
            pair.open, pair.to, pair.timeout = connect
        else:
            pair.upstream = entries[1].fd
        held = fill_pair(pair, prefix, limits, times)
        if held is not None or connect is not None:
            self._batch_holds.append((held, connect))
        self._batch.append(relay)
        if len(self._batch) == 1:
            self._ready.append((self._hand_over, ()))
        elif len(self._batch) == _BATCH:
            self._hand_over()

    def _leave_table(self, entry: Entry, relay: Relay) -> None:
        self._forget(entry)
        self._release(entry)
        self.table.remove(entry)
        sock = entry.sock
        held = _Held(sock, _forget)
        held.fd, held.key, held.relay, held.relayed = entry.fd, id(sock), relay, self._relayed
        self._relayed[held.key] = held
        sock.detach()

    def _hand_over(self) -> None:
        """The batch, in one call."""
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        try:
            self._watch_plane()
            self.plane.submit(self._pairs, batch)
        except CommError as why:
            for i, relay in enumerate(batch):
                self._refused(relay, self._pairs[i], why.errno or errno.EIO)
        self._batch_holds.clear()

    def _refused(self, relay: Relay, pair: Any, code: int) -> None:
        """No thread or no memory for it."""
        for fd in (pair.client, pair.upstream):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        relay._result = RelayResult(0, 0, 0.0, "error", code, "", None, None, relay._data)
        self._ended(relay)
        self._ready.append((relay._on_done, (relay._result,)))

    # -- the way back --------------------------------------------------------------------------

    def _watch_plane(self) -> None:
        if self._plane_fd < 0:
            self._plane_fd = self.plane.fileno()
            self._watch(self._plane_fd, self._completions)

    def _completions(self) -> None:
        for fn, args in self.plane.fetch():
            self._guarded(fn, *args)
        if self._held:
            self._let_go()

    def _kill(self, relay: Relay) -> None:
        self._check_thread()
        if relay._plane is None and relay in self._batch:
            self._hand_over()
        if relay._plane is not None:
            relay._plane.kill_id(relay._id)
        elif relay._result is None:
            self._abandon(relay, "killed")

    def _given_back(self, relay: Relay, fds: tuple[int, int]) -> tuple[Any, Any]:
        kept = {entry.fd: entry for entry in relay._kept or ()}
        one, two = (self._return(kept.pop(fd, None), fd) if fd >= 0 else None for fd in fds)
        relay._kept = tuple(kept.values())
        return one, two

    def _return(self, entry: Entry | None, fd: int) -> socket.socket:
        """The very object that was handed over, where it was kept."""
        if entry is None:
            sock = socket_of(fd)
        else:
            sock = entry.sock
            sock.__init__(sock.family, sock.type, sock.proto, fd)
            sock.settimeout(0)
        fresh = self.table.add(sock, fd)
        if entry is not None:
            fresh.flags, fresh.note, fresh.request = entry.flags, entry.note, entry.request
            fresh.close_handlers, fresh.pending = entry.close_handlers, entry.pending
        return sock

    def _ended(self, relay: Relay) -> None:
        kept, relay._kept = relay._kept, None
        for entry in kept or ():
            self._answer_pending(entry)

    def _after_fork(self) -> None:
        super()._after_fork()
        # The plane is the parent's, and so are the relays.
        self._relayed.clear()
        self._new_planes()
