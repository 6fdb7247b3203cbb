"""A server of intercepted datagrams."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from .. import spoof
from ..address import Address, spell
from ..constants import COMM_INTERCEPT, COMM_REUSEADDR, COMM_REUSEPORT, COMM_TPROXY_LCL
from ..datagram_flows import Flows
from ..datagram_io import BATCH, DatagramIO, check_datagrams, tell_original
from ..engines import row_of
from ..errors import CommError
from ..reactor.reactor import default_poller
from .opening import addresses_of, open_all

__all__ = ["InterceptDatagrams", "InterceptedDatagram", "start_intercept_datagrams"]

Handler = Callable[["InterceptedDatagram"], Awaitable[object] | None]


class InterceptedDatagram:
    """What a handler gets."""

    __slots__ = ("_arrived", "_listener", "data", "original", "peer")

    def __init__(
        self,
        listener: _Listener,
        data: bytes,
        peer: Address,
        original: Address | None,
        arrived: bytes | None,
    ) -> None:
        self._listener = listener
        self._arrived = arrived
        self.data = data
        self.peer = peer
        """The client."""
        self.original = original
        """Where it was going; None where it was sent to the server itself (or brought there by
        REDIRECT, which nothing on Linux can tell from that)."""

    def reply(self, data: Any) -> None:
        """Answers from where the datagram was going, at the latest at the end of the loop's turn.
        A plain call, as often as there are answers. What the kernel does not take is lost, as
        datagrams are, and counted (:attr:`InterceptDatagrams.lost`): where its buffer is full, or
        the answer too long (EMSGSIZE).

        :raises CommError: EADDRINUSE, EACCES, EPERM, EMFILE, ENETUNREACH, ...: there is no socket
            for the answer; EBADF: the server has ended.
        :raises TypeError: `data` is no buffer.
        """
        self._listener.reply(self, data)

    def __repr__(self) -> str:
        there = "here" if self.original is None else spell(self.original)
        return f"<{len(self.data)} bytes from {spell(self.peer)} to {there}>"


class _Listener:
    """A socket, and those that answer for it."""

    def __init__(self, server: InterceptDatagrams, sock: socket.socket, intercept: bool) -> None:
        self.server = server
        self.sock = sock
        self.intercept = intercept
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._open = True
        self.flows = Flows(sock, server._io, server, default_poller, self._arm)
        loop = server._loop
        loop.add_reader(sock.fileno(), self._on_listener)
        loop.add_reader(self.flows.poller.fileno(), self._on_flows)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = self.server._loop
        self._timer = loop.call_later(max(0.0, due - time.monotonic()), self.flows.expire)

    # -- receiving -----------------------------------------------------------------------------

    def _on_listener(self) -> None:
        self._meet(self._of_listener())

    def _of_listener(self) -> Iterator[InterceptedDatagram]:
        io, fd = self.server._io, self.sock.fileno()
        for taken in io.take_many([fd], BATCH):
            if taken.error:  # an ICMP message, or no memory: nothing of a datagram's
                continue
            try:
                where, arrived = io.where(fd, self.intercept, taken.peer, taken.original)
            except CommError as why:
                self.server._tell("where a datagram was going", why)
                continue
            yield InterceptedDatagram(self, taken.data, io.address(taken.peer), where, arrived)

    def _on_flows(self) -> None:
        fds = self.flows.ready()
        for i in range(0, len(fds), BATCH):
            self._meet(self._of_flows([fd for fd in fds[i : i + BATCH] if self.flows.has(fd)]))

    def _of_flows(self, fds: list[int]) -> Iterator[InterceptedDatagram]:
        for taken in self.server._io.take_many(fds, BATCH):
            if taken.error:
                self.flows.failed(taken.fd)
                continue
            got = self.flows.came(taken.fd, taken.data, taken.peer)
            yield InterceptedDatagram(self, got.data, got.peer, got.original, None)

    def _meet(self, batch: Iterable[InterceptedDatagram]) -> None:
        # All are made before one is answered: a flow may have to go for the answer, and its
        # descriptor be the new one's.
        datagrams = list(batch)
        self._flushing = True
        try:
            for datagram in datagrams:
                if self.server._closed:
                    break
                self.server._meet(datagram)
        finally:
            self._flushing = False
            self.flush()

    # -- answering -----------------------------------------------------------------------------

    def reply(self, datagram: InterceptedDatagram, data: Any) -> None:
        if not self._open:
            raise CommError(errno.EBADF, "the server has ended: nothing answers for it any more")
        # It may be sent later: what the handler does with its buffer then, or what is none, is no
        # business of the other answers.
        kept = data if isinstance(data, bytes) else bytes(memoryview(data))
        server = self.server
        if datagram.original is None or datagram._arrived is not None:
            try:
                server._io.send(self.sock.fileno(), datagram.peer, kept, datagram._arrived)
                server._sent += 1
            except CommError:
                server._lost += 1
            return
        self.flows.post(datagram.peer, datagram.original, kept)
        if not self._flushing:
            self._flushing = True
            server._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        if self._open:
            self.flows.flush()

    # -- the end -------------------------------------------------------------------------------

    def deafen(self) -> None:
        loop = self.server._loop
        loop.remove_reader(self.sock.fileno())
        loop.remove_reader(self.flows.poller.fileno())

    def close(self) -> None:
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        self.flows.close()
        self.sock.close()


class InterceptDatagrams:
    """Made by :func:`start_intercept_datagrams`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        max_handlers: int,
        max_flows: int,
        flow_idle: float,
    ) -> None:
        self._loop = loop
        self._handler = handler
        self._io = DatagramIO({"read": 0, "write": 0})
        self._listeners: list[_Listener] = []
        self._tasks: set[asyncio.Future[Any]] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._closed = self._over = False
        self._sent = self._lost = 0
        self.max_handlers = max_handlers
        self.max_flows = max_flows
        self.flow_idle = flow_idle
        self.received = 0
        """Datagrams that were given to the handler."""
        self.dropped = 0
        """Datagrams that were not, because `max_handlers` were at work."""

    @property
    def sent(self) -> int:
        """Answers that the kernel took."""
        return self._sent + sum(one.flows.sent for one in self._listeners)

    @property
    def lost(self) -> int:
        """Answers that the kernel did not take."""
        return self._lost + sum(one.flows.lost for one in self._listeners)

    @property
    def flows(self) -> int:
        """Sockets that answer in others' names."""
        return sum(len(one.flows) for one in self._listeners)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none once it is closed."""
        return () if self._closed else tuple(one.sock for one in self._listeners)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return not self._closed

    def close(self) -> None:
        """Takes no more. Handlers at work go on, and may still answer; :meth:`wait_closed` waits
        for them. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for listener in self._listeners:
            listener.deafen()
        self._finish()

    def abort_handlers(self) -> None:
        """Cancels every handler."""
        for task in list(self._tasks):
            task.cancel()

    async def wait_closed(self) -> None:
        """Waits until the server is closed, its ports are free, and every handler has ended."""
        if not self._over:
            future = self._loop.create_future()
            self._waiting.append(future)
            await future

    async def serve_forever(self) -> None:
        """Serves until it is closed; cancelled, it closes, and cancels the handlers."""
        try:
            await self.wait_closed()
        except asyncio.CancelledError:
            self.close()
            self.abort_handlers()
            await self.wait_closed()
            raise

    async def __aenter__(self) -> InterceptDatagrams:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        _why: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        """Closes, and waits for the handlers; after an exception it cancels them."""
        self.close()
        if kind is not None:
            self.abort_handlers()
        await self.wait_closed()

    # -- datagrams -----------------------------------------------------------------------------

    def _meet(self, datagram: InterceptedDatagram) -> None:
        if len(self._tasks) >= self.max_handlers:
            self.dropped += 1
            return
        self.received += 1
        try:
            coming = self._handler(datagram)
            if coming is None:
                return
            task = asyncio.ensure_future(coming, loop=self._loop)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as why:  # as loops do with callbacks; CancelledError is one
            self._failed(datagram, why)
            return
        self._tasks.add(task)
        task.add_done_callback(partial(self._handled, datagram))

    def _handled(self, datagram: InterceptedDatagram, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (why := task.exception()) is not None:
            self._failed(datagram, why)
        self._finish()

    def _failed(self, datagram: InterceptedDatagram, why: BaseException) -> None:
        self._tell(f"exception in the handler of {datagram!r}", why)

    def _tell(self, message: str, why: BaseException) -> None:
        self._loop.call_exception_handler({"message": message, "exception": why})

    def _finish(self) -> None:
        if not self._closed or self._tasks or self._over:
            return
        self._over = True
        for listener in self._listeners:
            listener.close()
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()


async def start_intercept_datagrams(
    handler: Handler,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    engine: str | None = None,
    dualstack: bool = False,
    sock: socket.socket | Sequence[socket.socket] | None = None,
    reuse_port: bool = False,
    mark: int | None = None,
    max_handlers: int = 1024,
    max_flows: int = 512,
    flow_idle: float = 60.0,
) -> InterceptDatagrams:
    """Takes the datagrams that the firewall hands over, and runs ``await handler(datagram)`` for
    each: a task. A `handler` that is a plain function is called and costs no task.

    An exception in `handler` is told to the loop's exception handler and ends nothing else.

    :param host: "" or None: every address of both families; a sequence: all of them. "::" is IPv6
        only unless `dualstack`.
    :param port: None or 0: the kernel's choice, the same for all hosts (``server.sockets``).
    :param engine: None: the datagrams carry where they were going (TPROXY, ipfw fwd, divert-to);
        "pf": PF's rdr, on BSD. On Linux no NAT engine can tell of datagrams.
    :param sock: bound sockets, which are the server's from now on, in place of `host` and `port`.
        They are what :func:`lusca_comm.comm_open` with COMM_TPROXY_LCL makes.
    :param reuse_port: SO_REUSEPORT, for several processes.
    :param mark: SO_MARK of the sockets, those that answer included.
    :param max_handlers: tasks at work at the same time; a datagram beyond is dropped and counted
        (``server.dropped``).
    :param max_flows: sockets that answer in others' names, per listener; the longest unused goes.
    :param flow_idle: seconds without a datagram after which such a socket is closed.
    :raises CommError: EPERM, with the capability that is missing; EOPNOTSUPP an engine that tells
        nothing of datagrams; EADDRINUSE, ...
    """
    if not callable(handler):
        raise TypeError(f"handler {handler!r} is not callable")
    if max_handlers < 1 or max_flows < 1 or not flow_idle > 0:
        raise CommError(errno.EINVAL, "max_handlers, max_flows and flow_idle are more than nothing")
    loop = asyncio.get_running_loop()
    intercept = engine not in (None, "tproxy4", "sockname")
    if engine is not None:
        row_of(engine)
    flags = COMM_REUSEADDR | (COMM_REUSEPORT if reuse_port else 0)
    flags |= COMM_INTERCEPT if intercept else COMM_TPROXY_LCL
    spoof.refuse_redirected(flags)
    if sock is None:
        addresses = await addresses_of(loop, socket.SOCK_DGRAM, host, port or 0)
        opened = open_all(addresses, socket.SOCK_DGRAM, flags, dualstack, mark)
        socks = [one for one, _ in opened]
    elif host is not None or port is not None:
        raise CommError(errno.EINVAL, "either sock, or host and port")
    else:
        socks = [sock] if isinstance(sock, socket.socket) else list(sock)
        for one in socks:
            check_datagrams(one)
            one.setblocking(False)
            tell_original(one)
    server = InterceptDatagrams(loop, handler, max_handlers, max_flows, flow_idle)
    server._listeners += [_Listener(server, one, intercept) for one in socks]
    return server
