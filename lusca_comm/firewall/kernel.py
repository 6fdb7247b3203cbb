"""The kernel's end, by pyroute2: nftables transactions and lists, routes and rules.

What the kernel refuses is Refused. pyroute2 is imported where it is used: plans
and their texts do without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar

from lusca_comm.errors import CommError

from .routing import Step
from .transaction import Kind, Named, Part

R = TypeVar("R")

ANY, INET = 0, 1  # enum of include/uapi/linux/netfilter.h
_SO_SNDBUFFORCE: Final = 32
_LARGEST_BATCH: Final = 1 << 28
"""A limit, which takes no memory; a batch goes in one piece."""


class Refused(CommError):
    """The kernel's refusal, ``errno`` its number."""

    errno: int


def outside_asyncio(fn: Callable[[], R]) -> R:
    """Call ``fn`` where no event loop runs, since pyroute2's sockets run one of their own: if
    need be in a thread, which begins in the network namespace of the calling one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return fn()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(fn).result()


@contextlib.contextmanager
def opened(family: int = INET) -> Iterator[tuple[Any, Any]]:
    """Sockets for nftables, which lists tables of this family, and for routes, in the calling
    thread's network namespace."""
    _require()
    from pyroute2 import IPRoute

    # Strict: a list of routes can be of one table; a machine may have a million in others.
    with _nft(family) as nft, IPRoute(strict_check=True, ext_ack=True) as ip:
        yield nft, ip


def transact(parts: Iterable[Part]) -> None:
    """Have the parts take effect, all or none."""
    from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST

    flags = {"add": NLM_F_CREATE | NLM_F_APPEND, "del": 0}
    flags["create"] = flags["add"] | NLM_F_EXCL
    *before, last = ((part, NLM_F_REQUEST | flags[part.command]) for part in parts)
    # A socket of its own: the kernel answers each message that it refuses, so answers may be left
    # over. If all is well it answers the last one, which alone asks for it.
    with _nft(INET) as nft, _refusals():
        with contextlib.suppress(OSError):
            nft.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _LARGEST_BATCH)
        nft.begin()
        for part, flag in (*before, (last[0], last[1] | NLM_F_ACK)):
            command = "DEL" if part.command == "del" else "NEW"
            nft.request_put(*_message(command, part.kind, part.attrs), flag)
        nft.commit()
        nft.get()


def listed(nft: Any, kind: Kind, attrs: Named | None = None) -> Sequence[Any]:
    """All tables, or the rules of a table, or the elements of a set, as pyroute2 decodes them."""
    with _refusals():
        found: list[Any] = nft.request_get(*_message("GET", kind, attrs or []))
        return found


def _message(command: str, kind: Kind, attrs: Named) -> tuple[Any, int]:
    from pyroute2.netlink.nfnetlink import nftsocket

    from .nla import MESSAGES

    message = MESSAGES[kind]()
    message["attrs"] = list(attrs)
    return message, getattr(nftsocket, f"NFT_MSG_{command}{kind.upper()}")


def route(ip: Any, command: Literal["add", "del"], step: Step) -> None:
    """Add or delete a route or a rule."""
    with _refusals():
        getattr(ip, step.kind)(command, **step.spec)


def routes(ip: Any, step: Step) -> Sequence[Any]:
    """The routes in the step's table, or the rules of its family, as pyroute2 decodes them."""
    asked = ("family", "table") if step.kind == "route" else ("family",)
    try:
        with _refusals():
            return list(getattr(ip, step.kind)("dump", **{key: step.spec[key] for key in asked}))
    except Refused as why:
        if why.errno == errno.ENOENT:  # no such table
            return []
        raise


@contextlib.contextmanager
def _nft(family: int) -> Iterator[Any]:
    from pyroute2.netlink.nfnetlink.nftsocket import NFTSocket

    from .nla import ANSWERS

    try:
        nft = NFTSocket(nfgen_family=family)
    except OSError as why:
        raise CommError(
            why.errno or errno.EPROTONOSUPPORT, f"this kernel has no nfnetlink: {why.strerror}"
        ) from None
    with nft:
        nft.register_policy(ANSWERS)
        yield nft


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as why:
        text, more = os.strerror(why.code), str(why.args[1])
        raise Refused(why.code, text if more == text else f"{text}: {more}") from None
    except OSError as why:
        if isinstance(why, CommError) or why.errno != errno.EMSGSIZE:
            raise
        raise CommError(
            errno.EMSGSIZE, "too many rules for one netlink message: raise net.core.wmem_max"
        ) from None


def _require() -> None:
    try:
        import pyroute2  # noqa: F401
    except ImportError:
        raise CommError(
            errno.ENOSYS, "the firewall is changed with pyroute2: pip install 'lusca-comm[cli]'"
        ) from None
