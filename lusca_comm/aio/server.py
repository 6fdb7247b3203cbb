"""A server of intercepted connections."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from .. import intercept
from .._shim import ffi, lib
from ..address import spell
from ..constants import (
    COMM_DOBIND,
    COMM_INTERCEPT,
    COMM_REUSEADDR,
    COMM_REUSEPORT,
    COMM_TPROXY_LCL,
    COMM_TPROXY_REM,
)
from ..engines import check_told, probe_nat
from ..errors import CommError
from ..handover import connect_request
from ..intercept_relay import InterceptRelay, Question, intercept_relay
from .connection import Connection
from .opening import addresses_of, open_all
from .planes import LoopPlane, drop

__all__ = ["InterceptServer", "start_intercept_server"]

Handler = Callable[[Connection], Awaitable[object]]
_BACKLOG = 65535  # the kernel lowers it to its maximum
_ANY = ("0.0.0.0", 0)


class InterceptServer:
    """Made by :func:`start_intercept_server`. It is used as an :class:`asyncio.Server` is."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Handler,
        opened: list[tuple[socket.socket, Any]],
        engine: str | None,
        mark: int | None,
        limit: int,
        on_refused: Callable[[CommError], object] | None,
    ) -> None:
        self._loop = loop
        self._handler = handler
        self._opened = opened  # sockets, and what they were opened by
        self._engine = engine
        self._mark = mark
        self._limit = limit
        self._on_refused = on_refused
        self._plane: LoopPlane | None = None  # from start_serving until all is over
        self._listeners: list[InterceptRelay] = []
        self._requests: dict[int, Any] = {}  # by flags
        self._handlers: dict[asyncio.Task[None], Connection] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._forever: asyncio.Future[None] | None = None
        self._closed = False
        self.accepted = 0
        """Connections that were given to the handler."""
        self.refused = 0
        """Connections that were reset, because nothing intercepted them or they were a loop."""

    # -- as asyncio.Server ---------------------------------------------------------------------

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none once it is closed."""
        return () if self._closed else tuple(sock for sock, _ in self._opened)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._plane is not None and not self._closed

    async def start_serving(self) -> None:
        """Begins to accept. Idempotent."""
        if self._closed:
            raise RuntimeError("this server is closed")
        if self._plane is not None:
            return
        for sock, request in self._opened:
            err = lib.lc_listen(sock.fileno(), request or ffi.NULL, _BACKLOG, 0)
            if err < 0:
                raise CommError(-err, f"listen: {os.strerror(-err)}")
            intercept.remember_listener(sock)
        plane = LoopPlane.of(self._loop)
        plane.use()
        plane.at_shutdown.add(self)
        self._plane = plane
        for sock, _ in self._opened:
            listener = intercept_relay(
                plane.plane,
                sock,
                policy=[("ask",)],
                decide=functools.partial(self._decide, sock.family),
                on_done=drop,  # of relays that nobody waits for: the plane was stopped
                mark=self._mark,
                on_refused=self._refuse,
                engine=self._engine,
            )
            listener.on_closed = self._over
            self._listeners.append(listener)

    async def serve_forever(self) -> None:
        """Serves until it is cancelled or the server is closed. Cancelled, it ends the handlers
        too, and with them their connections. Where the server is closed, it waits for them, and
        then raises CancelledError, as asyncio's own does."""
        if self._forever is not None:
            raise RuntimeError("serve_forever() is running already")
        await self.start_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
            await self.wait_closed()
            raise asyncio.CancelledError
        except asyncio.CancelledError:
            self.close()
            self.abort_clients()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Accepts no more. What is being handled goes on; :meth:`wait_closed` waits for it.
        Idempotent."""
        if self._closed:
            return
        self._closed = True
        for listener in self._listeners:
            listener.close()
        for sock, _ in self._opened:
            sock.close()
        if self._forever is not None and not self._forever.done():
            self._forever.set_result(None)
        self._finish()

    def abort_clients(self) -> None:
        """Cancels every handler; their connections are reset."""
        for task in list(self._handlers):
            task.cancel()

    async def wait_closed(self) -> None:
        """Waits until the server is closed, its ports are free, and every handler has ended."""
        if self._plane is not None or not self._closed:
            future = self._loop.create_future()
            self._waiting.append(future)
            await future

    async def __aenter__(self) -> InterceptServer:
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
            self.abort_clients()
        await self.wait_closed()

    # -- connections ---------------------------------------------------------------------------

    def _request(self, flags: int) -> Any:
        """``struct lc_open`` of a connection out, but for its family and address."""
        request = self._requests.get(flags)
        if request is None:
            source = _ANY if flags & COMM_TPROXY_REM else None
            request = connect_request(source, _ANY, flags, self._mark)[0][0]
            self._requests[flags] = request
        return request

    def _decide(self, family: int, questions: list[Question]) -> None:
        self.accepted += len(questions)
        for question in questions:
            connection = Connection(self, question, family)
            task = self._loop.create_task(self._handle(connection))
            self._handlers[task] = connection
            task.add_done_callback(self._handled)

    async def _handle(self, connection: Connection) -> None:
        try:
            await self._handler(connection)
            left = [one for one in (connection, *connection._upstreams) if not one._gone]
            if left:
                await asyncio.gather(*[one.close() for one in left])
        except Exception as why:
            end = "" if connection._gone else ": the connection was reset"
            connection._left()
            # FACT: with "task" in it, 3.12 and newer enter that task's context, where this is.
            self._loop.call_exception_handler(
                {
                    "message": f"exception in the handler of {spell(connection.peer)} -> "
                    f"{spell(connection.original)}{end}",
                    "exception": why,
                }
            )

    def _handled(self, task: asyncio.Task[None]) -> None:
        """Also where it was cancelled before it began, or after the loop's end was told."""
        connection = self._handlers.pop(task, None)
        if connection is not None:
            connection._left()
        self._finish()

    def _refuse(self, why: CommError) -> None:
        self.refused += 1
        if self._on_refused is not None:
            self._on_refused(why)

    # -- its end -------------------------------------------------------------------------------

    def _over(self) -> None:
        """A listener is closed, and its questions are answered."""
        self._listeners.pop()
        self._finish()

    def _finish(self) -> None:
        if not self._closed or self._listeners or self._handlers:
            return
        if self._plane is not None:
            self._plane.at_shutdown.discard(self)
            self._plane.leave()
            self._plane = None
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def loop_ends(self) -> None:
        """The plane ends with the loop, and all that is in it."""
        self.close()
        self._listeners.clear()
        for connection in self._handlers.values():
            connection._left()
        self._handlers.clear()
        self._finish()


