"""proxy.py's interception through lusca_comm: TPROXY and REDIRECT, and servers that see the client.

    python examples/adapters/proxy_py_lusca.py --hostname 0.0.0.0 --port 3129 --lusca-spoof

The flags are proxy.py's own and two more. It has no transparent mode: an intercepted request says
``GET /`` and no host, and proxy.py answers it as a web server would. Here such a request is given
the host and the port that its connection was going to, and so becomes a proxy's request for all of
proxy.py and its plugins. Requests of clients that know of the proxy are served as ever.

By its interfaces: a work class, a plugin's ``resolve_dns``, flags. Replaced are the class of its
listeners and ``new_socket_connection``, which ignores the source address where the host is numeric.
It is for HTTP in the clear: proxy.py knows TLS after CONNECT alone.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

from proxy.common.flag import flags
from proxy.common.version import __version__ as VERSION
from proxy.core.connection import server as upstreams
from proxy.core.listener import pool
from proxy.core.listener.tcp import TcpSocketListener
from proxy.http.handler import HttpProtocolHandler
from proxy.http.parser import HttpParser, httpParserTypes
from proxy.http.proxy import HttpProxyBasePlugin
from proxy.proxy import main as run

import lusca_comm as lc

VERSIONS = ("2.4.",)

logger = logging.getLogger(__name__)
connect = upstreams.new_socket_connection
lock = threading.Lock()  # --threaded opens sockets in many threads

flags.add_argument(
    "--lusca-spoof",
    action="store_true",
    help="Default: False. Connect to servers in the name of the client that was intercepted.",
)
flags.add_argument(
    "--lusca-redirect",
    action="store_true",
    help="Default: False. Take what REDIRECT delivers, without the privilege that TPROXY needs.",
)


class ClientName(tuple[Any, ...]):
    """A source address that is the client's and none of this machine's. Its port is not kept."""

    __slots__ = ()


def opened(**how: Any) -> socket.socket:
    with lock:
        sock = lc.comm_open(**how, note="proxy.py")
        lc.comm_detach(sock)
    return sock


class Listener(TcpSocketListener):  # type: ignore[misc]  # mypy does not see proxy.py's types here
    """Takes what TPROXY delivers."""

    def listen(self) -> socket.socket:
        if self.flags.lusca_spoof and self.flags.enable_conn_pool:
            raise ValueError("--enable-conn-pool: clients would share what is in one's name")
        flag = lc.COMM_INTERCEPT if self.flags.lusca_redirect else lc.COMM_TPROXY_LCL
        sock = opened(address=(str(self.hostname), self.port), flags=lc.COMM_REUSEADDR | flag)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as proxy.py's own
        sock.listen(self.flags.backlog)
        self._port = sock.getsockname()[1]
        return sock


class Request(HttpParser):  # type: ignore[misc]
    """A request in a connection that was going to `there`."""

    host: bytes | None
    port: int | None

    def __init__(self, there: Any, **options: Any) -> None:
        super().__init__(httpParserTypes.REQUEST_PARSER, **options)
        self.there = there

    def parse(self, raw: memoryview, allowed_url_schemes: list[bytes] | None = None) -> None:
        super().parse(raw, allowed_url_schemes)
        if self.is_complete and self.host is None:
            self.host, self.port = self.there[0].encode(), self.there[1]


class Handler(HttpProtocolHandler):  # type: ignore[misc]
    """The work class: one for each client's connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        try:
            there = lc.original_destination(self.work.connection)
        except lc.NotIntercepted:
            return
        except lc.CommError as why:  # raised from here it would end the whole of proxy.py's loop
            logger.error("%s: %s", self.work.addr, why)
            return
        proxy_protocol = self.flags.enable_proxy_protocol
        self.request = Request(there.address, enable_proxy_protocol=proxy_protocol)


class InTheClientsName(HttpProxyBasePlugin):  # type: ignore[misc]
    """Chooses the source address of what an intercepted client asked for."""

    def resolve_dns(self, host: str, port: int) -> tuple[str | None, ClientName | None]:
        if not self.flags.lusca_spoof:
            return None, None
        client = self.client.connection
        try:
            lc.original_destination(client)
        except lc.NotIntercepted:
            return None, None
        return None, ClientName(client.getpeername())


def new_socket_connection(
    addr: Any, timeout: float = 10, connect_timeout: float = 10, source_address: Any = None
) -> socket.socket:
    """proxy.py's, which binds to `source_address`, with the right to a client's name."""
    if not isinstance(source_address, ClientName):
        return connect(addr, timeout, connect_timeout, source_address)  # type: ignore[no-any-return]
    sock = opened(address=source_address, flags=lc.COMM_REUSEADDR | lc.COMM_TPROXY_REM)
    try:
        sock.settimeout(connect_timeout)
        sock.connect(addr)  # a name is looked up in the client's family
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def install() -> None:
    """Replaces the two names. Raises RuntimeError for another version than this was written for."""
    if not VERSION.startswith(VERSIONS):
        wanted = " or ".join(known + "x" for known in VERSIONS)
        raise RuntimeError(f"proxy.py {VERSION}: this adapter is for {wanted}")
    pool.TcpSocketListener = Listener
    upstreams.new_socket_connection = new_socket_connection


def main() -> None:
    install()
    run(work_klass=Handler, plugins=[InTheClientsName])


if __name__ == "__main__":
    main()
