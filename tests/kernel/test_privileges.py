"""Who may do what: root, ordinary users with one capability or none, and everybody after a drop."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from kernel.labs import in_child
from kernel.privileged import (
    ADMIN,
    BIND,
    IS_ROOT,
    NOBODY,
    RAW,
    allowed,
    assert_only,
    become,
    can,
    executed,
    real_root,
)

import lusca_comm as lc
from lusca_comm import credentials
from lusca_comm._shim import lib
from lusca_comm.lab import Host, Lab

SETS: list[tuple[str, ...]] = [(), (RAW,), (ADMIN,), (BIND,), (RAW, ADMIN), (RAW, BIND)]
of_sets = pytest.mark.parametrize("names", SETS, ids=lambda s: "+".join(s) or "none")


@pytest.fixture
def router(lab: Lab) -> Host:
    return lab.host("router")


def test_root(router: Host) -> None:
    assert router.run(can) == allowed([RAW, ADMIN, BIND])


@of_sets
def test_uid_0_with_some_capabilities(router: Host, names: tuple[str, ...]) -> None:
    assert router.run(can, capabilities=names) == allowed(names)


@real_root
@of_sets
def test_an_ordinary_user_with_some_capabilities(router: Host, names: tuple[str, ...]) -> None:
    def run() -> set[str]:
        become(NOBODY, names)
        return can()

    assert router.run(run) == allowed(names)


def test_an_ordinary_user_on_the_machine_itself() -> None:
    """No namespace around it: who runs the tests, or "nobody" where that is root."""

    def run() -> dict[str, str]:
        if IS_ROOT:
            become(NOBODY, ())
        else:
            lib.lc_capabilities_set(0)
        return {row.feature: row.missing for row in lc.preflight() if not row.ok}

    start = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip()
    either = "CAP_NET_RAW or CAP_NET_ADMIN"
    wanted = {"listen": either, "spoof": either, "mark": either}
    if int(start) > 1:
        wanted["low port"] = f"CAP_NET_BIND_SERVICE, for ports below {start}"
    missing = in_child(run)
    assert {name: missing.get(name) for name in wanted} == wanted
    assert missing["drop"] == "CAP_SETGID and CAP_SETUID"


@of_sets
def test_after_capabilities_were_dropped(router: Host, names: tuple[str, ...]) -> None:
    """The uid stays: it is the lab's 0, which gets back whatever it executes unless that is barred
    as well."""

    def run() -> tuple[set[str], credentials.Credentials, credentials.Credentials]:
        lc.drop_privileges(None, keep=names)
        return can(), credentials.own(), executed()

    able, own, child = router.run(run)
    assert able == allowed(names)
    assert_only(own, names)
    assert (own.bounding, child.permitted, child.effective) == (0, 0, 0)


@real_root
@of_sets
def test_after_becoming_another_user(router: Host, tmp_path: Path, names: tuple[str, ...]) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)

    def run() -> tuple[set[str], credentials.Credentials, credentials.Credentials]:
        lc.drop_privileges(NOBODY, keep=names)
        with pytest.raises(PermissionError):
            secret.open()
        for uid in (0, 1):
            with pytest.raises(PermissionError):
                os.setuid(uid)
            with pytest.raises(PermissionError):
                os.setgid(uid)
        with pytest.raises(PermissionError):
            os.setgroups([0])
        return can(), credentials.own(), executed()

    able, own, child = router.run(run)
    entry = pwd.getpwnam(NOBODY)
    assert able == allowed(names)
    assert (own.uids, own.gids) == ((entry.pw_uid,) * 4, (entry.pw_gid,) * 4)
    assert own.groups == frozenset(os.getgrouplist(NOBODY, entry.pw_gid))
    assert_only(own, names)
    assert (child.permitted, child.effective, child.ambient) == (0, 0, 0)
