"""The demo from its first host to its last line."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

from lusca_comm.firewall import Plan, apply, remove
from lusca_comm.lab import Lab

from .checks import FAMILIES, LINES, Hosts, Line, Proxied, Response, Saw, as_json, judge
from .programs import Log, fetch, intercept, serve
from .screen import Screen

__all__ = ["play"]

PORTS: Final = {3129: True, 3130: False}
"""Where the proxy listens, and whether it goes on from there in the client's name."""
AF: Final = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
BODY: Final = 64 * 1024

TITLES: Final = {
    ("direct", False): "No rule, as a control: the proxy must see nothing",
    ("tproxy", True): "TPROXY, upstream in the client's name: the origin must see the client",
    ("tproxy", False): "TPROXY, upstream in the router's name: the origin must see the router",
    ("redirect", True): "REDIRECT, upstream in the client's name: the origin must see the client",
    ("redirect", False): "REDIRECT, upstream in the router's name: the origin must see the router",
}

Outcome = tuple[Line, Saw, list[str]]


class Stage:
    """The hosts with their programs: a proxy in the router, a server in the origin."""

    def __init__(self, lab: Lab, proxy: Log, origin: Log) -> None:
        self.net = net = lab.three()
        self.hosts = {
            family: Hosts(
                net.client_ip[AF[family]],
                net.router_client_ip[AF[family]],
                net.router_origin_ip[AF[family]],
                (net.origin_ip[AF[family]], 80),
            )
            for family in FAMILIES
        }
        self._proxy, self._origin = proxy, origin
        addresses = [hosts.origin for hosts in self.hosts.values()]
        self._programs = (
            net.origin.start(serve, addresses, origin),
            net.router.start(intercept, PORTS, proxy),
        )
        for program in self._programs:
            program.recv()

    def perform(self, about_to: Callable[[Line], None]) -> Iterator[Outcome]:
        """Every line, each with its rules in force, and without the others'."""
        for _, group in itertools.groupby(LINES, key=lambda line: (line.mode, line.spoof)):
            lines = list(group)
            plan = self._plan(lines[0])
            if plan is not None:
                self.net.router.run(apply, plan)
            for line in lines:
                about_to(line)
                yield self._request(line)
            if plan is not None:
                self.net.router.run(remove, plan)

    def _plan(self, line: Line) -> Plan | None:
        if line.mode == "direct":
            return None
        (port,) = (port for port, spoof in PORTS.items() if spoof == line.spoof)
        interfaces = (self.net.client_link.b_ifname,)
        return Plan(mode=line.mode, port=port, interfaces=interfaces, spoof=line.spoof)

    def _request(self, line: Line) -> Outcome:
        hosts, body = self.hosts[line.family], os.urandom(BODY)
        got: Response | str = self.net.client.run(fetch, hosts.origin, body)
        for program in self._programs:
            if not program.alive:
                program.result()
        proxy, origin = self._proxy.take(), self._origin.take()
        errors = [note for note in (got, *proxy) if isinstance(note, str)]
        proxied = [note for note in proxy if isinstance(note, Proxied)]
        client = None if isinstance(got, str) else got
        saw = Saw(client, tuple(proxied), tuple(origin), tuple(errors))
        return line, saw, judge(line, hosts, body, saw)


def play(in_json: bool) -> int:
    """The exit status: 0 if every line is what it must be, else 1."""
    return _print() if in_json else _draw()


def _print() -> int:
    with Lab() as lab, Log() as proxy, Log() as origin:
        outcomes = list(Stage(lab, proxy, origin).perform(lambda _: None))
    print(json.dumps([as_json(*outcome) for outcome in outcomes], indent=2))
    return int(any(wrong for _, _, wrong in outcomes))


def _draw() -> int:
    began = time.monotonic()
    screen = Screen()
    last, count, bad = "", 0, []
    with screen.progress() as under_way, Lab() as lab, Log() as proxy, Log() as origin:
        under_way("three hosts")
        stage = Stage(lab, proxy, origin)
        screen.topology(list(stage.hosts.values()), list(PORTS))
        for line, saw, wrong in stage.perform(lambda line: under_way(_name(line))):
            if (title := TITLES[line.mode, line.spoof]) != last:
                screen.group(title)
            screen.line(saw, wrong)
            if wrong:
                bad.append(_name(line))
            last, count = title, count + 1
    screen.verdict(count, bad, time.monotonic() - began)
    return int(bool(bad))


def _name(line: Line) -> str:
    how, _, _ = TITLES[line.mode, line.spoof].partition(":")
    return f"{line.family.replace('ip', 'IP')}: {how}"
