"""A DNS interceptor: answers some names from a table, and lets the rest go where it was going.

    python examples/dns_interceptor.py --lab          # shows itself, on this machine, without root
    python examples/dns_interceptor.py --hosts FILE [--port 3153] [--spoof] [--resolver ADDRESS]

The firewall has to deliver port 53 here, UDP and TCP (docs/firewall.md):

    lusca-comm rules --apply --udp --ports 53 --port 3153 --interface lan0 [--spoof]

FILE is like /etc/hosts. HUP reads it again.

    198.51.100.7    www.example.com *.dev.example
    2001:db8::7     www.example.com
    block           ads.example *.ads.example
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import random
import signal
import socket
import sys
from collections.abc import Awaitable
from pathlib import Path

import _serving
import dns_message as dns

import lusca_comm as lc
from lusca_comm import aio
from lusca_comm.address import Address
from lusca_comm.bypass import host_name

log = logging.getLogger("dns_interceptor")
PATIENCE = 5.0  # seconds that a resolver has for an answer
IDLE = 30.0  # seconds that a TCP connection may be silent
QUERIES = 1000  # on their way at the same time by UDP: each of them has a socket
QUERIES_OF_ONE = 100  # client, which may ask where nobody answers: the others go on


class Table:
    """Names with addresses of our choice; those that have none are blocked."""

    def __init__(self, text: str = "") -> None:
        self._names: dict[str, list[dns.IPAddress]] = {}
        for number, line in enumerate(text.splitlines(), 1):
            first, *names = line.partition("#")[0].split() or ["block"]
            try:
                found = [] if first == "block" else [ipaddress.ip_address(first)]
                for name in names:
                    head = "*." if name.startswith("*.") else ""
                    known = self._names.setdefault(head + host_name(name.removeprefix("*.")), [])
                    known += found
            except ValueError as why:
                raise SystemExit(f"line {number}: {why}") from None

    def find(self, name: str) -> list[dns.IPAddress] | None:
        """None: not ours. ``*.example`` is every name below it that is not in the table itself."""
        below = name
        found = self._names.get(name)
        while found is None and "." in below:
            _, _, below = below.partition(".")
            found = self._names.get(f"*.{below}")
        return found

    def answer(self, query: dns.Query, size: int) -> bytes | None:
        """None: not ours."""
        found = self.find(query.name)
        if found is None:
            return None
        if not found:
            return dns.answer(query, dns.NXDOMAIN, size=size, blocked=True)
        # Another type gets an answer without records: an HTTPS record of the real name would lead
        # a browser past the table.
        version = {dns.A: 4, dns.AAAA: 6}.get(query.type)
        matching = [one for one in found if one.version == version]
        return dns.answer(query, dns.NOERROR, matching, size=size)


class Interceptor:
    """Both servers' handlers."""

    def __init__(self, table: Table, resolver: str | None, spoof: bool, mark: int | None) -> None:
        self.table = table
        self.resolver = resolver
        self.spoof = spoof
        self.mark = mark
        self.shares = _serving.Shares(QUERIES_OF_ONE)

    def _ours(self, message: bytes, peer: Address, by_udp: bool) -> bytes | None:
        reply = query = None
        try:
            query = dns.parse_query(message)
        except dns.Malformed:
            reply = dns.malformed(message)
        if query is not None:
            reply = self.table.answer(query, query.size if by_udp else 65535)
        name, verdict = ("?", 0) if query is None else (query.name, query.type)
        log.info("%s %s %d: %s", peer[0], name, verdict, "passed on" if reply is None else "ours")
        return reply

    def _there(self, original: Address | None) -> Address | None:
        """Where to go: where the client was going, or to the resolver we were given."""
        return (self.resolver, 53) if self.resolver else original

    # -- UDP -----------------------------------------------------------------------------------

    def datagram(self, datagram: aio.InterceptedDatagram) -> Awaitable[None] | None:
        """What is ours takes no task."""
        reply = self._ours(datagram.data, datagram.peer, by_udp=True)
        if reply is not None:
            datagram.reply(reply)
        elif self.shares.take(datagram.peer[0]):
            return self._pass_on(datagram)
        return None  # beyond that the client asks again

    async def _pass_on(self, datagram: aio.InterceptedDatagram) -> None:
        try:
            reply = await self._passed_on(datagram)
        finally:
            self.shares.give_back(datagram.peer[0])
        if reply is not None:
            datagram.reply(reply)

    async def _passed_on(self, datagram: aio.InterceptedDatagram) -> bytes | None:
        message, there = datagram.data, self._there(datagram.original)
        query = dns.parse_query(message)
        if there is None:  # somebody asks us, and nobody told us whom to ask
            return None if query is None else dns.answer(query, dns.REFUSED)
        try:
            return await asyncio.wait_for(self._ask(message, datagram.peer, there), PATIENCE)
        except asyncio.TimeoutError:
            return None  # the resolver says nothing, so neither do we: the client asks again
        except OSError as why:
            log.warning("%s: %s", there[0], why)
            return None if query is None else dns.answer(query, dns.SERVFAIL)

    async def _ask(self, message: bytes, peer: Address, there: Address) -> bytes:
        """Each query has a socket, and so a port, of its own, and another number than the client's:
        what somebody else makes up has to guess both."""
        loop = asyncio.get_running_loop()
        asked = random.SystemRandom().randbytes(2) + message[2:]
        with self._socket(peer, there) as sock:
            await loop.sock_connect(sock, there[:2])  # from here on only `there` can answer
            await loop.sock_sendall(sock, asked)
            while not dns.answers(reply := await loop.sock_recv(sock, 65535), asked):
                log.warning("%s: an answer to something else", there[0])
        return message[:2] + reply[2:]

    def _spoofs(self, peer: Address, there: Address) -> bool:
        """A resolver of our own choice may be of the other family."""
        return self.spoof and (":" in peer[0]) == (":" in there[0])

    def _socket(self, peer: Address, there: Address) -> socket.socket:
        spoofs = self._spoofs(peer, there)
        sock = lc.comm_open(
            socket.SOCK_DGRAM,
            0,
            peer if spoofs else None,  # its address; the port is the kernel's choice
            family=socket.AF_INET6 if ":" in there[0] else socket.AF_INET,
            flags=lc.COMM_REUSEADDR | (lc.COMM_TPROXY_REM if spoofs else 0),
            mark=self.mark,
        )
        lc.comm_detach(sock)  # it is asyncio's
        return sock

    # -- TCP -----------------------------------------------------------------------------------

    async def connection(self, conn: aio.Connection) -> None:
        """As many queries as the client likes. Those that are not ours go on as they are, in order,
        by one connection, and what comes back is put between our own answers, message by message.
        """
        upstream: Upstream | None = None
        try:
            while message := await read_message(conn.reader):
                reply = self._ours(message, conn.peer, by_udp=False)
                if reply is not None:
                    await write_message(conn.writer, reply)
                    continue
                if upstream is None or upstream.over:
                    there = self._there(conn.original) or conn.original
                    way = conn.connect(there, spoof=self._spoofs(conn.peer, there))
                    upstream = Upstream(await way, conn)
                await upstream.ask(message)
            if upstream is not None:
                await upstream.rest()  # the client has asked all, and may still read
        except (OSError, asyncio.TimeoutError) as why:
            log.warning("%s by TCP: %r", conn.peer[0], why)
            conn.reset()
        finally:
            if upstream is not None:
                await upstream.stop()


