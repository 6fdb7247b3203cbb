"""The PF engine on every system's layout, asked through the real API, against an emulated /dev/pf.

The connections are real ones over the loopback; only what PF knows of them is emulated.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from connections import ELSEWHERE, PROTOS, accepted, host_and_port, in_child, of_datagram
from fake_devices import IN, OUT, PF, TCP, UDP, Ends, Entry, Pf, pretend
from hypothesis import given, settings
from hypothesis import strategies as st

import lusca_comm as lc
from lusca_comm._shim import lib
from lusca_comm.engines import row_of

SYSTEMS = list(PF["systems"])
ROW = row_of("pf")
every_system = pytest.mark.parametrize("system", SYSTEMS)
every_family = pytest.mark.parametrize("family", [4, 6])


@every_system
@every_family
@pytest.mark.parametrize("proto", [TCP, UDP])
@pytest.mark.parametrize("named", [True, False])
def test_redirected(system: str, family: int, proto: int, named: bool) -> None:
    with PROTOS[proto](family) as (sock, client, local):
        entry = Entry(client, local, ELSEWHERE[family], proto)
        with pretend(Pf(system, entry)) as pf:
            answer = lc.original_destination(sock, engine="pf" if named else None)
    assert answer == lc.Interception(ELSEWHERE[family], "pf", True)
    assert [(q.direction, q.client, q.local, q.proto) for q in pf.questions] == [
        (OUT, client, local, proto)
    ]


@every_system
@every_family
def test_began_on_this_machine(system: str, family: int) -> None:
    """PF_OUT knows nothing of it, PF_IN does."""
    with accepted(family) as (sock, client, local):
        entry = Entry(client, local, ELSEWHERE[family], began="here")
        with pretend(Pf(system, entry)) as pf:
            assert lc.original_destination(sock).address == ELSEWHERE[family]
    assert [q.direction for q in pf.questions] == [OUT, IN]


@every_system
def test_only_the_port_was_translated(system: str) -> None:
    with accepted(4) as (sock, client, local):
        original = (local[0], local[1] ^ 1)
        with pretend(Pf(system, Entry(client, local, original))):
            assert lc.original_destination(sock).address == original


@every_system
def test_v4_mapped(system: str) -> None:
    """A dual-stack listener's IPv4 connection is an IPv4 state."""
    with accepted(4, "::") as (sock, client, local):
        assert sock.family == socket.AF_INET6
        with pretend(Pf(system, Entry(client, local, ELSEWHERE[4]))):
            assert lc.original_destination(sock).address == ELSEWHERE[4]


@every_system
@every_family
@pytest.mark.parametrize("engine", ["pf", None])
def test_a_direct_connection_with_a_state(system: str, family: int, engine: str | None) -> None:
    with accepted(family) as (sock, client, local):
        with pretend(Pf(system, Entry(client, local, local))):
            with pytest.raises(lc.NotIntercepted):
                lc.original_destination(sock, engine=engine)


@every_system
@every_family
@pytest.mark.parametrize("engine", ["pf", None])
@pytest.mark.parametrize("state", ["none", "swapped", "another proto", "another port"])
def test_no_state(system: str, family: int, engine: str | None, state: str) -> None:
    with accepted(family) as (sock, client, local):
        there = ELSEWHERE[family]
        entries = {
            "none": [],
            "swapped": [Entry(local, client, there)],
            "another proto": [Entry(client, local, there, UDP)],
            "another port": [Entry((client[0], client[1] ^ 1), local, there)],
        }[state]
        with pretend(Pf(system, *entries)) as pf:
            with pytest.raises(lc.NotIntercepted) as why:
                lc.original_destination(sock, engine=engine)
    assert why.value.errno == errno.ENOENT
    assert [q.direction for q in pf.questions] == [OUT, IN]


@every_system
@pytest.mark.parametrize("engine", ["pf", None])
def test_several_states(system: str, engine: str | None) -> None:
    """Two states fit: the question has no answer, which is not "not intercepted"."""
    with accepted(4) as (sock, client, local):
        states = [Entry(client, local, (host, 80)) for host in ("198.51.100.2", "198.51.100.3")]
        with pretend(Pf(system, *states)) as pf:
            with pytest.raises(lc.CommError) as why:
                lc.original_destination(sock, engine=engine)
    assert why.value.errno == errno.E2BIG
    assert not isinstance(why.value, lc.NotIntercepted)
    assert [q.direction for q in pf.questions] == [OUT]


@every_system
@pytest.mark.parametrize(
    ("local", "client"),
    [
        (("192.0.2.1", 0), ("192.0.2.2", 40000)),
        (("192.0.2.1", 3129), ("192.0.2.2", 0)),
        (("0.0.0.0", 3129), ("192.0.2.2", 40000)),
        (("192.0.2.1", 3129), ("0.0.0.0", 40000)),
        (("::", 3129), ("2001:db8::2", 40000)),
    ],
)
def test_nothing_to_ask_about(system: str, local: Ends, client: Ends) -> None:
    """A zero port or address."""
    with pretend(Pf(system)):
        assert of_datagram(local, client, ROW)[0] == -errno.EINVAL


