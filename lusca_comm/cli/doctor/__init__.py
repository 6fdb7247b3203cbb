"""``lusca-comm doctor``: what this machine lacks for a proxy, and the commands that mend it."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from ..plan_options import add_plan_options, plan_of
from .checks import State, examine

__all__ = ["add_parser"]

WORDS = {State.OK: "ok", State.MISSING: "MISSING", State.NOTE: "note", State.UNKNOWN: "unknown"}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine lacks for a proxy",
        description="Look whether this machine has all that a transparent proxy needs, in this "
        "network namespace, and say what mends it. Takes the options of 'rules'. Changes nothing.",
        epilog="exit status: 0 nothing is missing, 1 something is",
    )
    add_plan_options(parser)
    parser.set_defaults(run=run, needs=("pyroute2",))


def run(options: argparse.Namespace) -> int:
    missing = 0
    for finding in examine(plan_of(options)):
        missing += finding.state is State.MISSING
        head = f"{WORDS[finding.state]:<8} "
        print(textwrap.fill(finding.text, 80, initial_indent=head, subsequent_indent=" " * 9))
        if finding.mend:
            print(f"{'':9}mend: {finding.mend}")
    print()
    print(f"{missing} missing." if missing else "Nothing is missing.")
    return int(missing > 0)
