"""An egress filter by name: TLS to the hosts of a list, and nothing else gets out.

    python examples/sni_filter.py --lab          # shows itself, on this machine, without root
    python examples/sni_filter.py POLICY [--port 3129] [--spoof] [--redirect] [--pin resolve]

POLICY is a file of lines such as "allow .example.org" (sni_policy.py). HUP reads it again; what is
wrong with it is told, and then the old one stays. Each connection gets a line of JSON: who, where,
which name, the verdict, and the line of the policy that gave it.

The firewall has to bring everything here, and to refuse what it can't bring: UDP (QUIC on 443),
other protocols, and all there is when this program is not there. Behind a router, where 192.0.2.53
is the resolver that the sandbox may ask:

    lusca-comm rules --apply --ports 1-65535 --interface lan0 --refuse-rest \\
        --skip 'destination 192.0.2.53 ports 53'

On the same machine, for the programs of one user, or of a control group (--only-cgroup):

    lusca-comm rules --apply --ports 1-65535 --mode redirect --own --no-forwarded --refuse-rest \\
        --only-uid sandbox --skip 'destination 192.0.2.53 ports 53'

A name is what the client says. So an allowed one is looked up, and the connection goes to where the
name leads (--pin): "resolve": to the client's address if the name has it, else to one that the name
has; names of large sites have other addresses for everybody who asks, and clients are not to blame.
"check": only if the name has the client's address. "off": wherever the client likes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _serving
from sni_policy import Policy

from lusca_comm import CommError, aio
from lusca_comm.address import Address, spell
from lusca_comm.protocols.reachable import may_reach
from lusca_comm.protocols.sni import MOST, ClientHello, Verdict, client_hello

ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"  # a fatal alert, RFC 8446 6.2
IDLE = 3600.0  # seconds that a connection may be silent once it is allowed
UNDECIDED = 256  # connections of one client that may wait for a verdict: the others go on
LOOK_UP = 10.0  # seconds that a name has
# asyncio's own has a few threads: names whose servers are silent would hold up all others.
LOOK_UPS = ThreadPoolExecutor(64, "look-up")


class Denied(Exception):
    """Why, in words."""


class Filter:
    """The handler of connections."""

    def __init__(self, policy: Policy, options: argparse.Namespace) -> None:
        self.policy = policy
        self.pin: str = options.pin
        self.spoof: bool = options.spoof
        self.patience: float = options.patience
        self.silence: float = options.silence
        self.shares = _serving.Shares(UNDECIDED)

    async def __call__(self, conn: aio.Connection) -> None:
        client = conn.peer[0]
        if not self.shares.take(client):
            tell(event="refused", why=f"{client} has {UNDECIDED} connections without a verdict")
            return conn.reset()
        try:
            to = await self._decide(conn, self.policy)
        except CommError as gone:
            return tell(event="gone", client=spell(conn.peer), why=gone.strerror)
        finally:
            self.shares.give_back(client)
        if to is None:
            return None
        way = conn.connect(to, spoof=self.spoof)
        try:
            await conn.relay(way, idle=IDLE)
        except CommError as failed:
            tell(event="unreachable", client=spell(conn.peer), why=failed.strerror)
            conn.reset()

    async def _decide(self, conn: aio.Connection, policy: Policy) -> Address | None:
        """Where it may go; None: nowhere, and it has been told so. `policy` stays the same whatever
        happens to it meanwhile."""
        hello = await self._first_bytes(conn, policy)
        decision = policy.decide(hello, conn.peer, conn.original)
        to, why = conn.original, "where it was going"
        try:
            if not decision.allowed:
                raise Denied(hello.reason)
            if hello.verdict is Verdict.NAME and not decision.bound:
                to, why = await self._where(hello.name, conn.original)
                decision = policy.decide(hello, conn.peer, to)  # lines with "to" are about it too
                if not decision.allowed:
                    raise Denied(f"the name leads to {to[0]}")
        except Denied as reason:
            tell_of(conn, hello, "deny", decision.rule, str(reason))
            await deny(conn, hello)
            return None
        tell_of(conn, hello, "allow", decision.rule, why, to=to)
        return to

    async def _first_bytes(self, conn: aio.Connection, policy: Policy) -> ClientHello:
        """The verdict on what the client says first, within a limited time.

        A client that waits for its server says nothing. Only if it would be let through for that it
        is not kept waiting for the whole time.
        """
        silent = ClientHello(Verdict.NOT_TLS, reason="the client says nothing")
        decision = policy.decide(silent, conn.peer, conn.original)
        began, data = time.monotonic(), b""
        while (hello := client_hello(data)).verdict is Verdict.NEED_MORE:
            limit = self.silence if decision.allowed and not data else self.patience
            left = began + limit - time.monotonic()
            try:
                least = len(data) + hello.missing
                got = await asyncio.wait_for(conn.peek(MOST, least=least), max(left, 0))
            except asyncio.TimeoutError:
                got = data
            if len(got) <= len(data):
                cut_off = ClientHello(Verdict.NOT_PARSED, reason="the ClientHello is incomplete")
                return cut_off if data else silent
            data = got
        return hello

    async def _where(self, name: str, original: Address) -> tuple[Address, str]:
        """Where a connection with this name may go, and why."""
        if self.pin == "off":
            return original, "wherever the client likes"
        addresses = await resolve(name, original)
        if original[0] in addresses:
            return original, "the name has this address"
        if self.pin == "check":
            raise Denied(f"the name has {' '.join(addresses)}, not this address")
        return (addresses[0], *original[1:]), "the name has not the client's address, but this one"


async def resolve(name: str, original: Address) -> list[str]:
    """The name's addresses in the family of the original one. Not those that only this machine has:
    whoever runs an allowed domain could name them."""
    family = socket.AF_INET6 if ":" in original[0] else socket.AF_INET
    ask = functools.partial(
        socket.getaddrinfo, name, original[1], family=family, type=socket.SOCK_STREAM
    )
    try:
        answer = asyncio.get_running_loop().run_in_executor(LOOK_UPS, ask)
        infos = await asyncio.wait_for(answer, LOOK_UP)
    except asyncio.TimeoutError:
        raise Denied(f"the name has no address after {LOOK_UP:g} seconds") from None
    except (OSError, UnicodeError) as why:
        raise Denied(f"the name has no address: {why}") from None
    found = list(dict.fromkeys(str(info[4][0]) for info in infos))
    allowed = [one for one in found if may_reach(one) and not is_own((one, *original[1:]), family)]
    if not allowed:
        raise Denied(f"the name has {' '.join(found)}, where nobody may go by name")
    return allowed


def is_own(address: Address, family: int) -> bool:
    """Whether it is this machine's: then packets to it come from it. Nothing is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(address)
        return bool(sock.getsockname()[0] == address[0])
    return False


