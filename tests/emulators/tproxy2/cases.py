"""What the option answers, call by call: run against the state machine, and through real sockets.

A step is who, what, its argument, and what comes back: 0, an errno, or what getsockopt wrote. Each
group names the function of ip_tproxy_core.c (cttproxy 2.0.6) that its answers are from.
"""

from __future__ import annotations

from errno import EADDRINUSE, EEXIST, EINVAL, ENOENT, ENOPROTOOPT
from typing import Any, Final, NamedTuple

from emulators.tproxy2.kernel import (
    ALLOC,
    ASSIGN,
    CONNECT,
    FLAGS,
    FULL_VERSION,
    ITP_CONNECT,
    ITP_ESTABLISHED,
    ITP_LISTEN,
    ITP_MARK,
    ITP_ONCE,
    ITP_UNIDIR,
    QUERY,
    UNASSIGN,
    VERSION,
    address,
    number,
)


class Step(NamedTuple):
    """``what``: open ("tcp", "udp", "icmp"), reuse, bind (a host), listen, connect, close, set or
    get (bytes)."""

    who: str
    what: str
    argument: Any = None
    answer: int | bytes = 0


def bound(who: str, kind: str = "tcp", reuse: bool = False) -> list[Step]:
    steps = [Step(who, "open", kind), Step(who, "bind", "127.0.0.1")]
    return [steps[0], Step(who, "reuse"), steps[1]] if reuse else steps


def sets(who: str, data: bytes, answer: int = 0) -> Step:
    return Step(who, "set", data, answer)


def gets(who: str, data: bytes, answer: int | bytes) -> Step:
    return Step(who, "get", data, answer)


def assigned(who: str, kind: str = "tcp", reuse: bool = False) -> list[Step]:
    return [*bound(who, kind, reuse), sets(who, TAKE)]


FOREIGN: Final = ("203.0.113.7", 80)
TAKE: Final = address(ASSIGN, *FOREIGN)
TAKE_ANY_PORT: Final = address(ASSIGN, FOREIGN[0], 0)
MARK_ONLY: Final = address(ASSIGN)
ASK: Final = address(QUERY)
TOLD: Final = address(QUERY, *FOREIGN)
REMOTE: Final = address(CONNECT, "198.51.100.2", 80)
OTHER_REMOTE: Final = address(CONNECT, "198.51.100.3", 80)


def flags(bits: int = 0) -> bytes:
    return number(FLAGS, bits)


