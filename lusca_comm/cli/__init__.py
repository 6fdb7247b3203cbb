"""The command ``lusca-comm``: one file for each subcommand."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from lusca_comm import __version__
from lusca_comm.errors import CommError

from . import demo, doctor, engines, relay, rules

__all__ = ["main"]

COMMANDS = (demo, relay, rules, engines, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None: the process's own). Returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        _require(options)
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except _Missing as why:
        return _fail(2, str(why))
    except CommError as why:
        return _fail(1, str(why.strerror))
    except BrokenPipeError:
        # Whoever read has left. At exit Python would flush once more, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as why:
        return _fail(1, str(why))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class _Missing(Exception):
    """An extra that is not installed."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lusca-comm",
        description="Transparent interception of connections: see it, set it up, check it.",
    )
    parser.add_argument("--version", action="version", version=f"lusca-comm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _require(options: argparse.Namespace) -> None:
    for name in options.needs:
        try:
            importlib.import_module(name)
        except ImportError:
            raise _Missing(
                f"{options.command} needs {name}, which is not installed: "
                "pip install 'lusca-comm[cli]'"
            ) from None


def _fail(status: int, text: str) -> int:
    print(f"lusca-comm: {text}", file=sys.stderr)
    return status
