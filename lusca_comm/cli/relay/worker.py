"""One worker of the service: listeners in a data plane, and what the operator's side tells it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import wait

from lusca_comm import CommError, Plane, RelayResult, Rule, original_destination
from lusca_comm.address import spell
from lusca_comm.intercept_relay import intercept_relay
from lusca_comm.workers import Seat

__all__ = ["CUT", "Limit", "Settings", "work"]

CUT = 3
"""The status of a worker that reset relays which had not ended."""

LINES = 10  # of failures, a second
ABORT = struct.pack("ii", 1, 0)  # struct linger: a close is a reset


@dataclasses.dataclass
class Settings:
    """What the relays of all workers have in common."""

    policy: list[Rule]
    engine: str | None
    mark: int | None
    keep_port: bool
    connect_timeout: float
    idle: float | None


class Limit:
    """Lets `most` things of a second through, and counts the others."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._end = 0.0  # of the second under way
        self._seen = 0

    def admits(self) -> bool:
        """Whether one more may pass. :meth:`withheld` comes first."""
        if self._clock() >= self._end:
            self._end, self._seen = self._clock() + 1, 0
        self._seen += 1
        return self._seen <= self._most

    def withheld(self) -> int:
        """How many were held back in the second that has passed; each is told of once."""
        if self._clock() < self._end or self._seen <= self._most:
            return 0
        over, self._seen = self._seen - self._most, 0
        return over

    def patience(self) -> float | None:
        """Seconds until :meth:`withheld` has something to tell; None: it has nothing."""
        return max(0.0, self._end - self._clock()) if self._seen > self._most else None


def work(seat: Seat, settings: Settings) -> int:
    """A worker's life; see :class:`lusca_comm.workers.Workers`."""
    try:
        return _Worker(seat, settings).run()
    except CommError as why:
        seat.channel.send(("log", str(why.strerror)))
        return 1


class _Worker:
    def __init__(self, seat: Seat, settings: Settings) -> None:
        self._seat = seat
        self._engine = settings.engine
        self._limit = Limit(LINES)
        self._plane = Plane()
        self._plane.on_drained = self._on_drained
        self._drained = False
        self._listeners = [
            intercept_relay(
                self._plane, sock, on_failed=self._on_failed, **dataclasses.asdict(settings)
            )
            for sock in seat.listeners
        ]
        seat.channel.send(("ready", None))

    def run(self) -> int:
        channel, plane = self._seat.channel, self._plane.fileno()
        while not self._drained:
            ready = wait([channel, plane], self._limit.patience())
            if plane in ready:
                self._plane.run_completions()
            self._tell_withheld()
            if channel in ready:
                try:
                    order, what = channel.recv()
                except (EOFError, OSError):  # the parent is gone, and nobody could drain this
                    self._plane.stop()
                    return CUT
                if order == "stop":
                    return self._stop()
                self._obey(order, what)
        self._send_totals()
        return 0

    def _obey(self, order: str, what: object) -> None:
        if order == "policy":
            assert isinstance(what, list)
            for listener in self._listeners:
                listener.set_policy(what)
            self._seat.channel.send(("policy", None))
        elif order == "drain":
            for sock in self._seat.listeners:
                sock.close()
            self._plane.drain()
        else:
            assert order == "totals"
            self._send_totals()

    def _stop(self) -> int:
        live = self._plane.totals().live
        self._plane.stop()
        self._send_totals()
        return CUT if live else 0

    def _send_totals(self) -> None:
        self._seat.channel.send(("totals", self._plane.totals()))

    def _on_drained(self) -> None:
        self._drained = True

    def _on_failed(self, result: RelayResult) -> None:
        with result.client as client:
            self._tell_withheld()
            if self._limit.admits():
                self._say(f"{self._whence(client)}: {os.strerror(result.errno)}")
            with contextlib.suppress(OSError):  # it has gone itself
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)

    def _whence(self, client: socket.socket) -> str:
        """From where to where. A client that has gone meanwhile can't be asked any more."""
        try:
            peer = spell(client.getpeername())
            return f"{peer} to {spell(original_destination(client, engine=self._engine).address)}"
        except OSError:
            return "a client that has gone"

    def _tell_withheld(self) -> None:
        if more := self._limit.withheld():
            self._say(f"and {more} failures more")

    def _say(self, text: str) -> None:
        self._seat.channel.send(("log", text))
