"""An intercepted connection, as a handler gets it."""

from __future__ import annotations

import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ..address import Address
from ..intercept_relay import Question
from ..relayed import RelayResult
from ..sockets import stream_of
from .connecting import Connecting, Upstream
from .endpoint import RELAYED, Endpoint
from .planes import LoopPlane
from .relaying import relay

if TYPE_CHECKING:
    from .server import InterceptServer

__all__ = ["Connection"]


class Connection(Endpoint):
    """A connection that was meant for somebody else.

    It stays in the data plane until something needs its socket, and a handler that only relays it
    never does.
    """

    _accepted = True

    def __init__(self, server: InterceptServer, question: Question, family: int) -> None:
        """:param family: of the socket, and so of the listener."""
        self._loop = server._loop
        self._server = server
        self._asked: Question | None = question
        self._question = question
        self._family = family
        self._upstreams: list[Upstream] = []
        self._over = False  # the handler has ended
        self._limit = server._limit

    @property
    def peer(self) -> Address:
        """The client: ``(host, port)``; for a link-local IPv6 address the 4-tuple."""
        address = self._question.peer
        assert address is not None
        return address

    @property
    def original(self) -> Address:
        """Where it was going, in the same form."""
        address = self._question.original
        assert address is not None
        return address

    @property
    def engine(self) -> str:
        """Who told where it was going: "tproxy4", "netfilter", "sockname", ..."""
        return self._question.engine

    def connect(
        self,
        to: Address | None = None,
        *,
        spoof: bool = False,
        keep_port: bool = False,
        source: Address | None = None,
        mark: int | None = None,
        timeout: float | None = 30,
    ) -> Connecting:
        """A connection to where this one was going: ``upstream = await conn.connect()``. Given to
        :meth:`relay` without ``await`` it is made by the data plane, in one step with relaying.

        When the handler has ended it is closed, as this connection is.

        :param to: another destination, ``(host, port)``, the host numeric.
        :param spoof: in the client's name: from its address.
        :param keep_port: from its port too, where that can be had; ``upstream.spoof`` tells.
        :param source: the address to connect from; with `spoof` in place of the client's.
        :param mark: SO_MARK of the socket; None: the server's.
        :param timeout: seconds to connect in (ETIMEDOUT); None: the kernel's.
        :raises CommError: when awaited; see :func:`lusca_comm.aio.connect`.
        """
        return Connecting(to, source, spoof, keep_port, mark, timeout, self)

    def relay(
        self,
        upstream: Any,
        *,
        prefix: bytes = b"",
        limit_up: int | None = None,
        limit_down: int | None = None,
        idle: float | None = None,
        total: float | None = None,
    ) -> Coroutine[Any, Any, RelayResult]:
        """``await``: relays to `upstream` until both have ended; see :func:`lusca_comm.aio.relay`,
        which has the same parameters."""
        return relay(
            self,
            upstream,
            prefix=prefix,
            limit_up=limit_up,
            limit_down=limit_down,
            idle=idle,
            total=total,
        )

    # -- until something needs the socket, the connection is a question ------------------------

    def _socket(self) -> socket.socket:
        if self._asked is not None and not self._gone:
            self._sock = stream_of(self._take(), self._family)
        return super()._socket()

    def _descriptor(self) -> int:
        return super()._descriptor() if self._asked is None else self._asked.fileno()

    def _abort(self) -> None:
        if self._asked is None:
            super()._abort()
        else:
            asked, self._asked = self._asked, None
            asked.deny()

    def _take(self) -> int:
        """The descriptor, which is the plane's no more."""
        assert self._asked is not None
        (id, fd), self._asked = self._asked.give(), None
        LoopPlane.of(self._loop).hand_over(id)
        return fd

    def _give(self) -> int:
        if self._asked is None:
            return super()._give()
        self._gone = RELAYED
        return self._take()

    def _give_question(self) -> int:
        """Its id."""
        assert self._asked is not None
        (id, _), self._asked = self._asked.give(), None
        self._gone = RELAYED
        return id

    def _take_back(self, sock: socket.socket, unread: bytes) -> object:
        super()._take_back(sock, unread)
        if self._over:
            self.reset()
        return self

    def _keep(self, upstream: Upstream) -> None:
        """It ends with the handler, and at once where that has ended."""
        if self._over:
            upstream.reset()
        else:
            self._upstreams.append(upstream)

    def _left(self) -> None:
        """The handler has ended: nothing of it may be left, and nothing that comes later."""
        self._over = True
        for upstream in self._upstreams:
            upstream.reset()
        self.reset()
