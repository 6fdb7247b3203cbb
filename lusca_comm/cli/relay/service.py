"""The operator's side of the service: listeners, privileges, workers, signals, counters."""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import math
import resource
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lusca_comm import (
    COMM_INTERCEPT,
    COMM_REUSEADDR,
    COMM_REUSEPORT,
    COMM_TPROXY_LCL,
    COMM_TPROXY_REM,
    CommError,
    Reactor,
    Rule,
    Totals,
)
from lusca_comm.address import spell
from lusca_comm.engines import probe_nat, row_of
from lusca_comm.policy_file import parse_policy
from lusca_comm.privileges import drop_privileges
from lusca_comm.workers import Ended, Workers

from .screen import NOTHING, Row, Screen, add, in_words
from .signals import Signals
from .worker import CUT, Settings, work

__all__ = ["serve"]

END = (signal.SIGTERM, signal.SIGINT)
REFRESH = 1.0  # seconds between two tables
ANSWER = 1.0  # seconds that the counters wait for a worker which does not answer
GRACE = 5.0  # seconds from "stop" to SIGKILL
NOBODYS = ("192.0.2.1", 0)  # RFC 5737


def serve(options: argparse.Namespace) -> int:
    """The service, until it has ended. Returns the exit status; raises CommError where it can't
    start."""
    if options.engine is not None:
        row_of(options.engine)
    policy = read_policy(options)
    more_descriptors()
    with contextlib.ExitStack() as at_the_end:
        listeners = open_listeners(options)
        for sock in itertools.chain(*listeners):
            at_the_end.callback(sock.close)
        if options.user is not None:
            drop_privileges(options.user)
        check_outgoing(policy, options.mark)
        screen = Screen()
        at_the_end.callback(screen.close)
        signals = at_the_end.enter_context(Signals((*END, signal.SIGHUP, signal.SIGUSR1)))
        return Service(options, policy, listeners, signals, screen).run()


def read_policy(options: argparse.Namespace) -> list[Rule]:
    """The rules of the file, and one for what is left. Raises CommError for bad lines."""
    rules = []
    if options.policy is not None:
        try:
            text = Path(options.policy).read_bytes()
        except OSError as why:
            raise CommError(why.errno or errno.EIO, f"{options.policy}: {why.strerror}") from why
        rules = parse_policy(text, options.policy)
    return [*rules, Rule("spoof" if options.spoof else "relay")]


