"""A proxy of one plane on the loopback, its clients and its origin: scripted sockets."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st
from planes import DEADLINE, open_files

from lusca_comm import HttpLimits, Plane
from lusca_comm.http import Exchange, Request

GET = b"GET /%d HTTP/1.1\r\nHost: example.org\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


def answer(body: bytes = b"fine") -> bytes:
    return OK % (len(body), body)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        threading.Event().wait(0.002)


class Peer:
    """A socket that reads messages."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(DEADLINE)
        self.rest = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> bool:
        chunk = self.sock.recv(1 << 16)
        self.rest += chunk
        return bool(chunk)

    def head(self) -> bytes:
        return self.until(b"\r\n\r\n")

    def until(self, mark: bytes) -> bytes:
        while mark not in self.rest:
            assert self._more(), f"the end came after {self.rest!r}"
        got, _, self.rest = self.rest.partition(mark)
        return got + mark

    def exactly(self, size: int) -> bytes:
        while len(self.rest) < size:
            assert self._more(), f"the end came after {self.rest!r}"
        got, self.rest = self.rest[:size], self.rest[size:]
        return got

    def all(self) -> bytes:
        """What is left until the end."""
        while self._more():
            pass
        got, self.rest = self.rest, b""
        return got

    def response(self) -> tuple[bytes, bytes]:
        """A head, and a body that has a length."""
        head = self.head()
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                return head, self.exactly(int(line.partition(b":")[2]))
        return head, b""

    def ended(self) -> bool:
        """The other side closed, in order, with nothing more."""
        return self.sock.recv(1) == b"" and not self.rest

    def was_reset(self) -> bool:
        """The other side ended otherwise, possibly with some bytes before."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            return True
        return False

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        reset(self.sock)


class Proxy:
    """Completions run in a thread, so that a test can wait at its sockets."""

    def __init__(
        self,
        decide: Callable[[list[Request]], object] | None = None,
        limits: HttpLimits | None = None,
        listen: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.peers: list[Peer] = []
        self.seen: list[Request] = []
        self.exchanges: list[Exchange] = []
        self.errors: list[BaseException] = []
        self.options: dict[str, Any] = {}  # of forward
        self._decide = decide or self.forward
        self.origin = socket.create_server(("127.0.0.1", 0))
        self.origin.settimeout(DEADLINE)
        self.to = self.origin.getsockname()
        self.plane = Plane()
        self.service = self.plane.http_service(
            self.decided, limits=limits, on_exchange=self.exchanges.extend, **options
        )
        self.front = socket.create_server(("127.0.0.1", 0))
        self.service.listen(self.front, **({"intercepted": False} | (listen or {})))
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def decided(self, requests: list[Request]) -> None:
        self.seen += requests
        self._decide(requests)

    def forward(self, requests: list[Request]) -> None:
        for request in requests:
            if request.state == "request":
                request.forward(self.to, **self.options)
            elif request.state in ("other", "h2", "silent"):
                request.deny()
            else:
                request.respond(
                    b"HTTP/1.1 %d x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    % request.status,
                    close=True,
                )

    def _run(self) -> None:
        while not self._stop:
            try:
                self.plane.run_completions(0.02)
            except Exception as why:
                self.errors.append(why)

    def client(self) -> Peer:
        return self._peer(socket.create_connection(self.front.getsockname()))

    def upstream(self) -> Peer:
        """The next connection at the origin."""
        return self._peer(self.origin.accept()[0])

    def _peer(self, sock: socket.socket) -> Peer:
        self.peers.append(Peer(sock))
        return self.peers[-1]

    def exchange(self, client: Peer, upstream: Peer | None = None, number: int = 0) -> Peer:
        """One that goes well; its upstream, the next one unless given."""
        client.send(GET % number)
        if upstream is None:
            upstream = self.upstream()
        assert upstream.head() == GET % number
        upstream.send(answer(b"%d" % number))
        assert client.response()[1] == b"%d" % number
        return upstream

    @property
    def live(self) -> int:
        return self.plane.totals().live

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self.plane.stop()
        self.plane.run_completions()
        self.plane.close()
        self.front.close()
        self.origin.close()


@contextlib.contextmanager
def proxying(**options: Any) -> Iterator[Proxy]:
    """A proxy that has no session left at the end, and no descriptor."""
    before = open_files()
    proxy = Proxy(**options)
    try:
        yield proxy
        for peer in proxy.peers:
            peer.close()
        wait_for(lambda: proxy.live == 0)
    finally:
        for peer in proxy.peers:
            peer.close()
        proxy.close()
    assert not proxy.errors
    assert open_files() == before


# -- messages of scripts ---------------------------------------------------------------------------

BODIES = st.one_of(
    st.binary(max_size=40), st.binary(min_size=1, max_size=3).map(lambda b: b * 9000)
)


def framed(framing: str, body: bytes) -> tuple[bytes, bytes]:
    """Field line and bytes."""
    if framing == "length":
        return b"Content-Length: %d\r\n" % len(body), body
    if framing == "chunked":
        middle = len(body) // 2
        parts = [part for part in (body[:middle], body[middle:]) if part]
        chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts)
        return b"Transfer-Encoding: chunked\r\n", chunks + b"00\r\n\r\n"
    return b"", b""


class Message:
    """What one side of a script sends."""

    def __init__(self, framing: str, body: bytes) -> None:
        self.body = body if framing != "none" else b""
        self.field, self.bytes = framed(framing, body)


def unframed(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """A head, its decoded body, and the rest; None: there is more to come. By other means than the
    framer's: the peers here are well-behaved."""
    head, blank, rest = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    if b"Transfer-Encoding: chunked" in head:
        body = b""
        while True:
            line, newline, more = rest.partition(b"\r\n")
            size = int(line, 16) if newline else 0
            if not newline or len(more) < size + 2:
                return None
            body, rest = body + more[:size], more[size + 2 :]
            if size == 0:
                return head, body, rest
    length = re.search(rb"(?i)content-length: (\d+)", head)
    size = int(length[1]) if length else 0
    return (head, rest[:size], rest[size:]) if len(rest) >= size else None
