"""Examples as the tests run them: in the router of a lab, as programs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firewall_peers import in_force

from lusca_comm.firewall import Plan
from lusca_comm.lab import Host, Topology, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"


def shows(name: str, *options: str) -> str:
    """What ``--lab`` prints. All that it checked was so, and nothing went wrong beside."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, "--lab", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("all as it should be\n")
    return done.stdout


class Example:
    """One that runs in a host; its lines are in a file."""

    def __init__(self, host: Host, folder: Path, name: str, *options: str) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process: subprocess.Popen[Any] = host.popen(
                [sys.executable, "-u", EXAMPLES / name, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.says("ready")

    def text(self) -> str:
        return self.log.read_text()

    def says(self, text: str) -> None:
        wait_for(lambda: text in self.text(), 60, f"{text!r} in {self.log}")

    def stop(self) -> None:
        """It ends when it is told to, and nothing went wrong in it."""
        self.process.terminate()
        assert self.process.wait(20) == 0, self.text()
        assert "Traceback" not in self.text(), self.text()


@contextlib.contextmanager
def running(
    net: Topology, folder: Path, name: str, *options: str, **plan: Any
) -> Iterator[Example]:
    """In the router, with the rules of this plan."""
    example = Example(net.router, folder, name, *options)
    try:
        with in_force(net.router, Plan(**plan)):
            yield example
    finally:
        example.stop()
