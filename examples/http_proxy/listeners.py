"""The sockets that connections come in by, and the addresses that they must not lead to again."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Sequence

import lusca_comm as lc
from lusca_comm.address import Address, spell
from lusca_comm.engines import probe_nat


def open_listeners(addresses: Sequence[Address], flags: int) -> list[socket.socket]:
    """Raises CommError, with the address in its text."""
    opened = []
    for address in addresses:
        try:
            sock = lc.comm_open(address=address, flags=lc.COMM_REUSEADDR | flags, note="http_proxy")
            lc.comm_listen(sock)
        except lc.CommError as why:
            text = f"{spell(address)}: {why.strerror}"
            if why.errno == errno.EPERM and flags & lc.COMM_TPROXY_LCL:
                text += "; where REDIRECT or DNAT feeds it, --redirect-only needs no privilege"
            raise lc.CommError(why.errno or errno.EIO, text) from why
        opened.append(sock)
    return opened


def intercepting(redirect_only: bool) -> int:
    """The flags of listeners that firewalls feed: by TPROXY, by NAT, or by both."""
    if redirect_only:
        return lc.COMM_INTERCEPT
    try:
        probe_nat()
    except lc.CommError as why:
        if why.errno in (errno.EACCES, errno.EPERM):
            raise
        return lc.COMM_TPROXY_LCL
    return lc.COMM_TPROXY_LCL | lc.COMM_INTERCEPT


def check_spoofing() -> None:
    """Raises CommError where no connection in a client's name could be opened: once, and not for
    each of them."""
    nobody = ("192.0.2.1", 0)  # RFC 5737
    lc.comm_close(lc.comm_open(address=nobody, flags=lc.COMM_TPROXY_REM))


def leads_here(listeners: Sequence[Address]) -> Callable[[Address], bool]:
    """Whether a connection to an address would arrive at one of `listeners`."""
    hosts: dict[int, set[str]] = {}
    for host, port, *_ in listeners:
        hosts.setdefault(port, set()).add(host)

    def check(address: Address) -> bool:
        host, port = address[:2]
        here = hosts.get(port)
        if here is None:
            return False
        wildcard = "::" if ":" in host else "0.0.0.0"
        return host in here or (wildcard in here and is_own(address))

    return check


def is_own(address: Address) -> bool:
    """Whether an address is this machine's: what goes there would come from there. Nothing is sent,
    and no privilege is needed."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(address)
        return bool(probe.getsockname()[0] == address[0])
    return False
