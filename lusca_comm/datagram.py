"""Datagrams that were meant for somebody else, and answers in that somebody's name: the calls.

A control message tells where a datagram was going (csrc/datagram_control.c). The answer leaves from
there, through a socket of its own (:mod:`~lusca_comm.datagram_flows`).

Where the datagram had been translated, or came to the listener itself, the answer leaves from the
listener, and from the address at which the datagram arrived.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

from .address import Address
from .constants import COMM_INTERCEPT
from .datagram_flows import Flows
from .datagram_io import BATCH, Datagram, DatagramIO, Taken, check_datagrams, send_error
from .errors import CommError
from .fdtable import Entry
from .reactor.timers import Timer
from .relay import Relays

__all__ = ["Datagram", "Datagrams"]


class _Flows(Flows):
    """Flows whose readiness is that of their listener's read slot in a reactor."""

    def __init__(self, loop: Datagrams, listener: Entry) -> None:
        self._loop = loop
        self._parent = listener
        self._timer = Timer(None, self.expire, ())
        super().__init__(listener.sock, loop._io, loop, loop._make_poller, self._move)

    def _move(self, due: float) -> None:
        self._loop.timers.move(self._timer, due)

    def _open_poller(self) -> None:
        super()._open_poller()
        listener, fd = self._parent, self.poller.fileno()
        note = f"flows of {listener.note or listener.fd}"
        self.entry = self._loop.table.add(self.poller, fd, note=note)
        self.entry.parent = listener

    def came(self, fd: int, data: bytes, peer: bytes) -> Datagram:
        self._parent.bytes_in += len(data)
        return super().came(fd, data, peer)

    def after_fork(self) -> None:
        self.entry.closing = True
        self._loop.table.remove(self.entry)
        self.reopen_poller()
        self._loop._touch(self.entry)

    def end(self, _status: int = 0) -> None:
        self._loop.timers.cancel(self._timer)
        self._loop._forget(self.entry)
        self.entry.closing = True
        self._loop.table.remove(self.entry)
        self.close()


