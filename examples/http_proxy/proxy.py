"""The proxy: from a request's head to the origin, and what becomes of it.

The data plane accepts connections, finds out where each was going, and judges the framing of what
comes; :meth:`Proxy.decide` is called with the heads of all requests that wait. What it does with
each, in reading order:

    decide      as one before it, where it is like that one in all that the rules look at
    judge       what the request means, and whether Host is believed
    resolve     the addresses of a name, if that needs them; the request waits meanwhile
    obey        the verdict, and what the hook says
    go          connect, in the client's name with --spoof, and send the request on

Bodies, responses and what follows are the data plane's; only what failed comes back here, to be
tried at the next address or answered with a page.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import math
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from access_log import AccessLog
from answers import Answers, of_failure
from hooks import Deny, Hook, Redirect, Request, Rewrite
from resolver import Answer, Resolver

from lusca_comm.protocols.http_intercept import (
    Rules,
    Verdict,
    forwarded,
    hops_left,
    intercepted,
    loops,
    unframed,
)

FIELDS = ("host", "via", "cdn-loop")  # that are looked at in every request
COUNTED = (b"OPTIONS", b"TRACE")  # whose hops Max-Forwards limits
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
NOTHING = Verdict("refuse")
BODIED = (b"POST", b"PUT")  # RFC 1945, 8.3: HTTP/1.0 has these with a length only
MOST = 65536  # of what is remembered
USUAL = 16384  # answers that are kept for those that are like the ones they were given to


class Trip(NamedTuple):
    """Where a request is going, and how it is changed on the way."""

    verdict: Verdict
    start: bytes | None = None
    """The first line, in the place of the client's."""
    drop: tuple[str, ...] = ()
    append: bytes = b""
    attempt: int = 0
    """Of the addresses in the verdict."""


class Usual(NamedTuple):
    """What becomes of every request that is like one before it."""

    until: float
    """By time.monotonic(): the addresses in it are asked for again."""
    trip: Trip
    answer: bytes
    noted: bool
    """Something has to be known of it later."""


