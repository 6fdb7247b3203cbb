"""Carry a plan out in the current network namespace, read it back, and take it away again.

Only netlink, by pyroute2: no nft, iptables or ip program. What is applied is exactly what
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
from typing import Any, Final

from lusca_comm.errors import CommError

from . import kernel, routing, transaction
from .nftables import Chain, Rule, Table, oldest_kernel, table
from .plan import Plan
from .statements import Sets
from .transaction import Part

__all__ = ["Applied", "apply", "remove"]

_BUILT_IN: Final = ("bitwise", "cmp", "immediate", "lookup", "meta", "payload")
"""Kinds of expressions that come with nf_tables itself."""
_MODULES: Final = {"fib": "nft_fib_inet", "reject": "nft_reject_inet"}
"""Of the other kinds, where it is not nft_KIND."""
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
    CAP_NET_ADMIN, EOPNOTSUPP for a sysctl that would make connections hang, ENOSYS without
    pyroute2, otherwise the kernel's number and the kernel part that is missing.
    """
    kernel.outside_asyncio(lambda: _apply(plan))
    return Applied(plan)


def _apply(plan: Plan) -> None:
    made = table(plan, _cgroup)
    parts = list(transaction.parts(made))
    steps = list(routing.steps(plan))
    with kernel.opened() as (nft, ip), contextlib.ExitStack() as undo:
        if _table_exists(nft, plan.name):
            raise _in_use(f"nftables table inet {plan.name}")
        _check_routing(ip, plan, steps)
        _check_sysctls(plan)
        for step in steps:
            _add(ip, step)
            undo.callback(_delete, ip, step)
        try:
            kernel.transact(parts)
        except kernel.Refused as why:
            raise _explain(why, made, plan) from None
        undo.callback(_delete_table, plan.name)
        _read_back(nft, parts, plan)
        for step in steps:
            if not step.is_in(kernel.routes(ip, step)):
                raise _unlike(f"'{step.command}'")
        undo.pop_all()


def remove(plan: Plan) -> None:
    """Take away from the current network namespace what :func:`apply` made of this plan.

    What isn't there (any more) is passed over, so it can be repeated, and it cleans up after a
    process that died. Raises CommError: EPERM without CAP_NET_ADMIN, ENOSYS without pyroute2.
    """
    kernel.outside_asyncio(lambda: _remove(plan))


def _remove(plan: Plan) -> None:
    with kernel.opened() as (nft, ip):
        if _table_exists(nft, plan.name):
            _delete_table(plan.name)
        for step in reversed(list(routing.steps(plan))):
            _delete(ip, step)


def _namespace() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def _table_exists(nft: Any, name: str) -> bool:
    try:
        tables = kernel.listed(nft, "table")
    except kernel.Refused as why:
        if why.errno == errno.EPERM:
            raise CommError(errno.EPERM, _NO_RIGHTS) from None
        raise CommError(
            why.errno, f"this kernel has no nf_tables (modprobe nf_tables): {why.strerror}"
        ) from None
    return any(found.get_attr("NFTA_TABLE_NAME") == name for found in tables)


def _check_routing(ip: Any, plan: Plan, steps: Sequence[routing.Step]) -> None:
    for step in steps:
        found = kernel.routes(ip, step)
        if step.kind == "route" and found:
            raise _in_use(f"routing table {plan.table}")
        if step.kind == "rule" and step.is_in(found):
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
    if plan.mode == "tproxy" and "tcp" in plan.protocols:
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


def _add(ip: Any, step: routing.Step) -> None:
    try:
        kernel.route(ip, "add", step)
    except kernel.Refused as why:
        cures = {
            errno.EPERM: _NO_RIGHTS,
            errno.ENETDOWN: "lo is down: ip link set lo up",
            errno.EACCES: "IPv6 is switched off on lo: sysctl net.ipv6.conf.lo.disable_ipv6=0, or "
            "leave ipv6 out of families",
        }
        cure = cures.get(why.errno, "the kernel lacks policy routing for this family")
        raise CommError(why.errno, f"'{step.command}' failed ({why.strerror}): {cure}") from None


