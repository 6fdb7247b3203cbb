"""mitmproxy's transparent mode through lusca_comm: TPROXY beside REDIRECT, and servers that see the
client.

    mitmdump --mode transparent@3129 -s examples/adapters/mitmproxy_lusca.py --set lusca_spoof=true

It is an addon. What mitmproxy has no hook for is replaced in its modules, three names in all:

* ``mitmproxy.platform.original_addr``: mitmproxy's own asks for SO_ORIGINAL_DST alone, which knows
  no connection that TPROXY delivers;
* ``TransparentInstance.listen``: the listening sockets take what TPROXY delivers;
* ``mitmproxy.proxy.server.asyncio.open_connection``: a source address that the hook
  ``server_connect`` chose is bound with the right to a foreign address.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import types
import weakref
from typing import Any

import mitmproxy.platform
from mitmproxy import ctx
from mitmproxy.proxy import mode_servers, mode_specs, server
from mitmproxy.version import VERSION

import lusca_comm as lc

VERSIONS = ("11.", "12.")  # the modules named above have been moved between major versions

logger = logging.getLogger(__name__)
listening: weakref.WeakSet[Any] = weakref.WeakSet()  # mitmproxy's server instances


class ClientName(tuple[Any, ...]):
    """A source address that is the client's and none of this machine's. Its port is not kept."""

    __slots__ = ()


def original_addr(sock: socket.socket) -> tuple[str, int]:
    """Where the client was going. Raises NotIntercepted, which mitmproxy logs."""
    host, port, *_ = lc.original_destination(sock).address
    return host, port


async def listen(instance: Any, host: str, port: int) -> list[asyncio.Server]:
    """In place of ``AsyncioServerInstance.listen``: a server for each family, on one port."""
    flags = lc.COMM_REUSEADDR
    flags |= lc.COMM_TPROXY_LCL if ctx.options.lusca_tproxy else lc.COMM_INTERCEPT
    servers: list[asyncio.Server] = []
    for address in [host] if host else ["0.0.0.0", "::"]:
        try:
            sock = lc.comm_open(address=(address, port), flags=flags, note="mitmproxy")
        except lc.CommError as why:
            if why.errno == errno.EAFNOSUPPORT and servers:  # a machine without IPv6
                continue
            raise
        lc.comm_detach(sock)
        servers.append(await asyncio.start_server(instance.handle_stream, sock=sock))
        port = sock.getsockname()[1]
    listening.add(instance)
    logger.info(
        "Port %d takes %s.", port, "TPROXY and REDIRECT" if ctx.options.lusca_tproxy else "REDIRECT"
    )
    return servers


async def open_connection(
    host: str, port: int, *, local_addr: Any = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """asyncio's, which binds to `local_addr`, with the right to a client's name."""
    if not isinstance(local_addr, ClientName):
        return await asyncio.open_connection(host, port, local_addr=local_addr)
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in local_addr[0] else socket.AF_INET
    found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for *_, address in found:
        sock = lc.comm_open(address=local_addr, flags=lc.COMM_REUSEADDR | lc.COMM_TPROXY_REM)
        lc.comm_detach(sock)
        try:
            await loop.sock_connect(sock, address)
            return await asyncio.open_connection(sock=sock)
        except BaseException as why:
            sock.close()
            if not isinstance(why, OSError):
                raise
            failure = why
    assert failure is not None  # getaddrinfo() finds something, or raises
    raise failure


class _Asyncio(types.ModuleType):
    """asyncio as ``mitmproxy.proxy.server`` sees it."""

    open_connection = staticmethod(open_connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def install() -> None:
    """Replaces the three names. Raises RuntimeError for a mitmproxy that has them elsewhere."""
    if not VERSION.startswith(VERSIONS):
        wanted = " or ".join(version + "x" for version in VERSIONS)
        raise RuntimeError(f"mitmproxy {VERSION}: this adapter is for {wanted}")
    mitmproxy.platform.original_addr = original_addr
    mode_servers.TransparentInstance.listen = listen
    server.asyncio = _Asyncio("asyncio")


class Lusca:
    """The addon."""

    def load(self, loader: Any) -> None:
        loader.add_option(
            "lusca_spoof", bool, False, "Connect to servers in the client's name (transparent mode)"
        )
        loader.add_option(
            "lusca_tproxy", bool, True, "Listen for TPROXY also, which needs a privilege"
        )
        install()

    def running(self) -> None:
        self._task = asyncio.ensure_future(self.listen_anew())

    async def listen_anew(self) -> None:
        """mitmproxy 12 can have begun to listen before it loads an addon."""
        try:
            for instance in ctx.master.addons.get("proxyserver").servers:
                transparent = isinstance(instance.mode, mode_specs.TransparentMode)
                if transparent and instance not in listening:
                    await instance.stop()
                    await instance.start()
        except OSError as why:
            logger.error("%s", why)
            ctx.master.shutdown()

    def server_connect(self, data: Any) -> None:
        """Chooses the source address of what an intercepted client asked for."""
        intercepted = isinstance(data.client.proxy_mode, mode_specs.TransparentMode)
        if ctx.options.lusca_spoof and intercepted and data.server.transport_protocol == "tcp":
            data.server.sockname = ClientName(data.client.peername)


addons = [Lusca()]