CASES: Final[dict[str, list[Step]]] = {
    # ip_tproxy_setsockopt, ip_tproxy_getsockopt
    "neither TCP nor UDP": [
        Step("a", "open", "icmp"),
        sets("a", number(VERSION, 0x02000000), EINVAL),
        gets("a", number(VERSION), EINVAL),
    ],
    "too short": [
        *assigned("a"),
        sets("a", flags()[:7], EINVAL),
        gets("a", flags()[:7], EINVAL),
    ],
    "as short as can be": [
        *assigned("a"),
        sets("a", flags(ITP_CONNECT)[:8]),
        gets("a", flags()[:8], flags(ITP_CONNECT)[:8]),
    ],
    "longer than need be": [
        *bound("a"),
        sets("a", TAKE + b"more"),
        gets("a", ASK + b"more", TOLD + b"more"),
    ],
    "no such operation": [
        *assigned("a"),
        *(sets("a", number(op), ENOPROTOOPT) for op in (QUERY, 7, 8, 0xFFFFFFFF)),
        *(
            gets("a", number(op), ENOPROTOOPT)
            for op in (ASSIGN, UNASSIGN, ALLOC, CONNECT, 7, 0xFFFFFFFF)
        ),
    ],
    "before ASSIGN": [
        *bound("a"),
        *(sets("a", number(op), ENOENT) for op in (UNASSIGN, FLAGS, ALLOC, CONNECT)),
        *(gets("a", number(op), ENOENT) for op in (QUERY, FLAGS)),
    ],
    "before bind": [
        Step("a", "open", "udp"),
        *(sets("a", number(op), ENOENT) for op in (UNASSIGN, FLAGS, ALLOC, CONNECT)),
        *(gets("a", number(op), ENOENT) for op in (QUERY, FLAGS)),
    ],
    # ip_tproxy_setsockopt_version, ip_tproxy_getsockopt_version
    "version": [
        Step("a", "open", "tcp"),
        sets("a", number(VERSION, 0x02000000)),
        sets("a", number(VERSION, 0x02000063)),
        sets("a", number(VERSION, 0x02010000), EINVAL),
        sets("a", number(VERSION, 0x01000000), EINVAL),
        sets("a", number(VERSION, 0x03000000), EINVAL),
        gets("a", number(VERSION), number(VERSION, FULL_VERSION)),
    ],
    # ip_tproxy_setsockopt_assign
    "ASSIGN before bind": [Step("a", "open", "tcp"), sets("a", TAKE, EINVAL)],
    "ASSIGN on a wildcard": [
        Step("a", "open", "tcp"),
        Step("a", "bind", "0.0.0.0"),
        sets("a", TAKE, EINVAL),
    ],
    "ASSIGN when listening": [*bound("a"), Step("a", "listen"), sets("a", TAKE)],
    "ASSIGN when connected": [
        *bound("a"),
        Step("a", "listen"),
        *bound("b"),
        Step("b", "connect", "a"),
        sets("b", TAKE, EINVAL),
        *bound("c", "udp"),
        Step("c", "connect", "a"),
        sets("c", TAKE, EINVAL),
    ],
    "ASSIGN again": [*assigned("a"), sets("a", TAKE, EEXIST), sets("a", TAKE_ANY_PORT, EEXIST)],
    "a pair that is taken": [
        *assigned("a"),
        *bound("b"),
        sets("b", TAKE, EADDRINUSE),
        *bound("c", reuse=True),
        sets("c", TAKE),
    ],
    "another protocol, another port, any port": [
        *assigned("a"),
        *assigned("b", "udp"),
        *bound("c"),
        sets("c", address(ASSIGN, FOREIGN[0], 81)),
        *bound("d"),
        sets("d", TAKE_ANY_PORT),
        *bound("e"),
        sets("e", TAKE_ANY_PORT),
    ],
    "a pair that is free again": [
        *assigned("a"),
        sets("a", number(UNASSIGN)),
        *assigned("b"),
        Step("b", "close"),
        *assigned("c"),
    ],
    "mark only": [
        *bound("a"),
        sets("a", MARK_ONLY),
        sets("a", MARK_ONLY),
        sets("a", flags(ITP_CONNECT)),
        gets("a", flags(), flags(ITP_MARK)),
        sets("a", number(ALLOC)),
        sets("a", REMOTE),
    ],
    # ip_tproxy_setsockopt_unassign
    "UNASSIGN": [
        *assigned("a"),
        sets("a", number(UNASSIGN)),
        sets("a", number(UNASSIGN), ENOENT),
        gets("a", ASK, ENOENT),
        sets("a", TAKE),
        gets("a", ASK, TOLD),
    ],
    # ip_tproxy_setsockopt_flags, ip_tproxy_getsockopt_flags
    "FLAGS": [
        *assigned("a", "udp"),
        gets("a", flags(), flags()),
        *(
            step
            for bits in (
                ITP_CONNECT,
                ITP_CONNECT | ITP_ONCE,
                ITP_LISTEN,
                ITP_LISTEN | ITP_UNIDIR,
                0,
            )
            for step in (sets("a", flags(bits)), gets("a", flags(), flags(bits)))
        ),
    ],
    "FLAGS that do not go together": [
        *assigned("a"),
        sets("a", flags(ITP_CONNECT | ITP_LISTEN)),
        gets("a", flags(), flags()),
    ],
    "ESTABLISHED needs a remote address": [
        *assigned("a", "udp"),
        sets("a", flags(ITP_ESTABLISHED), EINVAL),
        sets("a", REMOTE),
        sets("a", flags(ITP_ESTABLISHED)),
        gets("a", flags(), flags(ITP_ESTABLISHED)),
    ],
    "one of two that share a pair listens": [
        *assigned("a", reuse=True),
        *assigned("b", reuse=True),
        sets("b", flags(ITP_LISTEN), EINVAL),
        sets("a", flags(ITP_LISTEN)),
    ],
    "two that share a pair connect to two remotes": [
        *assigned("a", reuse=True),
        *assigned("b", reuse=True),
        *assigned("c", reuse=True),
        sets("a", REMOTE),
        sets("a", flags(ITP_CONNECT)),
        sets("b", OTHER_REMOTE),
        sets("b", flags(ITP_CONNECT)),
        sets("c", REMOTE),
        sets("c", flags(ITP_CONNECT), EINVAL),
    ],
    "to connect anywhere is to have the pair alone": [
        *assigned("a", reuse=True),
        *assigned("b", reuse=True),
        sets("a", flags(ITP_CONNECT)),
        sets("b", REMOTE),
        sets("b", flags(ITP_CONNECT), EINVAL),
    ],
    # ip_tproxy_setsockopt_alloc, ip_tproxy_getsockopt_query
    "ALLOC": [
        *assigned("a"),
        sets("a", number(ALLOC), EINVAL),
        *bound("b"),
        sets("b", TAKE_ANY_PORT),
        gets("b", ASK, address(QUERY, FOREIGN[0], 0)),
        sets("b", number(ALLOC)),
        sets("b", number(ALLOC), EINVAL),
        sets("b", flags(ITP_LISTEN)),
    ],
    # ip_tproxy_setsockopt_connect
    "CONNECT without an address changes nothing": [
        *assigned("a", "udp"),
        sets("a", REMOTE),
        sets("a", address(CONNECT)),
        sets("a", flags(ITP_ESTABLISHED)),
    ],
}
