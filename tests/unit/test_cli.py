"""The command line: what it refuses and how, and what works without the extra "cli"."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lusca_comm
from lusca_comm import CommError
from lusca_comm.cli import main
from lusca_comm.cli.demo import play
from lusca_comm.lab import LabUnavailable

COMMANDS = ("demo", "relay", "rules", "engines", "doctor")
INSTALL = "pip install 'lusca-comm[cli]'"

# Runs the command in an interpreter that has the core's dependencies and nothing else.
BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("rich", "pyroute2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from lusca_comm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def python(*args: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the package where this one did."""
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": str(Path(lusca_comm.__file__).parents[1])},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"lusca-comm {lusca_comm.__version__}\n"


def test_python_m() -> None:
    done = python("-m", "lusca_comm", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"lusca-comm {lusca_comm.__version__}\n"


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_without_the_extra(command: tuple[str, ...]) -> None:
    done = python("-c", BARE, *command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n    {name} " in out] == list(COMMANDS)


def test_what_needs_the_extra_says_so() -> None:
    done = python("-c", BARE, "demo")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"lusca-comm: demo needs pyroute2, which is not installed: {INSTALL}\n"


@pytest.mark.parametrize("missing", ["pyroute2", "rich"])
def test_either_half_of_the_extra_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"needs {missing}," in err


@pytest.mark.parametrize("command", [("rules",), ("engines",)], ids=" ".join)
def test_what_needs_no_extra_works_without_it(command: tuple[str, ...]) -> None:
    done = python("-c", BARE, *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tproxy" in done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["demo", "--nonsense"],
        ["demo", "8080"],
        ["rules", "--mode", "magic"],
        ["rules", "--ports", "http"],
        ["rules", "--ports", ""],
        ["rules", "--port", "1.5"],
        ["rules", "-4", "-6"],
        ["rules", "--apply", "--remove"],
        ["rules", "--exempt-uid", "no such user"],
        ["rules", "--mark", "0x40/"],
        ["engines", "tproxy4"],
    ],
    ids=" ".join,
)
def test_bad_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: lusca-comm")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["rules", "--port", "0"], "port: a number from 1 to 65535, not 0"),
        (["rules", "--ports", "70000"], "ports: "),
        (["rules", "--own"], "own=True would intercept the proxy's own connections too"),
        (["doctor", "--same-port"], "same_port is about spoofed connections"),
        (["rules", "--bypass", "example.org"], "bypass: "),
    ],
)
def test_values_that_make_no_plan(
    argv: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lusca-comm: firewall plan: ")
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (CommError(errno.EPERM, "no right: run as root"), 1, "lusca-comm: no right: run as root\n"),
        (CommError(errno.EPERM), 1, "lusca-comm: Operation not permitted\n"),
        (LabUnavailable(errno.EPERM, "no namespaces: x"), 3, "lusca-comm: no namespaces: x\n"),
        (FileNotFoundError(2, "gone", "/x"), 1, "lusca-comm: [Errno 2] gone: '/x'\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
@pytest.mark.parametrize("how", [[], ["--json"]], ids=["drawn", "json"])
def test_what_goes_wrong_is_one_line(
    error: BaseException,
    status: int,
    text: str,
    how: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(play, "Lab", fail)
    assert main(["demo", *how]) == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", text)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "Lab", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


def test_a_reader_that_left() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = python("-m", "lusca_comm", "rules", stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