def _delete(ip: Any, step: routing.Step) -> None:
    try:
        kernel.route(ip, "del", step)
    except kernel.Refused as why:
        # What the kernel says of a route, rule or family that isn't there.
        if why.errno not in (errno.ESRCH, errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise CommError(why.errno, f"'{step.undo}' failed: {why.strerror}") from None


def _delete_table(name: str) -> None:
    try:
        kernel.transact([transaction.delete_table(name)])
    except kernel.Refused as why:
        if why.errno != errno.ENOENT:
            raise CommError(
                why.errno, f"'nft delete table inet {name}' failed: {why.strerror}"
            ) from None


def _explain(why: kernel.Refused, made: Table, plan: Plan) -> CommError:
    """Which part of the kernel is missing."""
    if why.errno == errno.EEXIST:
        return _in_use(f"nftables table inet {made.name}")
    text = f"the kernel refused table inet {made.name} ({why.strerror})"
    text += next(_refused_parts(made), "")
    needed, need = oldest_kernel(plan)
    release = os.uname().release
    if tuple(map(int, re.findall(r"\d+", release)[:2])) < needed:
        text += f"; {need} needs Linux {'.'.join(map(str, needed))}, this is {release}"
    return CommError(why.errno, text)


def _refused_parts(made: Table) -> Iterator[str]:
    """What the kernel refuses of a table, each part tried by itself, and the module it may lack.

    Tried in a table that the same transaction deletes again.
    """
    plain = [Chain(chain.name, None, ()) for chain in made.chains]

    def refused(chain: Chain) -> bool:
        others = (other for other in plain if other.name != chain.name)
        trial = Table(f"{made.name}_trial", (*others, chain))
        try:
            kernel.transact([*transaction.parts(trial), transaction.delete_table(trial.name)])
        except kernel.Refused:
            return True
        return False

    for chain in made.chains:
        if chain.hook and refused(Chain(chain.name, chain.hook, ())):
            missing = ": modprobe nft_chain_nat" if chain.hook.kind == "nat" else ""
            yield f": chain {chain.name}, type {chain.hook.kind}{missing}"
        for rule in chain.rules:
            for part in rule.statements:
                if refused(Chain(chain.name, None, (Rule((part,), rule.comment),))):
                    kinds = [expr.name for expr in part.expressions(Sets())]
                    foreign = [kind for kind in kinds if kind not in _BUILT_IN]
                    modules = [_MODULES.get(kind, f"nft_{kind}") for kind in foreign]
                    missing = f": modprobe {modules[0]}" if modules else ""
                    yield f": '{part.text()}' in chain {chain.name}{missing}"


def _unlike(what: str) -> CommError:
    return CommError(errno.EIO, f"the kernel took {what}, but lists something else: removed again")


def _read_back(nft: Any, parts: Sequence[Part], plan: Plan) -> None:
    """Compare what the kernel lists with what was meant: pyroute2 leaves out what it has no name
    for, and the kernel passes over what it doesn't know."""
    rules = kernel.listed(nft, "rule", [("NFTA_RULE_TABLE", plan.name)])
    if not transaction.same_rules(parts, rules):
        raise _unlike(f"the rules of table inet {plan.name}")
    for name, elements in transaction.elements(parts).items():
        of_set = [("NFTA_SET_ELEM_LIST_TABLE", plan.name), ("NFTA_SET_ELEM_LIST_SET", name)]
        found = transaction.listed_elements(kernel.listed(nft, "setelem", of_set))
        if found != elements:
            raise _unlike(f"the set {name} of table inet {plan.name}")


def _cgroup(path: str) -> int:
    """What the kernel calls a cgroup: the inode number of its directory in a cgroup2 mount."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [Path(left.split()[4]) / path for left, right in mounts if right.startswith("cgroup2 ")]
    for directory in found:
        with contextlib.suppress(OSError):
            return directory.stat().st_ino
    raise CommError(
        errno.ENOENT,
        f"cgroups: {path!r} is in no mounted cgroup2 hierarchy (looked for "
        f"{', '.join(map(str, found)) or 'one: mount -t cgroup2 none /sys/fs/cgroup'})",
    )
