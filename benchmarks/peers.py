"""What is compared: how each relay is started, and how its work is accounted.

A relay listens on 127.0.0.1:PORT and connects to 127.0.0.1:ORIGIN, in one network namespace whose
loopback has an MTU of 1500 (at 65536 the ranking comes out wrong), pinned to one core.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PORT, ORIGIN = 3128, 8080


class Scratch:
    """The programs and configurations of one run, in a directory that goes with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("load", "floor"):
            source = HERE / "c" / f"{name}.c"
            subprocess.run(["gcc", "-O2", "-o", folder / name, source], check=True)
        if shutil.which("go"):
            subprocess.run(
                ["go", "build", "-o", folder / "relay-go", HERE / "go/relay.go"],
                check=True,
                env={**os.environ, "GOCACHE": str(folder / "go-cache"), "GO111MODULE": "off"},
            )

    def config(self, source: str, name: str, **values: object) -> str:
        path = self.folder / name
        text = (HERE / "peers" / source).read_text()
        path.write_text(text.format(port=PORT, origin=ORIGIN, scratch=self.folder, **values))
        return str(path)


Command = Callable[[Scratch], list[str] | None]
"""The command line of a peer; None where it is not installed."""


def _python(name: str, *options: str) -> Command:
    relay = str(HERE / "relays.py")
    return lambda _: [sys.executable, relay, name, str(PORT), str(ORIGIN), *options]


def _uvloop(name: str, *options: str) -> Command:
    def command(scratch: Scratch) -> list[str] | None:
        try:
            import uvloop  # noqa: F401
        except ImportError:
            return None
        return _python(name, *options)(scratch)

    return command


_SPLICE = "option splice-request\n    option splice-response"


def _haproxy(splice: str, source: str = "haproxy.cfg") -> Command:
    def command(scratch: Scratch) -> list[str] | None:
        config = scratch.config(source, f"{bool(splice)}-{source}", splice=splice)
        return ["haproxy", "-f", config] if shutil.which("haproxy") else None

    return command


def _nginx(scratch: Scratch) -> list[str] | None:
    modules = Path("/usr/lib/nginx/modules")
    if not (modules / "ngx_stream_module.so").exists() or not shutil.which("nginx"):
        return None
    return ["nginx", "-c", scratch.config("nginx.conf", "nginx.conf", modules=modules)]


def _go(scratch: Scratch) -> list[str] | None:
    program = scratch.folder / "relay-go"
    if not program.exists():
        return None
    return ["env", "GOMAXPROCS=1", str(program), str(PORT), str(ORIGIN)]


def _on_loops(*options: str) -> dict[str, Command]:
    """The ways of writing it for an event loop, on both loops."""
    ways = {
        "aio": "aio",
        "aio in two steps": "aio-two-steps",
        "Protocol": "protocol",
        "streams": "streams",
    }
    return {
        f"{loop} {title}": command(f"{loop}-{name}", *options)
        for loop, command in (("uvloop", _uvloop), ("asyncio", _python))
        for title, name in ways.items()
    }


_EXAMPLE = HERE.parent / "examples" / "tcp_relay.py"
FLOOR = "C floor"
PEERS: dict[str, Command] = {
    FLOOR: lambda scratch: [str(scratch.folder / "floor"), str(PORT), "127.0.0.1", str(ORIGIN)],
    "comm and relay": _python("comm"),
    "decide": _python("decide"),
    "HAProxy": _haproxy(""),
    "HAProxy splice": _haproxy(_SPLICE),
    "nginx stream": _nginx,
    "Go io.Copy": _go,
    **_on_loops(),
}
INTERCEPTING: dict[str, Command] = {
    FLOOR: lambda scratch: [str(scratch.folder / "floor"), str(PORT), "intercept"],
    "policy": _python("policy", "--intercept"),
    "decide": _python("decide", "--intercept"),
    "examples/tcp_relay.py": lambda _: [sys.executable, str(_EXAMPLE), str(PORT), "--quiet"],
    "HAProxy": _haproxy("", "haproxy-intercept.cfg"),
    "HAProxy splice": _haproxy(_SPLICE, "haproxy-intercept.cfg"),
    **_on_loops("--intercept"),
}
BUSY: dict[str, Command] = {
    "comm and relay": _python("comm", "--busy"),
    "uvloop Protocol": _uvloop("uvloop-protocol", "--busy"),
    "asyncio Protocol": _python("asyncio-protocol", "--busy"),
}


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """Time on a core, user and system, of every thread of the family: schedstat."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) / 1e9
        for one in family(pid)
        for task in Path(f"/proc/{one}/task").iterdir()
    )


def rss_bytes(pid: int) -> int:
    """Resident memory of the family."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE")
