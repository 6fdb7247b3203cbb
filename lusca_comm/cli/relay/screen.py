"""What the service shows: lines on standard error, and on a terminal a table below them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lusca_comm import Totals

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

__all__ = ["NOTHING", "Row", "Screen", "add", "in_words", "size"]

NOTHING = Totals(*[0] * len(Totals._fields))
HEADS = ("worker", "pid", "accepted", "relayed", "denied", "failed", "live", "up", "down")


class Row(NamedTuple):
    name: str
    pid: int
    """0: none runs."""
    totals: Totals


def add(one: Totals, other: Totals) -> Totals:
    return Totals(*(a + b for a, b in zip(one, other, strict=True)))


def in_words(totals: Totals) -> str:
    """Every counter, for a line of the log."""
    return ", ".join(f"{name} {value}" for name, value in totals._asdict().items())


def size(count: int) -> str:
    """Bytes, in the largest decimal unit that leaves a digit before the point."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} PB"


class Screen:
    """Standard error, as much as it can show. Threads are not used: the service forks."""

    def __init__(self) -> None:
        self._live: Live | None = None
        if not sys.stderr.isatty():
            return
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            self.say("no table: pip install 'lusca-comm[cli]'")
            return
        self._live = Live(console=Console(stderr=True), auto_refresh=False)
        self._live.start()

    @property
    def live(self) -> bool:
        """Whether there is a table, to be drawn again and again."""
        return self._live is not None

    def say(self, text: str) -> None:
        """A line, above the table where there is one."""
        if self._live is None:
            try:
                print(f"relay: {text}", file=sys.stderr, flush=True)
            except OSError:
                # A log that nobody reads ends no relay. What is still in the buffer has to go
                # somewhere, or Python complains at exit (status 120).
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        else:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def draw(self, rows: Sequence[Row]) -> None:
        if self._live is not None:
            self._live.update(_table(rows), refresh=True)

    def close(self) -> None:
        """The last table stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _table(rows: Sequence[Row]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in HEADS:
        table.add_column(head, justify="left" if head == "worker" else "right", no_wrap=True)
    for row in rows:
        it, all_of_them = row.totals, row is rows[-1]
        table.add_row(
            row.name,
            str(row.pid) if row.pid else "" if all_of_them else "-",
            *map(str, (it.accepted, it.relayed, it.denied, it.looped + it.failed, it.live)),
            size(it.up),
            size(it.down),
            style="bold" if all_of_them else "",
        )
    return table
