"""Datagrams that come in one batch: each is told where it was going, and met, whatever becomes of
the others. On one host, as the bench of test_aio_datagram.py is."""

from __future__ import annotations

import asyncio
from typing import Any

from kernel.test_aio_datagram import Bench, every_loop, run, until

from lusca_comm.lab import Lab


@every_loop
def test_a_flow_that_goes_amid_its_batch_has_told_where_all_were_going(lab: Lab, kind: str) -> None:
    """There is room for one flow, and at the first of two in it another's has to be opened, which
    gets its descriptor."""

    async def main() -> None:
        kept: list[Any] = []
        met: list[Any] = []

        def meet(datagram: Any) -> None:
            if datagram.data == b"keep":
                kept.append(datagram)
                return
            met.append((datagram.data, datagram.original))
            datagram.reply(datagram.data)
            if datagram.data == b"one":
                kept[0].reply(b"kept")

        async with Bench(meet, max_flows=1) as bench:
            loop = asyncio.get_running_loop()
            client, other = bench.client(), bench.client("127.2.2.2")
            other.send(b"keep")
            await until(lambda: kept)
            assert await bench.ask(client, b"zero") == b"zero"  # it has its flow
            for data in (b"one", b"two"):
                client.send(data)
            for data in (b"one", b"two"):
                assert await loop.sock_recv(client, 9) == data
            assert await loop.sock_recv(other, 9) == b"kept"
            there = ("127.1.1.1", bench.port)
            assert met == [(data, there) for data in (b"zero", b"one", b"two")]

    lab.host("proxy").run(run, kind, main)
