"""Who may do what: root, ordinary users with one capability or none, and everybody after a drop.

client 192.0.2.2 ---- 192.0.2.1 router 198.51.100.1 ---- 198.51.100.2 origin
                                (all of it happens here)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from connections import ELSEWHERE, accepted
from fake_devices import Entry, Pf, pretend
from kernel.labs import in_child
from kernel.proxying import FAMILIES, PROXY_PORT, WILDCARD, RelayProxy, fetch, intercept
from kernel.proxying import serve_origin as serve

import lusca_comm as lc
from lusca_comm import credentials
from lusca_comm._shim import lib
from lusca_comm.lab import Channel, Host, Topology
from lusca_comm.lab import capabilities as caps
from lusca_comm.privileges import DEFAULT_KEEP

FOREIGN = ("198.51.100.2", PROXY_PORT)
CLIENT = ("192.0.2.2", 0)
SIOCGIFMTU, SIOCSIFMTU = 0x8921, 0x8922  # linux/sockios.h
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2  # linux/prctl.h
NOBODY = "nobody"

ADMIN, RAW, BIND = "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"
FEATURES = ("listen", "spoof", "mark", "low port")
TRANSPARENT = {"listen", "spoof", "mark"}

real_root = pytest.mark.skipif(
    os.geteuid() != 0 or bool(credentials.unmapped("uid_map", {pwd.getpwnam(NOBODY).pw_uid})),
    reason="setuid to another user needs root outside of user namespaces",
)


# -- what a process can do, found out by doing it ------------------------------------------------


def listen() -> None:
    flags = lc.COMM_NONBLOCKING | lc.COMM_TPROXY_LCL
    listener = lc.comm_open(address=FOREIGN, flags=flags)
    lc.comm_listen(listener)
    lc.comm_close(listener)


def spoof() -> None:
    lc.comm_close(lc.comm_open(address=CLIENT, flags=lc.COMM_TPROXY_REM))


def mark() -> None:
    lc.comm_close(lc.comm_open(mark=7))


def low_port() -> None:
    lc.comm_close(lc.comm_open(address=("127.0.0.1", 80)))


def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def configure_the_network() -> None:
    with socket.socket() as sock:
        same = fcntl.ioctl(sock, SIOCGIFMTU, struct.pack("16s16x", b"lo"))
        fcntl.ioctl(sock, SIOCSIFMTU, same)


ACTS: dict[str, Callable[[], None]] = {
    "listen": listen,
    "spoof": spoof,
    "mark": mark,
    "low port": low_port,
    "raw socket": raw_socket,
    "configure the network": configure_the_network,
}


def can() -> set[str]:
    """The acts that work, and preflight says the same of those that it knows."""
    able = set()
    for act, do in ACTS.items():
        try:
            do()
        except PermissionError:
            continue
        except lc.CommError as why:
            if why.errno not in (errno.EPERM, errno.EACCES):
                raise
            continue
        able.add(act)
    rows = lc.preflight(FEATURES)
    assert {row.feature for row in rows if row.ok} == able & set(FEATURES), rows
    for row in rows:
        if not row.ok:
            assert row.missing.startswith(BIND if row.feature == "low port" else "CAP_NET_RAW")
    return able


def allowed(names: Collection[str]) -> set[str]:
    able: set[str] = set()
    if {ADMIN, RAW} & set(names):
        able |= TRANSPARENT
    if RAW in names:
        able |= {"raw socket"}
    if ADMIN in names:
        able |= {"configure the network"}
    if BIND in names:
        able |= {"low port"}
    return able


SETS: list[tuple[str, ...]] = [(), (RAW,), (ADMIN,), (BIND,), (RAW, ADMIN), (RAW, BIND)]
of_sets = pytest.mark.parametrize("names", SETS, ids=lambda s: "+".join(s) or "none")


# -- the matrix ----------------------------------------------------------------------------------


@pytest.fixture
def router(lab):
    return lab.host("router")


def test_root(router: Host) -> None:
    assert router.run(can) == allowed([RAW, ADMIN, BIND])


@of_sets
def test_uid_0_with_some_capabilities(router: Host, names: tuple[str, ...]) -> None:
    assert router.run(can, capabilities=names) == allowed(names)


def become(user: str, names: Collection[str]) -> None:
    """An ordinary user with these capabilities, by the kernel's calls alone."""
    entry = pwd.getpwnam(user)
    assert lib.lc_capabilities_outlive_setuid(1) == 0
    os.setgroups([entry.pw_gid])
    os.setresgid(*(entry.pw_gid,) * 3)
    os.setresuid(*(entry.pw_uid,) * 3)
    assert lib.lc_capabilities_set(credentials.bits_of(names)) == 0


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
        if os.geteuid() == 0:
            become(NOBODY, ())
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


