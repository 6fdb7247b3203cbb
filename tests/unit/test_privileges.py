"""Reading credentials, resolving users, and every refusal that comes before anything is changed."""

from __future__ import annotations

import errno
import os
import pwd
import threading
from pathlib import Path

import pytest
from fake_devices import Pf, pretend
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import credentials, privileges
from lusca_comm.credentials import Credentials, bits_of, names_of, parse
from lusca_comm.errors import CommError
from lusca_comm.privileges import Requirement, drop_privileges, preflight, prepare

ids = st.integers(0, 2**32 - 2)
sets = st.integers(0, 2**64 - 1)
NOBODY = Credentials((99,) * 4, (99,) * 4, frozenset({99}), 0, 0, 0, 0, 0)


# -- status files --------------------------------------------------------------------------------


def status_of(c: Credentials, ambient: bool = True) -> str:
    """proc_pid_status(5)"""
    uids, gids = ("\t".join(map(str, four)) for four in (c.uids, c.gids))
    groups = "".join(f"{group} " for group in sorted(c.groups))
    text = f"Name:\tx: y\nUid:\t{uids}\nGid:\t{gids}\nFDSize:\t64\nGroups:\t{groups}\n"
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", *(["CapAmb"] if ambient else []))
    values = (c.inheritable, c.permitted, c.effective, c.bounding, c.ambient)
    return text + "".join(f"{n}:\t{v:016x}\n" for n, v in zip(names, values, strict=False))


@given(
    st.builds(
        Credentials, st.tuples(*[ids] * 4), st.tuples(*[ids] * 4), st.frozensets(ids), *[sets] * 5
    )
)
def test_a_status_file(wanted):
    assert parse(status_of(wanted)) == wanted
    assert parse(status_of(wanted, ambient=False)) == wanted._replace(ambient=0)


@given(st.text())
def test_any_text(text):
    try:
        parse(text)
    except ValueError:
        return
    assert "Uid" in text


@pytest.mark.parametrize("lost", ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd"])
def test_a_line_is_missing(lost):
    lines = status_of(NOBODY).splitlines()
    text = "\n".join(line for line in lines if not line.startswith(lost))
    with pytest.raises(ValueError, match=lost):
        parse(text)


def test_three_uids():
    with pytest.raises(ValueError, match="four"):
        parse(status_of(NOBODY._replace(uids=(1, 2, 3))))


def test_this_process():
    own = credentials.own()
    assert own.uids[:3] == os.getresuid()
    assert own.gids[:3] == os.getresgid()
    assert own.groups == frozenset(os.getgroups())
    assert credentials.of_threads()[threading.get_native_id()] == own


# -- names ---------------------------------------------------------------------------------------


def test_the_numbers_are_the_kernels():
    """linux/capability.h; every one that this kernel knows has a name."""
    numbers = credentials.numbers()
    assert [numbers[n] for n in ("CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN")] == [
        0,
        10,
        12,
    ]
    assert (numbers["CAP_NET_RAW"], numbers["CAP_BPF"]) == (13, 39)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert sorted(numbers.values()) == list(range(len(numbers)))
    assert len(numbers) >= min(last + 1, 41)


@given(st.sets(st.sampled_from(sorted(credentials.numbers()))))
def test_bits_and_names(names):
    assert set(names_of(bits_of(names)).split()) == (names or {"none"})


def test_a_bit_without_a_name():
    assert names_of(1 << 63 | bits_of(["CAP_CHOWN"])) == "CAP_CHOWN 0x8000000000000000"


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


def test_a_uid_without_an_entry():
    assert privileges._target(4_000_000_000, 12345) == (4_000_000_000, 12345, {12345})


# -- refused before anything is changed ----------------------------------------------------------

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


def test_a_thread_that_python_does_not_know(monkeypatch):
    monkeypatch.setattr(credentials, "_tasks", lambda: [threading.get_native_id(), 1 << 30])
    monkeypatch.setattr(credentials, "_GRACE", 0)
    assert credentials.other_threads() == [f"a thread ({1 << 30})"]


def test_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(credentials, "_TASKS", tmp_path / "gone")
    with pytest.raises(CommError, match="mount -t proc") as why:
        drop_privileges(None, keep=())
    assert why.value.errno == errno.ENOENT


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


# -- preflight -----------------------------------------------------------------------------------


def test_an_unknown_feature():
    with pytest.raises(CommError, match="no feature 'flight': one of listen, spoof,") as why:
        preflight(["flight"])
    assert why.value.errno == errno.EINVAL


def test_every_feature_has_a_row():
    rows = preflight()
    assert [row.feature for row in rows] == [
        *("listen", "spoof", "mark", "device", "low port", "lookup", "drop")
    ]
    assert all((row.missing == "") == row.ok for row in rows)
    assert all(row.ok or row.mend for row in rows)


def test_devices_of_other_systems():
    (row,) = preflight(["pf"])
    assert row == Requirement("pf", False, "not a mechanism of this system", "")


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        (Pf("freebsd"), ("pf", True, "", "")),
        (
            Pf("freebsd", absent=True),
            ("pf", False, "there is no /dev/pf", "`kldload pf`, on NetBSD `modload pf`"),
        ),
        (
            Pf("freebsd", owner=-1),
            (
                "pf",
                False,
                "/dev/pf is root's",
                "open the listener before privileges are dropped",
            ),
        ),
    ],
    ids=["there", "absent", "another user's"],
)
def test_a_device(machine, wanted):
    with pretend(machine):
        assert preflight(["pf"]) == (Requirement(*wanted),)
        assert "pf" in [row.feature for row in preflight()]
        (lookup,) = preflight(["lookup"])
    denied = machine.owner == -1
    assert lookup.ok is not denied
    if denied:
        assert lookup.missing == "pf, /dev/pf is root's"


def test_prepare_opens_the_device():
    with pretend(Pf("freebsd")) as pf:
        rows = {row.name: row.errno for row in prepare()}
        assert rows["pf"] == 0
        assert [path for path, _ in pf.opened] == ["/dev/pf"]
        prepare()
        assert len(pf.opened) == 1
