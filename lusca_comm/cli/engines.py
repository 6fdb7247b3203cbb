"""``lusca-comm engines``: which mechanisms this machine has, and which would be used."""

from __future__ import annotations

import argparse
import os
from typing import Any

from lusca_comm import CommError, Engine, engines
from lusca_comm.engines import named, spoofer

__all__ = ["add_parser"]

ABILITIES = ("lookup", "listen", "spoof", "tcp", "udp", "ipv4", "ipv6")
ROW = "{:<10}  {:<19}  {:<37}  {}"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "engines",
        help="the mechanisms of interception, here and absent",
        description="Every engine of the library: whether this machine has it, what it can do, "
        "and for what it would be used.",
        epilog="lookup: tell where a connection was going. listen: take connections to addresses "
        "that are not this machine's. spoof: connect from such addresses. LUSCA_COMM_ENGINE=NAME "
        "in the environment overrides the choice.",
    )
    parser.set_defaults(run=run, needs=())


def run(_: argparse.Namespace) -> int:
    used = chosen()
    print(ROW.format("ENGINE", "USED FOR", "CAN", "ABSENT BECAUSE").rstrip())
    for engine in engines():
        can = " ".join(name for name in ABILITIES if name in engine.abilities)
        purpose = "absent" if engine.errno else used[engine.name]
        print(ROW.format(engine.name, purpose, can, engine.reason).rstrip())
    if name := os.environ.get("LUSCA_COMM_ENGINE"):
        print(f"\nLUSCA_COMM_ENGINE={name} made this choice.")
    return 0


def chosen() -> dict[str, str]:
    """By engine, what the library would use it for on this machine, in words."""
    table = engines()
    used: dict[str, list[str]] = {engine.name: [] for engine in table}
    for engine in table:
        if _is_asked(engine):
            used[engine.name].append("lookup")
    for ability in ("listen", "spoof"):
        try:
            used[table[spoofer(ability)].name].append(ability)
        except CommError:
            continue  # no engine can: the column "here" says why
    return {
        engine.name: " ".join(used[engine.name])
        or ("only if named" if "named only" in engine.abilities else "")
        for engine in table
    }


def _is_asked(engine: Engine) -> bool:
    """Whether it is asked where a connection was going."""
    if rows := named("lookup"):
        return engine.row in rows
    can = engine.abilities
    return not engine.errno and "lookup" in can and "named only" not in can
