"""Policy routing: marked packets are delivered here, whatever address they are for.

``ip rule fwmark MARK lookup TABLE`` and ``local default dev lo`` in that table, once for each
family. Pure: text for ip(8), and fields and attributes of rtnetlink(7) as pyroute2 names them.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from .checks import WHOLE_MARK
from .plan import Family, Plan

__all__ = ["PRIORITY", "Step", "render_commands", "steps"]

PRIORITY = 100
"""Of the rules, before any that other programs add: a rule in front could send a marked packet
out again. Rules of the same priority are asked in the order in which they came."""

_AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_LOOPBACK = 1  # the index of lo in every network namespace
_LOCAL, _BOOT, _HOST, _UNIVERSE, _TO_TABLE = 2, 3, 254, 0, 1  # linux/rtnetlink.h, fib_rules.h


@dataclasses.dataclass(frozen=True)
class Step:
    """One route or one rule. ``text``: for ip(8); ``spec``: for ``IPRoute.route`` and ``rule``."""

    kind: Literal["route", "rule"]
    text: str
    spec: dict[str, int]

    @property
    def command(self) -> str:
        return f"ip {self.text.format('add')}"

    @property
    def undo(self) -> str:
        return f"ip {self.text.format('del')}"

    def is_in(self, listed: Iterable[Any]) -> bool:
        """Whether it is among the routes or rules that pyroute2 lists."""
        return any(
            all(message.get(key) == value for key, value in self.spec.items()) for message in listed
        )


def render_commands(plan: Plan, remove: bool = False) -> str:
    """The ip(8) commands that do (or undo) the plan's routing, a line each; "" if it has none."""
    made = list(steps(plan))
    lines = [step.undo for step in reversed(made)] if remove else [step.command for step in made]
    return "".join(f"{line}\n" for line in lines)


def steps(plan: Plan) -> Iterator[Step]:
    """The routes and rules in the order in which they are added: no rule before its route."""
    if plan.routed:
        for family in plan.families:
            yield _route(plan, family)
            yield _rule(plan, family)


def _route(plan: Plan, family: Family) -> Step:
    spec = {
        "family": _AF[family],
        "type": _LOCAL,
        "dst_len": 0,
        "table": plan.table,
        "oif": _LOOPBACK,
        "scope": _HOST if family == "ipv4" else _UNIVERSE,
        "proto": _BOOT,
    }
    return Step("route", f"-{family[-1]} route {{}} local default dev lo table {plan.table}", spec)


def _rule(plan: Plan, family: Family) -> Step:
    spec = {
        "family": _AF[family],
        "priority": PRIORITY,
        "fwmark": plan.mark,
        "fwmask": plan.bits,
        "table": plan.table,
        "action": _TO_TABLE,
    }
    mask = "" if plan.bits == WHOLE_MARK else f"/{plan.bits:#x}"
    text = (
        f"-{family[-1]} rule {{}} priority {PRIORITY} fwmark {plan.mark:#x}{mask} "
        f"lookup {plan.table}"
    )
    return Step("rule", text, spec)
