"""A relay as its user sees it: counters, the way to end it, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ._shim import lib

if TYPE_CHECKING:
    from .plane import Plane

__all__ = ["Relay", "RelayResult", "Totals"]

ENDS = {
    lib.LC_END_EOF: "eof",
    lib.LC_END_RESET: "reset",
    lib.LC_END_IDLE: "idle",
    lib.LC_END_TOTAL: "total",
    lib.LC_END_LIMIT: "limit",
    lib.LC_END_KILLED: "killed",
    lib.LC_END_ERROR: "error",
    lib.LC_END_CONNECT: "connect",
    lib.LC_FRAMED: "framed",
    lib.LC_END_EVICTED: "evicted",
    lib.LC_CONNECTED: "connected",
}
SIDES = ("", "client", "upstream")


class RelayResult(NamedTuple):
    """How a relay ended."""

    up: int
    """Bytes delivered to the upstream, the prefix included."""
    down: int
    """Bytes delivered to the client."""
    seconds: float
    end: str
    """"eof" both sides have ended, "reset", "idle", "total", "limit", "killed", "error",
    "connect": the upstream was not reached, or "evicted": a flow that had to go for another one."""
    errno: int
    """Of a reset or an error, else 0."""
    side: str
    """"client" or "upstream": where the reset or the error came from, else ""."""
    client: Any
    """The socket, where it is given back (end "limit" or "connect"); else None: it is closed."""
    upstream: Any
    """The socket, where it is given back (end "limit"); else None, and it is closed."""
    data: Any


class Totals(NamedTuple):
    """What a plane has done so far. Numbers of connections (and flows of datagrams), and
    bytes delivered."""

    accepted: int
    relayed: int
    asked: int
    denied: int
    looped: int
    """Refused, because relaying them would have been a loop."""
    failed: int
    """Not intercepted, or the upstream was not reached."""
    ended: int
    up: int
    down: int
    live: int
    requests: int
    """HTTP exchanges that have ended."""
    datagrams: int
    """Relayed."""
    dropped: int
    """Datagrams that were not: denied, of no flow, or not taken by a socket."""
    evicted: int
    """Flows that had to go for others."""


class Owner(Protocol):
    """Who gave a relay to a plane."""

    def _kill(self, relay: Relay) -> None: ...

    def _given_back(self, relay: Relay, fds: tuple[int, int]) -> tuple[Any, Any]:
        """Socket objects for descriptors that are Python's again (-1: that one is not)."""

    def _ended(self, relay: Relay) -> None:
        """The last thing before on_done."""


class Relay:
    """A relay under way."""

    __slots__ = ("_data", "_id", "_kept", "_on_done", "_owner", "_plane", "_result")

    def __init__(self, owner: Owner, on_done: Callable[[RelayResult], object], data: Any) -> None:
        self._owner = owner
        self._on_done = on_done
        self._data = data
        self._plane: Plane | None = None
        self._id = 0
        self._kept: Any = None
        self._result: RelayResult | None = None

    @property
    def ended(self) -> bool:
        return self._result is not None

    @property
    def up(self) -> int:
        """Bytes delivered to the upstream so far."""
        return self._counts()[0]

    @property
    def down(self) -> int:
        """Bytes delivered to the client so far."""
        return self._counts()[1]

    def _counts(self) -> tuple[int, int]:
        if self._result is not None:
            return self._result.up, self._result.down
        return self._plane.counts(self._id) if self._plane is not None else (0, 0)

    def kill(self) -> None:
        """Ends the relay now, with a reset to both sides. Idempotent."""
        if self._result is None:
            self._owner._kill(self)