class Upstream:
    """A connection to the resolver. Its messages go to the client as they come."""

    def __init__(self, upstream: aio.Upstream, conn: aio.Connection) -> None:
        self._upstream = upstream
        self._conn = conn
        self._waiting = 0
        self._answered = asyncio.Event()
        self._task = asyncio.create_task(self._bring())

    @property
    def over(self) -> bool:
        """The resolver has closed it, as it does when it was idle for a while."""
        return self._task.done()

    async def ask(self, message: bytes) -> None:
        self._waiting += 1
        self._answered.clear()
        await write_message(self._upstream.writer, message)

    async def rest(self) -> None:
        """Waits for what is still to be answered."""
        if self._waiting:
            await asyncio.wait_for(self._answered.wait(), PATIENCE)

    async def _bring(self) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            while message := await read_message(self._upstream.reader):
                await write_message(self._conn.writer, message)
                self._waiting = max(0, self._waiting - 1)  # a zone transfer is many messages
                if not self._waiting:
                    self._answered.set()
        self._upstream.reset()
        if self._waiting:  # an answer is lost: the client has to know, and asks again
            self._conn.reset()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """The next message; b"" at the end, or where none comes. TCP brings messages in pieces, and
    several at once: two bytes say how long each is. One that breaks off is a ConnectionError."""
    try:
        size = await asyncio.wait_for(reader.readexactly(2), IDLE)
    except asyncio.TimeoutError:
        return b""
    except asyncio.IncompleteReadError as why:
        if why.partial:
            raise ConnectionError("a message broke off") from None
        return b""
    try:
        return await asyncio.wait_for(reader.readexactly(int.from_bytes(size, "big")), IDLE)
    except asyncio.IncompleteReadError:
        raise ConnectionError("a message broke off") from None


async def write_message(writer: asyncio.StreamWriter, message: bytes) -> None:
    """At once, so that no other message comes between length and content."""
    writer.write(len(message).to_bytes(2, "big") + message)
    await writer.drain()


def read_table(file: Path | None) -> Table:
    return Table() if file is None else Table(file.read_text())


async def serve(options: argparse.Namespace) -> None:
    table = read_table(options.hosts)
    interceptor = Interceptor(table, options.resolver, options.spoof, options.mark)

    def again() -> None:
        try:
            interceptor.table = read_table(options.hosts)
            log.info("table read")
        except (OSError, SystemExit) as why:
            log.error("the table stays as it was: %s", why)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, again)
    hosts = ("0.0.0.0", "::")
    _serving.all_descriptors()
    async with (
        await aio.start_intercept_datagrams(
            interceptor.datagram, hosts, options.port, mark=options.mark, max_handlers=QUERIES
        ) as datagrams,
        await aio.start_intercept_server(
            interceptor.connection, hosts, options.port, engine="tproxy4", mark=options.mark
        ) as server,
    ):
        await _serving.until_signalled(server, lambda: log.info("ready on port %d", options.port))
        datagrams.abort_handlers()


def address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lab", action="store_true", help="show it in a lab of its own")
    parser.add_argument("--hosts", type=Path, metavar="FILE", help="the table")
    parser.add_argument(
        "--port", type=int, default=3153, help="to listen on (default: %(default)s)"
    )
    parser.add_argument("--spoof", action="store_true", help="ask in the client's name")
    parser.add_argument(
        "--resolver", type=address, metavar="ADDRESS", help="ask this one, not the client's"
    )
    parser.add_argument("--mark", type=_serving.mark, help="SO_MARK of all that this sends")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.lab:
        from _dns_lab import play
        from _lab import show

        return show(play)
    try:
        asyncio.run(serve(options))
    except OSError as why:
        log.error("%s", _serving.reason(why))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
