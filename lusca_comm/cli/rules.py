"""``lusca-comm rules``: the firewall rules and routes around a proxy, to read or to apply."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from lusca_comm.firewall import Plan, apply, iptables, remove, render, render_commands

from .plan_options import add_plan_options, plan_of

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "rules",
        help="the firewall rules and routes around a proxy",
        description="Print the nftables rules, routes and routing rules around a transparent "
        "proxy as a script for sh, or put them into force. Nothing else on the machine is touched.",
    )
    do = parser.add_mutually_exclusive_group()
    do.add_argument(
        "--apply",
        action="store_true",
        help="put them into force, until the next boot: all of them, or none and say why",
    )
    do.add_argument(
        "--remove",
        action="store_true",
        help="take away what --apply with the same options put into force",
    )
    do.add_argument(
        "--iptables", action="store_true", help="print them for iptables-restore, not for nft"
    )
    add_plan_options(parser)
    parser.set_defaults(run=run, needs=())


def run(options: argparse.Namespace) -> int:
    plan = plan_of(options)
    if options.apply:
        apply(plan)
        print(f"In force: table inet {plan.name}{_and_routing(plan)}.")
        print(_wrapped(plan.notes(), "Note: "), end="")
    elif options.remove:
        remove(plan)
        print(f"Not in force (any more): table inet {plan.name}{_and_routing(plan)}.")
    else:
        print(script(plan, options.iptables), end="")
    return 0


def script(plan: Plan, for_iptables: bool) -> str:
    """What sh, run as root, does with nft or iptables, and ip, to put the plan into force."""
    if for_iptables:
        rules, undo_rules = _restore(plan, remove=False), _restore(plan, remove=True)
        # The TPROXY target drops what nft's tproxy lets pass.
        notes = tuple(note.replace("go to the real server", "fail") for note in plan.notes())
    else:
        rules = _fed("nft -f -", render(plan))
        undo_rules, notes = f"nft delete table inet {plan.name}\n", plan.notes()
    undo = undo_rules + render_commands(plan, remove=True)
    return (
        f"{render_commands(plan)}{rules}{_wrapped(notes, '# ')}"
        f"# To undo it:\n{textwrap.indent(undo, '#   ')}"
    )


def _restore(plan: Plan, remove: bool) -> str:
    programs = {"ipv4": "iptables-restore", "ipv6": "ip6tables-restore"}
    return "".join(
        _fed(f"{programs[family]} --noflush", iptables.render(plan, family, remove))
        for family in plan.families
    )


def _fed(command: str, text: str) -> str:
    return f"{command} <<'END'\n{text}END\n"


def _and_routing(plan: Plan) -> str:
    return f", routing table {plan.table} and the rules that lead there" if plan.routed else ""


def _wrapped(notes: tuple[str, ...], head: str) -> str:
    """Each note on lines of its own, ``head`` before the first one of each."""
    after = "#   " if head == "# " else "  "
    return "".join(
        textwrap.fill(note, 80, initial_indent=head, subsequent_indent=after) + "\n"
        for note in notes
    )
