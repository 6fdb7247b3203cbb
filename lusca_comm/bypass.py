"""What a proxy leaves alone, written once: for the firewall, for the data plane, and for Python.

::

    bypass = Bypass([
        "10.0.0.0/8",
        BypassRule(source="192.0.2.66"),
        BypassRule(destination="203.0.113.0/24", ports=(443,), protocol="udp"),
        BypassRule(name="*.bank.example", ports=(443,)),
    ])
    plan = Plan(ports=(80, 443), **bypass.plan_options())      # never reaches the proxy
    reactor.intercept_relay(lsock, policy=bypass.rules(), decide=decide)    # never wakes Python
    if bypass.match(question.peer, question.original, name=hello.server_name): ...

A rule matches what matches everything in it, and one that matches is enough: so the rules can stand
in three places, each where it is first known, and what the first place let through is judged by the
next. docs/bypass.md says what each of them costs and can't see. Pure.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

from .address import Address
from .firewall import checks
from .firewall.checks import Network
from .firewall.skip import Protocol, Skip
from .policy import Rule

__all__ = ["Bypass", "BypassRule", "host_name"]

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
EVERY_PORT = (0, 65535)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BypassRule(Skip):
    """A row of a :class:`Bypass`: as :class:`lusca_comm.firewall.Skip`, and a name.

    ``name``: of the host, as the client gives it (SNI, Host): ``"example.com"`` is that name alone,
    ``"*.example.com"`` every name below it, however many labels, and ``".example.com"`` both. Upper
    and lower case, a dot at the end, and Unicode or its ``xn--`` form make no difference. A rule
    with a name is for Python: no packet carries it where the firewall looks.
    """

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            checks.assign(self, name=_pattern(self.name))
        super().__post_init__()
        if self.interface is not None:
            raise checks.bad("bypass: only the firewall sees an interface: use a Skip of the plan")

    def _about(self) -> bool:
        return self.name is not None or super()._about()


def host_name(name: str | bytes) -> str:
    """A host's name in one form: lower case, ``xn--`` (IDNA 2003, as the codec ``idna`` has it), no
    dot at the end.

    :raises ValueError: it is none, an address for instance.
    """
    text = name.decode("ascii") if isinstance(name, bytes) else name
    if not text.isascii():
        text = text.encode("idna").decode("ascii")
    text = text.lower()
    labels = text.removesuffix(".").split(".")
    if len(text) > 254 or not all(map(_is_label, labels)) or labels[-1].isdigit():
        raise ValueError(f"{name!r} is no host name")
    return ".".join(labels)


def _is_label(label: str) -> bool:
    # "_": names of services and of careless people have it.
    return 0 < len(label) < 64 and label.replace("-", "a").replace("_", "a").isalnum()


def _pattern(name: Any) -> str:
    try:
        if not isinstance(name, str):
            raise ValueError
        head = next((head for head in ("*.", ".") if name.startswith(head)), "")
        return head + host_name(name.removeprefix(head))
    except ValueError:
        raise checks.bad(
            "bypass: a name such as example.com, *.example.com (below it) or .example.com (both), "
            f"not {name!r}"
        ) from None


class Bypass:
    """Rules, compiled: :meth:`match` takes as long for many networks and names as for a few.

    :param rules: :class:`BypassRule` and :class:`~lusca_comm.firewall.Skip` rows, and networks of
        destinations as text or objects. A bad one: CommError (EINVAL).
    """

    def __init__(self, rules: Iterable[BypassRule | Skip | str | Network]) -> None:
        self._rules = tuple(dict.fromkeys(map(_row, rules)))
        self._destinations, self._sources = _Networks(), _Networks()
        self._names: dict[str, list[int]] = {}
        self._others: list[int] = []
        # Those with a name, by whether anything else is in them
        self._named: tuple[list[int], list[int]] = [], []
        for number, rule in enumerate(self._rules):
            source, destination = rule.networks
            if rule.name is not None:
                # ".example.com" is found under both of its meanings
                under = [rule.name, rule.name[1:]] if rule.name[0] == "." else [rule.name]
                for name in under:
                    self._names.setdefault(name.removeprefix("*"), []).append(number)
                self._named[rule == BypassRule(name=rule.name)].append(number)
            elif destination is not None:
                self._destinations.add(destination, number)
            elif source is not None:
                self._sources.add(source, number)
            else:
                self._others.append(number)

    def __len__(self) -> int:
        return len(self._rules)

    def __iter__(self) -> Iterator[BypassRule]:
        return iter(self._rules)

    def match(
        self,
        peer: Address | None,
        original: Address | None,
        *,
        protocol: Protocol = "tcp",
        mark: int = 0,
        name: str | bytes | None = None,
    ) -> BypassRule | None:
        """The first rule that matches, or None.

        :param peer: the client; None where it is not known, and then no rule about it matches.
        :param original: where it was going, likewise.
        :param mark: of its packets, where something tells (docs/bypass.md).
        :param name: of the host, as the client gave it. What is no host name is as none.
        """
        flow = _Flow(peer, original, protocol, mark)
        found = [number for number in self._plain(flow) if flow.fits(self._rules[number])]
        if name is not None and self._names:
            found += [number for number in self._by_name(name) if flow.fits(self._rules[number])]
        return self._rules[min(found)] if found else None

    def needs_name(
        self,
        peer: Address | None,
        original: Address | None,
        *,
        protocol: Protocol = "tcp",
        mark: int = 0,
    ) -> bool:
        """Whether the host's name decides: there are rules with a name that fit otherwise, and none
        without one does. So whether it is worth to wait for the client's first bytes."""
        mixed, bare = self._named
        if not mixed and not bare:
            return False
        flow = _Flow(peer, original, protocol, mark)
        if any(flow.fits(self._rules[number]) for number in self._plain(flow)):
            return False
        return bool(bare) or any(flow.fits(self._rules[number]) for number in mixed)

    def plan_options(self) -> dict[Literal["bypass"], tuple[Network | Skip, ...]]:
        """What the firewall can decide, for ``Plan(**bypass.plan_options())``: the rules without a
        name."""
        return {"bypass": tuple(map(_for_plan, self._nameless()))}

    def rules(self, action: str = "relay", protocol: Protocol = "tcp") -> list[Rule]:
        """What a data plane can decide, as rows of the policy of a listener of this protocol: the
        rules without a name, and for "udp" without a mark, which no datagram tells.

        :param action: what "leave alone" means there: "relay" or "spoof".
        """
        return [
            Rule(action, _text(rule.destination), ports, _text(rule.source), _mark(rule))
            for rule in self._nameless()
            if rule.protocol in (None, protocol) and (protocol == "tcp" or rule.mark is None)
            for ports in rule.port_ranges or [EVERY_PORT]
        ]

    def _nameless(self) -> Iterator[BypassRule]:
        return (rule for rule in self._rules if rule.name is None)

    def _plain(self, flow: _Flow) -> Iterator[int]:
        """Rules without a name that may fit."""
        yield from self._destinations.find(flow.there)
        yield from self._sources.find(flow.client)
        yield from self._others

    def _by_name(self, name: str | bytes) -> Iterator[int]:
        try:
            known = host_name(name)
        except ValueError:
            return
        yield from self._names.get(known, ())
        at = known.find(".")
        while at >= 0:
            yield from self._names.get(known[at:], ())
            at = known.find(".", at + 1)


