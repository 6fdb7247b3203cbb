"""The sockets that answer for a datagram listener, in the name of whom the clients wrote to.

Each is bound to an original destination and CONNECTED to one client. Unconnected, it would take
other clients' datagrams to that destination. From then on the kernel delivers what else the client
sends there to this socket, not to the listener; so listener and flow sockets are one readiness
object: the flows stand in a poller of their own, which nests in the loop's.
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from . import spoof
from .address import Address, spell
from .constants import COMM_REUSEADDR, COMM_REUSEPORT, COMM_TPROXY_LCL
from .datagram_io import BATCH, Datagram, DatagramIO
from .errors import CommError
from .reactor.poller import READ, Poller

__all__ = ["Flows", "Limits"]

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_HAS_MARK = hasattr(socket, "SO_MARK")
# Elsewhere two sockets of one address and port need SO_REUSEPORT on both, whatever they are
# connected to.
_SHARED = COMM_REUSEADDR | (0 if sys.platform == "linux" else COMM_REUSEPORT)
_REUSE = "the listener has: open it with COMM_REUSEADDR"
_OTHERS = "another program has on every address, without SO_REUSEADDR: ss -lnup 'sport = :{}'"

Key: TypeAlias = tuple[Address, Address]
"""Client and original destination."""


class Limits(Protocol):
    max_flows: int
    flow_idle: float


class Flows:
    """A bounded table, the longest unused first."""

    def __init__(
        self,
        listener: socket.socket,
        io: DatagramIO,
        limits: Limits,
        poller: Callable[[], Poller],
        arm: Callable[[float], object],
    ) -> None:
        """:param arm: ``arm(due)``: :meth:`expire` shall be called at `due` (time.monotonic)."""
        self.listener = listener
        self._io = io
        self._limits = limits
        self._make_poller = poller
        self._arm = arm
        self._flows: OrderedDict[Key, tuple[socket.socket, float]] = OrderedDict()
        self._keys: dict[int, Key] = {}
        self._turns: deque[int] = deque()  # descriptors to ask for the next datagram
        self._parcels: list[tuple[int, Any]] = []  # posted
        self.sent = self.sent_bytes = self.lost = 0  # of what was posted
        self._open_poller()

    def __len__(self) -> int:
        return len(self._flows)

    def _open_poller(self) -> None:
        self.poller = self._make_poller()
        for fd in self._keys:
            self.poller.set(fd, 0, READ)

    def reopen_poller(self) -> None:
        """After a fork the inner poller, too, is the parent's."""
        self.poller.close()
        self._turns.clear()
        self._open_poller()

    # -- receiving -----------------------------------------------------------------------------

    def _fill_turns(self) -> None:
        self._turns.append(self.listener.fileno())
        self._turns.extend(self.ready())

    def ready(self) -> list[int]:
        """The flows' descriptors in which something waits."""
        return [fd for fd, _ in self.poller.poll(0)]

    def receive(self, of_listener: Callable[[], Datagram | None]) -> Datagram | None:
        """The next datagram of listener and flows, in turns."""
        turns, asked = self._turns, False
        listener = self.listener.fileno()
        while True:
            if not turns:
                if asked:
                    return None
                asked = True
                self._fill_turns()
            fd = turns[0]
            if fd == listener:
                got = of_listener()
            else:
                got = self._receive_flow(fd) if fd in self._keys else None
            if got is not None:
                turns.rotate(-1)
                return got
            turns.popleft()

    def _receive_flow(self, fd: int) -> Datagram | None:
        try:
            got = self._io.take(fd)
        except CommError:
            self.failed(fd)
            return None
        # The peer is asked for: what came before the socket was connected may be another's.
        return None if got is None else self.came(fd, got.data, got.peer)

    def came(self, fd: int, data: bytes, peer: bytes) -> Datagram:
        """The datagram that arrived at a flow's socket."""
        key = self._keys[fd]
        self._use(key)
        return Datagram._of(data, self._io.address(peer), key[1], self.listener, None)

    def turns(self, most: int) -> list[int]:
        """Whom to ask for the next `most` datagrams: listener and flows, as their turn comes."""
        if not self._turns:
            self._fill_turns()
        fds: list[int] = []
        while self._turns and len(fds) < most:
            fd = self._turns.popleft()
            if fd in self._keys or fd == self.listener.fileno():
                fds.append(fd)
        return fds

    def has(self, fd: int) -> bool:
        return fd in self._keys

    def failed(self, fd: int) -> None:
        """The client is gone, as an ICMP message said; but what came before it is read first."""
        key = self._keys[fd]
        if not _unread(self._flows[key][0]):
            self._drop(key)

    # -- sending -------------------------------------------------------------------------------

    def send(self, peer: Address, original: Address, data: Any) -> int:
        key = (peer, original)
        flow = self._flows.get(key)
        sock = self._open(key) if flow is None else flow[0]
        self._use(key)
        try:
            return sock.send(data)
        except ConnectionRefusedError:
            # What an ICMP message said of an earlier answer; this one has not been sent yet.
            return sock.send(data)

    def post(self, peer: Address, original: Address, data: Any) -> None:
        """To be sent by the next :meth:`flush`, or sooner. Raises CommError where there is no
        socket for it; what a socket does not take is lost."""
        key = (peer, original)
        flow = self._flows.get(key)
        sock = self._open(key) if flow is None else flow[0]
        self._use(key)
        self._parcels.append((sock.fileno(), data))
        if len(self._parcels) == BATCH:
            self.flush()

    def flush(self) -> None:
        parcels, self._parcels = self._parcels, []
        if parcels:
            went, size = self._io.send_many(parcels)
            self.sent += went
            self.sent_bytes += size
            self.lost += len(parcels) - went

    # -- the table -----------------------------------------------------------------------------

    def _open(self, key: Key) -> socket.socket:
        while len(self._flows) >= self._limits.max_flows:
            self._make_room()
        try:
            sock = self._connected(key)
        except CommError as why:
            if why.errno not in _OUT_OF_DESCRIPTORS or not self._flows:
                raise
            self._make_room()
            sock = self._connected(key)
        self.poller.set(sock.fileno(), 0, READ)
        if not self._flows:
            self._arm(time.monotonic() + self._limits.flow_idle)
        self._flows[key] = sock, 0.0
        self._keys[sock.fileno()] = key
        return sock

    def _connected(self, key: Key) -> socket.socket:
        peer, original = key
        listener = self.listener
        mark = listener.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) if _HAS_MARK else 0
        flags = _SHARED | COMM_TPROXY_LCL
        request = spoof.request_for(
            socket.SOCK_DGRAM, 0, original, None, flags, 0, mark or None, None, False
        )
        try:
            fd = spoof.open_flow(request, peer)
        except CommError as why:
            if why.errno != errno.EADDRINUSE:
                raise
            port = original[1]
            whose = _REUSE if listener.getsockname()[1] == port else _OTHERS.format(port)
            text = f"answering from {spell(original)}, a port that {whose}"
            raise CommError(errno.EADDRINUSE, text) from why
        family = socket.AF_INET6 if request.family == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM, 0, fileno=fd)
        sock.setblocking(False)
        return sock

    def _use(self, key: Key) -> None:
        self._flows[key] = self._flows[key][0], time.monotonic()
        self._flows.move_to_end(key)

    def _make_room(self) -> None:
        """The longest unused goes; one in which a datagram waits only where all have one."""
        idle = (key for key, (sock, _) in self._flows.items() if not _unread(sock))
        self._drop(next(idle, None) or next(iter(self._flows)))

    def expire(self) -> None:
        """Closes what has been idle for too long, but for sockets in which a datagram waits."""
        now = time.monotonic()
        for key, (sock, used) in list(self._flows.items()):
            if used + self._limits.flow_idle > now:
                break
            if _unread(sock):
                self._use(key)
            else:
                self._drop(key)
        if self._flows:
            _, used = next(iter(self._flows.values()))
            self._arm(used + self._limits.flow_idle)

    def _drop(self, key: Key) -> None:
        self.flush()  # what was posted may be for this one
        sock, _ = self._flows.pop(key)
        del self._keys[sock.fileno()]
        self.poller.set(sock.fileno(), READ, 0)
        sock.close()

    def close(self) -> None:
        self.flush()
        self.poller.close()
        for sock, _ in self._flows.values():
            sock.close()
        self._flows.clear()
        self._keys.clear()


def _unread(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except OSError:
        return False
    return True
