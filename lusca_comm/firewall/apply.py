"""Carry a plan out in the current network namespace, read it back, and take it away again.

Only netlink: no nft, iptables or ip program. What is applied is exactly what
:func:`.nftables.render` and :func:`.routing.render_commands` print. Nothing else on the machine
is touched: no sysctl, no other table, no other rule.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from lusca_comm.errors import CommError

from . import routing, transaction
from .netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Netlink, Refused
from .nftables import oldest_kernel, table
from .plan import Plan
from .transaction import Part

__all__ = ["Applied", "apply", "remove"]

_MODULES: Final = {
    "ct": "nft_ct",
    "fib": "nft_fib_inet",
    "redir": "nft_redir",
    "socket": "nft_socket",
    "tproxy": "nft_tproxy",
}
_NO_RIGHTS: Final = (
    "changing the firewall needs CAP_NET_ADMIN in the user namespace that owns this network "
    "namespace: run as root, or in a namespace of your own (unshare --user --map-root-user --net)"
)


class Applied:
    """A plan in force. As a context manager it removes the plan at the end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._namespace = _namespace()
        self._there = True

    def remove(self) -> None:
        """Undo everything; a second call does nothing. Raises CommError(EXDEV) in another
        network namespace than that of :func:`apply`."""
        if not self._there:
            return
        if _namespace() != self._namespace:
            raise CommError(
                errno.EXDEV,
                "the plan was applied in another network namespace: remove it there, or with "
                "firewall.remove(plan)",
            )
        remove(self.plan)
        self._there = False

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def apply(plan: Plan) -> Applied:
    """Put the plan into force, all of it or nothing.

    The nftables part is one transaction; the routes and rules before it concern only packets with
    the plan's mark, which nothing sets yet. Afterwards everything is read back and compared: the
    kernel takes some requests without understanding them. After any error the machine is as it
    was. Raises CommError: EEXIST if a table of this name, a route in this routing table or this
    very rule is there already (``remove`` the plan first to start anew), EPERM without
    CAP_NET_ADMIN, EOPNOTSUPP for a sysctl that would make connections hang, otherwise the
    kernel's number and the kernel part that is missing.
    """
    made = list(transaction.parts(table(plan, _cgroup)))
    steps = list(routing.steps(plan))
    with _sockets() as (nft, route), contextlib.ExitStack() as undo:
        if _table_exists(nft, plan.name):
            raise _in_use(f"nftables table inet {plan.name}")
        _check_routing(route, plan, steps)
        _check_sysctls(plan)
        for step in steps:
            _request(route, step)
            undo.callback(_delete, route, step)
        try:
            nft.nft_batch([part.message for part in made])
        except Refused as why:
            raise _explain(why, made[why.index], plan) from None
        undo.callback(_delete_table, nft, plan.name)
        _read_back(nft, made, plan)
        for step in steps:
            if not step.is_in(route.dump(step.dump)):
                raise _unlike(f"'{step.command}'")
        undo.pop_all()
    return Applied(plan)


def remove(plan: Plan) -> None:
    """Take away from the current network namespace what :func:`apply` made of this plan.

    What isn't there (any more) is passed over, so it can be repeated, and it cleans up after a
    process that died. Raises CommError: EPERM without CAP_NET_ADMIN.
    """
    with _sockets() as (nft, route):
        _delete_table(nft, plan.name)
        for step in reversed(list(routing.steps(plan))):
            _delete(route, step)


@contextlib.contextmanager
def _sockets() -> Iterator[tuple[Netlink, Netlink]]:
    with Netlink(NETLINK_NETFILTER) as nft, Netlink(NETLINK_ROUTE) as route:
        yield nft, route


def _namespace() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def _table_exists(nft: Netlink, name: str) -> bool:
    try:
        answers = nft.dump(transaction.get_tables())
    except Refused as why:
        if why.number == errno.EPERM:
            raise CommError(errno.EPERM, _NO_RIGHTS) from None
        raise CommError(
            why.number, f"this kernel has no nf_tables (modprobe nf_tables): {why.strerror}"
        ) from None
    return bool(transaction.of_table(name, answers))


def _check_routing(route: Netlink, plan: Plan, steps: Sequence[routing.Step]) -> None:
    for step in steps:
        answers = route.dump(step.dump)
        if step.is_route and any(routing.table_of(body) == plan.table for _, body in answers):
            raise _in_use(f"routing table {plan.table}")
        if not step.is_route and step.is_in(answers):
            raise _in_use(f"'ip {step.text.format('list')}'")