class Datagrams(Relays):
    """A loop that sends and receives datagrams."""

    max_flows = 512
    """Sockets that answer in others' names, per listener, at most."""
    flow_idle = 60.0
    """Seconds without a datagram after which such a socket is closed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._io = DatagramIO(self.system_calls)

    # -- receiving -----------------------------------------------------------------------------

    def comm_udp_recvfrom(self, sock: Any) -> Datagram | None:
        """The next datagram, or None where there is none.

        A listener opened with COMM_TPROXY_LCL tells where each was going, and gets what comes for
        the sockets that answer for it (:meth:`comm_udp_reply`) too.

        :raises CommError: EPROTOTYPE no datagram socket, EBADF, ECONNREFUSED (connected sockets).
        """
        entry = self._datagram_entry(sock)
        if entry.flows is None:
            return self._receive(entry)
        got: Datagram | None = entry.flows.receive(lambda: self._receive(entry))
        return got

    def comm_udp_recvmany(self, sock: Any, max: int = BATCH) -> list[Datagram]:
        """All that :meth:`comm_udp_recvfrom` would give, `max` datagrams at most (and never more
        than 64), in one call (recvmmsg(2)); [] where there is none.

        :raises CommError: as comm_udp_recvfrom does, where there is nothing else to tell.
        """
        if isinstance(max, bool) or not isinstance(max, int):
            raise TypeError(f"max is a number of datagrams, not {max!r}")
        if max < 1:
            raise CommError(errno.EINVAL, f"max {max} is less than one")
        entry = self._datagram_entry(sock)
        flows: _Flows | None = entry.flows
        if flows is None:
            return self._take_batch(entry, [entry.fd], max)
        got = self._take_batch(entry, flows.turns(max), max)
        # Those asked may have been the rest of a former turn, with nothing left.
        return got or self._take_batch(entry, flows.turns(max), max)

    def _take_batch(self, entry: Entry, fds: list[int], most: int) -> list[Datagram]:
        flows: _Flows | None = entry.flows
        got: list[Datagram] = []
        failure = 0
        for taken in self._io.take_many(fds, most):
            of_flow = taken.fd != entry.fd and flows is not None
            if taken.error:
                if of_flow and flows is not None and flows.has(taken.fd):
                    flows.failed(taken.fd)
                elif not of_flow:
                    failure = taken.error
            elif of_flow and flows is not None:
                got.append(flows.came(taken.fd, taken.data, taken.peer))
            else:
                entry.bytes_in += len(taken.data)
                got.append(self._datagram(entry, taken))
        if failure and not got:
            raise CommError(failure)
        return got

    def _receive(self, entry: Entry) -> Datagram | None:
        taken = self._io.take(entry.fd)
        if taken is None:
            return None
        entry.bytes_in += len(taken.data)
        return self._datagram(entry, taken)

    def _datagram(self, entry: Entry, taken: Taken) -> Datagram:
        intercept = bool(entry.flags & COMM_INTERCEPT)
        where, arrived = self._io.where(entry.fd, intercept, taken.peer, taken.original)
        peer = self._io.address(taken.peer)
        return Datagram._of(taken.data, peer, where, entry.sock, arrived)

    # -- sending -------------------------------------------------------------------------------

    def comm_udp_sendto(self, sock: Any, address: Address, data: Any) -> int:
        """Sends one datagram: the number of bytes.

        :raises CommError: EAGAIN the buffer is full (wait for COMM_SELECT_WRITE), EMSGSIZE,
            ENETUNREACH, ...
        """
        entry = self._datagram_entry(sock)
        return self._sent(entry, self._io.send(entry.fd, address, data))

    def comm_udp_reply(self, datagram: Datagram, data: Any) -> int:
        """Answers `datagram` from the address to which it was sent: the number of bytes.

        The first answer in a foreign name opens a socket for this client and that address, which is
        kept for `flow_idle` seconds after its last use; no more than `max_flows` per listener.

        :raises CommError: EBADF the listener was closed, EADDRINUSE it was opened without
            COMM_REUSEADDR and has the port of the original destination, EPERM, EAGAIN, EMSGSIZE.
        """
        entry = self._listener_of(datagram)
        if datagram.original is None or datagram._arrived is not None:
            sent = self._io.send(entry.fd, datagram.peer, data, datagram._arrived)
            return self._sent(entry, sent)
        flows = self._flows_of(entry)
        self.system_calls["write"] += 1
        try:
            sent = flows.send(datagram.peer, datagram.original, data)
        except CommError:
            raise
        except OSError as why:
            raise send_error(why.errno or errno.EIO, datagram.peer) from why
        return self._sent(entry, sent)

    def comm_udp_replymany(self, answers: Iterable[tuple[Datagram, Any]]) -> int:
        """Answers each ``(datagram, data)`` as :meth:`comm_udp_reply` does, up to 64 of them in one
        call, and those in a row for one client in one system call (sendmmsg(2)). What a socket will
        not take is lost, as datagrams are: the number of those that went.

        :raises CommError: as comm_udp_reply does, where an answer could not even be tried; those
            before it were sent, those behind it were not.
        """
        went, entry = 0, None
        used: dict[_Flows, tuple[int, int]] = {}
        try:
            for datagram, data in answers:
                if entry is None or entry.closing or datagram.listener is not entry.sock:
                    entry = self._listener_of(datagram)
                if datagram.original is None or datagram._arrived is not None:
                    went += self.comm_udp_reply(datagram, data) >= 0
                    continue
                flows = self._flows_of(entry)
                used.setdefault(flows, (flows.sent, flows.sent_bytes))
                flows.post(datagram.peer, datagram.original, data)
        finally:
            for flows, (sent, size) in used.items():
                flows.flush()
                went += flows.sent - sent
                self._sent(flows._parent, flows.sent_bytes - size)
        return went

    # -- listeners -----------------------------------------------------------------------------

    def _flows_of(self, entry: Entry) -> _Flows:
        if entry.flows is None:
            flows = _Flows(self, entry)
            entry.flows, entry.pending["flows"] = flows, flows.end
            self._touch(flows.entry)
        found: _Flows = entry.flows
        return found

    def _listener_of(self, datagram: Datagram) -> Entry:
        listener = getattr(datagram, "listener", None)
        if listener is None:
            raise TypeError("a Datagram that comm_udp_recvfrom returned")
        return self._datagram_entry(listener)

    def _datagram_entry(self, thing: Any) -> Entry:
        entry = self._entry(thing)
        check_datagrams(entry.sock)
        return entry

    @staticmethod
    def _sent(entry: Entry, sent: int) -> int:
        entry.bytes_out += sent
        return sent
