"""Dropping privileges: the ways of becoming somebody, what goes wrong, threads and devices."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import threading
from pathlib import Path
from typing import Any

import pytest
from connections import ELSEWHERE, accepted
from fake_devices import Entry, Pf, pretend
from kernel.labs import in_child
from kernel.privileged import (
    ADMIN,
    BIND,
    NOBODY,
    RAW,
    assert_only,
    become,
    can,
    executed,
    real_root,
)

import lusca_comm as lc
from lusca_comm import credentials
from lusca_comm.lab import Host, Lab
from lusca_comm.lab import capabilities as caps
from lusca_comm.plane import Plane
from lusca_comm.privileges import DEFAULT_KEEP

PR_GET_KEEPCAPS = 7  # linux/prctl.h
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2


@pytest.fixture
def router(lab: Lab) -> Host:
    return lab.host("router")


@real_root
def test_a_uid_and_a_gid_without_entries(router: Host) -> None:
    def run() -> credentials.Credentials:
        lc.drop_privileges(54321, group=54322)
        return credentials.own()

    own = router.run(run)
    assert (own.uids, own.gids, own.groups) == ((54321,) * 4, (54322,) * 4, {54322})
    assert_only(own, DEFAULT_KEEP)


@real_root
def test_supplementary_groups(router: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 54321, 12])

    def run() -> credentials.Credentials:
        lc.drop_privileges(NOBODY)
        return credentials.own()

    assert router.run(run).groups == {pwd.getpwnam(NOBODY).pw_gid, 54321, 12}


@real_root
def test_a_later_change_of_uid_keeps_nothing(router: Host) -> None:
    """PR_SET_KEEPCAPS ends with the drop."""

    def run() -> int:
        lc.drop_privileges(NOBODY, keep=[RAW, "CAP_SETUID"])
        return int(caps.ctypes.CDLL(None).prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0))

    assert router.run(run) == 0


def test_uid_0_and_its_bounding_set(router: Host) -> None:
    """Where it cannot be emptied, what uid 0 executes would get it back: refused."""

    def run() -> bool:
        before = credentials.own()
        with pytest.raises(lc.CommError, match="CAP_SETPCAP") as why:
            lc.drop_privileges(None)
        assert why.value.errno == errno.EPERM
        return credentials.own() == before

    assert router.run(run, capabilities=[RAW])
    router.run(lc.drop_privileges, None, keep=(), capabilities=())


@real_root
def test_twice(router: Host) -> None:
    """The second time there is nothing to give away but what was kept."""

    def run() -> credentials.Credentials:
        lc.drop_privileges(NOBODY, keep=[RAW, BIND])
        with pytest.raises(lc.CommError, match="CAP_SETUID"):
            lc.drop_privileges(0)
        with pytest.raises(lc.CommError, match=ADMIN):
            lc.drop_privileges(NOBODY, keep=[ADMIN])
        lc.drop_privileges(NOBODY, keep=[RAW])
        lc.drop_privileges(None, keep=[RAW])
        return credentials.own()

    assert_only(router.run(run), [RAW])


@real_root
def test_ambient_capabilities_end(router: Host) -> None:
    """As systemd's AmbientCapabilities= starts a service: programs that it executes have them too,
    until the drop."""

    def run() -> tuple[credentials.Credentials, ...]:
        become(NOBODY, [RAW, BIND])
        bits = credentials.bits_of([RAW, BIND])
        data = (caps._Data * 2)(caps._Data(bits, bits, bits), caps._Data(0, 0, 0))
        caps._call("capset", caps.ctypes.byref(caps._Header(caps._VERSION_3, 0)), data)
        for name in (RAW, BIND):
            number = credentials.numbers()[name]
            args = (PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)
            caps._call("prctl", *map(caps.ctypes.c_ulong, args))
        before = executed()
        lc.drop_privileges(None)
        return before, credentials.own(), executed()

    before, own, after = router.run(run)
    assert before.effective == credentials.bits_of([RAW, BIND])
    assert_only(own, [RAW])
    assert (after.permitted, after.effective, after.ambient) == (0, 0, 0)


@real_root
def test_elsewhere_nothing_is_kept(router: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of systems without capabilities, by this one's calls."""

    def run(setresuid: bool) -> tuple[credentials.Credentials, set[str]]:
        known = credentials.numbers()
        with monkeypatch.context() as patch:
            patch.setattr(credentials, "numbers", dict)
            if not setresuid:
                for name in ("setresuid", "setresgid", "getresuid", "getresgid"):
                    patch.delattr(os, name)
            lc.drop_privileges(NOBODY)
        assert credentials.numbers() == known
        return credentials.own(), can()

    entry = pwd.getpwnam(NOBODY)
    for setresuid in (True, False):
        own, able = router.run(run, setresuid)
        assert (own.uids, own.gids) == ((entry.pw_uid,) * 4, (entry.pw_gid,) * 4)
        assert own.groups == frozenset(os.getgrouplist(NOBODY, entry.pw_gid))
        assert (own.permitted, able) == (0, set())