class Proxy:
    """Decides. `options` are those of options.py."""

    def __init__(
        self,
        options: Any,
        rules: Rules,
        resolver: Resolver,
        hook: Hook | None = None,
        log: AccessLog | None = None,
    ) -> None:
        self.hook = hook
        self._options = options
        self._rules = rules
        self._resolver = resolver
        self._log = log
        self._answers = Answers(options.via)
        self._usual: dict[int, Usual] = {}  # by `like`; nothing where there is a hook
        self._trips: dict[int, Trip] = {}  # by session, while there is another address
        self._local_rules = dataclasses.replace(rules, local=True)
        self._rules_for = functools.lru_cache(maxsize=4096)(self._rules_of)
        cdn_loop = f"CDN-Loop: {options.cdn_loop}\r\n" if options.cdn_loop else ""
        self._append = {
            version: b"Via: %s %s\r\n%s" % (version[5:], options.via.encode(), cdn_loop.encode())
            for version in (b"HTTP/1.0", b"HTTP/1.1")
        }

    def decide(self, requests: list[Any]) -> None:
        usual, now = self._usual.get, time.monotonic()
        for request in requests:
            known = usual(request.like)
            if known is not None:
                until, trip, answer, noted = known
                if until > now:
                    if noted or self._trips:
                        self._begin(request, trip)
                    request.again(answer)
                    continue
            try:
                state = request.state
                if state == "request":
                    self.judge(request)
                elif state == "failed":
                    self.failed(request)
                elif state == "refused":
                    self.answer(request, request.status, request.why, NOTHING, "NONE_NONE")
                else:  # "other", "h2", "silent"
                    verdict = unframed(self._rules, request.original, state == "silent")
                    self.obey(request, verdict)
            except Exception:
                self.spoiled(request)

    def spoiled(self, request: Any) -> None:
        """An error, of a hook for one, costs this request and no other."""
        traceback.print_exc(file=sys.stderr)
        if not request.answered:
            self.answer(request, 500, "an error of the proxy's own", NOTHING, "NONE_NONE")

    # -- what it means ---------------------------------------------------------------------------

    def judge(self, request: Any, answers: Answer | None = None) -> None:
        """`answers`: the addresses of the name in it, once they were asked for."""
        original, method, target = request.original, request.method, request.target
        host = request.field("host")
        hosts = () if host is None else (host,)  # the plane refuses a second one
        if original is not None:
            verdict = intercepted(self._rules, method, target, hosts, original, answers)
        elif (rules := self._rules_for(request.peer[0])) is not None:
            verdict = forwarded(rules, method, target, hosts, answers)
        else:
            self.answer(request, 403, "this proxy is not yours to use", NOTHING)
            return
        if verdict.action == "resolve":
            self.resolve(request, verdict.host, self.judge)
        elif method in BODIED and request.length is None and request.version == b"HTTP/1.0":
            self.answer(request, 411, "a body without a length", verdict, "NONE_NONE")
        elif self._has_been_here(request):
            self.answer(request, 508, "the request has been here before", verdict)
        elif method in COUNTED and (self._hops_left(request) or 0) < 0:
            self.answer(request, 204 if method == b"OPTIONS" else 501, "the last hop", verdict)
        elif self.hook is None and verdict.action == "forward":
            self.send(request, verdict, self._until(verdict, answers))
        else:
            self.obey(request, verdict)

    def _until(self, verdict: Verdict, answers: Answer | None) -> float:
        """When it may be another one, by the clock of time.monotonic()."""
        if answers is None:
            return math.inf
        return self._resolver.until((verdict.claimed or verdict).host)

    def _has_been_here(self, request: Any) -> bool:
        if not (request.field("via") or request.field("cdn-loop")):
            return False
        return loops(self._rules, request.fields("via"), request.fields("cdn-loop"))

    @staticmethod
    def _hops_left(request: Any) -> int | None:
        return hops_left(request.method, request.fields("max-forwards"))

    def _rules_of(self, host: str) -> Rules | None:
        """Those of a forward client: None, it may not use this proxy. One on this machine reaches
        what is local without us."""
        ip = ipaddress.ip_address(host.partition("%")[0])
        if not any(ip in network for network in self._options.allow):
            return None
        return self._local_rules if ip.is_loopback else self._rules

    def resolve(self, request: Any, name: str, step: Callable[..., object], *args: Any) -> None:
        """Goes on with ``step(request, *args, addresses)``, at once where they are known."""
        answer = self._resolver.known(name)
        if answer is not None:
            step(request, *args, answer)
            return

        def found(answer: Answer) -> None:
            try:
                step(request, *args, answer)
            except Exception:
                self.spoiled(request)

        if not self._resolver.look_up(name, found):
            self.answer(request, 503, "too many names are being looked up", NOTHING)

    # -- what is done ----------------------------------------------------------------------------

    def obey(self, request: Any, verdict: Verdict) -> None:
        if verdict.status:  # "refuse" or "answer"
            self.answer(request, verdict.status, verdict.why, verdict)
            return
        if self.hook is None:
            self.send(request, verdict)
            return
        decision = self.hook.on_request(Request(request, verdict))
        if isinstance(decision, Deny):
            self.answer(request, decision.status, decision.why, verdict)
        elif isinstance(decision, Redirect):
            self.redirect(request, decision, verdict)
        elif isinstance(decision, Rewrite):
            self.rewrite(request, decision, verdict)
        else:
            self.send(request, verdict)

    def rewrite(
        self, request: Any, how: Rewrite, verdict: Verdict, answers: Answer | None = None
    ) -> None:
        start: bytes | None = None
        if how.uri is not None and verdict.action == "forward":
            uri, method = how.uri.encode("latin-1"), request.method
            other = forwarded(self._rules, method, uri, (), answers)
            if other.action == "resolve":
                self.resolve(request, other.host, self.rewrite, how, verdict)
                return
            verdict, start = other, b"%s %s %s\r\n" % (method, uri, request.version)
            if verdict.action != "forward":
                self.answer(request, verdict.status, verdict.why, verdict)
                return
        trip = self.trip(request, verdict)
        drop = (*trip.drop, *map(str.lower, how.drop))
        self.go(request, Trip(verdict, start, drop, trip.append + how.lines))

    def send(self, request: Any, verdict: Verdict, until: float = 0.0) -> None:
        """To the origin, and those that are like it, `until` then."""
        trip = self.trip(request, verdict)
        answer = self.go(request, trip)
        unusual = request.upgrade or request.method in COUNTED or self._options.forwarded_for
        if answer is None or until <= 0 or unusual or not request.like:
            return
        if len(self._usual) >= USUAL:
            self._usual.clear()
        noted = self._log is not None or len(verdict.to) > 1
        self._usual[request.like] = Usual(until, trip, answer, noted)

    def trip(self, request: Any, verdict: Verdict) -> Trip:
        """What of the head is written anew."""
        if verdict.action == "tunnel":
            return Trip(verdict)
        drop: tuple[str, ...] = ()
        append = self._append[request.version]
        if verdict.field is not None:
            drop, append = ("host",), append + b"Host: %s\r\n" % verdict.field
        if self._options.forwarded_for:
            append += b"X-Forwarded-For: %s\r\n" % request.peer[0].encode()
        if request.method in COUNTED and (left := self._hops_left(request)) is not None:
            drop, append = (*drop, "max-forwards"), append + b"Max-Forwards: %d\r\n" % left
        return Trip(verdict, None, drop, append)

    def _begin(self, request: Any, trip: Trip) -> None:
        """What has to be known of it later."""
        if trip.attempt + 1 < len(trip.verdict.to):
            self._trips[request.id] = trip
            if len(self._trips) > MOST:  # most went well, which is not told of
                del self._trips[next(iter(self._trips))]
        else:
            self._trips.pop(request.id, None)
        if self._log is not None:
            result = "TCP_TUNNEL" if trip.verdict.action == "tunnel" else "TCP_MISS"
            self._log.decided(request, trip.verdict, result)

    def go(self, request: Any, trip: Trip) -> bytes | None:
        """To the next address; what :meth:`send` may say again."""
        verdict = trip.verdict
        to, intercepted = verdict.to[trip.attempt], request.original is not None
        spoof = self._options.spoof and intercepted
        self._begin(request, trip)
        if verdict.action == "tunnel":
            request.tunnel(to, spoof=spoof, reply=b"" if intercepted else CONNECTED)
            return None
        return request.forward(  # type: ignore[no-any-return]
            to,
            spoof=spoof,
            start=trip.start,
            drop=trip.drop,
            append=trip.append,
            origin_form=verdict.origin_form,
            keep_upgrade=request.upgrade and self._may_upgrade(request),
        )

    def _may_upgrade(self, request: Any) -> bool:
        """Other protocols than those allowed would be a way past every rule (h2c)."""
        asked = b",".join(request.fields("upgrade")).decode("latin-1").lower().split(",")
        return all(name.strip() in self._options.upgrade for name in asked)

    # -- what the proxy says itself --------------------------------------------------------------

    def failed(self, request: Any) -> None:
        """Nothing of a response was there yet."""
        trip = self._trips.pop(request.id, None)
        if trip is not None and request.failed == "connect":
            self.go(request, trip._replace(attempt=trip.attempt + 1))
            return
        self.respond(request, self._answers.page, *of_failure(request.failed, request.errno))

    def answer(
        self, request: Any, status: int, why: str, verdict: Verdict, result: str = "TCP_DENIED"
    ) -> None:
        """With a page."""
        if self._log is not None:
            self._log.decided(request, verdict, result)
        # Of what the rules refuse, this is a name without an address.
        error = "dns_error" if status == 502 else ""
        self.respond(request, functools.partial(self._answers.page, error=error), status, why)

    def redirect(self, request: Any, how: Redirect, verdict: Verdict) -> None:
        if self._log is not None:
            self._log.decided(request, verdict, "TCP_REDIRECT")
        self.respond(request, self._answers.redirect, how.status, how.url)

    @staticmethod
    def respond(request: Any, make: Callable[..., bytes], status: int, text: str) -> None:
        """The connection goes on where nothing else of the request is to come."""
        goes_on = (
            request.state in ("request", "failed")
            and request.length in (None, 0)
            and request.keep_alive
            and not request.connect
        )
        says = ("keep-alive" if request.version == b"HTTP/1.0" else "") if goes_on else "close"
        page = make(status, text, head=request.method == b"HEAD", connection=says)
        request.respond(page, close=not goes_on)
