"""Who is to be become, every refusal that comes before anything is changed, and the proof."""

from __future__ import annotations

import errno
import os
import pwd
import threading

import pytest
from kernel.labs import in_child

from lusca_comm import credentials, privileges
from lusca_comm.credentials import Credentials, bits_of
from lusca_comm.errors import CommError
from lusca_comm.privileges import drop_privileges, preflight

NOBODY = Credentials((99,) * 4, (99,) * 4, frozenset({99}), 0, 0, 0, 0, 0)
ROOT = Credentials((0,) * 4, (0,) * 4, frozenset({0}), 0, *[2**41 - 1] * 3, 0)
SOMEONE = ROOT._replace(uids=(7,) * 4, gids=(7,) * 4, groups=frozenset({7}))
RAW = bits_of(["CAP_NET_RAW"])


def target(uid: int, gid: int = 7, groups: tuple[int, ...] = (7,)) -> privileges._Target:
    return privileges._Target(uid, gid, frozenset(groups))


def without(now: Credentials, *names: str) -> Credentials:
    bits = ~bits_of(names)
    return now._replace(effective=now.effective & bits, permitted=now.permitted & bits)


@pytest.fixture
def namespace(monkeypatch):
    """The maps of a user namespace, as the test sets them."""
    files = {"uid_map": "0 0 4294967295\n", "gid_map": "0 0 4294967295\n", "setgroups": "allow\n"}
    monkeypatch.setattr(credentials, "_namespace_file", files.__getitem__)
    return files


@pytest.mark.parametrize("keep", ["CAP_NET_RAW", ["cap_net_raw"], ["NET_RAW"], [""], [13]])
def test_what_is_no_capability(keep):
    with pytest.raises(CommError, match="not a set of capabilities") as why:
        drop_privileges(os.getuid(), keep=keep)
    assert why.value.errno == errno.EINVAL


# -- users ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "group", "said"),
    [
        ("no such user", None, "no user 'no such user'"),
        ("", None, "no user ''"),
        (4_000_000_000, None, "no user 4000000000"),
        (-1, 0, "no user -1"),
        (1 << 40, None, "no user"),
        (0, "no such group", "no group 'no such group'"),
        (None, 0, "a group goes with a user"),
    ],
)
def test_who_is_nobody(user, group, said):
    before = credentials.own()
    with pytest.raises(CommError, match=said) as why:
        drop_privileges(user, group=group)
    assert why.value.errno == errno.EINVAL
    assert credentials.own() == before


def test_a_user_has_its_groups():
    entry = pwd.getpwuid(0)
    groups = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    assert privileges._target("root", None) == (0, entry.pw_gid, groups)
    assert privileges._target(0, None) == (0, entry.pw_gid, groups)


def test_a_group_instead_of_the_users():
    target = privileges._target("root", 12345)
    assert (target.gid, 12345 in target.groups) == (12345, True)


def test_a_user_has_its_supplementary_groups(monkeypatch):
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 12345])
    assert privileges._target("root", None).groups == {0, 12345}


def test_a_uid_without_an_entry():
    assert privileges._target(4_000_000_000, 12345) == (4_000_000_000, 12345, {12345})


# -- refused before anything is changed ----------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "asked", "keep", "lacking"),
    [
        (without(ROOT, "CAP_SETUID"), target(7), RAW, "CAP_SETUID"),
        (without(ROOT, "CAP_SETGID"), target(7), RAW, "CAP_SETGID"),
        (without(SOMEONE, "CAP_SETGID"), target(7, groups=(7, 8)), RAW, "CAP_SETGID"),
        (without(SOMEONE, "CAP_SETGID"), target(7, gid=8), RAW, "CAP_SETGID"),
        (without(ROOT, "CAP_SETPCAP"), target(0, 0, (0,)), RAW, "CAP_SETPCAP"),
        (without(ROOT, "CAP_NET_RAW"), target(7), RAW, "CAP_NET_RAW"),
    ],
)
def test_what_the_kernel_would_refuse(namespace, now, asked, keep, lacking):
    with pytest.raises(CommError, match=lacking) as why:
        privileges._check(now, asked, keep)
    assert why.value.errno == errno.EPERM


@pytest.mark.parametrize(
    ("now", "asked", "keep"),
    [
        (ROOT, target(7), RAW),
        (ROOT, target(0, 0, (0,)), RAW),
        (without(ROOT, "CAP_SETPCAP")._replace(bounding=0), target(0, 0, (0,)), RAW),
        (without(SOMEONE, "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"), target(7), RAW),
        (NOBODY._replace(uids=(99, 98, 97, 98)), target(97, 99, (99,)), 0),
    ],
)
def test_what_the_kernel_would_allow(namespace, now, asked, keep):
    privileges._check(now, asked, keep)


def test_a_namespace_without_setgroups(namespace):
    namespace["setgroups"] = "deny\n"
    with pytest.raises(CommError, match="setgroups") as why:
        privileges._check(ROOT, target(7), 0)
    assert why.value.errno == errno.EPERM
    privileges._check(SOMEONE, target(7), 0)


