"""What is to be intercepted, by which mechanism, and for whom: a plan that nothing has carried out.

A :class:`Plan` is pure data. It reads nothing from the machine and changes nothing on it; the
renderers (:mod:`.nftables`, :mod:`.iptables`, :mod:`.routing`) turn it into text, and
:mod:`.apply` turns it into messages to the kernel.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from . import checks
from .checks import WHOLE_MARK, Network, PortRange
from .skip import PROTOCOLS, Protocol, Skip

__all__ = ["Exempt", "Family", "Network", "Only", "Plan", "PortRange", "Protocol", "Skip"]

Family: TypeAlias = Literal["ipv4", "ipv6"]

FAMILIES: Final[tuple[Family, ...]] = ("ipv4", "ipv6")
EPHEMERAL: Final = 1024
"""From here on, a port number may be a client's own: programs without privileges bind these."""


@dataclasses.dataclass(frozen=True)
class Owners:
    """Some of the machine's own traffic, by its sockets: those that any one of these matches.

    ``mark``: the SO_MARK of a socket, compared whole.
    ``uids``, ``gids``: users and groups that made a socket, numbered as in the user namespace that
    owns the network namespace.
    ``cgroups``: a string is a path below the mount point of the version 2 hierarchy, with
    everything below it; a number is a version 1 ``net_cls.classid``.
    """

    mark: int | None = None
    uids: Sequence[int] = ()
    cgroups: Sequence[str | int] = ()
    gids: Sequence[int] = ()

    def __post_init__(self) -> None:
        what = type(self).__name__.lower()
        if self.mark is not None:
            checks.number(f"{what}.mark", self.mark, 1, WHOLE_MARK)
        owners = {}
        for field in ("uids", "gids"):
            owners[field] = checks.sequence(f"{what}.{field}", getattr(self, field))
            for number in owners[field]:
                checks.number(f"{what}.{field}", number, 0, 0xFFFFFFFE)
        cgroups = checks.sequence(f"{what}.cgroups", self.cgroups)
        for group in cgroups:
            if isinstance(group, str):
                checks.path(f"{what}.cgroups", group)
            else:
                checks.number(f"{what}.cgroups", group, 1, WHOLE_MARK)
        made = {field: tuple(sorted(set(numbers))) for field, numbers in owners.items()}
        checks.assign(self, **made, cgroups=tuple(dict.fromkeys(cgroups)))

    def __bool__(self) -> bool:
        return bool(self.mark is not None or self.uids or self.gids or self.cgroups)


@dataclasses.dataclass(frozen=True)
class Exempt(Owners):
    """What of the machine's own traffic is left alone: the proxy's, or it would meet itself."""


