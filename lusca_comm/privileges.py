"""Privileges: what to open before they are dropped, dropping them, and what is missing for what.

The order in a program: :func:`prepare`, open the listeners, :func:`drop_privileges`, then threads.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from . import credentials
from ._shim import lib
from .comm import Reactor
from .constants import COMM_TPROXY_LCL, COMM_TPROXY_REM
from .credentials import Credentials, bits_of, names_of
from .engines import Engine, engine, engines, probe_nat, row_of
from .errors import CommError

__all__ = ["DEFAULT_KEEP", "Requirement", "drop_privileges", "preflight", "prepare"]

DEFAULT_KEEP = frozenset({"CAP_NET_RAW"})
"""Enough for IP_TRANSPARENT, and for SO_MARK since Linux 5.17."""

_START = "start as root, AmbientCapabilities= in the systemd unit, --cap-add for a container"

Step = tuple[str, Callable[[], object]]


class _Target(NamedTuple):
    uid: int
    gid: int
    groups: frozenset[int]


def prepare() -> tuple[Engine, ...]:
    """Opens the devices of all engines, so that they stay open over :func:`drop_privileges`.

    An engine that may do harm (``"named only"``) is left alone unless ``LUSCA_COMM_ENGINE`` names
    it. Nothing is raised for what is absent: the rows say so.
    """
    return engines()


def drop_privileges(
    user: str | int | None,
    *,
    group: str | int | None = None,
    keep: Collection[str] = DEFAULT_KEEP,
) -> None:
    """Becomes `user`, for good, with the capabilities in `keep` and no others.

    :param user: a name or a uid. The groups are those of its entry in the user database; a uid
        without an entry needs `group`, which is then the only one. None: uid, gid and groups stay
        as they are, and only capabilities are dropped.
    :param group: a name or a gid, in place of the user's primary group.
    :param keep: names as in capabilities(7). Linux alone has them; elsewhere nothing is kept but
        what is open. A name that this process does not have is an error.
    :raises CommError: before anything is changed: EINVAL no such user, group or capability; EPERM
        what is not this process's to give or to keep; EBUSY other threads run: they would not
        change along. Part-way, which is not expected: the errno of the step, "half dropped" in the
        text, and the process must end.

    What was asked for is proven afterwards from /proc/self/task/\\*/status, for every thread.
    Threads and forked children have the capabilities as well; executed programs have none: the
    inheritable and the ambient set are empty, and for uid 0 the bounding set too.
    """
    if user is None and group is not None:
        raise CommError(errno.EINVAL, "a group goes with a user")
    asked = None if user is None else _target(user, group)
    if not credentials.numbers():
        if asked is not None:
            _in_steps(_become(asked), lambda: _proof_by_ids(asked))
        return
    bits = bits_of(keep)
    now = _only_thread()
    target = asked or _Target(now.uids[1], now.gids[1], now.groups)
    _check(now, target, bits)
    steps: list[Step] = [
        ("PR_SET_KEEPCAPS", lambda: _done(lib.lc_capabilities_outlive_setuid(1))),
        *_become(target, now),
        ("PR_SET_KEEPCAPS", lambda: _done(lib.lc_capabilities_outlive_setuid(0))),
        ("capset", lambda: _done(lib.lc_capabilities_set(bits))),
    ]
    if target.uid == 0 and now.bounding:
        steps.insert(1, ("PR_CAPBSET_DROP", lambda: _done(lib.lc_capabilities_unbound())))
    _in_steps(steps, lambda: _proof(target, bits))


def _target(user: str | int, group: str | int | None) -> _Target:
    try:
        entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except (KeyError, OverflowError):
        entry = None
        if not isinstance(user, int) or user < 0 or group is None:
            raise CommError(errno.EINVAL, f"no user {user!r}: `getent passwd`") from None
    try:
        gid = grp.getgrnam(group).gr_gid if isinstance(group, str) else group
    except KeyError:
        raise CommError(errno.EINVAL, f"no group {group!r}: `getent group`") from None
    if entry is None:
        assert isinstance(user, int)
        assert gid is not None
        return _Target(user, gid, frozenset({gid}))
    gid = entry.pw_gid if gid is None else gid
    return _Target(entry.pw_uid, gid, frozenset(os.getgrouplist(entry.pw_name, gid)))


def _only_thread() -> Credentials:
    if others := credentials.other_threads():
        raise CommError(
            errno.EBUSY,
            f"other threads run: {', '.join(others)}. Capabilities are per thread, and they would "
            "keep theirs: drop privileges first, start threads then",
        )
    (own,) = credentials.of_threads().values()
    return own


def _check(now: Credentials, target: _Target, bits: int) -> None:
    """Refuses what the kernel would, before anything is changed."""
    wanted = 0
    if target.uid not in now.uids[:3]:
        wanted |= bits_of(["CAP_SETUID"])
    if target.gid not in now.gids[:3] or target.groups != now.groups:
        wanted |= bits_of(["CAP_SETGID"])
    if lacking := wanted & ~now.effective:
        raise CommError(
            errno.EPERM, f"to become uid {target.uid} needs {names_of(lacking)}: {_START}"
        )
    if target.uid == 0 and now.bounding and not now.has("CAP_SETPCAP"):
        raise CommError(
            errno.EPERM,
            "what uid 0 executes gets the bounding set back, and to empty that needs CAP_SETPCAP: "
            "become another user",
        )
    changes_groups = target.groups != now.groups
    if changes_groups and not credentials.may_set_groups():
        raise CommError(
            errno.EPERM, "this user namespace forbids setgroups(2): user None keeps them"
        )
    gone = credentials.unmapped("uid_map", {target.uid})
    gone += credentials.unmapped(
        "gid_map", {target.gid, *(target.groups if changes_groups else ())}
    )
    if gone:
        raise CommError(
            errno.EINVAL, f"this user namespace has no id {', '.join(map(str, gone))}: /etc/subuid"
        )
    if lacking := bits & ~now.permitted:
        raise CommError(
            errno.EPERM,
            f"what this process does not have cannot be kept, {names_of(lacking)}: {_START}",
        )


def _become(target: _Target, now: Credentials | None = None) -> list[Step]:
    """The steps to another uid, gid and groups; without those that are the same already."""
    uid, gid, groups = target
    steps: list[Step] = []
    if now is None or now.groups != groups:
        # FreeBSD before 15: the first is the effective gid, and setgid puts itself in its place.
        in_order = [gid, *sorted(groups - {gid})]
        steps.append(("setgroups", lambda: os.setgroups(in_order)))
    if hasattr(os, "setresuid"):  # not on NetBSD and macOS, where root's setuid sets all three
        steps.append(("setresgid", lambda: os.setresgid(gid, gid, gid)))
        steps.append(("setresuid", lambda: os.setresuid(uid, uid, uid)))
    else:
        steps.append(("setgid", lambda: os.setgid(gid)))
        steps.append(("setuid", lambda: os.setuid(uid)))
    return steps


def _in_steps(steps: list[Step], prove: Callable[[], str]) -> None:
    for number, (what, step) in enumerate(steps):
        try:
            step()
        except OSError as why:
            code = why.errno or errno.EPERM
            half = ": privileges are half dropped, end this process" if number else ""
            raise CommError(code, f"{what}: {os.strerror(code)}{half}") from why
    if wrong := prove():
        raise CommError(errno.EPERM, f"{wrong}: privileges are half dropped, end this process")


def _done(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _proof(target: _Target, bits: int) -> str:
    """What is not as asked, in any thread; "" where all is."""
    wanted = Credentials((target.uid,) * 4, (target.gid,) * 4, target.groups, 0, bits, bits, 0, 0)
    for task, found in credentials.of_threads().items():
        if target.uid != 0:
            found = found._replace(bounding=0)
        for name, is_, should in zip(Credentials._fields, found, wanted, strict=True):
            if is_ != should:
                return f"{name} of thread {task} became {is_} and not {should}"
    return ""


def _proof_by_ids(target: _Target) -> str:
    """The same where the system has no capabilities."""
    uids = os.getresuid() if hasattr(os, "getresuid") else (os.getuid(), os.geteuid())
    gids = os.getresgid() if hasattr(os, "getresgid") else (os.getgid(), os.getegid())
    if set(uids) != {target.uid} or set(gids) != {target.gid}:
        return f"uids became {uids} and gids {gids}"
    groups = {*os.getgroups(), target.gid}
    return "" if groups == target.groups | {target.gid} else f"groups became {sorted(groups)}"


# -- preflight -----------------------------------------------------------------------------------


class Requirement(NamedTuple):
    """One row of :func:`preflight`."""

    feature: str
    ok: bool
    missing: str
    """The capability, device, sysctl or option that is not there; "" where `ok`."""
    mend: str
    """The command or the step that helps, where there is one."""


Lack = tuple[str, str]  # missing, mend
_ANYONE = ("192.0.2.1", 0)  # RFC 5737: nobody's. Nothing is sent


def preflight(features: Collection[str] | None = None) -> tuple[Requirement, ...]:
    """What this process, on this machine, lacks for which feature. Found out by doing each thing on
    a socket that is closed at once; nothing is sent and nothing is changed.

    :param features: of "listen" (COMM_TPROXY_LCL), "spoof" (COMM_TPROXY_REM), "mark" (SO_MARK),
        "device" (SO_BINDTODEVICE), "low port" (below 1024), "lookup" (COMM_INTERCEPT), "pf" and
        "ipfilter" (their devices), "drop" (:func:`drop_privileges` to another user). None: all
        but engines of other systems.
    :raises CommError: EINVAL for another name.
    """
    if features is None:
        features = [feature for feature in _CHECKS if feature not in _DEVICES or _is_here(feature)]
    rows = []
    for feature in features:
        if feature not in _CHECKS:
            raise CommError(errno.EINVAL, f"no feature {feature!r}: one of {', '.join(_CHECKS)}")
        lack = _CHECKS[feature]()
        rows.append(Requirement(feature, lack is None, *(lack or ("", ""))))
    return tuple(rows)


def _open(**options: Any) -> Lack | None:
    loop = Reactor()
    try:
        loop.comm_close(loop.comm_open(**options))
    except CommError as why:
        return _refused(why)
    finally:
        loop.close()
    return None


def _refused(why: CommError) -> Lack:
    if why.errno not in (errno.EPERM, errno.EACCES):
        return _parts(str(why.strerror))
    if not credentials.numbers():
        return "root", "open the sockets before privileges are dropped"
    return _capability("CAP_NET_RAW", "CAP_NET_ADMIN")


def _capability(*names: str) -> Lack:
    """The kernel refused what any of these allows."""
    now = credentials.own()
    lacking = [name for name in names if not now.has(name)]
    if not lacking:
        return (
            f"{' or '.join(names)} in the user namespace that owns this network namespace",
            "run it in a network of its own: `unshare --user --map-root-user --net`, a container",
        )
    return (
        " or ".join(lacking),
        f"run as root, `setcap {lacking[0].lower()}+ep PROGRAM`, or "
        f"AmbientCapabilities={lacking[0]} in the systemd unit",
    )


def _parts(text: str) -> Lack:
    """The library's messages say what is missing, then what mends it."""
    missing, _, mend = text.partition(": ")
    return missing, mend


