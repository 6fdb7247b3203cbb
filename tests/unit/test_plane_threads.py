"""The plane without Python, from several threads at once, under ThreadSanitizer."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
from pathlib import Path

import pytest
from kernel.flows import serve_origin
from kernel.test_datagram import DNS, intercept

from lusca_comm.lab import Topology

HERE = Path(__file__).resolve().parent.parent
CSRC = HERE.parent / "csrc"


def build(folder: Path, name: str) -> tuple[str, dict[str, str]]:
    """A driver, and the environment that it runs in."""
    driver = folder / "driver"
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    sources = [str(path) for path in sorted(CSRC.glob("*.c"))]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-pthread"]
    sources.append(str(HERE / f"c/{name}.c"))
    command = ["gcc", *flags, "-fsanitize=thread", f"-I{CSRC}", "-o", str(driver), *sources]
    subprocess.run(command, check=True, env=environment)
    return str(driver), environment


@pytest.mark.parametrize("name", ["plane_driver", "http_driver"])
def test_no_data_race(tmp_path: Path, name: str) -> None:
    driver, environment = build(tmp_path, name)
    done = subprocess.run([driver], capture_output=True, text=True, timeout=100, env=environment)
    assert "ThreadSanitizer" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_no_data_race_of_flows(tmp_path: Path, three_hosts: Topology) -> None:
    net = three_hosts
    driver, environment = build(tmp_path, "flows_driver")
    intercept(net.router)
    serve_origin(net, socket.AF_INET)
    running = net.router.popen(
        [driver],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n", running.communicate(timeout=100)
        there = (net.origin_ip[socket.AF_INET], DNS)
        answers = sum(net.client.run(burst, there) for _ in range(10))
        said, errors = running.communicate(timeout=100)
    assert "ThreadSanitizer" not in errors, errors
    assert running.returncode == 0, errors
    asked, ended, evicted = map(int, re.findall(r"\d+", said))
    assert asked > 100
    assert ended > 100
    assert evicted > 0
    assert answers > 100


def burst(there: tuple[str, int]) -> int:
    """Many flows at once: how many datagrams were answered, in the origin's name."""
    answers = 0
    with contextlib.ExitStack() as stack:
        flows = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(60)
        ]
        for sock in flows:
            sock.connect(there)
            sock.setblocking(False)
        for _ in range(5):
            for sock in flows:
                sock.send(b"x" * 50)
            waiting = flows
            while waiting:
                waiting, _, _ = select.select(waiting, [], [], 0.05)
                for sock in waiting:
                    answers += sock.recv(100).endswith(b" " + b"x" * 50)
    return answers
