"""Policy routing: marked packets are delivered here, whatever address they are for.

``ip rule fwmark MARK lookup TABLE`` and ``local default dev lo`` in that table, once for each
family. Pure: text for ip(8), and messages for rtnetlink(7).
"""

from __future__ import annotations

import dataclasses
import socket
import struct
import sys
from collections.abc import Iterator

from .netlink import F_CREATE, F_EXCL, Attrs, Message, holds, u32, unpack
from .plan import WHOLE_MARK, Family, Plan

__all__ = ["PRIORITY", "Step", "render_commands", "steps"]

PRIORITY = 100
"""Of the rules, before any that other programs add: a rule in front could send a marked packet
out again. Rules of the same priority are asked in the order in which they came."""

_AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_NEWROUTE, _NEWRULE = 24, 32
_HEADER = struct.Struct("=BBBBBBBBI")  # struct rtmsg and struct fib_rule_hdr alike
_RTA_OIF, _RTA_TABLE = 4, 15
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 6, 10, 15, 16
_TO_TABLE = 1
_LOOPBACK = 1  # the index of lo in every network namespace


@dataclasses.dataclass(frozen=True)
class Step:
    """One route or one rule: how to add, delete, list and recognise it. ``text``: for ip(8)."""

    text: str
    add: Message
    delete: Message
    dump: Message

    @property
    def command(self) -> str:
        return f"ip {self.text.format('add')}"

    @property
    def undo(self) -> str:
        return f"ip {self.text.format('del')}"

    @property
    def is_route(self) -> bool:
        return self.add.kind == _NEWROUTE

    def is_in(self, answers: list[tuple[int, bytes]]) -> bool:
        """Whether a dump of its kind has it, fixed header and all attributes."""
        return any(
            body[: _HEADER.size] == self.add.header and holds(body[_HEADER.size :], self.add.attrs)
            for kind, body in answers
            if kind == self.add.kind
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


def table_of(route: bytes) -> int:
    """The table of a route, from the body of an answer to a :attr:`Step.dump` request."""
    return int.from_bytes(dict(unpack(route[_HEADER.size :]))[_RTA_TABLE], sys.byteorder)


def _route(plan: Plan, family: Family) -> Step:
    # rtmsg: family, two prefix lengths, tos, table, protocol, scope, type, flags.
    protocol, scope, local = 3, 254 if family == "ipv4" else 0, 2  # boot, host, local
    where = (_AF[family], 0, 0, 0, _short(plan.table), protocol, scope, local, 0)
    attrs = ((_RTA_OIF, u32(_LOOPBACK)), (_RTA_TABLE, u32(plan.table)))
    text = f"-{family[-1]} route {{}} local default dev lo table {plan.table}"
    return _step(text, _NEWROUTE, _HEADER.pack(*where), attrs)


def _rule(plan: Plan, family: Family) -> Step:
    # fib_rule_hdr: family, two prefix lengths, tos, table, two reserved, action, flags.
    where = (_AF[family], 0, 0, 0, _short(plan.table), 0, 0, _TO_TABLE, 0)
    attrs = (
        (_FRA_PRIORITY, u32(PRIORITY)),
        (_FRA_FWMARK, u32(plan.mark)),
        (_FRA_FWMASK, u32(plan.bits)),
        (_FRA_TABLE, u32(plan.table)),
    )
    mask = "" if plan.bits == WHOLE_MARK else f"/{plan.bits:#x}"
    text = (
        f"-{family[-1]} rule {{}} priority {PRIORITY} fwmark {plan.mark:#x}{mask} "
        f"lookup {plan.table}"
    )
    return _step(text, _NEWRULE, _HEADER.pack(*where), attrs)


def _step(text: str, kind: int, header: bytes, attrs: Attrs) -> Step:
    """rtnetlink's numbers for new, delete and get follow each other."""
    # A dump of routes can be asked for one table; a machine may have a million in others.
    asked = tuple(attr for attr in attrs if kind == _NEWROUTE and attr[0] == _RTA_TABLE)
    return Step(
        text,
        Message(kind, F_CREATE | F_EXCL, header, attrs),
        Message(kind + 1, 0, header, attrs),
        Message(kind + 2, 0, _HEADER.pack(header[0], *bytes(8)), asked),
    )


def _short(table: int) -> int:
    """The table in the 8 bits of a fixed header: RT_TABLE_COMPAT when it doesn't fit."""
    return table if table < 256 else 252
