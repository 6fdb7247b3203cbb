"""CPU of a transparent relay per short connection: 100 bytes up, 1 KB down, close.

    python benchmarks/short_connections.py [--connections 3000] [--rounds 5] [--json FILE]

Client, router and origin are network namespaces (no root needed); a TPROXY rule on the router
brings every connection to the relay. The relay has one core to itself, client and origin share
another. What counts is the relay's own CPU time as the kernel accounts it (schedstat), system time
included; the relays take turns, and the median of the rounds is given.

Relays: examples/tcp_relay.py as it is, and the same relay written with plain asyncio streams.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Channel, Lab, Process, Topology

ROOT = Path(__file__).resolve().parent.parent
PORT = 3129
UP, DOWN = b"u" * 100, b"d" * 1024
IP_TRANSPARENT = 19  # linux/in.h


# -- the peers ---------------------------------------------------------------------------------


def asyncio_streams(spoof: bool) -> None:
    """What a Python author writes today: asyncio.start_server and open_connection."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = writer.get_extra_info("sockname")  # TPROXY: the original destination
        sock = socket.socket()
        sock.setblocking(False)
        if spoof:
            sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            sock.bind((writer.get_extra_info("peername")[0], 0))
        await asyncio.get_running_loop().sock_connect(sock, there)
        up_reader, up_writer = await asyncio.open_connection(sock=sock)
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
        up_writer.close()
        writer.close()

    async def main() -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        listener.bind(("0.0.0.0", PORT))
        server = await asyncio.start_server(handle, sock=listener, backlog=4096)
        async with server:
            await server.serve_forever()

    asyncio.run(main())


def example(spoof: bool) -> None:
    """examples/tcp_relay.py, without its log."""
    import logging
    import runpy

    logging.basicConfig(level=logging.ERROR)
    sys.argv = ["tcp_relay.py", str(PORT), *([] if spoof else ["--no-spoof"])]
    runpy.run_path(str(ROOT / "examples/tcp_relay.py"), run_name="__main__")


RELAYS: dict[str, Callable[[bool], None]] = {
    "examples/tcp_relay.py": example,
    "asyncio streams": asyncio_streams,
}


def relay(_channel: Channel, core: int, name: str, spoof: bool) -> None:
    os.sched_setaffinity(0, {core})
    RELAYS[name](spoof)


# -- the load ----------------------------------------------------------------------------------


def fork_workers(count: int, work: Callable[[int], None]) -> None:
    """`work(i)` in `count` children; returns when all have ended."""
    children = []
    for i in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(i)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    bad = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
    if bad:
        raise RuntimeError(f"{len(bad)} of {count} load processes failed")


def origin(channel: Channel, core: int) -> None:
    os.sched_setaffinity(0, {core})
    listener = socket.socket()
    listener.bind(("0.0.0.0", 80))
    listener.listen(4096)
    channel.send("ready")

    def serve(_: int) -> None:
        while True:
            conn, _peer = listener.accept()
            with conn:
                got = 0
                while got < len(UP) and (chunk := conn.recv(4096)):
                    got += len(chunk)
                conn.sendall(DOWN)

    fork_workers(4, serve)


def load(core: int, host: str, connections: int, workers: int = 8) -> None:
    os.sched_setaffinity(0, {core})

    def client(_: int) -> None:
        for _ in range(connections // workers):
            with socket.create_connection((host, 80), 30) as sock:
                sock.sendall(UP)
                got = 0
                while chunk := sock.recv(4096):
                    got += len(chunk)
                if got != len(DOWN):
                    raise RuntimeError(f"{got} bytes instead of {len(DOWN)}")

    fork_workers(workers, client)


def cpu_seconds(pid: int) -> float:
    """Time on a core, user and system, of all threads: /proc/PID/task/*/schedstat."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((t / "schedstat").read_text().split()[0]) for t in tasks) / 1e9


def ready(host: str) -> None:
    """Until the relay answers for the origin."""
    for _ in range(1000):
        with contextlib.suppress(OSError), socket.create_connection((host, 80), 5) as sock:
            sock.sendall(UP)
            if sock.recv(4096):
                return
    raise RuntimeError("the relay does not answer")


def measure(net: Topology, cores: tuple[int, int], name: str, spoof: bool, count: int) -> float:
    """CPU milliseconds per connection of one run."""
    host = net.origin_ip[socket.AF_INET]
    process: Process[Any] = net.router.start(relay, cores[0], name, spoof)
    net.router.wait_listening(PORT)
    net.client.run(ready, host)
    net.client.run(load, cores[1], host, 400, timeout=60)  # warm
    before = cpu_seconds(process.pid)
    net.client.run(load, cores[1], host, count, timeout=300)
    used = cpu_seconds(process.pid) - before
    os.kill(process.pid, signal.SIGKILL)
    process.stop()
    return used * 1000 / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    cores = (available[0], available[-1])
    cases = [(name, spoof) for spoof in (False, True) for name in RELAYS]
    figures: dict[tuple[str, bool], list[float]] = {case: [] for case in cases}
    console = Console()
    with Lab() as lab:
        net = lab.three()

        def rules() -> None:
            apply(Plan(port=PORT, spoof=True))

        net.router.run(rules)
        net.origin.start(origin, cores[1]).recv()
        turns = [case for _ in range(options.rounds) for case in cases]
        for case in track(turns, "measuring", console=console, transient=True):
            figures[case].append(measure(net, cores, *case, options.connections))
    table = Table(title="CPU of the relay, ms per connection (100 B up, 1 KB down)")
    for heading in ("relay", "source address", "median", "lowest", "highest"):
        table.add_column(
            heading, justify="left" if heading in ("relay", "source address") else "right"
        )
    for (name, spoof), values in figures.items():
        middle = statistics.median(values)
        numbers = (f"{value:.4f}" for value in (middle, min(values), max(values)))
        table.add_row(name, "the client's" if spoof else "the relay's", *numbers)
    console.print(table)
    if options.json:
        rows = [
            {"relay": name, "spoofed": spoof, "ms": values}
            for (name, spoof), values in figures.items()
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
