"""What the examples that intercept have in common: options, limits, and a server's life."""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from lusca_comm import CommError, aio

__all__ = [
    "Shares",
    "all_descriptors",
    "mark",
    "parser",
    "reason",
    "run",
    "seconds",
    "until_signalled",
]

Handler = Callable[[aio.Connection], Awaitable[object]]


class Shares:
    """What each client has of something that clients could use up: `most`, so that others have the
    rest."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: collections.Counter[str] = collections.Counter()

    def take(self, client: str) -> bool:
        """One more; False: it has all that it may have."""
        if self._taken[client] >= self.most:
            return False
        self._taken[client] += 1
        return True

    def give_back(self, client: str) -> None:
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


def all_descriptors() -> None:
    """As many as may be had: the usual limit is select(2)'s, and a connection has two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def mark(text: str) -> int:
    value = int(text, 0)
    if not 0 <= value < 1 << 32:
        raise ValueError
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:  # NaN is neither
        raise ValueError
    return value


def reason(why: OSError) -> str:
    """In one line: the capability that is missing, a port that is taken, no such file."""
    text = why.strerror or str(why)
    return f"{why.filename}: {text}" if why.filename else text


def parser(doc: str | None, spoof: bool = True) -> argparse.ArgumentParser:
    """One whose help is the module's text."""
    head, _, rest = (doc or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--lab", action="store_true", help="show it in a lab of its own")
    made.add_argument("--port", type=int, default=3129, help="to listen on (%(default)s)")
    if spoof:
        made.add_argument("--spoof", action="store_true", help="go on in the client's name")
    made.add_argument(
        "--redirect", action="store_true", help="take REDIRECT alone, which needs no privilege"
    )
    made.add_argument("--mark", type=mark, help="SO_MARK of all it sends")
    return made


def run(
    options: argparse.Namespace,
    handler: Handler,
    ready: Callable[[], object],
    refused: Callable[[CommError], object],
    hangup: Callable[[], object] | None = None,
) -> int:
    """Serves until SIGINT or SIGTERM; the exit status. `hangup` is for SIGHUP."""
    try:
        asyncio.run(_serve(options, handler, ready, refused, hangup))
    except OSError as why:
        print(f"{Path(sys.argv[0]).stem}: {reason(why)}", file=sys.stderr)
        return 1
    return 0


async def _serve(
    options: argparse.Namespace,
    handler: Handler,
    ready: Callable[[], object],
    refused: Callable[[CommError], object],
    hangup: Callable[[], object] | None,
) -> None:
    all_descriptors()
    loop = asyncio.get_running_loop()
    if hangup is not None:
        loop.add_signal_handler(signal.SIGHUP, hangup)
    async with await aio.start_intercept_server(
        handler,
        ("0.0.0.0", "::"),
        options.port,
        engine="netfilter" if options.redirect else None,
        mark=options.mark,
        on_refused=refused,
    ) as server:
        await until_signalled(server, ready)


async def until_signalled(server: aio.InterceptServer, ready: Callable[[], object]) -> None:
    """Serves until SIGINT or SIGTERM, which end what is being relayed, too. Whoever is told by
    `ready` can send them."""

    async def serve() -> None:
        ready()
        await server.serve_forever()

    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(serve())  # begins once this waits for it
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
