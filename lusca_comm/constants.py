"""Flags, select types and status codes, with Lusca's names and values."""

from __future__ import annotations

from typing import Final

# Flags of comm_open. Up to COMM_TPROXY_REM the values are Lusca's; csrc/shim.h has the same.
COMM_NONBLOCKING: Final = 1
"""Accepted for programs in Lusca's style: every socket handed out is non-blocking."""
COMM_NOCLOEXEC: Final = 2
"""The descriptor is inherited by programs this process executes."""
COMM_REUSEADDR: Final = 4
COMM_DOBIND: Final = 8
"""Bind now, even where the address is the wildcard with port 0."""
COMM_TPROXY_LCL: Final = 16
"""Listen on what is not this machine's: the TPROXY target may deliver to this socket."""
COMM_TPROXY_REM: Final = 32
"""Connect from what is not this machine's: ``address`` is the client's."""
COMM_INTERCEPT: Final = 64
"""A listener fed by NAT (REDIRECT, DNAT, PF rdr, ipfw): the NAT engine is opened and probed."""
COMM_REUSEPORT: Final = 128
COMM_TRANSPARENT_PORT: Final = 256
"""With COMM_TPROXY_REM: keep the client's port too, where it can be had."""

ALL_FLAGS: Final = 511

COMM_SELECT_READ: Final = 1
COMM_SELECT_WRITE: Final = 2

COMM_OK: Final = 0
COMM_ERROR: Final = -1
COMM_NOMESSAGE: Final = -3
COMM_TIMEOUT: Final = -4
COMM_SHUTDOWN: Final = -5
COMM_INPROGRESS: Final = -6
COMM_ERR_CONNECT: Final = -7
COMM_ERR_DNS: Final = -8
COMM_ERR_CLOSING: Final = -9