class _Networks:
    """Numbers by network: one look into a dictionary for each length of prefix there is."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, dict[int, list[int]]]] = {4: {}, 6: {}}

    def add(self, network: Network, number: int) -> None:
        shift = network.max_prefixlen - network.prefixlen
        known = self._by_length[network.version].setdefault(shift, {})
        known.setdefault(int(network.network_address) >> shift, []).append(number)

    def find(self, address: IPAddress | None) -> Iterator[int]:
        if address is not None:
            bits = int(address)
            for shift, known in self._by_length[address.version].items():
                yield from known.get(bits >> shift, ())


class _Flow:
    """What is known of a connection or a datagram."""

    def __init__(
        self, peer: Address | None, original: Address | None, protocol: Protocol, mark: int
    ) -> None:
        self.client, self.there = _address(peer), _address(original)
        self.port = None if original is None else original[1]
        self.protocol, self.mark = protocol, mark

    def fits(self, rule: BypassRule) -> bool:
        """But for the name."""
        source, destination = rule.networks
        return (
            rule.protocol in (None, self.protocol)
            and (destination is None or _within(self.there, destination))
            and (source is None or _within(self.client, source))
            and (not rule.ports or self._has_port(rule))
            and (rule.mark is None or self.mark & rule.bits == rule.mark)
        )

    def _has_port(self, rule: BypassRule) -> bool:
        port = self.port
        return port is not None and any(low <= port <= high for low, high in rule.port_ranges)


def _within(address: IPAddress | None, network: Network) -> bool:
    return address is not None and address in network


def _address(address: Address | None) -> IPAddress | None:
    if address is None:
        return None
    found = ipaddress.ip_address(address[0].partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def _text(network: str | Network | None) -> str:
    return "" if network is None else str(network)


def _mark(rule: Skip) -> tuple[int, int] | None:
    return None if rule.mark is None else (rule.mark, rule.bits)


def _row(rule: Any) -> BypassRule:
    if isinstance(rule, BypassRule):
        return rule
    if isinstance(rule, Skip):
        return BypassRule(**_fields(rule))
    return BypassRule(destination=rule)


def _for_plan(rule: BypassRule) -> Network | Skip:
    destination = rule.networks[1]
    if destination is not None and rule == BypassRule(destination=destination):
        return destination
    return Skip(**_fields(rule))


def _fields(rule: Skip) -> dict[str, Any]:
    return {field.name: getattr(rule, field.name) for field in dataclasses.fields(Skip)}
