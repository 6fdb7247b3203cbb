"""The demo on a terminal, in a pipe, and in plain ASCII: 80 columns, and a colour for each host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from lusca_comm.address import Address, spell

from .checks import Hosts, Saw, told

__all__ = ["Screen"]

CLIENT, ROUTER, ORIGIN = "cyan", "magenta", "yellow"
BOLD, DIM, RIGHT, WRONG = "bold", "dim", "bold green", "bold red"

_ASCII = str.maketrans("╭╮╰╯─│├┤▶→✓✗", "++++-|++>>+x")
_WIDTHS = (23, 22, 12, 21)  # the table's columns: client, proxy, engine, origin

Cell = tuple[str, str]
"""A text and its style."""


class Screen:
    """Draws to standard output, as much as that can show."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._plain = not (self._console.encoding or "").lower().startswith("utf")
        self._owners: dict[str, Cell] = {}

    def say(self, *parts: str | Cell) -> None:
        """One line of text."""
        line = Text()
        for part in parts:
            text, style = (part, "") if isinstance(part, str) else part
            line.append(text.translate(_ASCII) if self._plain else text, style)
        line.rstrip()
        self._console.print(line)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """While it lasts, a terminal's last line says what is under way."""
        with self._console.status("", spinner="line" if self._plain else "dots") as status:
            yield status.update

    def topology(self, families: Sequence[Hosts], ports: Sequence[int]) -> None:
        """What it is about, the hosts with what runs in them, and the head of the table."""
        proxy = f"rules ▶ proxy on {' and '.join(map(str, ports))}"
        server = f"HTTP on port {families[0].origin[1]}"
        clients = [hosts.client for hosts in families]
        routers = [
            f"{hosts.gateway}{hosts.router:>{len(proxy) - len(hosts.gateway)}}"
            for hosts in families
        ]
        origins = [hosts.origin[0] for hosts in families]
        self.say("A client asks an origin for a page. The router takes the connection and hands it")
        self.say("to a proxy, which learns where it was going and goes there itself.")
        self.say()
        boxes = (
            _box("client", CLIENT, [*clients, "", "HTTP client"]),
            _box("router", ROUTER, [*routers, "", proxy]),
            _box("origin", ORIGIN, [*origins, "", server]),
        )
        for row, (client, router, origin) in enumerate(zip(*boxes, strict=True)):
            link = "────" if 2 <= row < 2 + len(families) else "    "
            self.say("  ", client, link, router, link, origin)
        for hosts in families:
            self._owners[hosts.client] = ("the client", CLIENT)
            self._owners[hosts.router] = ("the router", ROUTER)
            self._owners[hosts.origin[0]] = ("the origin", ORIGIN)
        self.say()
        self._row("  ", ("client", CLIENT), ("proxy", ROUTER), "", ("origin", ORIGIN), style=BOLD)
        parts = ("source, and response", "peer, and destination", "told by", "peer")
        self._row("  ", *((part, DIM) for part in parts))

    def group(self, title: str) -> None:
        self.say()
        self.say((title, BOLD))

    def line(self, saw: Saw, wrong: Sequence[str]) -> None:
        """One connection as the three saw it: two lines, and below them all that is wrong."""
        mark = ("✗ ", WRONG) if wrong else ("✓ ", RIGHT)
        client, origin = saw.client, saw.origin[0] if saw.origin else None
        source = self._address(client.source) if client else ("nothing", WRONG)
        got = f"{client.status}, {len(client.body) >> 10} KiB" if client else ""
        seen = self._address(origin) if origin else ("nothing", WRONG)
        who = self._owners.get(origin[0], ("somebody else", WRONG)) if origin else ""
        if saw.proxy:
            it = saw.proxy[0]
            there = self._address(it.address, "→ ")
            self._row(mark, source, self._address(it.peer), it.engine, seen)
            self._row("  ", (got, DIM), there, (told(it.translated), DIM), who)
        else:
            self._row(mark, source, ("nothing", DIM), "", seen)
            self._row("  ", (got, DIM), "", "", who)
        for text in wrong:
            self.say("  ", (text, WRONG))

    def verdict(self, count: int, bad: Sequence[str], seconds: float) -> None:
        """The last lines; ``bad`` names the lines that are wrong. The lab is closed by now."""
        self.say()
        if bad:
            self.say((f"✗ {len(bad)} of {count} connections are not what they must be:", WRONG))
            for name in bad:
                self.say("  ", name)
            return
        text = f"✓ All {count} connections are what they must be"
        self.say((text, RIGHT), f", after {seconds:.1f} s. Nothing is left behind.")
        self.say(("  Such rules for a router of your own: lusca-comm rules", DIM))

    def _address(self, address: Address, before: str = "") -> Cell:
        return before + spell(address), self._owners.get(address[0], ("", ""))[1]

    def _row(self, mark: str | Cell, *cells: str | Cell, style: str = "") -> None:
        parts: list[str | Cell] = [mark]
        for cell, width in zip(cells, _WIDTHS, strict=True):
            text, own = (cell, "") if isinstance(cell, str) else cell
            parts.append((f"{text:<{width}}", f"{style} {own}".strip()))
        self.say(*parts)


def _box(name: str, style: str, lines: Sequence[str]) -> list[Cell]:
    width = max(map(len, lines))
    edge = "─" * (width + 2)
    rows = [f"{name:^{width + 4}}", f"╭{edge}╮", *(f"│ {x:<{width}} │" for x in lines), f"╰{edge}╯"]
    return [(row, style) for row in rows]
