"""A relay for any UDP, HTTP/3 (QUIC) for one: each flow in the client's name, address and port.

    python examples/udp_relay.py --lab               # shows itself, on this machine, without root
    python examples/udp_relay.py 3130 [--policy FILE] [--idle SECONDS] [--no-spoof]

The firewall has to deliver datagrams here (docs/firewall.md). On a router, with clients on lan0 and
the way out on wan0:

    lusca-comm rules --apply --udp 1-65535 --no-tcp --port 3130 --interface lan0 \\
        --spoof --same-port --origin-interface wan0

No datagram passes through Python: the data plane has two sockets for each flow, a client and where
it sends to. What it brings it brings whole and in order, or where the kernel has no room, as any
router, not at all.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from pathlib import Path

import _serving

import lusca_comm as lc
from lusca_comm.policy_file import parse_policy

log = logging.getLogger("udp_relay")
IDLE = 120.0
"""Seconds. RFC 4787 has no mapping of UDP end before two minutes; QUIC ends mostly after 30 s."""


def on_done(result: lc.RelayResult) -> None:
    log.info("%d bytes up, %d down: %s", result.up, result.down, result.end)


def policy(file: Path | None, otherwise: str) -> list[lc.Rule]:
    """The file's lines, and what is done with the rest."""
    rules = [] if file is None else parse_policy(file.read_bytes(), str(file))
    return [*rules, lc.Rule(otherwise)]


def serve(options: argparse.Namespace) -> None:
    _serving.all_descriptors()
    rules = policy(options.policy, options.otherwise)
    for host in ("0.0.0.0", "::"):
        listener = lc.comm_open(
            socket.SOCK_DGRAM,
            0,
            (host, options.port),
            flags=lc.COMM_NONBLOCKING | lc.COMM_REUSEADDR | lc.COMM_TPROXY_LCL,
            mark=options.mark,
            note="udp_relay",
        )
        lc.comm_set_buffer_size(listener, 4 << 20)  # what begins all at once
        lc.intercept_flows(
            listener,
            policy=rules,
            on_done=on_done,
            keep_port=True,
            idle=options.idle,
            max_flows=options.max_flows,
            mark=options.mark,
        )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: lc.call_soon_threadsafe(lc.stop))
    signal.signal(signal.SIGUSR1, lambda *_: log.info("%s", lc.default_reactor.plane.totals()))
    log.info("ready on port %d", options.port)
    lc.run()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("port", type=int, nargs="?", default=3130)
    parser.add_argument("--lab", action="store_true", help="show it in a lab of its own")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="rules, as of lusca-comm relay")
    parser.add_argument(
        "--no-spoof",
        dest="otherwise",
        action="store_const",
        const="relay",
        default="spoof",
        help="under the machine's own name",
    )
    parser.add_argument("--idle", type=_serving.seconds, default=IDLE, help="seconds (%(default)g)")
    parser.add_argument("--max-flows", type=int, default=4096, help="at most (%(default)s)")
    parser.add_argument("--mark", type=_serving.mark, help="SO_MARK of all that this sends")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.lab:
        from _lab import show
        from _udp_lab import play

        return show(play)
    try:
        serve(options)
    except OSError as why:
        log.error("%s", _serving.reason(why))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
