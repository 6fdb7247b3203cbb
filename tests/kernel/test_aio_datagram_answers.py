"""Answers are alike, whether the datagram was sent to the server itself or elsewhere. On one host,
as the bench of test_aio_datagram.py is."""

from __future__ import annotations

from typing import Any

import pytest
from kernel.test_aio_datagram import Bench, every_loop, run

from lusca_comm import datagram_io
from lusca_comm.lab import Lab

LONGEST = 65507  # UDP over IPv4

everywhere = pytest.mark.parametrize("itself", [True, False], ids=["itself", "elsewhere"])


def bench_of(handler: Any, itself: bool) -> Bench:
    bench = Bench(handler)
    datagram_io.is_own = lambda fd, address: itself
    return bench


@every_loop
@everywhere
def test_an_answer_too_long_is_lost_and_counted(lab: Lab, kind: str, itself: bool) -> None:
    async def main() -> None:
        def meet(datagram: Any) -> None:
            assert (datagram.original is None) == itself
            datagram.reply(bytes(int(datagram.data)))

        async with bench_of(meet, itself) as bench:
            client = bench.client()
            for size in (LONGEST + 1, 70000):
                client.send(b"%d" % size)
            for size in (0, LONGEST):
                assert len(await bench.ask(client, b"%d" % size)) == size
            assert (bench.server.sent, bench.server.lost) == (2, 2)

    lab.host("proxy").run(run, kind, main)


@every_loop
@everywhere
def test_an_answer_is_any_buffer_and_nothing_else(lab: Lab, kind: str, itself: bool) -> None:
    async def main() -> None:
        def meet(datagram: Any) -> None:
            assert (datagram.original is None) == itself
            with pytest.raises(TypeError):
                datagram.reply("text")
            datagram.reply(memoryview(datagram.data)[::2])

        async with bench_of(meet, itself) as bench:
            assert await bench.ask(bench.client(), b"abcde") == b"ace"

    lab.host("proxy").run(run, kind, main)
