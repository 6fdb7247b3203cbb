"""What the tests of flows share: an origin that answers with whom it saw, and a proxy process that
hands its listener to the data plane and tells the test what became of it.

The topology and the rules are those of test_datagram.py. An origin's answer reaches a client only
from where the client sent to, because the client's socket is connected.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kernel.proxying import WILDCARD
from kernel.test_datagram import DNS, PORT

import lusca_comm as lc
from lusca_comm.lab import Channel, Host, Process, Topology, wait_for

FLAGS = lc.COMM_TPROXY_LCL | lc.COMM_REUSEADDR


class Seen(NamedTuple):
    """Whom the origin saw."""

    host: str
    port: int
    data: bytes


def origin_process(channel: Channel, family: int, port: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((WILDCARD[family], port))
        channel.send("ready")
        while True:
            data, peer = sock.recvfrom(65536)
            if data != b"mute":
                sock.sendto(f"{peer[0]} {peer[1]} ".encode() + data, peer)


def serve_origin(net: Topology, family: int, port: int = DNS) -> Process[None]:
    process = net.origin.start(origin_process, family, port)
    assert process.recv() == "ready"
    return process


def seen(answer: bytes) -> Seen:
    host, port, data = answer.split(b" ", 2)
    return Seen(host.decode(), int(port), data)


def proxy_process(
    channel: Channel, address: Any, options: Any, answer: str, dualstack: bool
) -> None:
    """`answer`: what is said to every question; "hold": nothing until the test says so."""
    reactor = lc.default_reactor
    held: list[lc.FlowQuestion] = []

    def decide(questions: list[lc.FlowQuestion]) -> None:
        held.extend(questions)
        for question in questions:
            channel.send((question.data, question.peer, question.original, question.engine))
        if answer != "hold":
            release(answer)

    def release(how: str) -> None:
        for question in held:
            if how == "deny":
                question.deny()
            else:
                to = None if how in ("relay", "spoof") else (question.original[0], int(how))
                question.relay(to, spoof=how == "spoof")
        held.clear()

    def told(result: lc.RelayResult) -> None:
        channel.send((result.end, result.up, result.down, result.errno, result.side))

    if answer:
        options["decide"] = decide
    if options.pop("tell", False):
        options["on_done"] = told
    sock = lc.comm_open(socket.SOCK_DGRAM, 0, address, flags=FLAGS, dualstack=dualstack)
    listener = lc.intercept_flows(sock, **options)
    commands = {
        "totals": lambda: channel.send(reactor.plane.totals()),
        "close": listener.close,
        "drain": reactor.plane.drain,
        "stop": reactor.plane.stop,
    }
    reactor.plane.on_drained = lambda: channel.send("drained")

    def listen_to_the_test() -> None:
        while True:
            said = channel.recv()
            if isinstance(said, list):
                lc.call_soon_threadsafe(listener.set_policy, said)
            elif said in commands:
                lc.call_soon_threadsafe(commands[said])
            else:
                lc.call_soon_threadsafe(release, said)

    threading.Thread(target=listen_to_the_test, daemon=True).start()
    channel.send("ready")
    lc.run()


class Proxy:
    """What the test knows of it."""

    def __init__(
        self,
        host: Host,
        family: int,
        answer: str = "",
        dualstack: bool = False,
        capabilities: Any = None,
        **options: Any,
    ) -> None:
        address = ("::" if dualstack else WILDCARD[family], options.pop("port", PORT))
        self.process = host.start(
            proxy_process, address, options, answer, dualstack, capabilities=capabilities
        )
        assert self.recv() == "ready"

    def recv(self) -> Any:
        return self.process.recv()

    def say(self, what: Any) -> None:
        self.process.send(what)

    def totals(self) -> lc.Totals:
        self.say("totals")
        got: lc.Totals = self.recv()
        return got

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        tasks = Path(f"/proc/{self.process.pid}/task")

        def stopped() -> bool:
            stats = [task.read_text() for task in tasks.glob("*/stat")]
            return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            wait_for(stopped, what="its threads at rest")
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def until(self, **wanted: int) -> lc.Totals:
        last: list[lc.Totals] = []

        def reached() -> bool:
            last[:] = [self.totals()]
            return all(getattr(last[0], name) == value for name, value in wanted.items())

        wait_for(reached, what=f"{wanted}")
        return last[0]
