"""``lusca-comm demo`` on a real kernel: all of it right, and each way in which it can be wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import lusca_comm as lc
from lusca_comm.address import spell
from lusca_comm.cli import main
from lusca_comm.cli.demo import play, programs
from lusca_comm.cli.demo.checks import LINES, Line, page
from lusca_comm.cli.doctor.sockets import listeners
from lusca_comm.firewall import Plan
from lusca_comm.lab import Channel, Lab, Topology, wait_for

pytestmark = pytest.mark.usefixtures("lab")  # which skips where there can be none

CLIENT = {"ipv4": "192.0.2.2", "ipv6": "2001:db8:1::2"}
ROUTER = {"ipv4": "198.51.100.1", "ipv6": "2001:db8:2::1"}
ORIGIN = {"ipv4": "198.51.100.2", "ipv6": "2001:db8:2::2"}
ENGINE = {"tproxy": ("tproxy4", False), "redirect": ("netfilter", True)}
Key = tuple[str, str, bool]


def demo(*options: str) -> list[str]:
    return [sys.executable, "-m", "lusca_comm", "demo", *options]


def environment(**changes: str) -> dict[str, str]:
    """This one's, with nothing in it about terminals, and the package where this process has it."""
    unwanted = {"COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    found = str(Path(lc.__file__).parents[1])
    return {**kept, "PYTHONPATH": found, "PYTHONUTF8": "1", **changes}


def wrong_lines(out: str) -> dict[Key, list[str]]:
    rows = json.loads(out)
    assert [row["ok"] for row in rows] == [not row["wrong"] for row in rows]
    return {(r["family"], r["mode"], r["spoof"]): r["wrong"] for r in rows if r["wrong"]}


def keys(lines: Iterable[Line]) -> set[Key]:
    return {(line.family, line.mode, line.spoof) for line in lines}


def test_what_everybody_saw(capsys: pytest.CaptureFixture[str]) -> None:
    """Every value of every line, against what it must be and not against the demo's own verdict."""
    assert main(["demo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(r["family"], r["mode"], r["spoof"]) for r in rows} == keys(LINES)
    for row in rows:
        family, mode = row["family"], row["mode"]
        source = row["client"]["source"]
        assert source[0] == CLIENT[family]
        assert row["client"]["status"] == 200
        assert (row["ok"], row["wrong"]) == (True, [])
        if mode == "direct":
            assert row["proxy"] is None
            assert row["origin"]["peer"] == source
            continue
        engine, translated = ENGINE[mode]
        assert row["proxy"] == {
            "peer": source,
            "address": [ORIGIN[family], 80],
            "engine": engine,
            "translated": translated,
            "source": row["origin"]["peer"],
        }
        assert row["origin"]["peer"][0] == (CLIENT if row["spoof"] else ROUTER)[family]
        assert row["origin"]["peer"] != source  # a connection of its own


def no_rules(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(play, "apply", lambda _: None)


def no_transparent_flag(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(programs, "LISTEN", programs.LISTEN & ~lc.COMM_TPROXY_LCL)


def no_spoofing(patch: pytest.MonkeyPatch) -> None:
    intercept = programs.intercept
    patch.setattr(
        play, "intercept", lambda channel, ports, log: intercept(channel, dict.fromkeys(ports), log)
    )


def no_way_back(patch: pytest.MonkeyPatch) -> None:
    """The rules that bring a spoofed connection's answers to the proxy are left out."""
    apply = play.apply
    patch.setattr(play, "apply", lambda plan: apply(dataclasses.replace(plan, spoof=False)))
    patch.setattr(programs, "SECONDS", 4.0)


def one_family(patch: pytest.MonkeyPatch) -> None:
    apply = play.apply
    patch.setattr(play, "apply", lambda plan: apply(dataclasses.replace(plan, families=["ipv4"])))


def another_page(patch: pytest.MonkeyPatch) -> None:
    """As the origin is a fork of this process, it sends this page; the judge knows the true one."""
    patch.setattr(programs, "page", lambda _, body: body[1:])


def rules_that_stay(patch: pytest.MonkeyPatch) -> None:
    """The control runs with the rules of the line before."""
    patch.setattr(play, "remove", lambda _: None)
    spoofed = [line for line in LINES if line.mode == "redirect" and line.spoof]
    direct = [line for line in LINES if line.mode == "direct"]
    patch.setattr(play, "LINES", (*spoofed, *direct))


STRAIGHT = "the connection did not go through the proxy"


@pytest.mark.parametrize(
    ("sabotage", "hit", "text"),
    [
        (no_rules, lambda line: line.mode != "direct", STRAIGHT),
        (no_transparent_flag, lambda line: line.mode == "tproxy", STRAIGHT),
        (no_spoofing, lambda line: line.spoof, "the origin saw {router}, not the client's"),
        (
            no_way_back,
            lambda line: line.spoof and line.mode == "redirect",
            "the proxy: to {ORIGIN}:80: Connection timed out",
        ),
        (
            one_family,
            lambda line: line.family == "ipv6" and line.mode != "direct",
            STRAIGHT,
        ),
        (another_page, lambda _: True, "the client did not get the page that the origin sent"),
        (
            rules_that_stay,
            lambda line: line.mode == "direct",
            "without a rule the proxy saw {CLIENT}:",
        ),
    ],
)
def test_its_checks_can_fail(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    hit: Callable[[Line], bool],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sabotage(monkeypatch)
    assert main(["demo", "--json"]) == 1
    wrong = wrong_lines(capsys.readouterr().out)
    assert set(wrong) == keys(line for line in LINES if hit(line))
    for (family, _, _), complaints in wrong.items():
        hosts = {"client": CLIENT[family], "router": ROUTER[family], "origin": ORIGIN[family]}
        spelled = {who.upper(): spell((host, 80))[:-3] for who, host in hosts.items()}
        expected = text.format(**hosts, **spelled)
        assert any(complaint.startswith(expected) for complaint in complaints), complaints


def test_a_wrong_line_is_marked_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_transparent_flag(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["demo"]) == 1
    out = capsys.readouterr().out
    _, _, verdict = out.partition("4 of 10 connections are not what they must be:\n")
    assert verdict.splitlines() == [
        f"  {family}: TPROXY, upstream in the {whose}'s name"
        for whose in ("client", "router")
        for family in ("IPv4", "IPv6")
    ]
    assert out.count(STRAIGHT) == 4


def test_a_program_that_dies_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(channel: Channel, *_: Any) -> None:
        channel.send("ready")
        raise lc.CommError(errno.EIO, "the proxy broke")

    monkeypatch.setattr(play, "intercept", dies)
    assert main(["demo", "--json"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "lusca-comm: the proxy broke\n")


class TestOutput:
    def test_in_a_pipe(self) -> None:
        """No colours, 80 columns, and no other program is needed."""
        done = subprocess.run(
            demo(),
            capture_output=True,
            env=environment(PATH="/nowhere"),
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        out = done.stdout.decode()
        assert "\x1b" not in out
        assert max(map(len, out.splitlines())) <= 80
        assert (out.count("\n✓ "), out.count("✗")) == (11, 0)
        for addresses in (CLIENT, ROUTER, ORIGIN):
            for address in addresses.values():
                assert f" {address} " in out  # in the picture
        assert "All 10 connections are what they must be" in out

    def test_in_plain_ascii(self) -> None:
        changes = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(demo(), capture_output=True, env=environment(**changes), timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.isascii()
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert done.stdout.count(b"\n+ ") == 11

    def test_on_a_terminal(self) -> None:
        """Colours, and the hosts' own: a spoofed connection's peer has the client's."""
        near, far = pty.openpty()
        with subprocess.Popen(
            demo(), stdin=far, stdout=far, stderr=far, env=environment(TERM="xterm-256color")
        ) as process:
            os.close(far)
            out = read_all(near).decode()
            os.close(near)
        assert process.returncode == 0
        assert "\x1b[36m" in out
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
        assert "All 10 connections are what they must be" in shown
        assert "IPv6: REDIRECT, upstream in the router's name" in shown  # while it was under way


README = Path(__file__).parents[2] / "README.md"


def block(language: str, start: str) -> str:
    """The README's block of code that begins so."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = [text for text in blocks if text.startswith(start)]
    return found


def test_the_readme_shows_what_it_prints() -> None:
    done = subprocess.run(demo(), capture_output=True, env=environment(), timeout=60, check=True)
    numbers = re.compile(r":\d{5}\b|\d+\.\d s")  # chosen ports, and how long it took
    assert numbers.sub("", block("text", "A client")) == numbers.sub("", done.stdout.decode())


def test_the_readmes_program(three_hosts: Topology, tmp_path: Path) -> None:
    """It goes on in the client's name, and does not outlive one connection that fails."""
    net, program = three_hosts, tmp_path / "proxy.py"
    program.write_text(block("python", "import socket"))
    proxy = net.router.popen([sys.executable, str(program)], env=environment())
    wait_for(
        lambda: net.router.run(listeners, 3129), what="the README's program to listen", timeout=60
    )
    with programs.Log() as log:
        server = net.origin.start(programs.serve, [(ORIGIN["ipv4"], 80)], log)
        assert server.recv() == "ready"
        net.router.run(play.apply, Plan(spoof=True))
        # a direct connection, which it must refuse
        refused = net.client.run(programs.fetch, ("192.0.2.1", 3129), b"")
        assert isinstance(refused, str)
        got = net.client.run(programs.fetch, (ORIGIN["ipv4"], 80), b"hello")
        (peer,) = log.take()
    assert got.body == page(peer, b"hello")
    assert peer[0] == CLIENT["ipv4"]
    assert peer != got.source  # or the program had been passed by
    assert proxy.poll() is None


def read_all(fd: int) -> bytes:
    """Until the terminal's other end is closed, which the kernel tells by EIO."""
    data = b""
    with contextlib.suppress(OSError):
        while got := os.read(fd, 65536):
            data += got
    return data


# A client that waits for ever, once its hosts are there.
STUCK = """
import signal, sys
from lusca_comm.cli import main
from lusca_comm.cli.demo import play
play.fetch = lambda *_: signal.pause()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_behind(number: int, status: int) -> None:
    """Whatever ends it: the whole group gets SIGINT from a terminal, the others go to it alone."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", STUCK, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "peer, and destination" in line:
                break
        # itself, the proxy, the origin, the client
        wait_for(lambda: len(group(process.pid)) == 4, what="the client to start")
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(30) == status
        assert "Traceback" not in process.stderr.read()
    wait_for(lambda: not group(process.pid), what="every process of the demo to end")


def group(leader: int) -> list[int]:
    """The processes of a process group that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize(
    ("name", "hit"),
    [("conf/all/src_valid_mark", {"ipv4"}), ("tcp_fwmark_accept", {"ipv4", "ipv6"})],
)
def test_sysctls_that_break_it(name: str, hit: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``lusca-comm doctor`` warns of; a strict rp_filter is harmless."""
    apply, remove, setting = play.apply, play.remove, Path("/proc/sys/net/ipv4", name)

    def apply_and_break(plan: Plan) -> None:
        apply(plan)
        setting.write_text("1")

    def mend_and_remove(plan: Plan) -> None:
        setting.write_text("0")
        remove(plan)

    monkeypatch.setattr(
        play, "LINES", [line for line in LINES if line.mode == "tproxy" and line.spoof]
    )
    with Lab() as lab, programs.Log() as proxy, programs.Log() as origin:
        stage = play.Stage(lab, proxy, origin)
        for interface in ("all", "to-client", "to-origin"):
            stage.net.router.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 1)
        assert [line for line, _, wrong in stage.perform(lambda _: None) if wrong] == []
        monkeypatch.setattr(play, "apply", apply_and_break)
        monkeypatch.setattr(play, "remove", mend_and_remove)
        monkeypatch.setattr(programs, "SECONDS", 2.0)
        for line, _, wrong in stage.perform(lambda _: None):
            assert ("the client: timed out" in wrong) == (line.family in hit)
