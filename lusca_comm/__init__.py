"""Transparent interception for Python: take connections that were meant for somebody else, know
where they were going, and go there in the client's own name.

The ``comm_`` functions act on one default :class:`Reactor`, from the thread that runs it.
"""

from .comm import Reactor, default_reactor
from .constants import (
    COMM_DOBIND,
    COMM_ERR_CLOSING,
    COMM_ERR_CONNECT,
    COMM_ERR_DNS,
    COMM_ERROR,
    COMM_INPROGRESS,
    COMM_INTERCEPT,
    COMM_NOCLOEXEC,
    COMM_NOMESSAGE,
    COMM_NONBLOCKING,
    COMM_OK,
    COMM_REUSEADDR,
    COMM_REUSEPORT,
    COMM_SELECT_READ,
    COMM_SELECT_WRITE,
    COMM_SHUTDOWN,
    COMM_TIMEOUT,
    COMM_TPROXY_LCL,
    COMM_TPROXY_REM,
    COMM_TRANSPARENT_PORT,
)
from .datagram import Datagram
from .engines import Engine, engines
from .errors import CommError, NotIntercepted
from .framed import FramedRead
from .http import HttpLimits, HttpService
from .intercept import Interception, original_destination
from .intercept_flows import FlowQuestion, InterceptFlows
from .intercept_relay import InterceptRelay, Question
from .plane import Plane
from .policy import Rule
from .privileges import Requirement, drop_privileges, preflight, prepare
from .relayed import Relay, RelayResult, Totals
from .sockets import Accepted
from .spoof import Spoof

comm_open = default_reactor.comm_open
comm_fdopen = default_reactor.comm_fdopen
comm_listen = default_reactor.comm_listen
comm_accept = default_reactor.comm_accept
comm_connect = default_reactor.comm_connect
comm_error = default_reactor.comm_error
comm_spoof = default_reactor.comm_spoof
comm_local_port = default_reactor.comm_local_port
comm_set_select = default_reactor.comm_set_select
comm_set_timeout = default_reactor.comm_set_timeout
comm_defer = default_reactor.comm_defer
comm_resume = default_reactor.comm_resume
comm_read = default_reactor.comm_read
comm_write = default_reactor.comm_write
comm_close = default_reactor.comm_close
comm_reset_close = default_reactor.comm_reset_close
comm_lingering_close = default_reactor.comm_lingering_close
comm_detach = default_reactor.comm_detach
comm_add_close_handler = default_reactor.comm_add_close_handler
comm_remove_close_handler = default_reactor.comm_remove_close_handler
comm_udp_sendto = default_reactor.comm_udp_sendto
comm_udp_recvfrom = default_reactor.comm_udp_recvfrom
comm_udp_recvmany = default_reactor.comm_udp_recvmany
comm_udp_reply = default_reactor.comm_udp_reply
comm_udp_replymany = default_reactor.comm_udp_replymany
comm_note = default_reactor.comm_note
comm_set_tos = default_reactor.comm_set_tos
comm_get_tos = default_reactor.comm_get_tos
comm_set_keepalive = default_reactor.comm_set_keepalive
comm_set_nodelay = default_reactor.comm_set_nodelay
comm_set_buffer_size = default_reactor.comm_set_buffer_size
comm_set_no_pmtu_discover = default_reactor.comm_set_no_pmtu_discover
comm_set_priority = default_reactor.comm_set_priority
comm_add_event = default_reactor.comm_add_event
comm_cancel_event = default_reactor.comm_cancel_event
comm_select = default_reactor.comm_select
call_soon_threadsafe = default_reactor.call_soon_threadsafe
relay = default_reactor.relay
connect_relay = default_reactor.connect_relay
intercept_relay = default_reactor.intercept_relay
http_service = default_reactor.http_service
framed_read = default_reactor.framed_read
intercept_flows = default_reactor.intercept_flows
run = default_reactor.run
stop = default_reactor.stop

__version__ = "0.1.0.dev0"

__all__ = [
    "Accepted",
    "COMM_DOBIND",
    "COMM_ERROR",
    "COMM_ERR_CLOSING",
    "COMM_ERR_CONNECT",
    "COMM_ERR_DNS",
    "COMM_INPROGRESS",
    "COMM_INTERCEPT",
    "COMM_NOCLOEXEC",
    "COMM_NOMESSAGE",
    "COMM_NONBLOCKING",
    "COMM_OK",
    "COMM_REUSEADDR",
    "COMM_REUSEPORT",
    "COMM_SELECT_READ",
    "COMM_SELECT_WRITE",
    "COMM_SHUTDOWN",
    "COMM_TIMEOUT",
    "COMM_TPROXY_LCL",
    "COMM_TPROXY_REM",
    "COMM_TRANSPARENT_PORT",
    "CommError",
    "Datagram",
    "Engine",
    "FramedRead",
    "HttpLimits",
    "HttpService",
    "FlowQuestion",
    "InterceptFlows",
    "InterceptRelay",
    "Interception",
    "NotIntercepted",
    "Plane",
    "Question",
    "Reactor",
    "Relay",
    "RelayResult",
    "Requirement",
    "Rule",
    "Spoof",
    "Totals",
    "call_soon_threadsafe",
    "comm_accept",
    "comm_add_close_handler",
    "comm_add_event",
    "comm_cancel_event",
    "comm_close",
    "comm_connect",
    "comm_defer",
    "comm_detach",
    "comm_error",
    "comm_fdopen",
    "comm_get_tos",
    "comm_lingering_close",
    "comm_listen",
    "comm_local_port",
    "comm_note",
    "comm_open",
    "comm_read",
    "comm_remove_close_handler",
    "comm_reset_close",
    "comm_resume",
    "comm_select",
    "comm_set_buffer_size",
    "comm_set_keepalive",
    "comm_set_no_pmtu_discover",
    "comm_set_nodelay",
    "comm_set_priority",
    "comm_set_select",
    "comm_set_timeout",
    "comm_set_tos",
    "comm_spoof",
    "comm_udp_recvfrom",
    "comm_udp_recvmany",
    "comm_udp_reply",
    "comm_udp_replymany",
    "comm_udp_sendto",
    "comm_write",
    "connect_relay",
    "default_reactor",
    "drop_privileges",
    "engines",
    "framed_read",
    "http_service",
    "intercept_flows",
    "intercept_relay",
    "original_destination",
    "preflight",
    "prepare",
    "relay",
    "run",
    "stop",
]
