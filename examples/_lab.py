"""How an example shows itself: three hosts, itself in the one in the middle, and what was seen.

    client 192.0.2.2 ---- 192.0.2.1 router 198.51.100.1 ---- 198.51.100.2 origin
           2001:db8:1::2            (the example)            2001:db8:2::2

All in network namespaces of this machine, as root or as an ordinary user; nothing is left of it.
"""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from lusca_comm import CommError
from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Host, Lab, Topology

__all__ = ["FAMILIES", "Stage", "show"]

FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Stage:
    """The three hosts, and what they do for the audience."""

    def __init__(self, net: Topology) -> None:
        self.net = net
        self.failed = 0
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def example(
        self, plan: Plan, *options: str, host: Host | None = None
    ) -> subprocess.Popen[bytes]:
        """Puts the plan into force in the router, and runs this very program there. On return it
        has said "ready"."""
        host = host or self.net.router
        host.run(_apply, plan)
        return self.start(host, [sys.executable, "-u", sys.argv[0], *options], "ready")

    def start(self, host: Host, command: Sequence[str], until: str) -> subprocess.Popen[bytes]:
        """A program, whose lines are shown; on return it has said `until`."""
        program = host.popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        threading.Thread(target=self._show, args=(host.name, program), daemon=True).start()
        self.said(until)
        return program

    def serve(self, host: Host, fn: Callable[..., None], *args: Any) -> None:
        """``fn(channel, *args)`` in the background; on return it has sent something."""
        host.start(fn, *args).recv()

    def said(self, text: str, patience: float = 20) -> str:
        """The next line with `text` in it of a program; those before it are passed over."""
        while True:
            try:
                line = self._lines.get(timeout=patience)
            except queue.Empty:
                raise TimeoutError(f"no program said {text!r}") from None
            if text in line:
                return line

    def check(self, what: str, ok: object) -> None:
        """One line for the audience: what was to be seen, and whether it was."""
        self.failed += not ok
        _say(f"{'ok' if ok else 'FAILED':<7}{what}")

    def _show(self, name: str, program: subprocess.Popen[bytes]) -> None:
        assert program.stdout is not None
        for line in program.stdout:
            text = line.decode(errors="replace").rstrip()
            _say(f"{name}: {text}")
            self.failed += text.startswith("Traceback")
            self._lines.put(text)


def _say(line: str) -> None:
    """In one piece: threads speak, too."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def show(play: Callable[[Stage], None]) -> int:
    """Plays it in a lab of its own. The exit status: 0 where all that was checked was so."""
    try:
        with Lab() as lab:
            stage = Stage(lab.three())
            play(stage)
    except CommError as why:  # no lab on this machine, and the command that mends it
        print(why.strerror, file=sys.stderr)
        return 1
    print("all as it should be" if not stage.failed else f"{stage.failed} failed")
    return int(stage.failed > 0)


def _apply(plan: Plan) -> None:
    apply(plan)