def assert_only(own: credentials.Credentials, names: Collection[str]) -> None:
    bits = credentials.bits_of(names)
    assert (own.permitted, own.effective) == (bits, bits)
    assert (own.inheritable, own.ambient) == (0, 0)


def executed() -> credentials.Credentials:
    """Of a program that this process executes."""
    status = subprocess.run(
        ["cat", "/proc/self/status"], stdout=subprocess.PIPE, text=True, check=True
    )
    return credentials.parse(status.stdout)


# -- the ways of becoming somebody ---------------------------------------------------------------


@real_root
def test_a_uid_and_a_gid_without_entries(router: Host) -> None:
    def run() -> credentials.Credentials:
        lc.drop_privileges(54321, group=54322)
        return credentials.own()

    own = router.run(run)
    assert (own.uids, own.gids, own.groups) == ((54321,) * 4, (54322,) * 4, {54322})
    assert_only(own, DEFAULT_KEEP)


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


# -- a whole proxy -------------------------------------------------------------------------------


def dropping_proxy(
    channel: Channel, family: int, user: str | None, keep: Collection[str], early: bool
) -> None:
    """Drops its privileges before it listens, or after."""
    lc.prepare()
    proxy = RelayProxy(channel, spoof=True, mark=7)
    address = (WILDCARD[family], PROXY_PORT)
    if not early:
        proxy.listen(address, lc.COMM_TPROXY_LCL)
    lc.comm_select(0)
    lc.drop_privileges(user, keep=keep)
    if early:
        proxy.listen(address, lc.COMM_TPROXY_LCL)
    channel.send(credentials.own())
    lc.run()


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
@pytest.mark.parametrize("early", [True, False], ids=["drop first", "listen first"])
@pytest.mark.parametrize(
    "user", [None, pytest.param(NOBODY, marks=real_root)], ids=["same user", "another user"]
)
def test_interception_after_the_drop(
    three_hosts: Topology, family: int, early: bool, user: str | None
) -> None:
    """Intercepted, relayed in the client's name, with a mark."""
    net = three_hosts
    intercept(net.router, port=PROXY_PORT, spoof=True)
    serve(net, family)
    proxy = net.router.start(dropping_proxy, family, user, DEFAULT_KEEP, early)
    assert_only(proxy.recv(), DEFAULT_KEEP)
    answer = net.client.run(fetch, family, net.origin_ip[family])
    assert (answer.source, answer.body) == (net.client_ip[family], b"hello"), answer
    assert proxy.recv().spoof.address[0] == net.client_ip[family]


def test_without_the_capability_the_proxy_says_what_it_lacks(three_hosts: Topology) -> None:
    """The control: the same proxy that keeps nothing listens, and cannot go out as the client."""
    net, family = three_hosts, socket.AF_INET
    intercept(net.router, port=PROXY_PORT, spoof=True)
    serve(net, family)
    proxy = net.router.start(dropping_proxy, family, None, (), False)
    assert_only(proxy.recv(), ())
    assert net.client.run(fetch, family, net.origin_ip[family]).errno == errno.ECONNRESET
    seen = proxy.recv()
    assert (seen.refused, seen.errno) == ("CommError", errno.EPERM)

    deaf = net.router.start(dropping_proxy, socket.AF_INET6, None, (), True)
    with pytest.raises(lc.CommError, match="CAP_NET_ADMIN or CAP_NET_RAW"):
        deaf.recv()