def _interface() -> Lack | None:
    return _open(device=socket.if_nameindex()[0][1])


def _low_port() -> Lack | None:
    """The kernel asks for the right before it sees that the socket is bound already, so no port is
    taken to find out (net/ipv4/af_inet.c, __inet_bind)."""
    if not credentials.numbers():
        sysctl = "`sysctl net.inet.ip.portrange.reservedhigh`"
        return None if os.geteuid() == 0 else ("root", f"bind before they are dropped; {sysctl}")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        try:
            sock.bind(("127.0.0.1", 1))
        except OSError as why:
            if why.errno != errno.EACCES:
                return None
    name = "net.ipv4.ip_unprivileged_port_start"
    try:
        first = Path("/proc/sys", name.replace(".", "/")).read_text().strip()
    except OSError:
        first = "1024"
    missing, mend = _capability("CAP_NET_BIND_SERVICE")
    return f"{missing}, for ports below {first}", f"{mend}; or `sysctl -w {name}=PORT`"


def _lookup() -> Lack | None:
    try:
        probe_nat()
    except CommError as why:
        lacks = [
            _parts(f"{one.name}, {one.reason}")
            for one in engines()
            if one.errno not in (0, errno.ENOTSUP)
            and {"lookup"} == one.abilities & {"lookup", "listen", "named only"}
        ] or [_parts(str(why.strerror))]
        missing, mend = zip(*lacks, strict=True)
        return "; ".join(missing), "; ".join(filter(None, mend))
    return None


