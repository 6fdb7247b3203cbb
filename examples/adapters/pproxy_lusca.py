"""pproxy's interception through lusca_comm: TPROXY beside REDIRECT, servers that see the client.

    python examples/adapters/pproxy_lusca.py -l 'lusca{spoof}://0.0.0.0:3129' -v

It adds a protocol to those of ``pproxy -l``, for the connections that the firewall delivers:

``lusca://HOST:PORT``
    goes where the client was going. pproxy's own ``redir://`` asks for SO_ORIGINAL_DST alone, which
    knows no connection that TPROXY delivers.
``lusca{spoof}://``
    and in the client's name.
``lusca{redirect}://``
    listens without the privilege that TPROXY needs.

``lusca+http://`` also serves a client that knows of the proxy. Direct connections are told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import contextvars
import functools
from importlib.metadata import version
from typing import Any

from pproxy import proto, server

import lusca_comm as lc

VERSIONS = ("2.7.",)
CHOICES = ("", "spoof", "redirect", "spoof,redirect", "redirect,spoof")

# Whose connection this task serves, where servers are to see the client: pproxy has no way to hand
# it on from the protocol, which knows the socket, to the one who connects.
_client: contextvars.ContextVar[Any] = contextvars.ContextVar("_client", default=None)


class Lusca(proto.Transparent):  # type: ignore[misc]  # pproxy has no types
    """The protocol: `param` is what stands in braces."""

    def __init__(self, param: str | None) -> None:
        super().__init__(param)
        if (param or "") not in CHOICES:
            text = f"lusca{{{param}}}: spoof, redirect, or both with a comma"
            raise argparse.ArgumentTypeError(text)  # as pproxy does
        self.spoof, self.tproxy = "spoof" in (param or ""), "redirect" not in (param or "")

    def query_remote(self, sock: Any) -> tuple[str, int] | None:
        """Where the client was going; None for a direct connection."""
        try:
            host, port, *_ = lc.original_destination(sock).address
        except lc.NotIntercepted:
            return None
        return host, port

    async def guess(self, reader: Any, sock: Any, **_: Any) -> bool:
        return self.query_remote(sock) is not None

    async def accept(self, reader: Any, user: Any, sock: Any, **options: Any) -> Any:
        if self.spoof:
            _client.set(sock.getpeername())
        return await super().accept(reader, user, sock, **options)

    def udp_accept(self, data: bytes, **_: Any) -> Any:
        raise ValueError("lusca:// is for TCP: -l, not -ul")


class Listening(server.ProxySimple):  # type: ignore[misc]
    """A listener of pproxy's, which takes what TPROXY delivers if it is one of ours."""

    async def start_server(self, args: Any, stream_handler: Any = server.stream_handler) -> Any:
        ours = [protocol for protocol in self.protos if isinstance(protocol, Lusca)]
        if not ours:
            return await super().start_server(args, stream_handler)
        if ours[0].spoof and not all(type(remote) is Direct for remote in args["rserver"]):
            raise ValueError(
                "lusca{spoof}:// with -r: another proxy would see the client, no server"
            )
        flags = lc.COMM_REUSEADDR | (lc.COMM_TPROXY_LCL if ours[0].tproxy else lc.COMM_INTERCEPT)
        if args.get("ruport"):
            flags |= lc.COMM_REUSEPORT
        address = (self.host_name or "::", self.port)
        dualstack = self.host_name is None
        sock = lc.comm_open(address=address, flags=flags, dualstack=dualstack, note="pproxy")
        lc.comm_detach(sock)
        handler = functools.partial(stream_handler, **vars(self), **args)
        return await asyncio.start_server(handler, sock=sock)


class Direct(server.ProxyDirect):  # type: ignore[misc]
    """``-r direct``, in the client's name where the protocol said so."""

    async def wait_open_connection(self, host: str, port: int, local: Any, family: int) -> Any:
        client = _client.get()
        if client is None:
            return await super().wait_open_connection(host, port, local, family)
        sock = lc.comm_open(address=client, flags=lc.COMM_REUSEADDR | lc.COMM_TPROXY_REM)
        lc.comm_detach(sock)
        try:
            # Numeric, as an original destination is: nothing is looked up.
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise


def install() -> None:
    """Adds the protocol. Raises RuntimeError for another pproxy than this was written for."""
    if not version("pproxy").startswith(VERSIONS):
        wanted = " or ".join(known + "x" for known in VERSIONS)
        raise RuntimeError(f"pproxy {version('pproxy')}: this adapter is for {wanted}")
    proto.MAPPINGS["lusca"] = Lusca
    server.ProxySimple = Listening
    server.ProxyDirect = Direct  # pproxy compares types, so it has to be the one that it knows
    server.DIRECT = Direct()


def main() -> None:
    install()
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop

        # pproxy installs it, and then asks for a loop that newer ones do not make by themselves.
        uvloop.install = lambda: asyncio.set_event_loop(uvloop.new_event_loop())
    server.main()


if __name__ == "__main__":
    main()
