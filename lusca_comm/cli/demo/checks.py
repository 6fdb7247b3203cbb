"""What each connection of the demo must look like to the three who see it. Pure: no packets here.

A rule that does not work lets the connection through to the origin (nft's tproxy fails open), and
everything looks well to the client. So no line is right unless the proxy itself saw the connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lusca_comm.address import Address, spell

__all__ = ["LINES", "Hosts", "Line", "Proxied", "Response", "Saw", "as_json", "judge", "page"]

Family = Literal["ipv4", "ipv6"]
Mode = Literal["direct", "tproxy", "redirect"]

ENGINES = {"tproxy": "tproxy4", "redirect": "netfilter"}


@dataclass(frozen=True)
class Line:
    """One connection of the demo."""

    family: Family
    mode: Mode
    spoof: bool = False
    """The proxy goes on in the client's name."""


@dataclass(frozen=True)
class Hosts:
    """The addresses of one family."""

    client: str
    gateway: str
    """The router's on the client's side."""
    router: str
    """The router's on the origin's side."""
    origin: Address


@dataclass(frozen=True)
class Response:
    """What the client got."""

    source: Address
    status: int
    body: bytes


@dataclass(frozen=True)
class Proxied:
    """What the proxy learned of one connection, and what it did."""

    peer: Address
    address: Address
    engine: str
    translated: bool
    source: Address | None
    """From where it went on."""


@dataclass(frozen=True)
class Saw:
    """What everybody saw of one request."""

    client: Response | None
    proxy: tuple[Proxied, ...]
    origin: tuple[Address, ...]
    """The peer of every request that reached the origin."""
    errors: tuple[str, ...] = ()


FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")

LINES: tuple[Line, ...] = (
    *(Line(family, "direct") for family in FAMILIES),
    *(
        Line(family, mode, spoof)
        for mode in ("tproxy", "redirect")
        for spoof in (True, False)
        for family in FAMILIES
    ),
)
"""In the order in which they run."""


def page(peer: Address, body: bytes) -> bytes:
    """The origin's answer: whom it saw, and the body of the request."""
    return f"You are {spell(peer)}.\n".encode() + body


def judge(line: Line, hosts: Hosts, body: bytes, saw: Saw) -> list[str]:
    """What is not as it must be, in words; nothing if the line is right. ``body``: as sent."""
    wrong = list(saw.errors)
    if line.mode == "direct":
        wrong += [f"without a rule the proxy saw {spell(proxied.peer)}" for proxied in saw.proxy]
    elif len(saw.proxy) == 1:
        wrong += _proxy(line, hosts, saw.client, saw.proxy[0])
    elif saw.proxy:
        wrong.append(f"the proxy saw {len(saw.proxy)} connections for one")
    else:
        wrong.append("the connection did not go through the proxy")
    if len(saw.origin) == 1:
        wrong += _origin(line, hosts, saw, saw.origin[0])
    else:
        wrong.append(f"the origin saw {len(saw.origin)} requests for one")
    if saw.client is not None:
        wrong += _client(hosts, body, saw.client, saw.origin)
    return wrong


def _client(hosts: Hosts, body: bytes, client: Response, origin: tuple[Address, ...]) -> list[str]:
    wrong = []
    if client.source[0] != hosts.client:
        wrong.append(f"the client connected from {client.source[0]}, not {hosts.client}")
    if client.status != 200:
        wrong.append(f"the client got status {client.status}, not 200")
    if client.body not in [page(peer, body) for peer in origin]:
        wrong.append("the client did not get the page that the origin sent")
    return wrong


def _proxy(line: Line, hosts: Hosts, client: Response | None, proxied: Proxied) -> list[str]:
    wrong = []
    if client is not None and proxied.peer != client.source:
        wrong.append(f"the proxy's peer is {spell(proxied.peer)}, not {spell(client.source)}")
    if proxied.address != hosts.origin:
        wrong.append(
            f"the proxy was told to go to {spell(proxied.address)}, not {spell(hosts.origin)}"
        )
    if proxied.engine != ENGINES[line.mode]:
        wrong.append(f"engine {proxied.engine} answered the proxy, not {ENGINES[line.mode]}")
    if proxied.translated != (line.mode == "redirect"):
        wrong.append(f"the proxy holds the destination for {told(proxied.translated)}")
    return wrong


def _origin(line: Line, hosts: Hosts, saw: Saw, peer: Address) -> list[str]:
    if line.mode == "direct":
        expected = saw.client.source if saw.client else None
    else:
        expected = saw.proxy[0].source if saw.proxy else None
    name, host = (
        ("router", hosts.router)
        if line.mode != "direct" and not line.spoof
        else ("client", hosts.client)
    )
    if peer[0] != host:
        return [f"the origin saw {peer[0]}, not the {name}'s {host}"]
    if expected is not None and peer != expected:
        return [f"the origin saw {spell(peer)}, not {spell(expected)}"]
    return []


def told(translated: bool) -> str:
    """In one word, whether NAT rewrote the destination on the way to the proxy."""
    return "translated" if translated else "untouched"


def as_json(line: Line, saw: Saw, wrong: list[str]) -> dict[str, Any]:
    """A line of ``--json``. What nobody saw is null; the body is judged, not shown."""
    proxied = saw.proxy[0] if saw.proxy else None
    return {
        "family": line.family,
        "mode": line.mode,
        "spoof": line.spoof,
        "client": saw.client and {"source": saw.client.source, "status": saw.client.status},
        "proxy": proxied and vars(proxied),
        "origin": {"peer": saw.origin[0]} if saw.origin else None,
        "ok": not wrong,
        "wrong": wrong,
    }