@pytest.mark.parametrize(
    ("row", "spoil"),
    [
        ("zero proto", {"proto": 0}),
        ("unknown af", {"af": 10}),
        ("large rdomain", {"rdomain": 0x7F7F}),
        ("another command", {}),
    ],
)
def test_what_the_engine_never_asks(row: str, spoil: dict[str, int]) -> None:
    """The rows that no question of the engine's reaches: the emulation itself has them right."""
    pf, at = Pf("openbsd"), PF["systems"]["openbsd"]
    data = bytearray(b"\1" * at["size"])
    data[at["af"]], data[at["rdomain"]], data[at["rdomain"] + 1] = socket.AF_INET, 0, 0
    for name, value in spoil.items():
        data[at[name]] = value & 0xFF
        if name == "rdomain":
            data[at[name] + 1] = value >> 8
    command = int(at["command"], 16) ^ (row == "another command")
    wanted = next(r["errno"] for r in PF["natlook"] if r["when"] == row)
    assert pf.answer(command, data) == getattr(errno, wanted)


def test_routing_domain() -> None:
    """On OpenBSD the connection's routing domain is part of the question."""
    with accepted(4) as (sock, client, local):
        entry = Entry(client, local, ELSEWHERE[4], rdomain=7)
        with pretend(Pf("openbsd", entry, rdomain=7)):
            assert lc.original_destination(sock).address == ELSEWHERE[4]
        with pretend(Pf("openbsd", entry, rdomain=0)), pytest.raises(lc.NotIntercepted):
            lc.original_destination(sock)
        with pretend(Pf("openbsd", entry, rdomain=-errno.EACCES)):
            with pytest.raises(lc.CommError) as why:
                lc.original_destination(sock, engine="pf")
    assert why.value.errno == errno.EACCES


@every_system
def test_link_local(system: str) -> None:
    """PF has the address without its interface; the answer has the connection's."""
    local, client, there = ("fe80::1", 3129), ("fe80::2", 40000), ("fe80::3", 80)
    with pretend(Pf(system, Entry(client, local, there, UDP))):
        err, origin = of_datagram(local, client, ROW, scope=5)
    assert (err, host_and_port(origin.original)) == (0, there)
    assert (origin.original.scope, origin.translated) == (5, 1)
    with pretend(Pf(system, Entry(client, local, local, UDP))):
        err, origin = of_datagram(local, client, ROW, scope=5)
    assert (err, origin.translated) == (0, 0)


ports = st.integers(1, 65535)
ends4 = st.tuples(st.ip_addresses(v=4).filter(lambda a: int(a) != 0).map(str), ports)
ends6 = st.tuples(
    st.ip_addresses(v=6).filter(lambda a: int(a) != 0 and a.ipv4_mapped is None).map(str), ports
)


@settings(max_examples=50)
@given(
    system=st.sampled_from(SYSTEMS),
    ends=st.tuples(ends4, ends4, ends4) | st.tuples(ends6, ends6, ends6),
    rdomain=st.integers(0, 255),
)
def test_any_address(system: str, ends: tuple[Ends, Ends, Ends], rdomain: int) -> None:
    client, local, original = ends
    domain = rdomain if system == "openbsd" else 0
    entry = Entry(client, local, original, UDP, rdomain=domain)
    with pretend(Pf(system, entry, rdomain=rdomain)) as pf:
        err, origin = of_datagram(local, client, ROW)
    assert err == 0
    assert host_and_port(origin.original) == original
    assert origin.translated == (original != local)
    assert pf.questions[0].rdomain == domain


# The device


def reason() -> str:
    return next(one.reason for one in lc.engines() if one.name == "pf")


@every_system
def test_opened_once_by_probing(system: str) -> None:
    with accepted(4) as (sock, client, local):
        with pretend(Pf(system, Entry(client, local, ELSEWHERE[4]))) as pf:
            assert reason() == ""
            assert reason() == ""
            for _ in range(3):
                lc.original_destination(sock)
            (fd,) = pf.descriptors
            assert not os.get_inheritable(fd)
    ((path, flags),) = pf.opened
    assert path == "/dev/pf"
    assert flags & os.O_ACCMODE == os.O_RDONLY
    assert flags & os.O_CLOEXEC


def test_a_listener_opens_it() -> None:
    with pretend(Pf("freebsd")) as pf:
        lc.comm_close(lc.comm_open(address=("127.0.0.1", 0), flags=lc.COMM_INTERCEPT))
    assert len(pf.opened) == 1


@every_system
def test_absent(system: str) -> None:
    """Without the device there is no PF: what came was not intercepted by it."""
    with accepted(4) as (sock, _, _), pretend(Pf(system, absent=True)):
        assert lib.lc_engine_probe(ROW) == -errno.ENXIO
        assert "kldload pf" in reason()
        with pytest.raises(lc.NotIntercepted):
            lc.original_destination(sock)
        with pytest.raises(lc.CommError) as why:
            lc.original_destination(sock, engine="pf")
    assert why.value.errno == errno.ENXIO


