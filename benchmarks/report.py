"""What a run tells: medians with their intervals, as tables, text, JSON and plots."""

import json
import os
import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Work:
    """What was done, and what the figures are."""

    title: str
    unit: str


Figures = dict[str, list[float]]
"""Every value that was measured, by who was measured."""


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median."""
    dice = random.Random(1)
    medians = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def table_of(work: Work, figures: Figures, floor: str, who: str) -> Table:
    table = Table(title=f"{work.title}: {work.unit}", title_justify="left")
    unit = statistics.median(figures[floor]) if floor in figures else 0.0
    for heading in (who, "median", "95 % interval", f"of {floor}" if unit else ""):
        table.add_column(heading, justify="left" if heading == who else "right")
    for peer, values in figures.items():
        middle, (low, high) = statistics.median(values), interval(values)
        ratio = f"{middle / unit:.2f}" if unit else ""
        table.add_row(peer, f"{middle:.4g}", f"{low:.4g} - {high:.4g}", ratio)
    return table


def text_of(work: Work, figures: Figures) -> str:
    """The same as MyST text."""
    lines = [f"| {work.title} | {work.unit} | 95 % interval |", "|---|---:|---:|"]
    for peer, values in figures.items():
        low, high = interval(values)
        lines.append(f"| {peer} | {statistics.median(values):.4g} | {low:.4g} - {high:.4g} |")
    return "\n".join(lines) + "\n"


def choose(text: str | None, known: dict[str, Any], between: str = ",") -> list[str]:
    """The names in a list; all that are known where there is none."""
    names = list(known) if text is None else [name.strip() for name in text.split(between)]
    for name in names:
        if name not in known:
            raise SystemExit(f"no {name!r}: one of {', '.join(known)}")
    return names


def report(
    console: Console,
    works: dict[str, Any],
    figures: dict[str, Figures],
    *,
    floor: str,
    who: str,
    to_json: Path | None,
    plots: Path | None,
) -> None:
    """Prints `figures`, which are by the names of `works`, and writes what is asked for."""
    said = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    kernel = os.uname().release
    told = {name: work for name, work in works.items() if name in figures}
    for name, work in told.items():
        console.print(table_of(work, figures[name], floor, who))
    if to_json:
        report = {"command": said, "kernel": kernel, "figures": figures}
        to_json.write_text(json.dumps(report, indent=1) + "\n")
    if plots:
        from plots import draw

        plots.mkdir(parents=True, exist_ok=True)
        page = [f"`{said}` on Linux {kernel}, {len(os.sched_getaffinity(0))} cores:\n"]
        for name, work in told.items():
            draw(work.title, work.unit, figures[name], plots / f"{name}.svg")
            page.append(f"![{work.title}]({name}.svg)\n\n{text_of(work, figures[name])}")
        (plots / "figures.md").write_text("\n".join(page))
