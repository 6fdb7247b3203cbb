"""A transparent TCP relay in the client's own name: the first thing to read.

    python examples/tcp_relay.py 3129                # any intercepted TCP connection, IPv4
    python examples/tcp_relay.py 3129 --host ::      # IPv6
    python examples/tcp_relay.py 3129 --no-spoof     # go out under the machine's own address

The firewall has to deliver connections here (TPROXY or REDIRECT), and the replies to spoofed
connections have to come back through this machine: docs/firewall.md.
"""

import argparse
import errno
import logging
import socket
from typing import Any

import lusca_comm as lc

log = logging.getLogger("tcp_relay")


def on_readable(listener: socket.socket, spoof: bool) -> None:
    """One or more connections wait: take all of them."""
    lc.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable, spoof)
    while (got := lc.comm_accept(listener)) is not None:
        try:
            go_there(got, spoof)
        except lc.CommError as why:  # of this connection only
            log.warning("%s refused: %s", got.peer, why)
            lc.comm_reset_close(got.sock)


def go_there(got: lc.Accepted, spoof: bool) -> None:
    """Find out where the client was going, and go there."""
    there = lc.original_destination(got.sock)
    source = got.peer if spoof else None
    upstream = lc.comm_open(
        socket.SOCK_STREAM,
        0,
        source,
        family=socket.AF_INET6 if ":" in there.address[0] else socket.AF_INET,
        flags=lc.COMM_REUSEADDR | (lc.COMM_TPROXY_REM if spoof else 0),
        note=f"to {there.address[0]}",
    )
    log.info("%s -> %s (%s)", got.peer, there.address, there.engine)
    lc.comm_connect(upstream, there.address, on_connected, got, timeout=30)


def on_connected(upstream: socket.socket, status: int, got: lc.Accepted) -> None:
    if status == lc.COMM_OK:
        lc.relay(got.sock, upstream, on_done, idle=300)
        return
    log.warning("%s: %s", got.peer, errno.errorcode.get(lc.comm_error(upstream), status))
    lc.comm_reset_close(upstream)  # and the client learns that nobody answered
    lc.comm_reset_close(got.sock)


def on_done(result: lc.RelayResult) -> None:
    log.info("%d bytes up, %d down: %s", result.up, result.down, result.end)


def listen(host: str, port: int, spoof: bool = True, note: str = "tcp_relay") -> socket.socket:
    """A listener for whatever the firewall delivers, by TPROXY or by REDIRECT."""
    flags = lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL
    listener = lc.comm_open(
        socket.SOCK_STREAM, socket.IPPROTO_TCP, (host, port), flags=flags, note=note
    )
    lc.comm_listen(listener)
    lc.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable, spoof)
    return listener


def main(argv: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--no-spoof", dest="spoof", action="store_false")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    listen(options.host, options.port, options.spoof)
    lc.run()


if __name__ == "__main__":
    main()
