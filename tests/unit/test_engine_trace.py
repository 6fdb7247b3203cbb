"""On Linux no engine of another system is ever tried under a number that means something else here:
24, 27, 64 and the like are other options, and /dev/pf might be anything. Seen by strace."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOL_IP, SOL_SOCKET, SOL_IPV6 = 0, 1, 41
SO_BINDANY = 0x1000  # OpenBSD's; from here on every SOL_SOCKET number is another system's
IP_BIND_ADDRESS_NO_PORT = 24  # FreeBSD's IP_BINDANY, NetBSD's IP_MINTTL

# linux/in.h, linux/in6.h, linux/netfilter_ipv4.h, cttproxy's: what Linux engines may ask for.
OURS = {
    (SOL_IP, 1): "IP_TOS",
    (SOL_IP, 19): "IP_TRANSPARENT",
    (SOL_IP, 20): "IP_RECVORIGDSTADDR",
    (SOL_IP, 80): "SO_ORIGINAL_DST",
    (SOL_IP, 11274): "IP_TPROXY",
    (SOL_IPV6, 26): "IPV6_V6ONLY",
    (SOL_IPV6, 67): "IPV6_TCLASS",
    (SOL_IPV6, 74): "IPV6_RECVORIGDSTADDR",
    (SOL_IPV6, 75): "IPV6_TRANSPARENT",
    (SOL_IPV6, 80): "IP6T_SO_ORIGINAL_DST",
}
DEVICES = ("/dev/pf", "/dev/ipnat", "/dev/ipl", "/dev/ipfw")
NATLOOK, GNATL = ord("D") << 8 | 23, ord("r") << 8 | 63

LISTENERS = """
import contextlib, os, socket
import lusca_comm as lc

for engine in lc.engines():
    engine.reason
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
    for host in "127.0.0.1", "::1", "::":
        for flags in lc.COMM_TPROXY_LCL, lc.COMM_INTERCEPT, lc.COMM_TPROXY_LCL | lc.COMM_INTERCEPT:
            with contextlib.suppress(lc.CommError):
                sock = lc.comm_open(kind, 0, (host, 0), flags=flags, dualstack=host == "::")
                lc.comm_close(sock)
listener = lc.comm_open(address=("127.0.0.1", 0))
lc.comm_listen(listener)
client = socket.create_connection(listener.getsockname())
while (got := lc.comm_accept(listener)) is None:
    pass
for name in None, *(engine.name for engine in lc.engines()):
    with contextlib.suppress(lc.CommError):
        lc.original_destination(got.sock, engine=name)
print("done")
"""

SPOOFING = """
import contextlib
import lusca_comm as lc

for host in "192.0.2.2", "2001:db8::2":
    with contextlib.suppress(lc.CommError):
        lc.comm_close(lc.comm_open(address=(host, 0), flags=lc.COMM_TPROXY_REM))
print("done")
"""

COLLIDING = """
import contextlib, fcntl, socket
with socket.socket() as sock:
    for level, option in (0, 24), (0, 27), (41, 64), (1, 0x1000):
        with contextlib.suppress(OSError):
            sock.setsockopt(level, option, 1)
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, 0xC04C4417, bytes(76))
with contextlib.suppress(OSError):
    open("/dev/pf")
print("done")
"""


def calls(script: str, log: Path) -> list[str]:
    """The system calls of `script` that could reach another system's mechanism."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace: apt install strace")
    traced = "trace=setsockopt,getsockopt,ioctl,open,openat"
    command = [strace, "-f", "-qq", "-X", "raw", "-e", traced, "-e", "signal=none", "-o", str(log)]
    run = subprocess.run(
        [*command, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"
    return log.read_text().splitlines()


def foreign(lines: list[str]) -> list[str]:
    """The calls that are none of Linux's own."""
    found = []
    for line in lines:
        if option := re.search(r" [sg]etsockopt\(\w+, (\w+), (\w+)", line):
            level, number = (int(text, 0) for text in option.groups())
            if level == SOL_SOCKET:
                strange = number >= SO_BINDANY
            else:
                strange = level in (SOL_IP, SOL_IPV6) and (level, number) not in OURS
        elif control := re.search(r" ioctl\(\w+, (\w+)", line):
            strange = int(control[1], 0) & 0xFFFF in (NATLOOK, GNATL)
        else:
            strange = any(f'"{device}' in line for device in DEVICES)
        if strange:
            found.append(line)
    return found


def test_listening_and_looking_up(tmp_path: Path) -> None:
    lines = calls(LISTENERS, tmp_path / "log")
    assert foreign(lines) == []
    assert any(re.search(r"getsockopt\(\w+, 0, 0x50", line) for line in lines)  # SO_ORIGINAL_DST


@pytest.mark.parametrize("engine", ["bindany", "pf", "ipfilter", "bindany,pf,ipfilter"])
def test_named(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the user names it: it is refused before anything is tried."""
    monkeypatch.setenv("LUSCA_COMM_ENGINE", engine)
    assert foreign(calls(LISTENERS, tmp_path / "log")) == []


def test_spoofing(tmp_path: Path) -> None:
    """24 is asked for once per outbound stream socket, as what it is here, and only if the socket
    got IP_TRANSPARENT before."""
    lines = calls(SPOOFING, tmp_path / "log")
    strange = foreign(lines)
    tried = [line for line in lines if re.search(r" setsockopt\(\w+, 0, 0x13, ", line)]
    granted = [line for line in tried if line.endswith(" = 0")]
    assert len(tried) == 2
    asked = f", 0, {IP_BIND_ADDRESS_NO_PORT:#x}, [1], 4)"
    assert len(strange) == len(granted)
    assert all(asked in line for line in strange)


def test_the_trace_sees_them(tmp_path: Path) -> None:
    """The negative control."""
    assert len(foreign(calls(COLLIDING, tmp_path / "log"))) == 6
