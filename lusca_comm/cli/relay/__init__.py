"""``lusca-comm relay``: a transparent relay as a service, with no program to write."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "relay",
        help="relay intercepted connections, by a policy",
        description="Take the connections that the firewall hands over (see 'rules'), and relay "
        "them to where they were going, as a policy says. No byte passes through Python.",
        epilog="signals: TERM or INT ends the service once its relays have ended, a second one at "
        "once; HUP reads the policy again; USR1 writes the counters. Exit status: 0 every relay "
        "came to its own end, 1 it could not start, 3 relays were cut off",
    )
    where = parser.add_argument_group("what comes in")
    where.add_argument(
        "--listen",
        type=address,
        action="append",
        required=True,
        metavar="ADDRESS:PORT",
        help="where the firewall's rules lead, such as 0.0.0.0:3129 or [::]:3129; may be repeated",
    )
    where.add_argument(
        "--redirect-only",
        action="store_true",
        help="listeners that REDIRECT or DNAT feeds, and not TPROXY: those need no privilege",
    )
    where.add_argument(
        "--engine",
        metavar="NAME",
        help="ask this engine alone where a connection was going (see 'engines')",
    )
    out = parser.add_argument_group("what goes out")
    out.add_argument(
        "--policy",
        metavar="FILE",
        help="rules, a line each: relay, spoof or deny [NETWORK [PORTS]] [from NETWORK]",
    )
    out.add_argument(
        "--spoof",
        action="store_true",
        help="what no rule matches is relayed in the client's name, and not in this machine's",
    )
    out.add_argument(
        "--keep-port", action="store_true", help="from the client's port too, if it can be had"
    )
    out.add_argument("--mark", type=mark, metavar="MARK", help="SO_MARK of the outgoing sockets")
    out.add_argument(
        "--connect-timeout",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="until a destination has failed (default: %(default)g)",
    )
    out.add_argument(
        "--idle", type=seconds, metavar="SECONDS", help="a relay without a byte for so long ends"
    )
    service = parser.add_argument_group("the service")
    service.add_argument(
        "--workers",
        type=count,
        default=1,
        metavar="N",
        help="processes, each on a core of its own (default: %(default)s)",
    )
    service.add_argument(
        "--user", metavar="NAME", help="become this user once the listeners are open"
    )
    service.add_argument(
        "--drain-timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="relays that still run so long after TERM are reset (default: %(default)g)",
    )
    parser.set_defaults(run=run, needs=())


def run(options: argparse.Namespace) -> int:
    from .service import serve

    return serve(options)


def address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"{text!r}: brackets around IPv6, [{host}]:{port}")
    if not (host and colon and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r}: ADDRESS:PORT, such as 0.0.0.0:3129")
    return host, int(port)


def mark(text: str) -> int:
    number = int(text, 0)
    if not 0 <= number <= 0xFFFFFFFF:
        raise argparse.ArgumentTypeError(f"{text!r}: a mark has 32 bits")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a time above 0")
    return number


def count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: from 1 to 1024")
    return number
