"""The reader and the writer of a connection: there at once, before the loop has made a transport,
and with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
import sys
from typing import Any

import pytest
from event_loops import HERE, Run, fetch, open_sockets, port_of, run, serving, until

from lusca_comm import CommError, RelayResult, aio, original_destination
from lusca_comm.aio.streams import Collecting

__all__ = ["run"]  # a fixture


def test_a_writer_used_at_once(run: Run) -> None:
    """Before the loop has made its transport."""

    async def handler(conn: aio.Connection) -> None:
        writer = conn.writer
        assert writer.get_extra_info("peername") == conn.peer
        assert original_destination(writer, engine="sockname").address == conn.original
        writer.write(b"one ")
        writer.writelines([b"two ", b"three"])
        writer.write_eof()
        assert not writer.is_closing()

    async def main() -> None:
        async with serving(handler) as server:
            assert await fetch(port_of(server)) == b"one two three"

    run(main)
    assert not run.told


def test_a_transport_used_at_once(run: Run) -> None:
    """It is there from the beginning, and goes on being the writer's."""

    async def handler(conn: aio.Connection) -> None:
        first: Any = conn.writer.transport
        assert first.is_reading()
        first.pause_reading()
        assert not first.is_reading()
        first.resume_reading()
        first.pause_reading()
        first.set_write_buffer_limits(high=123, low=45)
        conn.writer.write(b"one ")
        await conn.writer.drain()
        then: Any = conn.writer.transport
        assert then is not first
        for transport in (first, then):
            assert not transport.is_reading()
        assert then.get_write_buffer_limits() == (45, 123)
        first.resume_reading()
        assert then.is_reading()
        assert await conn.reader.read() == b"hello"
        first.write(b"two ")
        first.writelines([b"three ", b"four"])
        first.write_eof()
        first.close()
        assert then.is_closing()
        assert first.is_closing()

    async def main() -> None:
        async with serving(handler) as server:
            assert await fetch(port_of(server)) == b"one two three four"

    run(main)
    assert not run.told


@pytest.mark.parametrize("resumed", [False, True])
def test_a_transport_paused_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    """The loop does not begin to read it, unless it was resumed as the loop was about to."""

    def pass_on(self: Collecting, transport: asyncio.Transport) -> None:
        passed_on(self, transport)
        if resumed:
            self.resume_reading()

    async def handler(conn: aio.Connection) -> None:
        first: Any = conn.writer.transport
        first.pause_reading()
        await conn.writer.drain()
        then: Any = conn.writer.transport
        for transport in (first, then):
            assert transport.is_reading() is resumed
        clients[0].sendall(b"hello")
        if not resumed:
            for _ in range(10):
                await asyncio.sleep(0)
            with socket.socket(fileno=os.dup(conn.fileno())) as same:
                assert same.recv(9, socket.MSG_PEEK) == b"hello"
            first.resume_reading()
        ended.append(await conn.reader.readexactly(5))

    async def main() -> None:
        async with serving(handler) as server:
            with socket.create_connection((HERE, port_of(server))) as client:
                clients.append(client)
                await until(lambda: ended or run.told)

    passed_on = Collecting.pass_on
    monkeypatch.setattr(Collecting, "pass_on", pass_on)
    clients: list[socket.socket] = []
    ended: list[bytes] = []
    run(main)
    assert not run.told


@pytest.mark.parametrize("how", ["close", "at once", "return"])
def test_the_end_for_a_client_that_has_gone(run: Run, how: str) -> None:
    """Its reset came just now, and the transport has not heard of it."""

    async def handler(conn: aio.Connection) -> None:
        if how != "at once":
            await conn.writer.drain()
        reset(clients.pop())
        try:
            if how == "at once":
                conn.writer.write_eof()
                with contextlib.suppress(ConnectionResetError):
                    await conn.writer.drain()
            elif how == "close":
                await conn.close()
        finally:
            ended.append(how)

    async def main() -> None:
        async with serving(handler) as server:
            clients.append(socket.create_connection((HERE, port_of(server))))
            await until(lambda: ended)

    clients: list[socket.socket] = []
    ended: list[str] = []
    run(main)
    assert not run.told


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_relay_begins_as_a_write_fails(run: Run, side: str) -> None:
    """Their transport hears of it in the loop's next turn."""

    async def handler(conn: aio.Connection) -> None:
        with socket.create_server((HERE, 0)) as origin:
            upstream = await conn.connect(origin.getsockname())
            peer = {"client": clients.pop, "upstream": lambda: origin.accept()[0]}[side]()
            one = {"client": conn, "upstream": upstream}[side]
            await one.writer.drain()
            relaying = asyncio.ensure_future(conn.relay(upstream, total=30))
            reset(peer)
            asyncio.get_running_loop().call_soon(one.writer.write, b"x")
            results.append(await relaying)

    async def main() -> None:
        async with serving(handler) as server:
            clients.append(socket.create_connection((HERE, port_of(server))))
            await until(lambda: server.accepted)
        assert [(result.end, result.side) for result in results] == [("reset", side)]

    clients: list[socket.socket] = []
    results: list[RelayResult] = []
    before = open_sockets()
    run(main)
    for client in clients:
        client.close()
    assert not run.told
    assert open_sockets() == before


def test_no_descriptor_for_a_connection_with_streams(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be told so, and is closed in order."""

    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, "no descriptor left")

    async def handler(conn: aio.Connection) -> None:
        await conn.writer.drain()
        monkeypatch.setattr(os, "dup", refuse)
        with pytest.raises(OSError, match="no descriptor left"):
            await conn.relay(conn.connect(conn.original))
        monkeypatch.undo()
        conn.writer.write(b"no descriptor")

    async def main() -> None:
        async with serving(handler) as server:
            assert await fetch(port_of(server)) == b"no descriptor"

    run(main)
    assert not run.told


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_tls_where_asyncio_has_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10."""

    async def handler(conn: aio.Connection) -> None:
        conn.writer.write(b"go")
        with pytest.raises(CommError, match=r"needs Python 3\.11"):
            await conn.writer.start_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        conn.writer.write(b" on")

    async def main() -> None:
        async with serving(handler) as server:
            assert await fetch(port_of(server)) == b"go on"

    monkeypatch.delattr(asyncio.StreamWriter, "start_tls", raising=False)
    run(main)
    assert not run.told


if sys.version_info >= (3, 11):

    @pytest.mark.parametrize("after", [True, False])
    def test_tls(run: Run, after: bool) -> None:
        """start_tls at either side; the writer's first use, or not."""
        contexts = []
        for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(kind)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("AECDH-AES128-SHA:@SECLEVEL=0")  # needs no certificate
            contexts.append(context)
        server_side, client_side = contexts

        async def handler(conn: aio.Connection) -> None:
            if after:
                assert await conn.reader.readline() == b"STARTTLS\r\n"
                conn.writer.write(b"go\r\n")
            else:
                assert (await conn.peek(1)) == b"\x16"
            await conn.writer.start_tls(server_side)
            line = await conn.reader.readline()
            with pytest.raises(TypeError, match="TLS"):
                await conn.relay(await conn.connect(conn.original))
            conn.writer.write(b"seen: " + line)
            await conn.writer.drain()

        async def main() -> None:
            async with serving(handler) as server:
                reader, writer = await asyncio.open_connection(HERE, port_of(server))
                if after:
                    writer.write(b"STARTTLS\r\n")
                    assert await reader.readline() == b"go\r\n"
                await writer.start_tls(client_side)
                writer.write(b"hello\r\n")
                assert await reader.read() == b"seen: hello\r\n"
                writer.close()
                await writer.wait_closed()

        run(main)