def _is_here(name: str) -> bool:
    return engine(row_of(name)).errno not in (errno.ENOTSUP, errno.ECANCELED)


def _device(name: str) -> Lack | None:
    found = engine(row_of(name))
    return None if found.errno == 0 else _parts(found.reason)


def _drop() -> Lack | None:
    if not credentials.numbers():
        return None if os.geteuid() == 0 else ("root", "run as root")
    now = credentials.own()
    lacking = [name for name in ("CAP_SETGID", "CAP_SETUID") if not now.has(name)]
    if lacking:
        return " and ".join(lacking), "run as root; or User= in the systemd unit, and no dropping"
    if not credentials.may_set_groups():
        return "setgroups(2) in this user namespace", "map groups as root: `newgidmap`"
    if others := credentials.other_threads():
        return f"a process of one thread, here is {', '.join(others)}", "drop before threads start"
    return None


_DEVICES = ("pf", "ipfilter")
_CHECKS: dict[str, Callable[[], Lack | None]] = {
    "listen": lambda: _open(address=("0.0.0.0", 0), flags=COMM_TPROXY_LCL),
    "spoof": lambda: _open(address=_ANYONE, flags=COMM_TPROXY_REM),
    "mark": lambda: _open(mark=1),
    "device": _interface,
    "low port": _low_port,
    "lookup": _lookup,
    "pf": lambda: _device("pf"),
    "ipfilter": lambda: _device("ipfilter"),
    "drop": _drop,
}
