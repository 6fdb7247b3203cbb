"""A transparent TCP relay in the client's own name: the first thing to read.

    python examples/tcp_relay.py 3129 [--host ::] [--no-spoof] [--quiet]

The firewall has to deliver connections here, by TPROXY or by REDIRECT: docs/firewall.md.
"""

import argparse
import errno
import logging
import socket

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
    flags = lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR | (lc.COMM_TPROXY_REM if spoof else 0)
    family = socket.AF_INET6 if ":" in there.address[0] else socket.AF_INET
    source = got.peer if spoof else None
    upstream = lc.comm_open(socket.SOCK_STREAM, 0, source, family=family, flags=flags)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--no-spoof", dest="spoof", action="store_false")
    parser.add_argument("--quiet", action="store_true", help="say only what went wrong")
    options = parser.parse_args()
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(level=level, format="%(message)s")
    flags = lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL
    listener = lc.comm_open(address=(options.host, options.port), flags=flags, note="tcp_relay")
    lc.comm_listen(listener)
    lc.comm_set_select(listener, lc.COMM_SELECT_READ, on_readable, options.spoof)
    lc.run()


if __name__ == "__main__":
    main()
