"""The policy of sni_filter.py: an action on each line, the first line that matches counts.

::

    # action  what               and only
    deny      ads.example.org
    allow     .example.org                                 # example.org, and every name below it
    allow     *.example.net      port 443,8443             # every name below it, and not itself
    allow     www.example.com    from 192.0.2.0/25         # clients
    allow     db.example         to 198.51.100.0/24        # where it is going
    deny      any                to 10.0.0.0/8             # where a name leads, too
    deny      ech
    allow     not-tls            to 198.51.100.7 port 22

A line is about a name in a TLS ClientHello, or about one of: ``no-sni`` a ClientHello without a
name, ``ech`` one with an encrypted part (browsers send that to everybody), ``not-tls`` anything
else, ``not-parsed`` what begins like TLS and is none, ``any`` all of them. What no line matches is
denied. Pure: text in, decisions out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lusca_comm import CommError
from lusca_comm.address import Address
from lusca_comm.bypass import Bypass, BypassRule
from lusca_comm.protocols.sni import ClientHello, Verdict

__all__ = ["Decision", "Policy"]

ACTIONS = ("allow", "deny")
KINDS = {
    "no-sni": Verdict.NO_SNI,
    "not-tls": Verdict.NOT_TLS,
    "not-parsed": Verdict.NOT_PARSED,
    "ech": None,
    "any": None,
}
EVERY_PORT = ((1, 65535),)


@dataclasses.dataclass(frozen=True, order=True)
class Decision:
    number: int
    """Of the line that says so."""
    allowed: bool
    rule: str
    """That line."""
    bound: bool = False
    """It says where the connection may go, so nobody needs to ask where the name leads."""


DEFAULT = Decision(0, False, "default: no line matches")


class Policy:
    """Decisions by the lines of a file.

    :raises ValueError: with ``name:number: what is wrong`` for every line that makes no sense.
    """

    def __init__(self, text: str, name: str = "policy") -> None:
        self._named: dict[BypassRule, Decision] = {}
        self._others: list[tuple[str, Bypass, Decision]] = []
        wrong = []
        for number, line in enumerate(text.splitlines(), 1):
            if words := line.partition("#")[0].split():
                try:
                    self._add(words, number, f"{name}:{number}: {' '.join(words)}")
                except CommError as why:
                    text = str(why.strerror).removeprefix("firewall plan: ")
                    wrong.append(f"{name}:{number}: {text.removeprefix('bypass: ')}")
                except ValueError as why:
                    wrong.append(f"{name}:{number}: {why}")
        if wrong:
            raise ValueError("\n".join(wrong))
        self._names = Bypass(self._named)

    def __len__(self) -> int:
        return len(self._named) + len(self._others)

    def decide(self, hello: ClientHello, peer: Address, original: Address) -> Decision:
        """About a connection of `peer` to `original` that begins with `hello`."""
        found = [
            decision
            for kind, match, decision in self._others
            if _is(kind, hello) and match.match(peer, original)
        ]
        if hello.verdict is Verdict.NAME:
            named = self._names.match(peer, original, name=hello.name)
            found += [self._named[named]] if named else []
        return min(found, default=DEFAULT)

    def _add(self, words: list[str], number: int, where: str) -> None:
        action, what, *limits = words if len(words) > 1 else (*words, "")
        if action not in ACTIONS:
            raise ValueError(f"{action!r} is none of {', '.join(ACTIONS)}")
        if not what:
            raise ValueError(f"{action} what? A name, or one of {', '.join(KINDS)}")
        given = dict(_pairs(limits))
        ports = tuple(map(_ports, given["port"].split(","))) if "port" in given else EVERY_PORT
        rule = BypassRule(
            name=None if what in KINDS else what,
            source=given.get("from"),
            destination=given.get("to"),
            ports=ports,
        )
        decision = Decision(number, action == "allow", where, "to" in given)
        if what in KINDS:
            self._others.append((what, Bypass([rule]), decision))
        else:
            self._named.setdefault(rule, decision)


def _is(kind: str, hello: ClientHello) -> bool:
    if kind == "ech":
        return hello.ech
    return kind == "any" or hello.verdict is KINDS[kind]


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    seen = set()
    for word, value in zip(words[::2], (*words[1::2], ""), strict=False):
        if word not in ("from", "to", "port") or word in seen or not value:
            raise ValueError(f"{word!r}: from NETWORK, to NETWORK, port LIST, each once")
        seen.add(word)
        yield word, value


def _ports(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"port {text!r}: numbers such as 443,8000-8010")
    return int(first), int(last if dash else first)
