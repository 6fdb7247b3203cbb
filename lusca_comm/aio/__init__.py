"""Interception for programs on asyncio, with the loop of the standard library or uvloop's.

Connections are accepted, looked up and relayed by the data plane of the loop; a handler, a task for
each connection, says what is to be done. Datagrams are taken and answered in the loop itself.
"""

from .connecting import Connecting, Upstream, connect
from .connection import Connection
from .datagram import InterceptDatagrams, InterceptedDatagram, start_intercept_datagrams
from .endpoint import Endpoint
from .relaying import relay
from .server import InterceptServer, start_intercept_server

__all__ = [
    "Connecting",
    "Connection",
    "Endpoint",
    "InterceptDatagrams",
    "InterceptServer",
    "InterceptedDatagram",
    "Upstream",
    "connect",
    "relay",
    "start_intercept_datagrams",
    "start_intercept_server",
]
