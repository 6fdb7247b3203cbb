"""Why a machine refuses namespaces, and the command that allows them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from lusca_comm.errors import CommError

__all__ = ["LabUnavailable", "explain", "read_setting"]


class LabUnavailable(CommError):
    """This machine does not let us make namespaces; the text says why and what allows them."""


def read_setting(name: str) -> str | None:
    """A sysctl's value, or the ``Seccomp`` field of /proc/self/status; None where absent."""
    try:
        if name == "Seccomp":
            lines = Path("/proc/self/status").read_text().splitlines()
            return next((line.split()[1] for line in lines if line.startswith("Seccomp:")), None)
        return Path("/proc/sys", name.replace(".", "/")).read_text().strip()
    except OSError:
        return None


def explain(error: OSError, read: Callable[[str], str | None] = read_setting) -> LabUnavailable:
    """The exception for a failed step: what ``read`` shows of the machine picks the reason."""
    number = error.errno or errno.EPERM
    refused = number in (errno.EPERM, errno.EACCES)
    limits = [f"user.max_{kind}_namespaces" for kind in ("user", "net", "mnt")]
    none_allowed = next((name for name in limits if read(name) == "0"), None)
    if none_allowed is not None and number in (errno.ENOSPC, errno.EUSERS, errno.EPERM):
        why = f"{none_allowed} is 0. Allow them: sudo sysctl -w {none_allowed}=15000"
    elif number in (errno.ENOSPC, errno.EUSERS):
        raised = " ".join(f"{name}=15000" for name in limits)
        why = f"the limit on their number is reached. Raise it: sudo sysctl -w {raised}"
    elif refused and read("kernel.unprivileged_userns_clone") == "0":
        why = (
            "kernel.unprivileged_userns_clone is 0. "
            "Allow them: sudo sysctl -w kernel.unprivileged_userns_clone=1"
        )
    elif refused and read("kernel.apparmor_restrict_unprivileged_userns") == "1":
        why = (
            "AppArmor restricts user namespaces. "
            "Allow them: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    elif number == errno.EROFS:
        why = (
            "/proc/sys is read-only, as in a container. "
            "Start the container with --security-opt systempaths=unconfined, or --privileged"
        )
    elif refused and read("Seccomp") == "2":
        why = (
            "a seccomp filter forbids it, as in a container or a service with RestrictNamespaces=. "
            "Start the container with --cap-add SYS_ADMIN --cap-add NET_ADMIN "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        )
    elif refused:
        why = (
            "the process is in a chroot or under a security module that forbids it. Run it outside,"
            " or in a container started with --privileged"
        )
    else:
        why = (
            "the kernel lacks CONFIG_USER_NS, CONFIG_NET_NS or CONFIG_SYSFS; use one that has them"
        )
    step = f"{error.filename}: " if error.filename else ""
    return LabUnavailable(
        number,
        f"no network namespaces here ({step}{os.strerror(number)}): {why}; "
        "or run this as root on the machine itself",
    )