@dataclasses.dataclass(frozen=True)
class Only(Owners):
    """What of the machine's own traffic is intercepted, and nothing else of it: a sandbox's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The rules and routes around one transparent proxy. Bad values: CommError(EINVAL).

    ``mode``: ``"tproxy"`` (the packets stay as they are; the listener needs IP_TRANSPARENT) or
    ``"redirect"`` (NAT to the machine's own address; SO_ORIGINAL_DST gives the destination).
    ``port``: where the proxy listens. ``listen4``, ``listen6``: the address it listens on, for
    TPROXY to a listener on one address; None is a wildcard listener.

    ``protocols``: "tcp", "udp" or both; UDP needs mode tproxy. ``ports``: destination ports to
    intercept, numbers or inclusive pairs; ``udp_ports``: those of UDP, where they are others.
    ``bypass_ports`` are taken out of both. ``bypass``: what is never intercepted: destination
    networks, and :class:`Skip` rows for all else; the machine's own addresses never are.
    ``interfaces``: where the clients' packets come in; none is any.

    ``forwarded``: intercept what the machine forwards. ``own``: intercept what it sends itself,
    except for the proxy, which ``exempt`` tells apart; with ``only`` nothing but what that matches,
    and the proxy must not be in it.

    ``rest``: what becomes of the packets of those clients, or of ``only``, that are neither
    intercepted nor bypassed, of any protocol and family: ``"pass"``, or ``"refuse"``, with an ICMP
    message that the port is unreachable. So nothing gets by when the proxy is not there.

    ``spoof``: the proxy's sockets towards the origin carry the client's address, so the origin's
    answers must be brought to them. ``same_port``: and the client's port; that makes the two legs
    one connection for conntrack, so the origin's leg gets the conntrack zone ``zone``.
    ``origin_interfaces``: where the origins are, which tells the legs apart; without them the
    ports do.

    ``mark``/``mask``: the bits of the packet mark that lead into routing table ``table``; the
    other bits are kept; mask None is the mark itself. ``name``: of the nftables table.
    """

    mode: Literal["tproxy", "redirect"] = "tproxy"
    port: int = 3129
    ports: Sequence[int | PortRange] = (80,)
    udp_ports: Sequence[int | PortRange] | None = None
    bypass: Sequence[str | Network | Skip] = ()
    bypass_ports: Sequence[int | PortRange] = ()
    families: Sequence[Family] = FAMILIES
    protocols: Sequence[Protocol] = ("tcp",)
    interfaces: Sequence[str] = ()
    forwarded: bool = True
    own: bool = False
    exempt: Exempt = Exempt()
    only: Only = Only()
    rest: Literal["pass", "refuse"] = "pass"
    listen4: str | None = None
    listen6: str | None = None
    spoof: bool = False
    same_port: bool = False
    origin_interfaces: Sequence[str] = ()
    zone: int = 3129
    mark: int = 0x40
    mask: int | None = None
    table: int = 3129
    name: str = "lusca_comm"

    def __post_init__(self) -> None:
        checks.choice("mode", self.mode, ("tproxy", "redirect"))
        checks.choice("rest", self.rest, ("pass", "refuse"))
        for field in ("forwarded", "own", "spoof", "same_port"):
            if not isinstance(getattr(self, field), bool):
                raise checks.bad(f"{field}: True or False, not {getattr(self, field)!r}")
        checks.number("port", self.port, 1, 65535)
        checks.number("zone", self.zone, 1, 65535)
        checks.mark("", self.mark, self.mask)
        checks.number("table", self.table, 1, WHOLE_MARK)
        if self.table in (253, 254, 255):
            raise checks.bad(f"table {self.table} is the system's own; choose another number")
        checks.table_name(self.name)
        families = checks.sequence("families", self.families)
        protocols = checks.sequence("protocols", self.protocols)
        for family in families:
            checks.choice("families", family, FAMILIES)
        for protocol in protocols:
            checks.choice("protocols", protocol, PROTOCOLS)
        if not families or not protocols:
            raise checks.bad("families, protocols: at least one each")
        bypass = checks.sequence("bypass", self.bypass)
        skips = dict.fromkeys(item for item in bypass if isinstance(item, Skip))
        networks = checks.networks(tuple(item for item in bypass if not isinstance(item, Skip)))
        udp_ports = self.udp_ports
        checks.assign(
            self,
            families=tuple(family for family in FAMILIES if family in families),
            protocols=tuple(protocol for protocol in PROTOCOLS if protocol in protocols),
            ports=checks.ranges("ports", self.ports),
            bypass_ports=checks.ranges("bypass_ports", self.bypass_ports),
            udp_ports=None if udp_ports is None else checks.ranges("udp_ports", udp_ports),
            bypass=(*networks, *skips),
            interfaces=checks.names("interfaces", self.interfaces),
            origin_interfaces=checks.names("origin_interfaces", self.origin_interfaces),
            listen4=checks.listener("listen4", self.listen4, ipaddress.IPv4Address),
            listen6=checks.listener("listen6", self.listen6, ipaddress.IPv6Address),
        )
        self._check_whole()

    def _check_whole(self) -> None:
        """What is wrong only in combination."""
        if not isinstance(self.exempt, Exempt):
            raise checks.bad(f"exempt: an Exempt, not {self.exempt!r}")
        if not isinstance(self.only, Only):
            raise checks.bad(f"only: an Only, not {self.only!r}")
        if self.udp_ports is not None and "udp" not in self.protocols:
            raise checks.bad("udp_ports, and protocols without udp")
        if self.mode == "redirect" and "udp" in self.protocols:
            raise checks.bad(
                "UDP by REDIRECT: the kernel would not tell where a datagram was going "
                "(SO_ORIGINAL_DST is for connections); mode tproxy does"
            )
        for protocol in self.protocols:
            if not self.port_ranges(protocol):
                raise checks.bad(f"ports: nothing is left to intercept of {protocol}")
        if not self.forwarded and not self.own:
            raise checks.bad("neither forwarded nor own traffic: nothing to intercept")
        if self.interfaces and not self.forwarded:
            raise checks.bad("interfaces are where forwarded traffic comes in; forwarded is False")
        if self.own and not self.exempt and not self.only:
            raise checks.bad(
                "own=True would intercept the proxy's own connections too, endlessly: give "
                "exempt=Exempt(mark=...), uids or cgroups, or only=Only(...)"
            )
        if self.only and not self.own:
            raise checks.bad("only is about the machine's own traffic: give own=True as well")
        if self.rest == "refuse" and self.own and not self.only:
            raise checks.bad("rest: the machine would be cut off; say whose rest: only=Only(...)")
        marks = [("exempt.mark", self.exempt.mark), ("only.mark", self.only.mark)]
        marks += [("bypass: mark", skip.mark) for skip in self.skips]
        for field, mark in marks:
            if mark is not None and mark & self.bits == self.mark:
                raise checks.bad(
                    f"{field} {mark:#x} has the bits of mark {self.mark:#x}, which lead packets "
                    "back to this machine: choose one without them"
                )
        if not self.forwarded and any(skip.interface for skip in self.skips):
            raise checks.bad(
                "bypass: an interface is where forwarded traffic comes in; forwarded is False"
            )
        if self.mode == "redirect" and (self.listen4 or self.listen6):
            raise checks.bad(
                "listen4, listen6: REDIRECT goes to the address of the interface a packet came in "
                "on; listen on a wildcard address"
            )
        for family, listen in (("ipv4", self.listen4), ("ipv6", self.listen6)):
            if listen and family not in self.families:
                raise checks.bad(f"a listener {listen}, and families without {family}")
        if self.same_port and not self.spoof:
            raise checks.bad("same_port is about spoofed connections: give spoof=True as well")
        if self.origin_interfaces and not self.same_port:
            raise checks.bad("origin_interfaces are for same_port=True")
        if both := set(self.interfaces) & set(self.origin_interfaces):
            raise checks.bad(
                f"{', '.join(sorted(both))}: for clients and origins at once; leave "
                "origin_interfaces out, then the ports tell the two legs apart"
            )

    def port_ranges(self, protocol: Protocol) -> tuple[PortRange, ...]:
        """The ports of a protocol to intercept: inclusive pairs, sorted, apart from each other."""
        wanted = self.ports
        if protocol == "udp" and self.udp_ports is not None:
            wanted = self.udp_ports
        return checks.subtract(
            checks.ranges("ports", wanted), checks.ranges("bypass_ports", self.bypass_ports)
        )

    def networks(self, family: Family) -> tuple[Network, ...]:
        """The bypassed networks of one family: sorted, apart from each other."""
        nets = tuple(item for item in self.bypass if not isinstance(item, Skip))
        return tuple(net for net in checks.networks(nets) if f"ipv{net.version}" == family)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """The other rows of `bypass`."""
        return tuple(item for item in self.bypass if isinstance(item, Skip))

    @property
    def bits(self) -> int:
        """The mask of the mark."""
        return self.mark if self.mask is None else self.mask

    @property
    def routed(self) -> bool:
        """Whether packets for foreign addresses must be delivered here: mark, rule and route."""
        return self.mode == "tproxy" or self.spoof

    def notes(self) -> tuple[str, ...]:
        """What the operator must see to besides the rules. Plain sentences."""
        notes = []
        high = any(last >= EPHEMERAL for one in self.protocols for _, last in self.port_ranges(one))
        # Clients of UDP have low ports too: those of NTP and IKE have the server's.
        high = high or "udp" in self.protocols
        if self.mode == "tproxy" and self.rest == "pass":
            notes.append(
                f"While nothing with IP_TRANSPARENT listens on port {self.port}, connections go "
                "to the real server."
            )
        if "udp" in self.protocols:
            notes.append(
                "A socket that answers datagrams in another's name must be connected to its "
                "client, as comm_udp_reply has it: unconnected it would take other clients' too."
            )
        if self.routed:
            notes.append(
                "A firewall that drops in its input chain must accept packets with mark "
                f"{self.mark:#x}/{self.bits:#x}: their destination is not this machine's address."
            )
        else:
            notes.append(
                "A firewall that drops in its input chain must accept new connections to port "
                f"{self.port}."
            )
        if self.spoof:
            notes.append(
                "MASQUERADE or SNAT on the way to the origin replaces the client's address again: "
                "exempt the proxy's connections from it. The origin must route its answers "
                "through this machine."
            )
        if self.same_port and not self.origin_interfaces and high:
            notes.append(
                "A client whose own port is among the intercepted ports can't be told from an "
                "origin: give origin_interfaces."
            )
        if self.forwarded and self.mode == "tproxy" and not self.interfaces and high:
            notes.append(
                "Answers to clients whose own port is among the intercepted ports are taken for "
                "new traffic: give interfaces."
            )
        return tuple(notes)
