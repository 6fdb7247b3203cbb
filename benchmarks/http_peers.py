"""HTTP proxies that are compared: how each is started, and which form of request it takes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PORT, ORIGIN = 3128, 8080
PAGE = "x" * 1024

# Programs of other Python packages are often beside this interpreter, and not in the PATH.
PATH = f"{os.environ.get('PATH', os.defpath)}:{Path(sys.executable).parent}:/usr/sbin"


@dataclass(frozen=True)
class Scratch:
    """The configurations of one run, in a directory that goes with it."""

    folder: Path
    to: str
    """The origin's address."""

    def config(self, source: str, **values: object) -> str:
        path = self.folder / source
        text = (HERE / "peers" / source).read_text()
        known = {"port": PORT, "origin": ORIGIN, "scratch": self.folder, "to": self.to}
        path.write_text(text.format(**known, **values))
        return str(path)


Command = Callable[[Scratch], list[str] | None]
"""The command line of a proxy; None where it is not installed."""


@dataclass(frozen=True)
class Peer:
    command: Command
    form: str
    """Of the request: "absolute" as forward proxies take it, "origin" as reverse proxies do, or the
    mode of the rules that bring it, "tproxy" or "redirect"."""
    spoof: bool = False
    host: str = ""
    """In the Host field, where that is to be a name; else it is the origin's address."""


def _program(name: str, *options: str) -> Command:
    path = shutil.which(name, path=PATH)
    return lambda _: None if path is None else [path, *options]


def _configured(name: str, option: str, source: str, *more: str, **values: object) -> Command:
    def command(scratch: Scratch) -> list[str] | None:
        return _program(name, option, scratch.config(source, **values), *more)(scratch)

    return command


def _floor(*to: str) -> Command:
    """Every byte goes on as it came: what the two connections cost by themselves."""

    def command(scratch: Scratch) -> list[str] | None:
        if shutil.which("gcc") is None:
            return None
        floor = str(scratch.folder / "floor")
        subprocess.run(["gcc", "-O2", "-o", floor, HERE / "c" / "floor.c"], check=True)
        return [floor, str(PORT), *(to or (scratch.to, str(ORIGIN)))]

    return command


def _pproxy(_: Scratch) -> list[str] | None:
    path = shutil.which("pproxy", path=PATH)
    if path is None:
        return None
    # On the loop of the standard library: it does not get on with newer versions of uvloop.
    program = "import sys; sys.modules['uvloop'] = None; from pproxy.server import main; main()"
    python = str(Path(path).with_name("python3"))
    return [python, "-c", program, "-l", f"http://0.0.0.0:{PORT}"]


def _squid(scratch: Scratch) -> list[str] | None:
    """As root only: it becomes another user, which a user namespace does not have."""
    if os.geteuid() != 0:
        return None
    scratch.folder.chmod(0o777)
    return _configured("squid", "-f", "squid.conf", "-N")(scratch)


def _reference(_: Scratch) -> list[str] | None:
    try:
        import httptools  # noqa: F401
        import uvloop  # noqa: F401
    except ImportError:
        return None
    return [sys.executable, str(HERE / "http_reference.py"), str(PORT)]


def _python(program: Path, *options: str) -> Command:
    return lambda _: [sys.executable, str(program), *options] if program.exists() else None


def _ours(mode: str, *options: str) -> Command:
    example = HERE.parent / "examples" / "http_proxy"
    anywhere = (
        ("--local", "--ports", "1-65535", "--allow", "0.0.0.0/0") if mode == "forward" else ()
    )
    return _python(example, f"--{mode}", f"0.0.0.0:{PORT}", *anywhere, *options)


def _everything(scratch: Scratch) -> list[str] | None:
    log = str(scratch.folder / "access.log")
    return _ours("intercept", "--spoof", "--host-verify", "original", "--access-log", log)(scratch)


NAME = "origin.test"  # the origin's, in the router's /etc/hosts
_SERVICE = HERE / "http_service.py"
_OFF = ("--host-verify", "off")
_MITMPROXY = (
    "-q",
    "--set",
    "flow_detail=0",
    "--mode",
    f"regular@{PORT}",
    "--listen-host",
    "0.0.0.0",
)
_PROXY_PY = (
    *("--hostname", "0.0.0.0", "--port", str(PORT), "--log-level", "ERROR"),
    *("--num-acceptors", "1", "--num-workers", "1"),
)
INTERCEPTING: dict[str, Peer] = {
    "C floor, TPROXY, spoofing": Peer(_floor("intercept"), "tproxy", True),
    "lusca_comm, http_service": Peer(_python(_SERVICE, str(PORT), "--intercept"), "tproxy"),
    "lusca_comm, TPROXY": Peer(_ours("intercept", *_OFF), "tproxy"),
    "lusca_comm, TPROXY, spoofing": Peer(_ours("intercept", "--spoof", *_OFF), "tproxy", True),
    "lusca_comm, all features": Peer(_everything, "tproxy", True, f"{NAME}:{ORIGIN}"),
    "lusca_comm, REDIRECT": Peer(_ours("intercept", *_OFF), "redirect"),
}
ADDRESSED: dict[str, Peer] = {
    "C floor": Peer(_floor(), "origin"),
    "lusca_comm, http_service, forward": Peer(_python(_SERVICE, str(PORT)), "absolute"),
    "lusca_comm, forward": Peer(_ours("forward", *_OFF), "absolute"),
    "nginx": Peer(_configured("nginx", "-c", "nginx-http.conf"), "origin"),
    "HAProxy": Peer(_configured("haproxy", "-f", "haproxy-http.cfg"), "origin"),
    "Squid": Peer(_squid, "absolute"),
    "uvloop + httptools": Peer(_reference, "absolute"),
    "pproxy": Peer(_pproxy, "absolute"),
    "proxy.py": Peer(_program("proxy", *_PROXY_PY), "absolute"),
    "mitmproxy": Peer(_program("mitmdump", *_MITMPROXY), "absolute"),
}
