"""aio.relay over what programs with a server of their own have: sockets, transports, streams."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
from typing import Any

import pytest
from event_loops import (
    HERE,
    LIMIT,
    Run,
    an_origin,
    nothing_left,
    run,
    small_buffers,
    until,
)

from lusca_comm import CommError, RelayResult, aio, original_destination
from lusca_comm.aio.connecting import Connecting, Upstream
from lusca_comm.aio.planes import reset

__all__ = ["nothing_left", "run"]  # fixtures
BIG = 3_000_000
MORE = 200_000  # than small buffers hold


class Bare(asyncio.Protocol):
    """A protocol of somebody's own."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.got = b""
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


KINDS = ["socket", "streams", "transport"]


async def made(kind: str, sock: socket.socket) -> Any:
    """`sock` as `kind`; what is a reader or a writer has something in it."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    if kind == "socket":
        return sock
    if kind == "streams":
        return await asyncio.open_connection(sock=sock)
    transport, protocol = await loop.create_connection(Bare, sock=sock)
    assert protocol.transport is transport
    return transport


def ends() -> tuple[socket.socket, socket.socket]:
    with socket.create_server((HERE, 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    far.settimeout(LIMIT)
    return near, far


@pytest.mark.parametrize("upstream", [*KINDS, "connecting", "endpoint"])
@pytest.mark.parametrize("client", KINDS)
def test_kinds(run: Run, client: str, upstream: str) -> None:
    async def main() -> RelayResult:
        near, far = ends()
        async with an_origin() as origin:
            one: Any = await made(client, near)
            other: Any = aio.connect(origin.address)
            if upstream == "endpoint":
                other = await other
            elif upstream != "connecting":
                other = await made(upstream, socket.create_connection(origin.address))
            protocol = one.get_protocol() if client == "transport" else None
            far.sendall(b"hello" if client != "streams" else b"!hello")
            if client == "streams":
                reader, writer = one
                assert await reader.readexactly(1) == b"!"
                writer.write(b"first ")
            far.shutdown(socket.SHUT_WR)
            if client == "transport":
                await asyncio.sleep(0)
            result = await aio.relay(one, other)
            answer = await asyncio.to_thread(_all_of, far)
            want = b"origin: hello"
            if client == "transport":
                want = b"origin: " + b"hello"[len(protocol.got) :]
                assert protocol.lost == [None], "it is told that its transport has gone"
            assert answer == (b"first " if client == "streams" else b"") + want
            if client == "streams":
                await writer.wait_closed()
            return result

    assert run(main).end == "eof"
    assert not run.told


@pytest.mark.parametrize("kind", ["streams", "transport"])
def test_the_streams_of_an_endpoint_at_once(run: Run, kind: str) -> None:
    """Before the loop has made their transport."""

    async def main() -> RelayResult:
        near, far = ends()
        far.sendall(b"hello")
        far.shutdown(socket.SHUT_WR)
        async with an_origin() as origin, await aio.connect(origin.address) as upstream:
            upstream.writer.write(b"first ")
            streams = upstream.reader, upstream.writer
            result = await aio.relay(
                near, streams if kind == "streams" else upstream.writer.transport
            )
            assert await asyncio.to_thread(_all_of, far) == b"origin: first hello"
            assert upstream.closed
            return result

    assert run(main).end == "eof"
    assert not run.told


def _all_of(sock: socket.socket) -> bytes:
    with sock:
        return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("reached", [True, False])
def test_what_comes_while_the_upstream_is_connected(
    run: Run, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    """A bare transport's protocol would get it, and the relay would not."""

    async def main() -> None:
        async def late(self: Connecting) -> Upstream:
            far.sendall(b"hello")
            far.shutdown(socket.SHUT_WR)
            for _ in range(10):
                await asyncio.sleep(0)
            return await connect(self)

        connect = Connecting._connect
        monkeypatch.setattr(Connecting, "_connect", late)
        near, far = ends()
        transport = await made("transport", near)
        protocol = transport.get_protocol()
        async with an_origin() as origin:
            if reached:
                await aio.relay(transport, aio.connect(origin.address))
                assert protocol.got == b""
                assert await asyncio.to_thread(_all_of, far) == b"origin: hello"
                return
        with pytest.raises(CommError, match="refused"):
            await aio.relay(transport, aio.connect(origin.address))
        await until(lambda: protocol.got == b"hello")
        transport.abort()
        far.close()

    run(main)
    assert not run.told


