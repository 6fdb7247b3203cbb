"""Relays with a header of the PROXY protocol in front, so that a server learns who its client is,
and where that was going, although the connection comes from here.

    python examples/proxy_header_relay.py --lab      # shows itself, on this machine, without root
    python examples/proxy_header_relay.py [--port 3129] [--version 2] [--to ADDRESS:PORT]

The firewall has to deliver connections here, by TPROXY or by REDIRECT (docs/firewall.md):

    lusca-comm rules --apply --ports 80,443 --interface lan0

The server has to expect the header (nginx: "listen 80 proxy_protocol;", HAProxy: "bind :80
accept-proxy") and to believe nobody else who sends one (nginx: "set_real_ip_from"). Where spoofing
works there is no need for it; it is for answers that would not come back by this machine.
"""

from __future__ import annotations

import ipaddress
import sys

import _serving

from lusca_comm import CommError, aio
from lusca_comm.address import Address, spell
from lusca_comm.protocols.proxy_header import Header, pack

UNIQUE_ID = 5  # PP2_TYPE_UNIQUE_ID, section 2.2.5


class HeaderRelay:
    """The handler of connections."""

    def __init__(self, version: int, to: Address | None) -> None:
        self.version = version
        self.to = to
        self._number = 0

    async def __call__(self, conn: aio.Connection) -> None:
        header = self.header(conn)
        who = f"{spell(conn.peer)} -> {spell(conn.original)}"
        try:
            done = await conn.relay(conn.connect(self.to), prefix=header)
        except CommError as why:
            tell(f"{who} {why.strerror}")
            return conn.reset()
        tell(f"{who} up {done.up - len(header)} down {done.down} {done.end}")

    def header(self, conn: aio.Connection) -> bytes:
        ends = (conn.peer[0], conn.peer[1]), (conn.original[0], conn.original[1])
        if self.version == 1:
            return pack(Header(*ends, version=1))
        self._number += 1
        return pack(Header(*ends, tlvs=((UNIQUE_ID, f"{self._number}".encode()),)))


def tell(text: str) -> None:
    print(text, flush=True)


def address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not 0 < int(port) < 65536:
        raise ValueError
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)


def main() -> int:
    parser = _serving.parser(__doc__, spoof=False)
    parser.add_argument("--version", type=int, choices=(1, 2), default=2, help="of the header")
    parser.add_argument(
        "--to",
        type=address,
        metavar="ADDRESS:PORT",
        help="one server for all (where the client was going)",
    )
    options = parser.parse_args()
    if options.lab:
        from _lab import show
        from _proxy_header_lab import play

        return show(play)
    return _serving.run(
        options,
        HeaderRelay(options.version, options.to),
        ready=lambda: tell(f"ready on port {options.port}"),
        refused=lambda why: tell(f"refused: {why.strerror}"),
    )


if __name__ == "__main__":
    sys.exit(main())
