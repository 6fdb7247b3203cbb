"""A line for each exchange: Squid's native format, which many programs read, or JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, NamedTuple

from lusca_comm.protocols.http_intercept import Verdict

MOST = 65536  # exchanges under way of which something is known


class Line(NamedTuple):
    """An exchange that has ended."""

    client: str
    method: str
    uri: str
    claimed: str
    """The host that the client named, where it is not believed."""
    status: int
    """0: nothing was answered."""
    result: str
    """Squid's: TCP_MISS, TCP_TUNNEL, TCP_REDIRECT, TCP_DENIED, NONE_NONE; _ABORTED at its end."""
    hierarchy: str
    """Squid's: ORIGINAL_DST, HIER_DIRECT, HIER_NONE."""
    origin: str
    up: int
    down: int
    seconds: float
    reused: bool
    """Whether the connection to the origin had served before."""

    def squid(self, now: float) -> str:
        """``%ts.%03tu %6tr %>a %Ss/%03>Hs %<st %rm %ru %[un %Sh/%<a %mt`` of squid.conf."""
        milliseconds = round(self.seconds * 1000)
        return (
            f"{now:.3f} {milliseconds:6d} {self.client} {self.result}/{self.status:03d} "
            f"{self.down} {self.method} {self.uri} - {self.hierarchy}/{self.origin or '-'} -\n"
        )

    def json(self, now: float) -> str:
        return json.dumps({"time": round(now, 3), **self._asdict()}) + "\n"


class Known(NamedTuple):
    """What was decided about a request."""

    method: bytes
    target: bytes
    verdict: Verdict
    result: str


class AccessLog:
    """A file that is opened anew when it was rotated away. What cannot be written is said once, and
    no request waits for it."""

    def __init__(self, path: str, form: str) -> None:
        self._path = path
        self._spell = Line.squid if form == "squid" else Line.json
        self._fd = -1
        self._complained = False
        # By session, in the order of its requests: the next one may be decided before the end of
        # the one before is told.
        self._known: dict[int, list[Known]] = {}
        self.reopen()

    def reopen(self) -> None:
        """Raises OSError where the file cannot be had; the one that is open stays in use then."""
        if self._path == "-":
            self._fd = sys.stdout.fileno()
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def decided(self, request: Any, verdict: Verdict, result: str) -> None:
        """Its line, once it has ended, tells of `verdict`."""
        known = self._known.setdefault(request.id, [])
        if request.state == "failed" and known:
            known.pop()  # it was decided before
        if request.state in ("request", "failed"):
            known.append(Known(request.method, request.target, verdict, result))
        else:
            known.append(Known(b"", b"", verdict, result))
        if len(self._known) > MOST:  # of clients that went before they were answered
            del self._known[next(iter(self._known))]

    def on_exchange(self, exchanges: list[Any]) -> None:
        self.write([self._line(exchange) for exchange in exchanges])

    def _line(self, exchange: Any) -> Line:
        method, _, target = exchange.start.rpartition(b" ")[0].partition(b" ")
        waiting = self._known.get(exchange.id, [])
        known = Known(method, target, Verdict("refuse"), "NONE_NONE")
        while waiting:
            one = waiting.pop(0)
            if not one.method or (one.method, one.target) == (method, target):
                known = one
                break
        if not waiting:
            self._known.pop(exchange.id, None)
        verdict, origin = known.verdict, exchange.upstream
        here = "ORIGINAL_DST" if exchange.original is not None else "HIER_DIRECT"
        uri = verdict.uri(target) if verdict.base else target
        return Line(
            exchange.peer[0],
            method.decode("latin-1") or "-",
            uri.decode("latin-1") or "-",
            verdict.claimed.host if verdict.claimed else "",
            exchange.status,
            known.result + ("" if exchange.end == "eof" else "_ABORTED"),
            "HIER_NONE" if origin is None else here,
            "" if origin is None else origin[0],
            exchange.up,
            exchange.down,
            round(exchange.seconds, 6),
            exchange.reused,
        )

    def write(self, lines: list[Line]) -> None:
        now = time.time()
        text = "".join([self._spell(line, now) for line in lines])
        try:
            os.write(self._fd, text.encode("latin-1", "backslashreplace"))
            self._complained = False
        except OSError as why:
            if not self._complained:
                print(f"http_proxy: {self._path}: {why.strerror}", file=sys.stderr)
            self._complained = True