def _check_sysctls(plan: Plan) -> None:
    """Two settings make every intercepted connection hang without a word (seen on Linux 6.18).

    Both apply the packet mark to a lookup of the way back to the client, which then ends here:
    the check of a packet's source, and the routing of what an accepted socket sends.
    """
    if not plan.routed or not (plan.forwarded or plan.spoof):
        return
    root = Path("/proc/sys/net/ipv4")
    found = []
    if "ipv4" in plan.families:
        found += sorted(root.glob("conf/*/src_valid_mark"))
    if plan.mode == "tproxy":
        found.append(root / "tcp_fwmark_accept")
    for file in found:
        with contextlib.suppress(FileNotFoundError):
            if int(file.read_text()):
                name = ".".join(file.parts[3:])
                raise CommError(
                    errno.EOPNOTSUPP,
                    f"{name} is 1, with which marked packets can't be answered: sysctl -w "
                    f"{name}=0 (wg-quick sets src_valid_mark), or mode redirect without spoof",
                )


def _in_use(what: str) -> CommError:
    return CommError(
        errno.EEXIST,
        f"{what} is there already: remove(plan) takes away what an earlier run left; or choose "
        "another name, table and mark",
    )


def _request(route: Netlink, step: routing.Step) -> None:
    try:
        route.request(step.add)
    except Refused as why:
        cures = {
            errno.EPERM: _NO_RIGHTS,
            errno.ENETDOWN: "lo is down: ip link set lo up",
            errno.EACCES: "IPv6 is switched off on lo: sysctl net.ipv6.conf.lo.disable_ipv6=0, or "
            "leave ipv6 out of families",
        }
        cure = cures.get(why.number, "the kernel lacks policy routing for this family")
        raise CommError(why.number, f"'{step.command}' failed ({why.strerror}): {cure}") from None


def _delete(route: Netlink, step: routing.Step) -> None:
    try:
        route.request(step.delete)
    except Refused as why:
        if why.number == errno.EPERM:
            raise CommError(errno.EPERM, _NO_RIGHTS) from None
        # What the kernel says of a route, rule or family that isn't there.
        if why.number not in (errno.ESRCH, errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise CommError(why.number, f"'{step.undo}' failed: {why.strerror}") from None


def _delete_table(nft: Netlink, name: str) -> None:
    try:
        nft.nft_batch([transaction.delete_table(name)])
    except Refused as why:
        if why.number == errno.EPERM:
            raise CommError(errno.EPERM, _NO_RIGHTS) from None
        if why.number not in (errno.ENOENT, errno.EOPNOTSUPP):
            raise CommError(
                why.number, f"'nft delete table inet {name}' failed: {why.strerror}"
            ) from None


def _explain(why: Refused, part: Part, plan: Plan) -> CommError:
    """Which part of the kernel is missing, from the message (and the place in it) it refused."""
    if why.number == errno.EPERM:
        return CommError(errno.EPERM, _NO_RIGHTS)
    if why.number == errno.EEXIST:
        return _in_use(part.what)
    missing = ""
    expr = part.stumbled(why.offset)
    if expr is not None:
        module = _MODULES.get(expr.name, f"nft_{expr.name}")
        missing = f"; it stopped at the expression {expr.name}: modprobe {module}"
    elif "type nat" in part.what:
        missing = "; NAT chains are missing: modprobe nft_chain_nat"
    needed, need = oldest_kernel(plan)
    release = os.uname().release
    if tuple(map(int, re.findall(r"\d+", release)[:2])) < needed:
        missing += f"; {need} needs Linux {'.'.join(map(str, needed))}, this is {release}"
    return CommError(why.number, f"the kernel refused the {part.what} ({why.strerror}){missing}")


def _unlike(what: str) -> CommError:
    return CommError(errno.EIO, f"the kernel took {what}, but lists something else: removed again")


def _read_back(nft: Netlink, parts: Sequence[Part], plan: Plan) -> None:
    """Compare what the kernel lists with what was sent."""
    listed = transaction.of_table(plan.name, nft.dump(transaction.get_rules(plan.name)))
    if not transaction.same_rules(parts, listed):
        raise _unlike(f"the rules of table inet {plan.name}")
    sets: dict[str, list[Part]] = {}
    for part in parts:
        if part.set:
            sets.setdefault(part.set, []).append(part)
    for name, filled in sets.items():
        answers = nft.dump(transaction.get_elements(plan.name, name))
        if not transaction.same_elements(filled, answers):
            raise _unlike(filled[0].what)


def _cgroup(path: str) -> int:
    """What the kernel calls a cgroup: the inode number of its directory in a cgroup2 mount."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [Path(left.split()[4]) / path for left, right in mounts if right.startswith("cgroup2 ")]
    for directory in found:
        with contextlib.suppress(OSError):
            return directory.stat().st_ino
    raise CommError(
        errno.ENOENT,
        f"exempt.cgroups: {path!r} is in no mounted cgroup2 hierarchy (looked for "
        f"{', '.join(map(str, found)) or 'one: mount -t cgroup2 none /sys/fs/cgroup'})",
    )