def test_groups_that_the_namespace_cannot_name(namespace):
    """The kernel shows them as 65534; they can be kept."""
    namespace["setgroups"], namespace["gid_map"] = "deny\n", "7 1000 1\n"
    now = SOMEONE._replace(groups=frozenset({7, 65534}))
    privileges._check(now, target(7, groups=(7, 65534)), 0)


@pytest.mark.parametrize(
    ("file", "text", "gone"),
    [
        ("uid_map", "0 1000 1\n", "7"),
        ("gid_map", "0 1000 1\n8 2000 100\n", "7"),
        ("gid_map", "7 1000 1\n", "8"),
        ("uid_map", "", "7"),
    ],
)
def test_an_id_that_the_namespace_has_not(namespace, file, text, gone):
    namespace[file] = text
    with pytest.raises(CommError, match=f"no id {gone}:") as why:
        privileges._check(ROOT, target(7, groups=(7, 8)), 0)
    assert why.value.errno == errno.EINVAL


def test_other_threads():
    """Named, and nothing is changed; a thread that has ended is none."""

    def run() -> None:
        before = credentials.own()
        go = threading.Event()
        thread = threading.Thread(target=go.wait, name="the other one")
        thread.start()
        try:
            with pytest.raises(CommError, match="other threads run: the other one") as why:
                drop_privileges(None, keep=())
            assert why.value.errno == errno.EBUSY
            assert credentials.own() == before
            assert preflight(["drop"])[0].ok is False
        finally:
            go.set()
            thread.join()
        assert credentials.other_threads() == []

    in_child(run)


def test_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(credentials, "_TASKS", tmp_path / "gone")
    with pytest.raises(CommError, match="mount -t proc") as why:
        drop_privileges(None, keep=())
    assert why.value.errno == errno.ENOENT


def test_the_first_step_changes_nothing_if_it_fails():
    def fail() -> None:
        raise OSError(errno.EPERM, "no")

    steps = [("first", lambda: None), ("second", fail)]
    with pytest.raises(CommError, match=r"second: .*half dropped"):
        privileges._in_steps(steps, lambda: "")
    with pytest.raises(CommError, match=r"second: Operation not permitted$"):
        privileges._in_steps(steps[1:], lambda: "")


# -- the proof -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("uids", (7, 7, 0, 7)),
        ("gids", (7, 0, 7, 7)),
        ("groups", frozenset({7, 0})),
        ("inheritable", 1),
        ("permitted", RAW | 1),
        ("effective", 0),
        ("ambient", RAW),
    ],
)
def test_a_thread_that_is_not_as_asked(monkeypatch, field, value):
    good = NOBODY._replace(
        uids=(7,) * 4,
        gids=(7,) * 4,
        groups=frozenset({7}),
        permitted=RAW,
        effective=RAW,
        bounding=5,
    )
    threads = {1: good, 2: good}
    monkeypatch.setattr(credentials, "of_threads", lambda: threads)
    assert privileges._proof(target(7), RAW) == ""
    threads[2] = good._replace(**{field: value})
    assert privileges._proof(target(7), RAW).startswith(f"{field} of thread 2 became ")


def test_uid_0_without_its_bounding_set(monkeypatch):
    now = ROOT._replace(permitted=RAW, effective=RAW, bounding=RAW)
    monkeypatch.setattr(credentials, "of_threads", lambda: {1: now})
    assert "bounding" in privileges._proof(target(0, 0, (0,)), RAW)
    now = now._replace(bounding=0)
    assert privileges._proof(target(0, 0, (0,)), RAW) == ""


@pytest.mark.parametrize("calls", ["res", "only two"])
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("uid", (7, 7, 7), ""),
        ("uid", (7, 0, 7), "uids became"),
        ("gid", (0, 7, 7), "uids became"),
        ("groups", [7], "groups became"),
        ("groups", [7, 8, 9], "groups became"),
        ("groups", [8], ""),  # the gid itself need not be among them
    ],
)
def test_the_proof_of_systems_without_capabilities(monkeypatch, calls, name, value, said):
    now = {"uid": (7, 7, 7), "gid": (7, 7, 7), "groups": [7, 8], name: value}
    monkeypatch.setattr(os, "getgroups", lambda: now["groups"])
    for kind in ("uid", "gid"):
        if calls == "res":
            monkeypatch.setattr(os, f"getres{kind}", lambda kind=kind: now[kind])
        else:
            monkeypatch.delattr(os, f"getres{kind}")
            monkeypatch.setattr(os, f"get{kind}", lambda kind=kind: now[kind][0])
            monkeypatch.setattr(os, f"gete{kind}", lambda kind=kind: now[kind][1])
    wrong = privileges._proof_by_ids(target(7, groups=(7, 8)))
    assert wrong.startswith(said)
    assert bool(wrong) == bool(said)
