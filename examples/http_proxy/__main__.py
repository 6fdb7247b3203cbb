"""An HTTP proxy on lusca_comm: intercepting, forward, or both at once. docs/http-proxy.md

    python examples/http_proxy --lab      # shows itself, on this machine, without root
    python examples/http_proxy --intercept 0.0.0.0:3129 --spoof --forward 127.0.0.1:3128

The files, in reading order:

    __main__.py     listeners, privileges, signals: this one
    proxy.py        what becomes of a request
    hooks.py        what Python of yours may say to it
    resolver.py     names to addresses
    answers.py      pages
    access_log.py   lines
    listeners.py, options.py

The rules of intercepted requests are lusca_comm.protocols.http_intercept; the framing, the bodies
and the connections to origins are the data plane's.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import signal
import sys
import time
from typing import Any

import hooks
import options as command_line
from access_log import AccessLog
from listeners import check_spoofing, intercepting, leads_here, open_listeners
from proxy import FIELDS, Proxy
from resolver import Resolver

import lusca_comm as lc
from lusca_comm.address import spell
from lusca_comm.protocols.http_intercept import Rules


def main(options: argparse.Namespace) -> None:
    lc.prepare()  # devices that only root may open
    flags = intercepting(options.redirect_only) if options.intercept else 0
    intercepted = open_listeners(options.intercept, flags)
    forward = open_listeners(options.forward, 0)
    log = AccessLog(options.access_log, options.access_log_format) if options.access_log else None
    more_descriptors()
    if options.user is not None:
        lc.drop_privileges(options.user)  # threads, the data plane's among them, begin after this
    if options.spoof:
        check_spoofing()

    rules = Rules(
        verify=options.host_verify,
        other=options.other,
        silent=options.silent,
        pseudonym=options.via,
        cdn_id=options.cdn_loop,
        ports=options.ports,
        connect_ports=options.connect_ports,
        local=options.local,
        own=leads_here([*options.intercept, *options.forward]),
    )
    hook = hooks.load(options.hook) if options.hook else None
    resolver = Resolver(lc.call_soon_threadsafe, lc.comm_add_event, patience=options.dns_time)
    proxy = Proxy(options, rules, resolver, hook, log)
    service = lc.default_reactor.http_service(
        proxy.decide,
        fields=(*FIELDS, *(hook.fields if hook else ())),
        limits=limits(options),
        append_response=f"Via: 1.1 {options.via}\r\n".encode(),
        on_exchange=None if log is None else log.on_exchange,
    )
    for sock in intercepted:
        service.listen(sock, engine=options.engine, mark=options.mark, on_refused=Refused())
    for sock in forward:
        service.listen(sock, intercepted=False, mark=options.mark)
    Signals(options, proxy, log, service, [*intercepted, *forward])
    where = [*map(spell, options.intercept), *map(spell, options.forward)]
    say(f"ready on {', '.join(where)}, as {options.via}")
    lc.run()
    lc.default_reactor.plane.stop()  # what still runs is reset: a part must not look like the whole
    say("ended")


def limits(options: argparse.Namespace) -> Any:
    return lc.HttpLimits(
        line=options.max_line,
        head=options.max_head,
        fields=options.max_fields,
        body=options.max_body,
        head_time=options.head_time,
        idle_time=options.idle_time,
        body_time=options.body_time,
        connect_time=options.connect_time,
        response_time=options.response_time,
        tunnel_time=options.tunnel_time,
        pool_size=options.pool,
    )


def more_descriptors() -> None:
    """A request has two or three; the soft limit is often 1024."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Refused:
    """Tells of connections that nothing intercepted, and of loops: ten a second, and the number of
    the rest."""

    def __init__(self) -> None:
        self._second, self._told = 0, 0

    def __call__(self, why: lc.CommError) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._told > 10:
                say(f"{self._told - 10} more connections were refused")
            self._second, self._told = second, 0
        self._told += 1
        if self._told <= 10:
            say(f"refused: {why.strerror}")


class Signals:
    """TERM and INT end it, HUP and USR1 open files anew."""

    def __init__(
        self,
        options: argparse.Namespace,
        proxy: Proxy,
        log: AccessLog | None,
        service: Any,
        listeners: list[Any],
    ) -> None:
        self._options, self._proxy, self._log = options, proxy, log
        self._service, self._listeners = service, listeners
        self._ending = False
        for number, act in (
            (signal.SIGTERM, self.end),
            (signal.SIGINT, self.end),
            (signal.SIGHUP, self.reload),
            (signal.SIGUSR1, self.reopen),
        ):
            signal.signal(number, lambda *_, act=act: lc.call_soon_threadsafe(act))

    def end(self) -> None:
        """The first one: no new connections, and the end when the last request has ended."""
        if self._ending:
            lc.stop()
            return
        self._ending = True
        say("no new connections: it ends when the last request has ended")
        self._service.close()
        for sock in self._listeners:
            lc.comm_close(sock)
        plane = lc.default_reactor.plane
        plane.on_drained = lc.stop
        plane.drain()
        lc.comm_add_event(self._options.drain_time, lambda _: lc.stop())

    def reload(self) -> None:
        self.reopen()
        if self._options.hook is None:
            return
        try:
            self._proxy.hook = hooks.load(self._options.hook)
            say("the hook was loaded again")
        except Exception as why:  # whatever somebody's module raises
            say(f"the hook stays as it was: {why}")

    def reopen(self) -> None:
        if self._log is None:
            return
        try:
            self._log.reopen()
        except OSError as why:
            say(f"{why.filename}: {why.strerror}; the log stays where it was")


def say(text: str) -> None:
    print(f"http_proxy: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        given = command_line.parse()
        if given.lab:
            import in_lab

            sys.exit(in_lab.main())
        main(given)
    except (lc.CommError, OSError, ValueError) as error:
        say(str(error))
        sys.exit(1)