@every_system
@pytest.mark.parametrize("engine", ["pf", None])
def test_another_users(system: str, engine: str | None) -> None:
    """Whether the connection was intercepted cannot be known: an error, and not "it was not"."""
    with accepted(4) as (sock, client, local):
        entry = Entry(client, local, ELSEWHERE[4])
        with pretend(Pf(system, entry, owner=os.geteuid() + 1)) as pf:
            assert lib.lc_engine_probe(ROW) == -errno.EACCES
            assert "before privileges are dropped" in reason()
            with pytest.raises(lc.CommError) as why:
                lc.comm_open(address=("127.0.0.1", 0), flags=lc.COMM_INTERCEPT)
            assert (why.value.errno, "pf: /dev/pf is root's" in str(why.value)) == (
                errno.EACCES,
                True,
            )
            with pytest.raises(lc.CommError) as why:
                lc.original_destination(sock, engine=engine)
    assert why.value.errno == errno.EACCES
    assert not isinstance(why.value, lc.NotIntercepted)
    assert pf.questions == []


@every_system
def test_read_write_where_read_only_is_refused(system: str) -> None:
    """On macOS; elsewhere reading is enough, and writing is not asked for."""
    with accepted(4) as (sock, client, local):
        entry = Entry(client, local, ELSEWHERE[4])
        with pretend(Pf(system, entry, read_only_refused=True)) as pf:
            assert lib.lc_engine_probe(ROW) == (0 if system == "macos" else -errno.EACCES)
            if system == "macos":
                assert lc.original_destination(sock).address == ELSEWHERE[4]
    modes = [flags & os.O_ACCMODE for _, flags in pf.opened]
    assert modes == [os.O_RDONLY, os.O_RDWR][: 2 if system == "macos" else 1]


@every_system
def test_other_systems_are_asked_nothing(system: str) -> None:
    """The negative control: this system's own engines never reach a device."""
    with accepted(4) as (sock, client, local):
        pf = Pf("linux", Entry(client, local, ELSEWHERE[4]))
        with pretend(pf):
            assert reason() == "not a mechanism of this system"
            with pytest.raises(lc.NotIntercepted):
                lc.original_destination(sock)
            with pytest.raises(lc.NotIntercepted):
                lc.original_destination(sock, engine="pf")
    assert pf.opened == []


def become_another(pf: Pf) -> None:
    """Root really becomes "nobody"; for anyone else only the device is told so."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    else:
        pf.euid = lambda: pf.owner + 1


@every_system
def test_stays_open_over_fork_and_setuid(system: str) -> None:
    with accepted(4) as (sock, client, local):
        with pretend(Pf(system, Entry(client, local, ELSEWHERE[4]))) as pf:
            assert reason() == ""

            def dropped() -> None:
                become_another(pf)
                assert lc.original_destination(sock).address == ELSEWHERE[4]
                assert len(pf.opened) == 1

            assert in_child(dropped) == 0

        with pretend(Pf(system, Entry(client, local, ELSEWHERE[4]))) as unopened:

            def too_late() -> None:
                become_another(unopened)
                with pytest.raises(lc.CommError) as why:
                    lc.original_destination(sock)
                assert why.value.errno == errno.EACCES

            assert in_child(too_late) == 0


def test_closed_behind_its_back() -> None:
    """A daemon closes every descriptor it does not know; the number is a stranger's then."""
    with accepted(4) as (sock, client, local):
        with pretend(Pf("freebsd", Entry(client, local, ELSEWHERE[4]))) as pf:
            lc.original_destination(sock)
            (fd,) = pf.descriptors
            with socket.socket() as stranger:
                os.dup2(stranger.fileno(), fd)
            pf.descriptors.clear()
            assert lc.original_destination(sock).address == ELSEWHERE[4]
            assert len(pf.opened) == 2
            assert fd not in pf.descriptors
        assert os.fstat(fd)  # the stranger was not closed
        os.close(fd)


class Slow(Pf):
    """Each of two openings waits for the other to have begun."""

    both = Barrier(2, timeout=30)

    def open(self, path: str, flags: int) -> int:
        self.both.wait()
        return super().open(path, flags)


def test_two_threads_one_descriptor() -> None:
    with accepted(4) as (sock, client, local):
        with pretend(Slow("freebsd", Entry(client, local, ELSEWHERE[4]))) as pf:
            with ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(lambda _: lc.original_destination(sock), range(2)))
            kept = [fd for fd in pf.descriptors if is_open(fd)]
    assert [answer.address for answer in answers] == [ELSEWHERE[4]] * 2
    assert len(pf.descriptors) == 2
    assert len(kept) == 1


def is_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return os.fstat(fd).st_rdev == Path("/dev/null").stat().st_rdev
    return False
