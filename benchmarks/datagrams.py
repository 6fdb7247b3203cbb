"""Datagram relays side by side: CPU for each datagram, and how many go through in a second.

    python benchmarks/datagrams.py [--rounds 9] [--clients 64] [--window 4] [--seconds 2]
                                   [--peers NAME,...] [--json FILE] [--plots DIRECTORY]

Three hosts in network namespaces (no root needed): clients, router, origin. The clients send to the
origin, and a TPROXY rule gives that to the relay; to a plain DatagramProtocol, which knows of no
interception, they send straight. The relay has one core, the clients and the origin another. Rounds
are interleaved. Given are the median and the 95 % bootstrap interval; CPU is the relay's own, as
the kernel accounts it, for each datagram in either direction.
"""

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from peers import HERE, cpu_seconds
from report import Figures, Work, choose, report
from rich.console import Console
from rich.progress import Progress

from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Lab, wait_for

PORT, ORIGIN = 3128, 8080
PEERS = {
    "plane": "plane flows",
    "comm": "comm, batched",
    "uvloop-aio": "aio on uvloop",
    "asyncio-aio": "aio on asyncio",
    "uvloop-plain": "uvloop DatagramProtocol",
    "asyncio-plain": "asyncio DatagramProtocol",
}


class Bench:
    def __init__(self, lab: Lab, program: Path, options: argparse.Namespace) -> None:
        self.net = lab.three()
        self.program = str(program)
        self.options = options
        cores = sorted(os.sched_getaffinity(0))
        self.relay_core, self.load_core = str(cores[0]), str(cores[-1])
        self.target = self.net.origin_ip[socket.AF_INET]
        plan = Plan(port=PORT, protocols=["udp"], ports=[ORIGIN])
        self.net.router.run(apply, plan)
        self._on(self.load_core, self.net.origin, [self.program, "origin", str(ORIGIN)])

    @staticmethod
    def _on(core: str, host, command: list[str], **more) -> subprocess.Popen:
        return host.popen(["taskset", "-c", core, *command], **more)

    def load(self, to: tuple[str, int], msec: int) -> dict[str, float]:
        clients, window = str(self.options.clients), str(self.options.window)
        command = [self.program, "ping", to[0], str(to[1]), clients, window, str(msec)]
        process = self._on(self.load_core, self.net.client, command, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=60)
        return json.loads(out)

    @contextlib.contextmanager
    def relay(self, name: str) -> Iterator[tuple[int, tuple[str, int]]]:
        program = str(HERE / "datagram_relays.py")
        command = [sys.executable, program, name, str(PORT), self.target, str(ORIGIN)]
        process = self._on(self.relay_core, self.net.router, command)
        plain = name.endswith("plain")
        here = self.net.router_client_ip[socket.AF_INET]
        to = (here, PORT) if plain else (self.target, ORIGIN)
        try:
            # A rule without its listener lets everything through: the relay must be there first.
            wait_for(lambda: self._bound() or process.poll() is not None, what=f"{name}")
            yield process.pid, to
        finally:
            process.kill()
            process.wait()

    def _bound(self) -> bool:
        table = self.net.router.run(Path("/proc/self/net/udp").read_text)
        return f":{PORT:04X} " in table

    def measure(self, name: str) -> tuple[float, float, float]:
        """CPU microseconds each, datagrams a second, the 99th percentile of the way there and
        back in microseconds."""
        with self.relay(name) as (pid, to):
            self.load(to, 300)
            before = cpu_seconds(pid)
            got = self.load(to, round(self.options.seconds * 1000))
            used = cpu_seconds(pid) - before
        datagrams = 2 * got["done"]
        if used == 0 or not datagrams:
            raise RuntimeError(f"{name} relayed nothing: {got}")
        return used / datagrams * 1e6, datagrams / got["seconds"], got["p99_us"]


WORKS = {
    "cpu": Work("datagrams", "CPU µs each"),
    "rate": Work("datagrams through the relay", "a second"),
    "p99": Work("datagrams, p99 of the way there and back", "µs"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--window", type=int, default=4, help="on their way for each client")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--peers", help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="where SVG files and the tables as text go")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    figures: dict[str, Figures] = {work: {} for work in WORKS}
    console = Console()
    with tempfile.TemporaryDirectory() as folder, Lab() as lab, Progress(console=console) as bar:
        program = Path(folder, "datagrams")
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "c/datagrams.c"], check=True)
        bench = Bench(lab, program, options)
        names = choose(options.peers, PEERS)
        task = bar.add_task("", total=options.rounds * len(names))
        for _ in range(options.rounds):
            for name in names:
                bar.update(task, description=PEERS[name])
                for work, value in zip(WORKS, bench.measure(name), strict=True):
                    figures[work].setdefault(PEERS[name], []).append(value)
                bar.advance(task)
    report(
        console,
        WORKS,
        figures,
        floor=PEERS["plane"],
        who="relay",
        to_json=options.json,
        plots=options.plots,
    )


if __name__ == "__main__":
    main()
