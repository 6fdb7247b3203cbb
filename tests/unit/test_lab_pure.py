"""The lab's parts that need no namespace."""

from __future__ import annotations

import errno
import itertools
import os
import re
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm.errors import CommError
from lusca_comm.lab import Lab, LabTimeout, LabUnavailable, wait_for
from lusca_comm.lab.capabilities import check
from lusca_comm.lab.topology import interface_name
from lusca_comm.lab.unavailable import explain, read_setting

GENEROUS = {
    "user.max_user_namespaces": "96365",
    "user.max_net_namespaces": "96365",
    "user.max_mnt_namespaces": "96365",
    "Seccomp": "0",
}


@pytest.mark.parametrize(
    ("number", "settings", "command"),
    [
        (
            errno.ENOSPC,
            {"user.max_user_namespaces": "0"},
            "is 0. Allow them: sudo sysctl -w user.max_user_namespaces=15000",
        ),
        (
            errno.ENOSPC,
            {"user.max_net_namespaces": "0"},
            "is 0. Allow them: sudo sysctl -w user.max_net_namespaces=15000",
        ),
        (errno.ENOSPC, {}, "limit on their number is reached. Raise it: sudo sysctl -w user.max_"),
        (
            errno.EPERM,
            {"kernel.unprivileged_userns_clone": "0"},
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            errno.EPERM,
            {"kernel.apparmor_restrict_unprivileged_userns": "1"},
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (errno.EACCES, {"kernel.apparmor_restrict_unprivileged_userns": "1"}, "AppArmor"),
        (errno.EPERM, {"Seccomp": "2"}, "--security-opt seccomp=unconfined"),
        (errno.EPERM, {}, "chroot"),
        (errno.EROFS, {}, "--security-opt systempaths=unconfined"),
        (errno.EINVAL, {}, "CONFIG_USER_NS"),
        # What is set as it should be is not the reason.
        (
            errno.EPERM,
            {
                "kernel.unprivileged_userns_clone": "1",
                "kernel.apparmor_restrict_unprivileged_userns": "0",
                "Seccomp": "2",
            },
            "a seccomp filter forbids it",
        ),
    ],
)
def test_refusal_names_the_reason_and_the_command(
    number: int, settings: dict[str, str], command: str
) -> None:
    error = OSError(number, os.strerror(number), "unshare")
    found = explain(error, (GENEROUS | settings).get)
    assert isinstance(found, LabUnavailable)
    assert found.errno == number
    assert command in str(found)
    assert f"unshare: {os.strerror(number)}" in str(found)
    assert "as root" in str(found)


def test_settings_are_read_from_this_machine() -> None:
    assert read_setting("kernel.ostype") == "Linux"
    assert read_setting("Seccomp") in {"0", "1", "2"}
    assert read_setting("kernel.no_such_setting") is None


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with pytest.raises(LabUnavailable, match="freebsd14") as caught:
        Lab()
    assert caught.value.errno == errno.ENOSYS


def test_missing_pyroute2_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    with pytest.raises(CommError, match=r"pip install 'lusca-comm\[cli\]'") as caught:
        Lab()
    assert not isinstance(caught.value, LabUnavailable)


def test_wait_for_returns_the_first_true_result_and_asks_no_more() -> None:
    asked = itertools.count(1)
    assert wait_for(lambda: (n := next(asked)) >= 3 and f"try {n}") == "try 3"
    assert next(asked) == 4


def test_wait_for_gives_up_saying_what_for() -> None:
    start = time.monotonic()
    with pytest.raises(LabTimeout, match=r"waited 0.02 s for the moon") as caught:
        wait_for(lambda: None, timeout=0.02, what="the moon")
    assert time.monotonic() - start >= 0.02
    assert caught.value.errno == errno.ETIMEDOUT
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, CommError)


def test_wait_for_asks_once_even_without_time() -> None:
    assert wait_for(lambda: "there", timeout=0) == "there"


def test_unknown_capabilities_are_refused() -> None:
    check({"CAP_NET_RAW", "CAP_NET_ADMIN"})
    with pytest.raises(CommError, match="not a capability: NET_RAW; names are as in") as caught:
        check({"NET_RAW"})
    assert caught.value.errno == errno.EINVAL


@given(st.lists(st.text(), max_size=30))
def test_interface_names_are_distinct_and_valid(peers: list[str]) -> None:
    taken = ["lo"]
    for peer in peers:
        name = interface_name(peer, taken)
        assert re.fullmatch(r"to-[A-Za-z0-9-]{0,12}", name)
        assert name not in taken
        taken.append(name)
