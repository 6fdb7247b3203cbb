"""``lusca-comm demo``: real connections through a transparent proxy, between hosts of a lab."""

from __future__ import annotations

import argparse
import sys
from typing import Any

__all__ = ["add_parser"]

NEEDS = ("pyroute2", "rich")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="show real connections through a transparent proxy",
        description="Real HTTP requests from a client through a router to an origin, all three in "
        "network namespaces of their own: by TPROXY and by REDIRECT, IPv4 and IPv6, in the "
        "client's name and in the router's. No root is needed; nothing on this machine is changed.",
        epilog="exit status: 0 all is as it must be, 1 something is not, 3 this machine allows no "
        "network namespaces",
    )
    parser.add_argument("--json", action="store_true", help="the connections as JSON")
    parser.set_defaults(run=run, needs=NEEDS)


def run(options: argparse.Namespace) -> int:
    from lusca_comm.lab import LabUnavailable

    from .play import play

    try:
        return play(options.json)
    except LabUnavailable as why:
        print(f"lusca-comm: {why.strerror}", file=sys.stderr)
        return 3
