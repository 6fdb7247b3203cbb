"""Relays whatever comes, on any port, and says which protocol it is. It never waits for a client
that waits for its server, as those of SMTP, MySQL, FTP or IMAP do.

    python examples/any_port_relay.py --lab      # shows itself, on this machine, without root
    python examples/any_port_relay.py [--port 3129] [--spoof] [--limit 0.3] [--redirect]

The firewall has to deliver connections here, by TPROXY or by REDIRECT (docs/firewall.md):

    lusca-comm rules --apply --ports 1-65535 --interface lan0 [--spoof]

The first bytes are looked at, not read, and only for a limited time: a client that is silent for so
long waits for its server. Then the data plane connects and relays, and no byte comes here again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import _serving

from lusca_comm import CommError, aio
from lusca_comm.address import spell
from lusca_comm.protocols.detect import LIMIT, MOST, Detector


class AnyPort:
    """The handler of connections."""

    def __init__(self, spoof: bool, limit: float) -> None:
        self.spoof = spoof
        self.limit = limit

    async def __call__(self, conn: aio.Connection) -> None:
        who = f"{spell(conn.peer)} -> {spell(conn.original)}"
        try:
            protocol = await self.protocol(conn)
            tell(f"{who} {protocol}")
            done = await conn.relay(conn.connect(spoof=self.spoof))
        except CommError as why:
            tell(f"{who} {why.strerror}")
            return conn.reset()
        tell(f"{who} {protocol} up {done.up} down {done.down} {done.end}")

    async def protocol(self, conn: aio.Connection) -> str:
        """What :mod:`lusca_comm.protocols.detect` says, after `limit` seconds at most."""
        detector = Detector(self.limit)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._look(conn, detector), detector.limit)
        return detector.silence()

    async def _look(self, conn: aio.Connection, detector: Detector) -> None:
        """Until there is a verdict, or the client has ended."""
        seen = 0
        while detector.verdict is None:
            data = await conn.peek(MOST, least=seen + 1)
            if len(data) <= seen:
                return
            detector.feed(data[seen:])
            seen = len(data)


def tell(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = _serving.parser(__doc__)
    parser.add_argument(
        "--limit",
        type=_serving.seconds,
        default=LIMIT,
        metavar="SECONDS",
        help="after which a silent client waits for its server (%(default)s)",
    )
    options = parser.parse_args()
    if options.lab:
        from _any_port_lab import play
        from _lab import show

        return show(play)
    return _serving.run(
        options,
        AnyPort(options.spoof, options.limit),
        ready=lambda: tell(f"ready on port {options.port}"),
        refused=lambda why: tell(f"refused: {why.strerror}"),
    )


if __name__ == "__main__":
    sys.exit(main())