def test_the_transport_of_an_endpoint_while_the_upstream_is_connected(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader may have got something before."""

    async def main() -> None:
        async def late(self: Connecting) -> Upstream:
            for _ in range(10):
                await asyncio.sleep(0)
            return await connect(self)

        connect = Connecting._connect
        with socket.create_server((HERE, 0)) as listener:
            client = await aio.connect(listener.getsockname())
            far, _ = listener.accept()
        far.sendall(b"hello")
        far.shutdown(socket.SHUT_WR)
        monkeypatch.setattr(Connecting, "_connect", late)
        async with an_origin() as origin:
            await aio.relay(client.writer.transport, aio.connect(origin.address))
            assert await asyncio.to_thread(_all_of, far) == b"origin: hello"

    run(main)
    assert not run.told


def test_what_a_transport_has_not_sent(run: Run) -> None:
    """Its protocol is told nothing of it, and its writes arrive before the relay's."""

    async def main() -> bytes:
        (near, far), (up, origin) = ends(), ends()
        one = await made("transport", near)
        one.write(b"x" * BIG)
        reading = asyncio.ensure_future(asyncio.to_thread(_all_of, far))
        origin.sendall(b"the end")
        origin.close()
        far.shutdown(socket.SHUT_WR)
        await aio.relay(one, up)
        return await reading

    assert run(main) == b"x" * BIG + b"the end"


def test_the_very_socket_is_given_back(run: Run) -> None:
    async def main() -> None:
        (near, far), (up, origin) = ends(), ends()
        far.sendall(b"12345")
        result = await aio.relay(near, up, limit_up=3)
        assert (result.end, result.client, result.upstream) == ("limit", near, up)
        assert (near.recv(9), origin.recv(9), near.gettimeout()) == (b"45", b"123", 0.0)
        with socket.socket() as nobody:
            nobody.bind((HERE, 0))
            with pytest.raises(CommError, match="refused"):
                await aio.relay(near, aio.connect(nobody.getsockname()))
        far.sendall(b"6")
        assert near.recv(9) == b"6", "as it was"
        for sock in (near, far, up, origin):
            sock.close()

    run(main)


def test_a_limit_within_a_reader(run: Run) -> None:
    """What it holds beyond the limit could not be given back: said before anything happens."""

    async def main() -> None:
        (near, far), (up, origin) = ends(), ends()
        reader, writer = await made("streams", near)
        far.sendall(b"12345")
        assert await reader.readexactly(1) == b"1"
        with pytest.raises(CommError, match="more than the limit"):
            await aio.relay((reader, writer), up, limit_up=2)
        for end in (writer, far, up, origin):
            end.close()

    run(main)


def test_a_limit_within_the_other_reader(run: Run) -> None:
    """The client is as it was."""

    async def main() -> None:
        (near, far), (up, origin) = ends(), ends()
        client, upstream = await made("streams", near), await made("streams", up)
        for peer, (reader, _) in ((far, client), (origin, upstream)):
            peer.sendall(b"12345")
            assert await reader.readexactly(1) == b"1"
        with pytest.raises(CommError, match="more than the limit"):
            await aio.relay(client, upstream, limit_down=2)
        for peer, (reader, writer) in ((far, client), (origin, upstream)):
            peer.sendall(b"6")
            assert await reader.readexactly(5) == b"23456"
            writer.close()
            peer.close()

    run(main)
    assert not run.told


def test_what_comes_while_a_side_settles(run: Run) -> None:
    """It stays where a limit still counts it."""

    async def main() -> None:
        (near, far), (up, origin) = ends(), ends()
        small_buffers(near)
        client, upstream = await made("transport", near), await made("streams", up)
        client.write(b"x" * MORE)
        origin.sendall(b"12345")
        assert await upstream[0].readexactly(1) == b"1"
        relaying = asyncio.ensure_future(aio.relay(client, upstream, limit_down=6))
        await until(lambda: not upstream[1].transport.is_reading())
        origin.sendall(b"6789")
        assert await asyncio.to_thread(_some_of, far, MORE) == b"x" * MORE
        result = await relaying
        assert (result.end, result.down) == ("limit", 6)
        result.client.close()
        assert _all_of(far) == b"234567"
        assert result.upstream.recv(9) == b"89"
        result.upstream.close()
        origin.close()

    run(main)
    assert not run.told


def _some_of(sock: socket.socket, n: int) -> bytes:
    got = b""
    while len(got) < n:
        got += sock.recv(n - len(got))
    return got


@pytest.mark.parametrize("unsent", [b"", b"x" * MORE])
@pytest.mark.parametrize("kind", ["streams", "transport"])
def test_a_closing_upstream(run: Run, kind: str, unsent: bytes) -> None:
    """It can't be relayed, whether or not its peer takes what was written to it: the client is as
    it was."""

    async def main() -> None:
        (near, far), (up, origin) = ends(), ends()
        small_buffers(up)
        reader, writer = await made("streams", near)
        far.sendall(b"12345")
        assert await reader.readexactly(1) == b"1"
        upstream = await made(kind, up)
        transport = upstream[1].transport if kind == "streams" else upstream
        transport.write(unsent)
        transport.close()
        with pytest.raises(CommError) as why:
            await aio.relay((reader, writer), upstream)
        assert why.value.errno == errno.EBADF
        far.sendall(b"6")
        assert await reader.readexactly(5) == b"23456"
        transport.abort()
        for end in (writer, far, origin):
            end.close()

    run(main)
    assert not run.told


@pytest.mark.parametrize("kind", ["streams", "transport"])
def test_a_write_has_just_failed(run: Run, kind: str) -> None:
    """What was written to the upstream told its transport so, and nobody else yet."""

    async def main() -> RelayResult:
        (near, far), (up, origin) = ends(), ends()
        client, upstream = await made("streams", near), await made(kind, up)
        reset(origin.detach())
        (upstream[1] if kind == "streams" else upstream).write(b"x")
        result = await aio.relay(client, upstream)
        with far, pytest.raises(ConnectionResetError):
            far.recv(1)
        return result

    result = run(main)
    assert (result.end, result.side) == ("reset", "upstream")
    assert not run.told


def test_an_upstream_closed_meanwhile(run: Run) -> None:
    """What the client's writer had is on its way: the relay has begun, and ends as a reset."""

    async def main() -> RelayResult:
        (near, far), (up, origin) = ends(), ends()
        small_buffers(near)
        client, upstream = await made("transport", near), await made("streams", up)
        client.write(b"x" * MORE)
        relaying = asyncio.ensure_future(aio.relay(client, upstream))
        await until(lambda: not client.is_reading())
        upstream[1].close()
        assert await asyncio.to_thread(_some_of, far, MORE) == b"x" * MORE
        result = await relaying
        with far, pytest.raises(ConnectionResetError):
            far.recv(1)
        origin.close()
        return result

    result = run(main)
    assert (result.end, result.side, result.errno) == ("reset", "upstream", errno.ECONNABORTED)
    assert not run.told


def test_a_connection_made_for_a_relay_that_does_not_begin(run: Run) -> None:
    """It is nobody's."""

    async def main() -> None:
        near, far = ends()
        with socket.create_server((HERE, 0)) as origin:
            reader, writer = await made("streams", near)
            far.sendall(b"12345")
            assert await reader.readexactly(1) == b"1"
            with pytest.raises(CommError, match="more than the limit"):
                await aio.relay((reader, writer), aio.connect(origin.getsockname()), limit_up=2)
            there, _ = origin.accept()
            with there, pytest.raises(ConnectionResetError):
                there.recv(1)
        for end in (writer, far):
            end.close()

    run(main)


def test_what_cannot_be_relayed(run: Run) -> None:
    async def main() -> None:
        near, far = ends()
        reader, writer = await made("streams", near)
        for thing, error, text in (
            (writer, TypeError, "come as"),
            (reader, TypeError, "come as"),
            (io.BytesIO(), TypeError, "belongs to another"),
            (3, TypeError, "belongs to another"),
        ):
            for pair in ((thing, far), (far, thing)):
                with pytest.raises(error, match=text):
                    await aio.relay(*pair)
        with pytest.raises(CommError, match="same connection"):
            await aio.relay(far, far)
        with pytest.raises(CommError, match="negative"):
            await aio.relay(far, (reader, writer), idle=-1)
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            with pytest.raises(CommError) as why:
                await aio.relay(far, datagrams)
            assert why.value.errno == errno.EPROTOTYPE
        writer.close()
        await writer.wait_closed()
        with pytest.raises(CommError) as why:
            await aio.relay(far, (reader, writer))
        assert why.value.errno == errno.EBADF
        far.close()
        with pytest.raises(CommError) as why:
            await aio.relay(far, aio.connect((HERE, 9)))
        assert why.value.errno == errno.EBADF

    run(main)


def test_no_descriptor_for_the_relay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport's connection needs another one for a moment: it is said, and the client, which
    the relay had already, is reset."""

    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, "no descriptor left")

    async def main() -> None:
        (near, far), (up, origin) = ends(), ends()
        upstream = await made("transport", up)
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", refuse)
            with pytest.raises(OSError, match="no descriptor left"):
                await aio.relay(near, upstream)
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        upstream.abort()
        for sock in (far, origin):
            sock.close()

    run(main)


def test_where_it_was_going(run: Run) -> None:
    """Of anything that a server of asyncio or uvloop hands out."""

    async def main() -> None:
        seen: list[Any] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock = writer.get_extra_info("socket")
            for thing in (writer, writer.transport, sock, sock.fileno()):
                seen.append(original_destination(thing, engine="sockname"))
            writer.close()
            await writer.wait_closed()
            with pytest.raises(CommError):
                original_destination(writer, engine="sockname")

        server = await asyncio.start_server(serve, HERE, 0)
        there = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*there)
        assert await reader.read() == b""
        writer.close()
        server.close()
        await server.wait_closed()
        assert [one.address for one in seen] == [there] * 4

    run(main)
    assert not run.told