def more_descriptors() -> None:
    """A relay has two or more; the soft limit is often 1024."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_listeners(options: argparse.Namespace) -> list[list[socket.socket]]:
    """For each worker a socket on every address."""
    flags = COMM_REUSEADDR | (COMM_INTERCEPT if options.redirect_only else _tproxy())
    loop = Reactor()
    try:
        for address in options.listen:
            # SO_REUSEPORT would let a second service of the same user in, for every other
            # connection.
            loop.comm_close(_listener(loop, address, flags))
        if options.workers > 1:
            flags |= COMM_REUSEPORT
        return [
            [loop.comm_detach(_listener(loop, address, flags)) for address in options.listen]
            for _ in range(options.workers)
        ]
    finally:
        loop.close()


def _tproxy() -> int:
    """TPROXY, and NAT as well where this machine has it."""
    try:
        probe_nat()
    except CommError as why:
        if why.errno in (errno.EACCES, errno.EPERM):
            raise
        return COMM_TPROXY_LCL
    return COMM_TPROXY_LCL | COMM_INTERCEPT


def _listener(loop: Reactor, address: tuple[str, int], flags: int) -> socket.socket:
    try:
        sock = loop.comm_open(address=address, flags=flags)
        loop.comm_listen(sock)
    except CommError as why:
        text = f"{spell(address)}: {why.strerror}"
        if why.errno == errno.EPERM and flags & COMM_TPROXY_LCL:
            text += "; where REDIRECT or DNAT feeds it, --redirect-only needs no privilege"
        raise CommError(why.errno or errno.EIO, text) from why
    return sock


def check_outgoing(policy: Sequence[Rule], mark: int | None) -> None:
    """Raises CommError where the workers could not open what the policy needs: once here, instead
    of for each connection there."""
    spoofs = any(rule.action == "spoof" for rule in policy)
    flags, address = (COMM_TPROXY_REM, NOBODYS) if spoofs else (0, None)
    loop = Reactor()
    try:
        loop.comm_close(loop.comm_open(address=address, flags=flags, mark=mark))
    finally:
        loop.close()


class Service:
    """The service under way."""

    def __init__(
        self,
        options: argparse.Namespace,
        policy: list[Rule],
        listeners: list[list[socket.socket]],
        signals: Signals,
        screen: Screen,
    ) -> None:
        self._options = options
        self._signals = signals
        self._screen = screen
        self._settings = Settings(
            policy,
            options.engine,
            options.mark,
            options.keep_port,
            options.connect_timeout,
            options.idle,
        )
        self._workers = Workers(
            listeners, lambda seat: work(seat, self._settings), self._on_message, self._on_ended
        )
        self._totals = [NOTHING] * len(listeners)
        self._ready: set[int] = set()
        self._past = NOTHING  # of the workers that have ended
        self._serving = False
        self._ending = ""  # "drain", then "stop"
        self._status = 0
        self._deadline = math.inf  # when those that still run are told to stop, then killed
        self._asked: frozenset[int] = frozenset()  # who has not told its counters yet
        self._report = math.inf  # when they are written without those
        self._changing: frozenset[int] = frozenset()  # who has the old policy still
        self._refresh = 0.0 if screen.live else math.inf

    def run(self) -> int:
        with self._workers:
            self._workers.start()
            while self._workers.pids or not self._ending:
                if self._workers.turn(self._patience(), self._signals):
                    for number in self._signals.fetch():
                        self._obey(number)
                self._keep_time()
        if self._serving:
            self._draw()
            self._say(f"ended: {in_words(self._sum())}")
        return self._status

    # -- orders --------------------------------------------------------------------------------

    def _obey(self, number: int) -> None:
        if number in END:
            if not self._ending:
                self._drain()
            elif self._ending == "drain":
                self._stop()
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR1:
            self._asked = self._workers.tell(("totals", None))
            self._report = time.monotonic() + ANSWER

    def _drain(self) -> None:
        self._ending = "drain"
        self._workers.finish()
        self._workers.tell(("drain", None))
        self._deadline = time.monotonic() + self._options.drain_timeout
        self._say("no new connections: it ends when the last relay has ended")

    def _stop(self) -> None:
        self._ending = "stop"
        self._workers.finish()
        self._workers.tell(("stop", None))
        self._deadline = time.monotonic() + GRACE

    def _reload(self) -> None:
        if self._options.policy is None:
            self._say("nothing to read again: there is no --policy")
            return
        try:
            policy = read_policy(self._options)
            check_outgoing(policy, self._options.mark)
        except CommError as why:
            for line in str(why.strerror).splitlines():
                self._say(line)
            self._say("the policy stays as it was")
            return
        self._settings.policy = policy
        self._changing = self._workers.tell(("policy", policy))

    def _changed(self, number: int) -> None:
        if number in self._changing:
            self._changing -= {number}
            if not self._changing:
                self._say(f"the policy has changed: {self._rules()}")

    # -- what workers say ----------------------------------------------------------------------

    def _on_message(self, number: int, message: Any) -> None:
        kind, what = message
        if kind == "log":
            self._say(f"worker {number}: {what}")
        elif kind == "totals":
            self._totals[number] = what
            self._asked -= {number}
        elif kind == "policy":
            self._changed(number)
        else:
            assert kind == "ready"
            self._ready.add(number)
            if not self._serving and len(self._ready) == len(self._totals):
                self._serving = True
                where = ", ".join(map(spell, self._options.listen))
                pids = " ".join(str(pid) for _, pid in sorted(self._workers.pids.items()))
                self._say(f"ready on {where}; {self._rules()}; workers: {pids}")
            elif self._serving:
                self._say(f"worker {number} is process {self._workers.pids[number]} now")

    def _on_ended(self, ended: Ended) -> None:
        number = ended.number
        self._past = add(self._past, self._totals[number]._replace(live=0))
        self._totals[number] = NOTHING
        self._asked -= {number}
        self._changed(number)
        if self._ending:
            if ended.status:
                self._status = self._status or CUT
                if ended.status != CUT:
                    self._say(f"worker {number} {ended}")
            return
        if not self._serving:
            # Where the first one can't begin, its successor can't either.
            self._say(f"worker {number} {ended}")
            self._status = 1
            self._stop()
            return
        when = f" in {ended.again:.1f} s" if ended.again else ""
        self._say(f"worker {number} {ended}: another one takes its place{when}")

    # -- time ----------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        due = min(self._deadline, self._report, self._refresh)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def _keep_time(self) -> None:
        now = time.monotonic()
        if now >= self._deadline:
            if self._ending == "drain":
                self._say("relays that have not ended are reset")
                self._stop()
            else:
                self._workers.kill()
                self._deadline = math.inf
        if self._report < math.inf and (not self._asked or now >= self._report):
            self._report = math.inf
            for row in self._rows():
                silent = " (does not answer)" if row.name in map(str, self._asked) else ""
                who = f"worker {row.name} (process {row.pid})" if row.pid else f"{row.name}"
                self._say(f"{who}{silent}: {in_words(row.totals)}")
        if now >= self._refresh:
            self._refresh = now + REFRESH
            self._draw()
            self._workers.tell(("totals", None))

    # -- what is shown -------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._screen.say(text)

    def _draw(self) -> None:
        self._screen.draw(self._rows())

    def _rules(self) -> str:
        *rules, otherwise = self._settings.policy
        s = "" if len(rules) == 1 else "s"
        return f"{len(rules)} rule{s}, otherwise {otherwise.action}"

    def _rows(self) -> list[Row]:
        pids = self._workers.pids
        rows = [
            Row(str(number), pids.get(number, 0), totals)
            for number, totals in enumerate(self._totals)
        ]
        return [*rows, Row("all", 0, self._sum())]

    def _sum(self) -> Totals:
        total = self._past
        for one in self._totals:
            total = add(total, one)
        return total
