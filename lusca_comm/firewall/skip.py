"""What a plan leaves alone, one row of it: pure, as the plan is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from . import checks
from .checks import WHOLE_MARK, Network, PortRange

__all__ = ["Protocol", "Skip"]

Protocol = Literal["tcp", "udp"]
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip:
    """Packets that are not intercepted: those that match everything given here.

    ``source``, ``destination``: networks, of one family. ``ports``: destination ports, numbers or
    inclusive pairs. ``protocol``: None is both. ``mark``/``mask``: bits of the packet mark, which
    another rule or a socket of this machine has set; mask None is the whole mark. ``interface``:
    where the packet came in; such a row is about forwarded traffic only.
    """

    source: str | Network | None = None
    destination: str | Network | None = None
    ports: Sequence[int | PortRange] = ()
    protocol: Protocol | None = None
    mark: int | None = None
    mask: int | None = None
    interface: str | None = None

    def __post_init__(self) -> None:
        source, destination = (
            None if value is None else checks.networks((value,))[0]
            for value in (self.source, self.destination)
        )
        if source and destination and source.version != destination.version:
            raise checks.bad(f"bypass: from {source} to {destination}: two families")
        if self.protocol is not None:
            checks.choice("bypass: protocol", self.protocol, PROTOCOLS)
        if self.mark is not None:
            mask = checks.mark("bypass: ", self.mark, self.mask)
            checks.assign(self, mask=None if mask == WHOLE_MARK else mask)
        elif self.mask is not None:
            raise checks.bad("bypass: a mask without a mark")
        if self.interface is not None:
            checks.names("bypass: interface", (self.interface,))
        ports = checks.ranges("bypass: ports", self.ports)
        checks.assign(self, source=source, destination=destination, ports=ports)
        if not self._about():
            raise checks.bad("bypass: a Skip of everything; say what it is about")

    def _about(self) -> bool:
        """Whether there is anything that a packet can miss."""
        networks, about = self.networks, (self.protocol, self.mark, self.interface)
        return bool(self.ports) or any(value is not None for value in (*networks, *about))

    @property
    def version(self) -> int | None:
        """4, 6, or None for both."""
        return next((net.version for net in self.networks if net), None)

    @property
    def networks(self) -> tuple[Network | None, Network | None]:
        """Source and destination."""
        return self.source, self.destination  # type: ignore[return-value]  # since __post_init__

    @property
    def port_ranges(self) -> Sequence[PortRange]:
        """The ports, as pairs: sorted, apart from each other."""
        return self.ports  # type: ignore[return-value]  # since __post_init__

    @property
    def bits(self) -> int:
        """The mask of the mark."""
        return WHOLE_MARK if self.mask is None else self.mask

    def transport(
        self, protocols: Sequence[Protocol]
    ) -> Iterator[tuple[Protocol | None, Sequence[PortRange]]]:
        """Protocols and their ports, a pair for each rule that this row takes."""
        if self.protocol is None and not self.ports:
            yield None, ()
            return
        for protocol in protocols:
            if self.protocol in (None, protocol):
                yield protocol, self.port_ranges
