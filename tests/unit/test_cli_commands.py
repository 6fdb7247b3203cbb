"""rules and engines: from options to a plan, from a plan to a script, from the table to words."""

from __future__ import annotations

import argparse
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lusca_comm as lc
from lusca_comm.cli import main
from lusca_comm.cli.engines import chosen
from lusca_comm.cli.plan_options import add_plan_options, plan_of
from lusca_comm.firewall import Exempt, Only, Plan, Skip, iptables, render, render_commands
from lusca_comm.firewall.plan import Family

PORT = st.integers(1, 65535)
RANGE = st.tuples(PORT, PORT).map(lambda pair: (min(pair), max(pair)))


def plan(*argv: str) -> Plan:
    parser = argparse.ArgumentParser()
    add_plan_options(parser)
    return plan_of(parser.parse_args(argv))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Plan()),
        (["--mode", "redirect", "--port", "8080"], Plan(mode="redirect", port=8080)),
        (["-4"], Plan(families=("ipv4",))),
        (["--ipv6", "--listen6", "::1"], Plan(families=("ipv6",), listen6="::1")),
        (["--listen4", "127.0.0.1"], Plan(listen4="127.0.0.1")),
        (["--interface", "lan0", "--interface", "lan1"], Plan(interfaces=("lan0", "lan1"))),
        (["--ports", "80,443,8000-8010"], Plan(ports=(80, 443, (8000, 8010)))),
        (["--bypass-ports", "80", "--ports", "80-81"], Plan(ports=((80, 81),), bypass_ports=(80,))),
        (
            ["--bypass", "10.0.0.0/8", "--bypass", "fd00::/8"],
            Plan(bypass=("10.0.0.0/8", "fd00::/8")),
        ),
        (["--udp"], Plan(protocols=("tcp", "udp"))),
        (["--udp", "53,443"], Plan(protocols=("tcp", "udp"), udp_ports=(53, 443))),
        (["--no-tcp", "--udp", "--ports", "53"], Plan(protocols=("udp",), ports=(53,))),
        (
            ["--skip", "source 10.0.0.0/8 ports 53,60-70 protocol udp mark 1/3 interface lan0"],
            Plan(
                bypass=(
                    Skip(
                        source="10.0.0.0/8",
                        ports=(53, (60, 70)),
                        protocol="udp",
                        mark=1,
                        mask=3,
                        interface="lan0",
                    ),
                )
            ),
        ),
        (
            ["--bypass", "10.0.0.0/8", "--skip", "mark 7", "--skip", "destination ::1"],
            Plan(bypass=("10.0.0.0/8", Skip(mark=7), Skip(destination="::1"))),
        ),
        (["--spoof"], Plan(spoof=True)),
        (
            ["--spoof", "--same-port", "--origin-interface", "wan0", "--zone", "7"],
            Plan(spoof=True, same_port=True, origin_interfaces=("wan0",), zone=7),
        ),
        (["--mark", "0x10/0xf0"], Plan(mark=0x10, mask=0xF0)),
        (["--mark", "16"], Plan(mark=16)),
        (["--table", "0x64", "--name", "mine"], Plan(table=100, name="mine")),
        (["--own", "--exempt-mark", "0x100"], Plan(own=True, exempt=Exempt(mark=0x100))),
        (
            ["--own", "--no-forwarded", "--exempt-uid", "13", "--exempt-cgroup", "a/b"],
            Plan(own=True, forwarded=False, exempt=Exempt(uids=(13,), cgroups=("a/b",))),
        ),
        (["--own", "--exempt-uid", "root"], Plan(own=True, exempt=Exempt(uids=(0,)))),
        (["--own", "--exempt-gid", "root"], Plan(own=True, exempt=Exempt(gids=(0,)))),
        (
            ["--own", "--only-uid", "13", "--only-cgroup", "a/b", "--refuse-rest"],
            Plan(own=True, only=Only(uids=(13,), cgroups=("a/b",)), rest="refuse"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_make_the_plan(argv: list[str], expected: Plan) -> None:
    assert plan(*argv) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("source", "in pairs"),
        ("from 10.0.0.0/8", "'from': once each of source, "),
        ("mark 1 mark 2", "'mark': once each"),
        ("source 10.0.0.1/8", "a network such as"),
        ("", "a Skip of everything"),
        ("ports x", "invalid"),
    ],
)
def test_a_skip_that_makes_no_sense(
    words: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        plan("--skip", words)
    assert text in capsys.readouterr().err


@given(st.lists(PORT | RANGE, min_size=1, max_size=5))
def test_any_list_of_ports(ports: list[int | tuple[int, int]]) -> None:
    text = ",".join(str(p) if isinstance(p, int) else f"{p[0]}-{p[1]}" for p in ports)
    assert plan("--ports", text) == Plan(ports=tuple(ports))


@pytest.mark.parametrize(
    "argv", [[], ["--spoof", "--mode", "redirect"], ["--mode", "redirect"], ["-6"]], ids=" ".join
)
class TestRules:
    def test_are_a_script(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        commands, undo, words = script(capsys, *argv)
        made = plan(*argv)
        assert commands == f"{render_commands(made)}nft -f - <<'END'\n{render(made)}END\n"
        assert undo == f"nft delete table inet {made.name}\n{render_commands(made, remove=True)}"
        assert [note for note in made.notes() if note not in words] == []

    def test_for_iptables(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        commands, undo, words = script(capsys, "--iptables", *argv)
        made = plan(*argv)
        restored = {
            remove: "".join(
                f"{program} --noflush <<'END'\n{iptables.render(made, family, remove)}END\n"
                for family, program in PROGRAMS.items()
                if family in made.families
            )
            for remove in (False, True)
        }
        assert commands == render_commands(made) + restored[False]
        assert undo == restored[True] + render_commands(made, remove=True)
        assert "real server" not in words  # the TPROXY target does not fail open
        assert ("connections fail" in words) == (made.mode == "tproxy")


PROGRAMS: dict[Family, str] = {"ipv4": "iptables-restore", "ipv6": "ip6tables-restore"}


def script(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, str, str]:
    """What ``rules`` prints: the commands, those that undo them, and the words between."""
    assert main(["rules", *argv]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines() if line.startswith("# ")) <= 80
    above, _, below = out.partition("# To undo it:\n")
    commands, end, words = above.rpartition("END\n")
    undo = "".join(line.removeprefix("#   ") for line in below.splitlines(keepends=True))
    return commands + end, undo, " ".join(words.replace("#", "").split())


def test_engines_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ENGINE", "USED", "FOR", "CAN", "ABSENT", "BECAUSE"]
    table = lc.engines()
    assert [line.split()[0] for line in lines[1:]] == [engine.name for engine in table]
    for line, engine in zip(lines[1:], table, strict=True):
        assert set(line[33:70].split()) == engine.abilities - {"named only"}
        assert (line[12:33].strip() == "absent") == bool(engine.errno)
        assert line[72:] == engine.reason


def test_engines_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUSCA_COMM_ENGINE", raising=False)
    used = chosen()
    assert used["tproxy4"] == "lookup listen spoof"
    assert used["netfilter"] == "lookup"
    assert used["sockname"] == used["null"] == "only if named"


def test_engines_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(os.environ, "LUSCA_COMM_ENGINE", "sockname")
    used = chosen()
    assert used["sockname"] == "lookup"
    assert used["tproxy4"] == "listen spoof"  # sockname can't, so the choice stays free
    assert used["netfilter"] == ""
    assert main(["engines"]) == 0
    assert capsys.readouterr().out.endswith("LUSCA_COMM_ENGINE=sockname made this choice.\n")


def test_an_engine_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "LUSCA_COMM_ENGINE", "magic")
    assert main(["engines"]) == 1
    assert capsys.readouterr().err.startswith("lusca-comm: no engine 'magic': one of tproxy4, ")
