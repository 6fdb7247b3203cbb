"""Who the threads of this process are: credentials(7), capabilities(7), as /proc tells.

Linux keeps credentials per thread. The C library changes uids and groups of every thread at once;
capabilities it leaves to each.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ._shim import ffi, lib
from .errors import CommError

__all__ = [
    "Credentials",
    "bits_of",
    "may_set_groups",
    "names_of",
    "numbers",
    "of_threads",
    "other_threads",
    "own",
    "parse",
    "unmapped",
]

_TASKS = Path("/proc/self/task")
_GRACE = 0.2  # seconds


class Credentials(NamedTuple):
    """Of one thread. Capabilities are bit sets, 1 << number."""

    uids: tuple[int, ...]
    """Real, effective, saved, file system."""
    gids: tuple[int, ...]
    groups: frozenset[int]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int

    def has(self, name: str) -> bool:
        return bool(self.effective & bits_of([name]))


@functools.cache
def numbers() -> dict[str, int]:
    """The numbers of the capabilities by name; empty where the system has none."""
    found: dict[str, int] = {}
    while (name := lib.lc_capability_name(len(found))) != ffi.NULL:
        found[ffi.string(name).decode()] = len(found)
    return found


def bits_of(names: Collection[str]) -> int:
    """Raises CommError (EINVAL) for a name that is no capability's."""
    known = numbers()
    if isinstance(names, str) or (unknown := sorted(set(names) - set(known))):
        text = names if isinstance(names, str) else ", ".join(map(str, unknown))
        raise CommError(
            errno.EINVAL,
            f"not a set of capabilities: {text}; names are as in capabilities(7), CAP_NET_RAW",
        )
    return sum(1 << known[name] for name in set(names))


def names_of(bits: int) -> str:
    """For messages."""
    named = [name for name, number in numbers().items() if bits >> number & 1]
    rest = bits & ~bits_of(named)
    return " ".join(named + ([f"{rest:#x}"] if rest else [])) or "none"


def parse(status: str) -> Credentials:
    """Of a status file, proc_pid_status(5). Raises ValueError for what is none."""
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        uids, gids, groups = (
            tuple(map(int, lines[name].split())) for name in ("Uid", "Gid", "Groups")
        )
        inheritable, permitted, effective, bounding = (
            int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")
        )
    except KeyError as missing:
        raise ValueError(f"no line {missing}") from None
    if len(uids) != 4 or len(gids) != 4:
        raise ValueError("Uid and Gid have four numbers each")
    ambient = int(lines.get("CapAmb", "0"), 16)  # Linux 4.3
    return Credentials(
        uids, gids, frozenset(groups), inheritable, permitted, effective, bounding, ambient
    )


def of_threads() -> dict[int, Credentials]:
    """Of every thread of this process, by thread id.

    Raises CommError where there is no /proc.
    """
    found = {}
    for task in _tasks():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            found[task] = parse((_TASKS / str(task) / "status").read_text())
    return found


def own() -> Credentials:
    """Of the calling thread."""
    return of_threads()[threading.get_native_id()]


def may_set_groups() -> bool:
    """Whether this user namespace allows setgroups(2) at all, user_namespaces(7)."""
    return _namespace_file("setgroups").strip() != "deny"


def unmapped(table: str, ids: Collection[int]) -> list[int]:
    """Those of `ids` that do not exist in this user namespace; `table` is uid_map or gid_map."""
    rows = (map(int, line.split()) for line in _namespace_file(table).splitlines())
    ranges = [range(first, first + count) for first, _, count in rows]
    return [i for i in sorted(ids) if not any(i in some for some in ranges)]


def _namespace_file(name: str) -> str:
    return Path("/proc/self", name).read_text()


def other_threads() -> list[str]:
    """The threads beside the calling one, by name.

    A thread that was joined can be seen for a moment more: it says that it is gone just before it
    goes (clear_child_tid). So they are looked at again, for 0.2 s.
    """
    this = threading.get_native_id()
    until = time.monotonic() + _GRACE
    while (others := [task for task in _tasks() if task != this]) and time.monotonic() < until:
        time.sleep(0.002)  # noqa: TID251
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    return [known.get(task) or _name(task) for task in others]


def _name(task: int) -> str:
    try:
        name = (_TASKS / str(task) / "comm").read_text().strip()
    except OSError:
        name = ""
    return f"{name or 'a thread'} ({task})"


def _tasks() -> list[int]:
    try:
        return sorted(int(task.name) for task in _TASKS.iterdir())
    except OSError as why:
        raise CommError(
            why.errno or errno.ENOENT,
            "the credentials of threads are read from /proc: `mount -t proc proc /proc`",
        ) from why
