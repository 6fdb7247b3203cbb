"""Credentials as /proc tells them, capabilities by name, and who else runs."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import credentials
from lusca_comm.credentials import Credentials, bits_of, names_of, parse
from lusca_comm.errors import CommError

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


def test_a_name_twice():
    assert bits_of(["CAP_NET_RAW", "CAP_NET_RAW"]) == 1 << 13


@pytest.mark.parametrize("name", ["CAP_NET_RAW", ""])
def test_a_name_in_place_of_a_set(name):
    with pytest.raises(CommError, match=f"capabilities: {name};"):
        bits_of(name)


def test_a_bit_without_a_name():
    assert names_of(1 << 63 | bits_of(["CAP_CHOWN"])) == "CAP_CHOWN 0x8000000000000000"


def test_a_thread_that_python_does_not_know(monkeypatch):
    monkeypatch.setattr(credentials, "_tasks", lambda: [threading.get_native_id(), 1 << 30])
    monkeypatch.setattr(credentials, "_GRACE", 0)
    assert credentials.other_threads() == [f"a thread ({1 << 30})"]


def test_a_thread_that_is_about_to_end(monkeypatch):
    seen = iter([[1 << 30], [1 << 30]])
    monkeypatch.setattr(credentials, "_tasks", lambda: next(seen, [threading.get_native_id()]))
    monkeypatch.setattr(credentials, "_GRACE", 60)
    assert credentials.other_threads() == []
