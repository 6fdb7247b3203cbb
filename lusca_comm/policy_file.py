"""A policy as an operator writes it: a rule on each line, the first that matches counts.

::

    # action  network            ports
    deny      10.0.0.0/8
    relay     198.51.100.0/24    80,443,8000-8010
    spoof     2001:db8::/32
    relay     any                53
    relay     any                443        from 192.0.2.0/24
    deny      any                           from 192.0.2.66  mark 0x10/0xf0

``any`` is every network of both families; a line with an action alone is for everything. ``from``
is the client's network, ``mark`` the mark of its packets (see :attr:`Rule.mark`): in this order,
behind the ports. Pure: text in, :class:`~lusca_comm.Rule` rows out.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools

from .errors import CommError
from .policy import Rule

__all__ = ["parse_policy"]

ACTIONS = ("relay", "spoof", "deny")
ANY, FROM, MARK = "any", "from", "mark"
EVERY_PORT = "0-65535"


def parse_policy(text: str | bytes, name: str = "policy") -> list[Rule]:
    """The rules of a policy file; a line with several ports becomes several rules.

    :param name: what the messages call the file.
    :raises CommError: EINVAL; the text has a line ``name:number: what is wrong`` for every line
        that makes no sense.
    """
    try:
        lines = (text if isinstance(text, str) else text.decode("utf-8-sig")).split("\n")
    except UnicodeDecodeError as why:
        number = why.object.count(b"\n", 0, why.start) + 1
        raise CommError(errno.EINVAL, f"{name}:{number}: not UTF-8") from why
    rules: list[Rule] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if words := line.partition("#")[0].split():
            try:
                rules += _rules(*words)
            except ValueError as why:
                wrong.append(f"{name}:{number}: {why}")
    if wrong:
        raise CommError(errno.EINVAL, "\n".join(wrong))
    return rules


def _rules(action: str, *words: str) -> list[Rule]:
    if action not in ACTIONS:
        raise ValueError(f"{action!r} is none of {', '.join(ACTIONS)}")
    plain = list(itertools.takewhile(lambda word: word not in (FROM, MARK), words))
    network, ports, *more = (*plain, *(ANY, EVERY_PORT)[len(plain) :])
    rest = list(words[len(plain) :])
    source, mark = _behind(FROM, rest), _behind(MARK, rest)
    if more or rest:
        raise ValueError(
            f"{(*more, *rest)[0]!r} is too much: action, network, ports with no blanks in, "
            "from NETWORK, mark MARK[/MASK]"
        )
    where, origin = _network(network), _network(source or ANY)
    bits = _mark(mark) if mark else None
    return [Rule(action, where, which, origin, bits) for which in _ports(ports)]


def _behind(word: str, rest: list[str]) -> str:
    """What stands behind `word`, where that is next."""
    if rest[:1] != [word]:
        return ""
    if len(rest) < 2:
        raise ValueError(f"{word!r}: and then?")
    _, found, *rest[:] = rest
    return found


def _mark(text: str) -> int | tuple[int, int]:
    first, slash, last = text.partition("/")
    try:
        mark, mask = int(first, 0), int(last, 0) if slash else 0xFFFFFFFF
    except ValueError:
        mark = mask = 0
    if not (0 < mark <= mask <= 0xFFFFFFFF and mark & mask == mark):
        raise ValueError(
            f"{text!r}: MARK or MARK/MASK, such as 0x10/0xf0, the mark within the mask"
        )
    return (mark, mask) if slash else mark


def _network(text: str) -> str:
    if text == ANY:
        return ""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as why:
        raise ValueError(f"{why}; or {ANY!r}") from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            v4 = f"{mapped}/{network.prefixlen - 96}"
            raise ValueError(f"mapped addresses are seen as IPv4: {v4}")
    return str(network)


def _ports(text: str) -> list[int | tuple[int, int]]:
    out: list[int | tuple[int, int]] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = _port(first, part)
        high = _port(last, part) if dash else low
        if low > high:
            raise ValueError(f"ports {part!r}: the first is above the last")
        out.append((low, high) if dash else low)
    return out


def _port(text: str, part: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(f"ports {part!r}: numbers from 0 to 65535, such as 80,443,8000-8010")
    return int(text)
