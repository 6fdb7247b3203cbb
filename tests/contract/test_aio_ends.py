"""What is left when a loop, a server or a handler ends before what it began."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CLOSED_LOOP = """
import asyncio, gc, socket, sys
sys.path.insert(0, {tests!r})
from event_loops import HERE, plane_threads, port_of, until
from lusca_comm import aio
if {kind!r} == "uvloop":
    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop

async def stop_once_relaying():
    await until(lambda: server._plane.plane.totals().live)
    loop.stop()

async def handler(conn):
    if {at!r} == "relay":
        tasks.append(loop.create_task(stop_once_relaying()))
    else:
        loop.stop()  # before the plane is told
    await conn.relay(conn.connect(there.getsockname()))

there = socket.create_server((HERE, 0))
tasks = []
loop = new_event_loop()
loop.set_exception_handler(lambda *_: None)
server = loop.run_until_complete(
    aio.start_intercept_server(handler, HERE, 0, engine="sockname")
)
client = socket.create_connection((HERE, port_of(server)))
loop.run_forever()
loop.close()
if {how!r} == "collected":
    del loop, server, handler
    tasks.clear()
    gc.collect()
    assert plane_threads() == 0
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        pass
"""


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("at", ["answer", "relay"])
@pytest.mark.parametrize("how", ["collected", "exit"])
def test_a_loop_that_is_closed_with_a_relay_under_way(kind: str, at: str, how: str) -> None:
    """Nothing of it was shut down: the garbage collector ends all of it, in any order."""
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_LOOP.format(tests=tests, kind=kind, at=at, how=how)],
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