async def deny(conn: aio.Connection, hello: ClientHello) -> None:
    """A TLS client is told in its own language, anybody else by a reset."""
    if hello.verdict in (Verdict.NAME, Verdict.NO_SNI):
        with contextlib.suppress(OSError):
            conn.writer.write(ACCESS_DENIED)
            return await conn.close()
    conn.reset()


def tell_of(
    conn: aio.Connection,
    hello: ClientHello,
    verdict: str,
    rule: str,
    why: str,
    to: Address | None = None,
) -> None:
    more = {"ech": True} if hello.ech else {}
    tell(
        verdict=verdict,
        client=spell(conn.peer),
        original=spell(conn.original),
        saw=hello.verdict.value,
        name=hello.name,
        rule=rule,
        why=why,
        to=spell(to) if to else None,
        **more,
    )


def tell(**what: Any) -> None:
    """One line of JSON."""
    print(json.dumps({"time": round(time.time(), 3), **what}), flush=True)


def read_policy(file: Path) -> Policy:
    """Raises OSError, ValueError."""
    return Policy(file.read_text(encoding="utf-8"), file.name)


def reload(filter_: Filter, file: Path) -> None:
    """All of the new policy, or none of it. Connections that were allowed go on."""
    try:
        policy = read_policy(file)
    except (OSError, ValueError) as why:
        return tell(event="the policy stays as it was", why=str(why))
    filter_.policy = policy
    tell(event="new policy", lines=len(policy))


def parse() -> argparse.Namespace:
    parser = _serving.parser(__doc__)
    parser.add_argument("policy", nargs="?", type=Path, metavar="POLICY", help="the file")
    parser.add_argument(
        "--pin",
        choices=("resolve", "check", "off"),
        default="resolve",
        help="how an allowed name binds the address (%(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=_serving.seconds,
        default=10.0,
        metavar="SECONDS",
        help="that a client has for its ClientHello (%(default)s)",
    )
    parser.add_argument(
        "--silence",
        type=_serving.seconds,
        default=0.5,
        metavar="SECONDS",
        help="after which an allowed client waits for its server (%(default)s)",
    )
    options = parser.parse_args()
    if not options.lab and options.policy is None:
        parser.error("POLICY, or --lab")
    return options


def main() -> int:
    options = parse()
    if options.lab:
        from _lab import show
        from _sni_lab import play

        return show(play)
    try:
        filter_ = Filter(read_policy(options.policy), options)
    except (OSError, ValueError) as why:
        print(f"sni_filter: {why}", file=sys.stderr)
        return 1
    return _serving.run(
        options,
        filter_,
        ready=lambda: tell(event="ready", port=options.port, lines=len(filter_.policy)),
        refused=lambda why: tell(event="refused", why=why.strerror),
        hangup=lambda: reload(filter_, options.policy),
    )


if __name__ == "__main__":
    sys.exit(main())