async def start_intercept_server(
    handler: Handler,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    engine: str | None = None,
    dualstack: bool = False,
    sock: socket.socket | Iterable[socket.socket] | None = None,
    reuse_port: bool = False,
    mark: int | None = None,
    limit: int = 65536,
    on_refused: Callable[[CommError], object] | None = None,
    start_serving: bool = True,
) -> InterceptServer:
    """Takes the connections that the firewall hands over, and runs ``await handler(conn)``, a task,
    for each of them.

    A connection that nothing intercepted, or that is a loop, is reset and never seen by `handler`;
    it is counted (``server.refused``) and told to `on_refused`. An exception in `handler` resets
    that connection, and the loop's exception handler is told. When `handler` returns, what it has
    not closed is closed.

    :param host: "" or None: every address of both families; a sequence: all of them. "::" is IPv6
        only unless `dualstack`.
    :param port: None or 0: the kernel's choice, the same for all hosts (``server.sockets``).
    :param engine: None: TPROXY and REDIRECT or DNAT, found out for each connection, which needs
        CAP_NET_RAW or CAP_NET_ADMIN; "netfilter": REDIRECT and DNAT alone, which need nothing;
        "tproxy4": TPROXY alone; "sockname": the local address is trusted (AnyIP routes, ipfw fwd,
        divert-to).
    :param sock: listening or bound sockets, which are the server's from now on, in place of `host`
        and `port`: as comm_open or systemd made them.
    :param reuse_port: SO_REUSEPORT, for several processes.
    :param mark: SO_MARK of the sockets that :meth:`Connection.connect` makes.
    :param limit: of the readers, as :func:`asyncio.start_server` has it.
    :param on_refused: ``on_refused(CommError)``.
    :param start_serving: False: the sockets are open, and neither do they listen nor is there a
        thread, so that privileges can be dropped before :meth:`InterceptServer.start_serving`.
    :raises CommError: EPERM, with the capability that is missing; EADDRINUSE, ...
    """
    if not callable(handler):
        raise TypeError(f"handler {handler!r} is not callable")
    loop = asyncio.get_running_loop()
    if engine is not None:
        check_told(engine)
    if sock is not None:
        if host is not None or port is not None:
            raise CommError(errno.EINVAL, "either sock, or host and port")
        socks = [sock] if isinstance(sock, socket.socket) else list(sock)
        opened: list[tuple[socket.socket, Any]] = [(one, None) for one in socks]
        for one in socks:
            one.settimeout(0)
    else:
        addresses = await addresses_of(loop, socket.SOCK_STREAM, host, port or 0)
        opened = _open(addresses, _flags(engine, reuse_port), engine, dualstack)
    server = InterceptServer(loop, handler, opened, engine, mark, limit, on_refused)
    if start_serving:
        try:
            await server.start_serving()
        except BaseException:
            server.close()
            raise
    return server


def _flags(engine: str | None, reuse_port: bool) -> int:
    flags = COMM_REUSEADDR | COMM_DOBIND | (COMM_REUSEPORT if reuse_port else 0)
    if engine is None:
        flags |= COMM_TPROXY_LCL
        try:
            probe_nat()
        except CommError as why:
            if why.errno in (errno.EACCES, errno.EPERM):
                raise
            return flags  # TPROXY alone, on a kernel without conntrack
        return flags | COMM_INTERCEPT
    if engine == "tproxy4":
        return flags | COMM_TPROXY_LCL
    return flags if engine == "sockname" else flags | COMM_INTERCEPT


def _open(
    addresses: list[tuple[Any, ...]], flags: int, engine: str | None, dualstack: bool
) -> list[tuple[socket.socket, Any]]:
    try:
        return open_all(addresses, socket.SOCK_STREAM, flags, dualstack)
    except CommError as why:
        if engine is None and why.errno in (errno.EPERM, errno.EACCES):
            text = f'{why.strerror}; engine="netfilter" takes what REDIRECT brings, without it'
            raise CommError(why.errno, text) from why
        raise
