"""A whole datagram listener in the data plane: each flow, a client and its original destination, is
relayed by two connected sockets; Python is woken only for what the policy leaves to it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

from . import engines
from ._shim import ffi, lib
from .address import descriptor
from .errors import CommError
from .intercept_relay import InterceptRelay, InterceptRelays, Question
from .plane import Plane
from .policy import Rule
from .relayed import RelayResult
from .sockets import socket_of

__all__ = ["FlowQuestion", "InterceptFlows", "FlowRelays"]

_FIRST = 65535
_MOST = 1 << 22  # relays that a plane has room for


class FlowQuestion(Question):
    """A flow that the policy leaves to ``decide``. What its client sends meanwhile waits (64
    datagrams of a flow at most, 16 MB of all flows)."""

    __slots__ = ("_data", "_flows", "_used_up")

    def __init__(self, listener: InterceptFlows, done: Any) -> None:
        super().__init__(listener, done)
        self._flows = listener
        self._used_up = False
        self._data: bytes | None = None

    @property
    def data(self) -> bytes:
        """The flow's first datagram; b"" where it is gone: the flow was answered, or had to go."""
        if self._data is None:
            self._data = b"" if self._used_up else self._flows._waiting(self._id)
        return self._data

    @property
    def answered(self) -> bool:
        return self._used_up

    def deny(self) -> None:
        """Drops the flow's datagrams, those to come as well, until it has been idle."""
        super().deny()

    def take(self) -> socket.socket:
        """A flow has no socket yet, and can't be taken.

        :raises CommError: EOPNOTSUPP.
        """
        raise CommError(errno.EOPNOTSUPP, "a flow is relayed or denied: there is nothing to take")

    def give(self) -> tuple[int, int]:
        """As :meth:`take`."""
        self.take()
        raise AssertionError

    def _used(self) -> None:
        if self._used_up:
            raise CommError(errno.EALREADY, "this flow was decided already")
        self._used_up = True


class InterceptFlows(InterceptRelay):
    """A datagram listener in a data plane."""

    def __init__(self, plane: Plane, lsock: Any, max_flows: int, *arguments: Any) -> None:
        _check(lsock, max_flows)
        self._max_flows = max_flows
        self._first: Any = None
        super().__init__(plane, lsock, *arguments)

    def _configure(self, how: Any) -> None:
        how.flows = self._max_flows

    def _spoofer(self, _policy: Sequence[Rule | tuple[Any, ...]]) -> int:
        # Every answer leaves from a foreign address.
        return engines.spoofer("spoof")

    def _table(self, policy: Sequence[Rule | tuple[Any, ...]]) -> tuple[Any, int]:
        if any(Rule(*rule).mark is not None for rule in policy):
            raise CommError(errno.EINVAL, "a datagram tells no mark: a rule of flows has none")
        return super()._table(policy)

    def _question(self, done: Any) -> Question:
        return FlowQuestion(self, done)

    def _waiting(self, id: int) -> bytes:
        if self._first is None:
            self._first = ffi.new("char[]", _FIRST)
        n = lib.lc_plane_waiting(self._plane._open(), id, self._first, _FIRST)
        return ffi.buffer(self._first, n)[:] if n > 0 else b""


def _check(lsock: Any, max_flows: int) -> None:
    if isinstance(max_flows, bool) or not isinstance(max_flows, int):
        raise TypeError(f"max_flows is a number, not {max_flows!r}")
    if not 0 < max_flows <= _MOST:
        raise CommError(errno.EINVAL, f"max_flows {max_flows} is not from 1 to {_MOST}")
    fd = descriptor(lsock)
    if getattr(lsock, "type", socket.SOCK_DGRAM) != socket.SOCK_DGRAM:
        raise CommError(errno.EPROTOTYPE, f"descriptor {fd} is no datagram socket")
    if not lib.lc_tells_original(fd):
        raise CommError(
            errno.EINVAL,
            "nothing tells this listener where datagrams were going: open it with COMM_TPROXY_LCL, "
            "for TPROXY rules (`lusca-comm rules`); REDIRECT can't be undone for UDP",
        )


class FlowRelays(InterceptRelays):
    """A loop whose data plane takes datagrams by itself."""

    def intercept_flows(
        self,
        lsock: Any,
        *,
        policy: Sequence[Rule | tuple[Any, ...]] | None = None,
        decide: Callable[[list[FlowQuestion]], object] | None = None,
        on_done: Callable[[RelayResult], object] | None = None,
        on_failed: Callable[[RelayResult], object] | None = None,
        mark: int | None = None,
        keep_port: bool = False,
        idle: float | None = 60,
        total: float | None = None,
        max_flows: int = 65536,
    ) -> InterceptFlows:
        """Hands a datagram listener to the data plane, which relays what each client sends to where
        it was going, and what comes back, without waking Python.

        A flow is a client and an original destination. It has two sockets and ends when it has been
        `idle`; end "idle" is its usual one. A datagram that was sent to the listener itself, or
        whose relaying would be a loop, is dropped and counted (``reactor.plane.totals()``).

        :param lsock: of :meth:`comm_open` with COMM_TPROXY_LCL and COMM_REUSEADDR. It stays the
            caller's, and open, but nobody else may receive from it.
        :param policy: :class:`Rule` rows, as :meth:`intercept_relay` has them. A denied datagram is
            dropped.
        :param decide: ``decide(questions)``: every :class:`FlowQuestion` that waits. What is denied
            there is denied until it has been idle.
        :param on_done: ``on_done(RelayResult)`` for every flow that ends; "evicted": it had to go
            for another one.
        :param on_failed: for flows that got no sockets (end "connect"), and no others.
        :param mark: SO_MARK of both sockets of a flow.
        :param keep_port: where a flow is spoofed, its port too, if it can be had.
        :param idle: seconds without a datagram either way; None: until it has to go for another.
        :param total: seconds in all.
        :param max_flows: beyond them, and where there is no descriptor left, the longest unused one
            has to go. Each has two descriptors.
        :raises CommError: EINVAL a listener that is not told where datagrams were going, or a rule;
            EPROTOTYPE; ENOTSUP no engine grants foreign addresses.
        """
        entry = self._entry(lsock)
        if entry.flows is not None:
            raise CommError(errno.EBUSY, "comm_udp_reply has answered for this listener already")
        listener = InterceptFlows(
            self.plane,
            entry.sock,
            max_flows,
            policy,
            decide,
            on_done,
            on_failed,
            None,
            None,
            mark,
            keep_port,
            None,
            idle,
            total,
            lambda fn: self._ready.append((fn, ())),
            self._adopt_fd,
        )
        self._arm(entry, 1, None)
        self._watch_plane()
        return listener


def intercept_flows(
    plane: Plane,
    lsock: Any,
    *,
    policy: Sequence[Rule | tuple[Any, ...]] | None = None,
    decide: Callable[[list[FlowQuestion]], object] | None = None,
    on_done: Callable[[RelayResult], object] | None = None,
    on_failed: Callable[[RelayResult], object] | None = None,
    mark: int | None = None,
    keep_port: bool = False,
    idle: float | None = 60,
    total: float | None = None,
    max_flows: int = 65536,
) -> InterceptFlows:
    """:meth:`Reactor.intercept_flows` with no reactor: `decide` and `on_done` are called by
    :meth:`Plane.run_completions`, answers given outside of them go back at once."""
    times = (None, idle, total)
    told = (policy, decide, on_done, on_failed, None, None, mark, keep_port)
    return InterceptFlows(plane, lsock, max_flows, *told, *times, None, socket_of)
