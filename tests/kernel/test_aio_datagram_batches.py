"""Datagrams that come in one batch: each is told where it was going, and met, whatever becomes of
the others. On one host, as the bench of test_aio_datagram.py is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kernel.test_aio_datagram import LIMIT, LOOPS, Bench, every_loop, run, until

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


def returns_a_number() -> Any:
    return 3


def is_cancelled() -> Any:
    raise asyncio.CancelledError


def fails() -> Any:
    raise ValueError("in a call")


async def fails_later() -> None:
    raise ValueError("in a task")


BAD = {b"1": returns_a_number, b"3": is_cancelled, b"5": fails, b"7": fails_later}


@every_loop
def test_a_handler_that_fails_is_told_with_its_datagram_and_the_others_are_answered(
    lab: Lab, kind: str
) -> None:
    async def main() -> None:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["message"]))

        def meet(datagram: Any) -> Any:
            if bad := BAD.get(datagram.data):
                return bad()
            return datagram.reply(datagram.data)

        async with Bench(meet) as bench:
            client = bench.client()
            host, port = client.getsockname()
            for _ in ("by the listener", "by the flow"):
                for number in range(9):
                    client.send(b"%d" % number)
                for number in (0, 2, 4, 6, 8):
                    assert await loop.sock_recv(client, 9) == b"%d" % number
                await until(lambda: len(told) == len(BAD))
                there = f"from {host}:{port} to 127.1.1.1:{bench.port}>"
                assert told == [f"exception in the handler of <1 bytes {there}"] * len(BAD)
                told.clear()

    lab.host("proxy").run(run, kind, main)


@every_loop
def test_what_ends_the_loop_leaves_no_answer_behind(lab: Lab, kind: str) -> None:
    def main() -> None:
        def meet(datagram: Any) -> None:
            datagram.reply(datagram.data)
            if datagram.data == b"exit":
                raise SystemExit

        bench, loop = Bench(meet), LOOPS[kind]()
        loop.run_until_complete(bench.__aenter__())
        client = bench.client()
        client.send(b"exit")
        with pytest.raises(SystemExit):
            loop.run_forever()
        client.settimeout(LIMIT)
        assert client.recv(9) == b"exit"
        loop.run_until_complete(bench.__aexit__())
        loop.close()

    lab.host("proxy").run(main)


@every_loop
def test_what_was_answered_before_close_waits_for_no_handler(lab: Lab, kind: str) -> None:
    async def main() -> None:
        go = asyncio.Event()

        def meet(datagram: Any) -> Any:
            if datagram.data == b"wait":
                return go.wait()
            datagram.reply(datagram.data)
            return bench.server.close()

        async with Bench(meet) as bench:
            client = bench.client()
            for data in (b"wait", b"close", b"not met"):
                client.send(data)
            assert await asyncio.get_running_loop().sock_recv(client, 9) == b"close"
            assert bench.server.received == 2
            go.set()
            await bench.server.wait_closed()

    lab.host("proxy").run(run, kind, main)