@real_root
@pytest.mark.parametrize("step", ["setgroups", "setresgid", "setresuid"])
def test_half_dropped(router: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What no check foresaw is never silent."""

    def run() -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError(errno.EPERM, "no")

        monkeypatch.setattr(os, step, refuse)
        with pytest.raises(lc.CommError, match=f"^.*{step}.*half dropped, end this process"):
            lc.drop_privileges(1 if step == "setgroups" else NOBODY)

    router.run(run)


@real_root
def test_a_change_that_did_not_happen_is_seen(
    router: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> None:
        monkeypatch.setattr(os, name, lambda *_: None)
        with pytest.raises(lc.CommError, match=r"became .* and not .*half dropped"):
            lc.drop_privileges(NOBODY)

    for name in ("setgroups", "setresgid", "setresuid"):
        router.run(run, name)


# -- threads -------------------------------------------------------------------------------------


def test_threads(router: Host) -> None:
    """One that was there before is in the way; one that comes after has what was kept."""

    def run() -> dict[int, credentials.Credentials]:
        before, go = credentials.own(), threading.Event()
        early = threading.Thread(target=go.wait, name="early bird")
        early.start()
        with pytest.raises(lc.CommError, match="other threads run: early bird") as why:
            lc.drop_privileges(None)
        assert why.value.errno == errno.EBUSY
        assert credentials.own() == before
        go.set()
        early.join()
        lc.drop_privileges(None)
        go.clear()
        late = threading.Thread(target=go.wait)
        late.start()
        all_of_them = credentials.of_threads()
        go.set()
        late.join()
        return all_of_them

    threads = router.run(run)
    assert len(threads) == 2
    for own in threads.values():
        assert_only(own, DEFAULT_KEEP)


def test_a_data_plane(router: Host) -> None:
    """Its thread is one that does not change along."""

    def run() -> credentials.Credentials:
        plane = Plane()
        plane.fileno()
        assert plane.started
        with pytest.raises(lc.CommError, match="other threads run: lusca plane"):
            lc.drop_privileges(None)
        plane.stop()
        lc.drop_privileges(None)
        return credentials.own()

    assert_only(router.run(run), DEFAULT_KEEP)


# -- devices -------------------------------------------------------------------------------------


class RootsPf(Pf):
    """PF whose device is a real file that only its owner may open."""

    def __init__(self, file: Path, *entries: Entry) -> None:
        super().__init__("freebsd", *entries)
        self.file = file
        file.touch(0o600)
        self.inode = file.stat().st_ino

    def open(self, path: str, flags: int) -> int:
        self.opened.append((path, flags))
        if path != self.path:
            return -errno.ENOENT
        try:
            fd = os.open(self.file, flags)
        except OSError as why:
            return -(why.errno or errno.EIO)
        self.descriptors.append(fd)
        return fd

    def control(self, fd: int, command: int, argument: Any) -> int:
        assert os.fstat(fd).st_ino == self.inode
        return super().control(fd, command, argument)


@real_root
@pytest.mark.parametrize("prepared", [True, False])
def test_a_device_that_was_opened_before(tmp_path: Path, prepared: bool) -> None:
    def run() -> tuple[Any, int, bool]:
        with accepted(4) as (sock, client, local), contextlib.ExitStack() as stack:
            machine = RootsPf(tmp_path / "pf", Entry(client, local, ELSEWHERE[4]))
            stack.enter_context(pretend(machine))
            if prepared:
                assert {row.name: row.errno for row in lc.prepare()}["pf"] == 0
            lc.drop_privileges(NOBODY)
            with pytest.raises(PermissionError):
                machine.file.open()
            (row,) = lc.preflight(["pf"])
            try:
                return lc.original_destination(sock).address, 0, row.ok
            except lc.CommError as why:
                return None, why.errno or 0, row.ok

    if prepared:
        assert in_child(run) == (ELSEWHERE[4], 0, True)
    else:
        assert in_child(run) == (None, errno.EACCES, False)
