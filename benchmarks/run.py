"""Relays side by side: CPU, latency and memory, in one run.

    python benchmarks/run.py [--intercept] [--rounds 9] [--peers NAME,...] [--works NAME,...]
                             [--json FILE] [--plots DIRECTORY]

Everything runs in network namespaces of its own (no root needed): one, with a loopback of MTU 1500
(at 65536 the ranking comes out wrong), or with ``--intercept`` client, router and origin, where a
TPROXY rule brings the connections to the relay, which goes on in the client's name. The relay has
one core, the clients and the origin another. Rounds are interleaved: each round runs every relay
once. Given are the median and the 95 % bootstrap interval; CPU is the relay's own, as the kernel
accounts it.
"""

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import (
    BUSY,
    FLOOR,
    INTERCEPTING,
    ORIGIN,
    PEERS,
    PORT,
    Command,
    Scratch,
    cpu_seconds,
    rss_bytes,
)
from report import Work as Told
from report import choose, report
from rich.console import Console
from rich.progress import Progress

from lusca_comm import CommError
from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Host, Lab

MB = 1_000_000


@dataclass(frozen=True)
class Work(Told):
    """What the clients do, too."""

    load: tuple[str, ...]
    rounds: int = 0  # 0: as many as asked for


def _bulk(streams: int, total: int) -> Work:
    title = f"bulk, {streams} stream{'s' if streams > 1 else ''}"
    return Work(title, "CPU s/GB", ("bulk", str(streams), str(total // streams)))


WORKS: dict[str, Work] = {
    "bulk1": _bulk(1, 600 * MB),
    "bulk16": _bulk(16, 600 * MB),
    "bulk256": _bulk(256, 600 * MB),
    "short": Work("short connections", "CPU ms each", ("short", "64", "6000")),
    "ping": Work("small messages", "CPU µs each", ("ping", "16", "1000")),
    "idle": Work("idle pairs", "bytes of RSS each", ("idle", "5000"), rounds=3),
    "p99": Work("p99 of small messages", "µs", ("ping", "16", "1000")),
    "busy": Work("p99 beside a CPU-bound Python thread", "µs", ("ping", "16", "1000")),
}


@dataclass(frozen=True)
class Place:
    """Where the three parts run, and what the clients connect to."""

    clients: Host
    relay: Host
    origin: Host
    target: tuple[str, int]
    peers: dict[str, Command]


def loopback_mtu() -> None:
    """Gives this namespace's loopback the MTU of a real network."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=1, mtu=1500)


def one_host(lab: Lab) -> Place:
    host = lab.host("bench")
    host.run(loopback_mtu)
    return Place(host, host, host, ("127.0.0.1", PORT), PEERS)


def intercepting(lab: Lab) -> Place:
    net = lab.three()

    def rules() -> None:
        apply(Plan(port=PORT, ports=(ORIGIN,), spoof=True))

    net.router.run(rules)
    target = (net.origin_ip[socket.AF_INET], ORIGIN)
    return Place(net.client, net.router, net.origin, target, INTERCEPTING)


class Bench:
    def __init__(self, place: Place, scratch: Scratch, cores: tuple[int, int]) -> None:
        self.place = place
        self.scratch = scratch
        self.relay_core, self.load_core = (str(core) for core in cores)
        # A port range half full of TIME_WAIT makes connect(2) search, and later runs slower.
        for host in {place.clients, place.relay, place.origin}:
            host.sysctl("net.ipv4.tcp_max_tw_buckets", 0)
            host.sysctl("net.ipv4.ip_local_port_range", "10000 65000")
        command = [self._program("load"), "origin", str(ORIGIN)]
        self._start(place.origin, self.load_core, command)
        place.origin.wait_listening(ORIGIN)

    def _program(self, name: str) -> str:
        return str(self.scratch.folder / name)

    @staticmethod
    def _start(host: Host, core: str, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        return host.popen(["taskset", "-c", core, *command], **options)

    def _load(self, words: tuple[str, ...]) -> subprocess.Popen[Any]:
        kind, *rest = words
        host, port = self.place.target
        return self._start(
            self.place.clients,
            self.load_core,
            [self._program("load"), kind, host, str(port), *rest],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )

    @contextlib.contextmanager
    def relay(self, command: list[str]) -> Iterator[int]:
        with (self.scratch.folder / "stderr").open("w+b") as log:
            process = self._start(self.place.relay, self.relay_core, command, stderr=log)
            try:
                self.place.relay.wait_listening(PORT)
            except CommError as why:
                log.seek(0)
                text = log.read().decode(errors="replace")
                raise RuntimeError(f"{' '.join(command)} does not listen: {text}") from why
        try:
            yield process.pid
        finally:
            process.kill() if "nginx" not in command[0] else process.terminate()
            process.wait()

    def run(self, words: tuple[str, ...]) -> dict[str, float]:
        load = self._load(words)
        out, _ = load.communicate(timeout=120)
        if load.returncode:
            raise RuntimeError(f"load {' '.join(words)} failed: {out}")
        result: dict[str, float] = json.loads(out)
        return result

    def measure(self, name: str, work: Work, command: list[str]) -> float:
        with self.relay(command) as pid:
            if name == "idle":
                return self._idle(pid, work)
            self.run(("short", "8", "200"))  # warm
            if name == "busy":
                return self.run(work.load)["p99_us"]
            before = cpu_seconds(pid)
            got = self.run(work.load)
            used = cpu_seconds(pid) - before
            if name == "p99":
                return got["p99_us"]
            if name.startswith("bulk"):
                return used / (got["bytes"] / 1e9)
            return used / got["done"] * (1e3 if name == "short" else 1e6)

    def _idle(self, pid: int, work: Work) -> float:
        self.run(("short", "8", "200"))
        count = int(work.load[1])
        before = rss_bytes(pid)
        load = self._load(work.load)
        assert load.stdout is not None
        line = load.stdout.readline()
        if json.loads(line)["done"] != count:
            raise RuntimeError(f"idle pairs: {line}")
        used = rss_bytes(pid) - before
        load.communicate()
        return used / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--intercept", action="store_true", help="TPROXY, and the client's name")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--works", help=f"of: {', '.join(WORKS)}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="where SVG files and the tables as text go")
    options = parser.parse_args()
    console = Console()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    available = sorted(os.sched_getaffinity(0))
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        place = intercepting(lab) if options.intercept else one_host(lab)
        scratch = Scratch(Path(folder))
        bench = Bench(place, scratch, (available[0], available[-1]))
        turns = []
        for name in choose(options.works, WORKS):
            known = BUSY if name == "busy" else place.peers
            rounds = WORKS[name].rounds or options.rounds
            for peer in choose(options.peers, place.peers):
                command = known[peer](scratch) if peer in known else None
                if command is not None:
                    turns += [(turn, name, peer, command) for turn in range(rounds)]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=len(turns))
            for _, name, peer, command in sorted(turns, key=lambda t: t[0]):
                progress.update(task, description=f"{WORKS[name].title}: {peer}", advance=1)
                value = bench.measure(name, WORKS[name], command)
                figures.setdefault(name, {}).setdefault(peer, []).append(value)
    report(
        console,
        WORKS,
        figures,
        floor=FLOOR,
        who="relay",
        to_json=options.json,
        plots=options.plots,
    )


if __name__ == "__main__":
    main()
