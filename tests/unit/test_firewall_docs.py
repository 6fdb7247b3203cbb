"""docs/firewall.md shows exactly what the plans beside it render."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lusca_comm.firewall import Exempt, Only, Plan, Skip, iptables, render, render_commands

PAGE = Path(__file__).parents[2] / "docs" / "firewall.md"


def shown() -> list[tuple[Plan, str]]:
    """Every block of rules or commands, with the plan that the page last made before it."""
    found = []
    plan = Plan()
    for kind, text in re.findall(r"^```(python|text)\n(.*?)^```", PAGE.read_text(), re.S | re.M):
        if kind == "python" and text.startswith("plan = "):
            names = {"Plan": Plan, "Exempt": Exempt, "Only": Only, "Skip": Skip}
            exec(text, names)
            plan = names["plan"]  # type: ignore[assignment]
        elif kind == "text" and re.match(r"table |ip -|\*", text):
            found.append((plan, text))
    return found


@pytest.mark.parametrize(("plan", "text"), shown())
def test_the_page_shows_what_the_plan_renders(plan: Plan, text: str) -> None:
    if text.startswith("table"):
        assert text == render(plan)
    elif text.startswith("ip"):
        assert text == render_commands(plan)
    else:
        assert text == iptables.render(plan, "ipv4")


def test_the_page_shows_every_kind() -> None:
    assert {text.split()[0] for _, text in shown()} == {"table", "ip", "*mangle"}
    assert {(plan.mode, plan.own, plan.same_port) for plan, _ in shown()} >= {
        ("tproxy", False, False),
        ("redirect", False, False),
        ("tproxy", True, False),
        ("redirect", True, False),
        ("redirect", False, True),
    }
