"""``lusca-comm relay``: its arguments, what it draws, and what its page shows."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm import Totals
from lusca_comm.cli import main
from lusca_comm.cli.relay import add_parser, address, service
from lusca_comm.cli.relay.screen import NOTHING, add, in_words, size
from lusca_comm.cli.relay.worker import Settings
from lusca_comm.policy_file import parse_policy
from lusca_comm.workers import Seat


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0:3129", ("0.0.0.0", 3129)),
        ("[::]:1", ("::", 1)),
        ("[fe80::1%lan0]:65535", ("fe80::1%lan0", 65535)),
    ],
)
def test_an_address(text: str, expected: tuple[str, int]) -> None:
    assert address(text) == expected


@pytest.mark.parametrize(
    "argv",
    [
        [],
        *(["--listen", text] for text in ("", ":", ":80", "::", "::1:80", "1.2.3.4", "[::1]")),
        *(["--listen", f"1.2.3.4:{port}"] for port in ("0", "65536", "http", "-1", "\u0663")),
        *(["--listen", "1.2.3.4:80", "--workers", count] for count in ("0", "-1", "x", "1025")),
        *(["--listen", "1.2.3.4:80", "--idle", time] for time in ("0", "-1", "nan", "inf", "x")),
        *(["--listen", "1.2.3.4:80", "--mark", mark] for mark in ("-1", "0x100000000", "x")),
        ["--listen", "1.2.3.4:80", "policy"],
    ],
    ids=" ".join,
)
def test_bad_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["relay", *argv])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: lusca-comm")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--engine", "magic"], "no engine 'magic'"),
        (["--policy", "/nonexistent/policy"], "/nonexistent/policy: No such file or directory"),
        (["--user", "no such user"], "no user 'no such user'"),
    ],
)
def test_what_stops_the_start(
    argv: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["relay", "--listen", "127.0.0.1:3131", "--redirect-only", *argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lusca-comm: ")
    assert text in err


HERE = ["relay", "--listen", "127.0.0.1:3131", "--redirect-only", "--workers", "2"]


def test_workers_that_can_not_begin_are_not_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(seat: Seat, settings: Settings) -> int:
        if seat.number == 1:
            seat.channel.send(("log", "why not"))
            return 1
        seat.channel.send(("ready", None))
        return int(seat.channel.recv() != ("stop", None))

    monkeypatch.setattr(service, "work", begin)
    assert main(HERE) == 1
    assert capsys.readouterr().err.splitlines() == [
        "relay: worker 1: why not",
        "relay: worker 1 ended with status 1",
    ]


def test_workers_that_do_not_obey_are_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang(seat: Seat, settings: Settings) -> int:
        seat.channel.send(("ready", None))
        while seat.channel.recv()[0] != "drain":
            pass
        while True:
            signal.pause()

    def ready(self: service.Service, number: int, message: tuple[str, object]) -> None:
        hear(self, number, message)
        if self._serving:
            os.kill(os.getpid(), signal.SIGTERM)

    hear = service.Service._on_message
    monkeypatch.setattr(service.Service, "_on_message", ready)
    monkeypatch.setattr(service, "work", hang)
    monkeypatch.setattr(service, "GRACE", 0.1)
    assert main([*HERE, "--drain-timeout", "0.1"]) == 3
    err = capsys.readouterr().err
    assert "relays that have not ended are reset" in err
    assert [f"worker {number} was killed by SIGKILL" in err for number in (0, 1)] == [True, True]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_500_000_000, "1.5 GB"),
        (2_000 * 10**12, "2.0 PB"),
    ],
)
def test_a_size(count: int, text: str) -> None:
    assert size(count) == text


@given(st.integers(0, 10**15))
def test_any_size_is_short(count: int) -> None:
    assert len(size(count)) <= 8


def test_counters_in_words() -> None:
    some = NOTHING._replace(accepted=2, up=5)
    assert in_words(add(some, some)).startswith("accepted 4, relayed 0, ")
    assert [pair.split()[0] for pair in in_words(some).split(", ")] == list(Totals._fields)


def test_what_the_documentation_shows() -> None:
    """The policy is one, and the commands are understood."""
    text = (Path(__file__).parents[2] / "docs/relay.md").read_text()
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert [rule.action for rule in parse_policy(blocks["text"])] == [
        *("deny", "relay", "relay", "relay", "spoof", "deny", "deny")
    ]
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    (started,) = re.findall(r"^ExecStart=\S+/lusca-comm (.*)", blocks["ini"], re.MULTILINE)
    (typed,) = re.findall(r"^lusca-comm (relay .*)", blocks["sh"], re.MULTILINE)
    for line in (started, typed):
        options = parser.parse_args(shlex.split(line))
        assert options.listen == [("0.0.0.0", 3129), ("::", 3129)]
        assert options.workers == 2
