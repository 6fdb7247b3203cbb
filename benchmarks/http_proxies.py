"""HTTP proxies side by side: CPU for each request, in one run.

    python benchmarks/http_proxies.py [--intercept] [--rounds 9] [--seconds 2] [--peers NAME;...]
                                      [--json FILE] [--plots DIRECTORY]

wrk asks, on 64 connections that it keeps, with eight header fields; nginx is the origin. Everything
runs in network namespaces of its own (no root needed): one, with a loopback of MTU 1500, or with
``--intercept`` client, router and origin, where rules bring the requests to those proxies that
intercept, and the client addresses all others. The proxy has one core, wrk and the origin the
other. Rounds are interleaved: each has every proxy once. Given are the median and the 95 %
bootstrap interval; CPU is the proxy's own, as the kernel accounts it.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from http_peers import ADDRESSED, HERE, INTERCEPTING, NAME, ORIGIN, PAGE, PORT, Peer, Scratch
from peers import cpu_seconds
from report import Work, choose, report
from rich.console import Console
from rich.progress import Progress
from run import loopback_mtu

from lusca_comm import CommError
from lusca_comm.firewall import Plan, apply, remove
from lusca_comm.lab import Host, Lab

CONNECTIONS = 64


WORKS = {"requests": Work("HTTP requests on kept connections", "CPU µs each")}


@dataclass(frozen=True)
class Place:
    """Where the three parts run, and their addresses."""

    client: Host
    router: Host
    origin: Host
    router_ip: str
    origin_ip: str
    peers: dict[str, Peer]


def one_host(lab: Lab) -> Place:
    host = lab.host("bench")
    host.run(loopback_mtu)
    return Place(host, host, host, "127.0.0.1", "127.0.0.1", ADDRESSED)


def three_hosts(lab: Lab) -> Place:
    net = lab.three()
    router, origin = (ips[socket.AF_INET] for ips in (net.router_client_ip, net.origin_ip))
    peers = {**INTERCEPTING, **ADDRESSED}
    return Place(net.client, net.router, net.origin, router, origin, peers)


class Bench:
    def __init__(self, place: Place, folder: Path, seconds: int) -> None:
        self.place, self.seconds = place, seconds
        for host in {place.client, place.router, place.origin}:
            # BBR paces by timers, which the proxy would pay for; this one is everywhere.
            host.sysctl("net.ipv4.tcp_congestion_control", "reno")
        hosts = folder / "hosts"
        hosts.write_text(f"{place.origin_ip} {NAME}\n")
        place.router.check_output(["mount", "--bind", hosts, "/etc/hosts"])
        cores = sorted(os.sched_getaffinity(0))
        self.proxy_core, self.load_core = str(cores[0]), str(cores[-1])
        self.scratch = Scratch(folder, place.origin_ip)
        config = self.scratch.config("http-origin.conf", page=PAGE)
        nginx = ["nginx", "-c", config]
        self._start(place.origin, self.load_core, nginx, stderr=subprocess.DEVNULL)
        place.origin.wait_listening(ORIGIN)

    @staticmethod
    def _start(host: Host, core: str, command: list[str], **how: Any) -> subprocess.Popen[Any]:
        return host.popen(["taskset", "-c", core, *command], **how)

    @contextlib.contextmanager
    def _rules(self, peer: Peer) -> Iterator[None]:
        """Bring what the client sends to the origin, where the proxy takes it so."""
        if peer.form not in ("tproxy", "redirect"):
            yield
            return
        plan = Plan(mode=peer.form, port=PORT, ports=(ORIGIN,), spoof=peer.spoof)

        def begin() -> None:
            apply(plan)

        self.place.router.run(begin)
        try:
            yield
        finally:
            self.place.router.run(remove, plan)

    @contextlib.contextmanager
    def _proxy(self, command: list[str]) -> Iterator[int]:
        log = self.scratch.folder / "log"
        environment = {**os.environ, "HOME": str(self.scratch.folder)}
        with log.open("wb") as out:
            process = self._start(
                self.place.router,
                self.proxy_core,
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        try:
            try:
                self.place.router.wait_listening(PORT)
            except CommError as why:
                text = f"{' '.join(command)} does not listen: {log.read_text()}"
                raise RuntimeError(text) from why
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _ask(self, peer: Peer, seconds: int) -> dict[str, float]:
        there = f"{self.place.origin_ip}:{ORIGIN}"
        to = f"{self.place.router_ip}:{PORT}" if peer.form in ("absolute", "origin") else there
        target = f"http://{there}/" if peer.form == "absolute" else "/"
        load = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s"]
        wrk = self._start(
            self.place.client,
            self.load_core,
            [*load, "-s", str(HERE / "wrk.lua"), f"http://{to}", "--", target, peer.host or there],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        _, text = wrk.communicate(timeout=seconds + 60)
        if wrk.returncode:
            raise RuntimeError(f"wrk: {text}")
        got: dict[str, float] = json.loads(text)
        if got["errors"] or not got["done"]:
            log = (self.scratch.folder / "log").read_text()
            raise RuntimeError(f"{peer}: {text}{log[-2000:]}")
        return got

    def measure(self, peer: Peer, command: list[str]) -> float:
        """The proxy's CPU microseconds for a request."""
        with self._rules(peer), self._proxy(command) as pid:
            self._ask(peer, 1)  # warm
            before = cpu_seconds(pid)
            got = self._ask(peer, self.seconds)
            used = cpu_seconds(pid) - before
        return used / got["done"] * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--intercept", action="store_true", help="TPROXY and REDIRECT in a router")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2, help="of wrk, each time")
    parser.add_argument("--peers", help="names with a semicolon between")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="where SVG files and the tables as text go")
    options = parser.parse_args()
    for program in ("wrk", "nginx"):
        if shutil.which(program) is None:
            raise SystemExit(f"needs {program}: apt install wrk nginx-light")
    console = Console()
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        place = three_hosts(lab) if options.intercept else one_host(lab)
        bench = Bench(place, Path(folder), options.seconds)
        commands = {
            name: command
            for name in choose(options.peers, place.peers, ";")
            if (command := place.peers[name].command(bench.scratch)) is not None
        }
        turns = [name for _ in range(options.rounds) for name in commands]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=len(turns))
            for name in turns:
                progress.update(task, description=name, advance=1)
                value = bench.measure(place.peers[name], commands[name])
                figures.setdefault(name, []).append(value)
    report(
        console,
        WORKS,
        {"requests": figures},
        floor="nginx",
        who="proxy",
        to_json=options.json,
        plots=options.plots,
    )


if __name__ == "__main__":
    main()
