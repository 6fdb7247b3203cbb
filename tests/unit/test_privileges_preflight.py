"""What is missing for which feature, and the devices that are opened first."""

from __future__ import annotations

import errno
import socket

import pytest
from fake_devices import Pf, pretend

from lusca_comm import credentials
from lusca_comm.credentials import Credentials, bits_of
from lusca_comm.errors import CommError
from lusca_comm.privileges import Requirement, preflight, prepare

ALL = Credentials((0,) * 4, (0,) * 4, frozenset({0}), 0, *[2**41 - 1] * 3, 0)


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


def test_what_is_not_a_matter_of_privileges(monkeypatch):
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(9, "nosuch0")])
    (row,) = preflight(["device"])
    assert row == ("device", False, "device 'nosuch0': No such device", "see `ip link`")


def test_a_namespace_in_which_nobody_can_become_another(monkeypatch):
    says = {"setgroups": "allow\n"}
    monkeypatch.setattr(credentials, "_namespace_file", says.__getitem__)
    monkeypatch.setattr(credentials, "own", lambda: ALL)
    monkeypatch.setattr(credentials, "other_threads", list)
    assert preflight(["drop"])[0].ok
    says["setgroups"] = "deny\n"
    assert preflight(["drop"])[0].missing == "setgroups(2) in this user namespace"
    monkeypatch.setattr(credentials, "own", lambda: ALL._replace(effective=bits_of(["CAP_SETGID"])))
    assert preflight(["drop"])[0].missing == "CAP_SETUID"


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
