"""Kernels' devices, emulated: ``/dev/pf`` and ``/dev/ipnat`` behind the shim's device seam.

What a kernel has where, and what it answers when, is data: ``vectors/devices/*.json``, each row
with its source. Here is only how a row is applied. The bytes of a question are read by that data
and by nothing of the library's, as many as the ioctl's number says, as a kernel would.

A fake's descriptors are real ones, so close-on-exec, fork and setuid are the running kernel's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lusca_comm._shim import ffi, lib

VECTORS = Path(__file__).with_name("vectors") / "devices"
PF = json.loads((VECTORS / "pf.json").read_text())
IPNAT = json.loads((VECTORS / "ipnat.json").read_text())

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
IN, OUT = PF["directions"]["in"], PF["directions"]["out"]
Ends = tuple[str, int]


class Entry(NamedTuple):
    """A translated connection, or a direct one where `original` is `local`."""

    client: Ends
    local: Ends
    """Where the socket is: the destination after translation."""
    original: Ends
    proto: int = TCP
    began: str = "elsewhere"
    """Or "here": traffic of the machine itself, which PF finds the other way round."""
    rdomain: int = 0


class Question(NamedTuple):
    """What a device was asked, decoded."""

    device: str
    proto: int
    client: Ends
    local: Ends
    direction: int = 0
    rdomain: int = 0


def _packed(host: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)


def _host(packed: bytes, v6: bool) -> str:
    return (
        socket.inet_ntop(socket.AF_INET6, packed)
        if v6
        else socket.inet_ntop(socket.AF_INET, packed[:4])
    )


class Machine:
    """A system with one device, put in the place of this one by :func:`pretend`."""

    path: str

    def __init__(
        self,
        system: str,
        *entries: Entry,
        absent: bool = False,
        owner: int | None = None,
        read_only_refused: bool = False,
        rdomain: int = 0,
    ) -> None:
        self.system = system
        self.entries = list(entries)
        self.absent = absent
        self.owner = os.geteuid() if owner is None else owner
        self.euid: Callable[[], int] = os.geteuid
        self.read_only_refused = read_only_refused
        self.socket_rdomain = rdomain
        self.opened: list[tuple[str, int]] = []
        self.descriptors: list[int] = []
        self.questions: list[Question] = []
        self.faults: list[str] = []
        self.lock = threading.Lock()

    def open(self, path: str, flags: int) -> int:
        self.opened.append((path, flags))
        if path != self.path or self.absent:
            return -self._errno("open", "absent")
        if self.euid() != self.owner:
            return -self._errno("open", "another user")
        if self.read_only_refused and flags & os.O_ACCMODE == os.O_RDONLY:
            return -errno.EACCES
        fd = os.open("/dev/null", flags)
        with self.lock:
            self.descriptors.append(fd)
        return fd

    def control(self, fd: int, command: int, argument: Any) -> int:
        if fd not in self.descriptors:
            raise AssertionError(f"descriptor {fd} is not of this device")
        try:
            os.fstat(fd)
        except OSError:
            return -errno.EBADF
        size = command >> 16 & 0x1FFF
        data = bytearray(ffi.buffer(ffi.cast("char *", argument), size))
        answer = self.answer(command, data)
        if answer == 0:
            ffi.memmove(argument, data, size)
        return -answer

    def answer(self, command: int, data: bytearray) -> int:
        """What the kernel makes of `data`: 0 with `data` changed, or an errno."""
        raise NotImplementedError

    def rows(self, table: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _errno(self, table: str, when: str) -> int:
        for row in self.rows(table):
            if row["when"] == when and self.system in row.get("systems", [self.system]):
                return int(getattr(errno, row["errno"]))
        raise AssertionError(f"{self.system} has no row {when!r}")


class Pf(Machine):
    path = "/dev/pf"

    def rows(self, table: str) -> list[dict[str, Any]]:
        return list(PF[table])

    def answer(self, command: int, data: bytearray) -> int:
        at = PF["systems"][self.system]
        if command != int(at["command"], 16) or len(data) != at["size"]:
            return self._errno("natlook", "another command")
        v6 = data[at["af"]] == at["inet6"]
        proto, direction = data[at["proto"]], data[at["direction"]]
        address = {name: bytes(data[at[name] : at[name] + 16]) for name in ("saddr", "daddr")}
        port = {name: _network16(data, at[name]) for name in ("sport", "dport")}
        rdomain = struct.unpack_from("=H", data, at["rdomain"])[0] if "rdomain" in at else 0
        question = Question(
            "pf",
            proto,
            (_host(address["saddr"], v6), port["sport"]),
            (_host(address["daddr"], v6), port["dport"]),
            direction,
            rdomain,
        )
        self.questions.append(question)
        found = [entry for entry in self.entries if _pf_finds(entry, question)]
        length = 16 if v6 else 4
        holds = {
            "another command": False,
            "unknown af": not v6 and data[at["af"]] != socket.AF_INET,
            "zero proto": proto == 0,
            "zero saddr": not any(address["saddr"][:length]),
            "zero daddr": not any(address["daddr"][:length]),
            "zero sport": port["sport"] == 0,
            "zero dport": port["dport"] == 0,
            "large rdomain": rdomain > 255,
            "several states": len(found) > 1,
            "no state": not found,
        }
        for row in self.rows("natlook"):
            if holds[row["when"]] and self.system in row.get("systems", [self.system]):
                return int(getattr(errno, row["errno"]))
        for name, ends in (("rs", found[0].client), ("rd", found[0].original)):
            packed = _packed(ends[0])
            data[at[name + "addr"] : at[name + "addr"] + len(packed)] = packed
            struct.pack_into(">H", data, at[name + "port"], ends[1])
        return 0


def _network16(data: bytearray, offset: int) -> int:
    return int(struct.unpack_from(">H", data, offset)[0])


def _pf_finds(entry: Entry, question: Question) -> bool:
    wanted = IN if entry.began == "here" else OUT
    return (
        (question.direction == IN) == (wanted == IN)
        and (entry.proto, entry.rdomain) == (question.proto, question.rdomain)
        and (entry.client, entry.local) == (question.client, question.local)
    )


class Ipnat(Machine):
    path = "/dev/ipnat"
    revision = IPNAT["revision"]
    type = IPNAT["type"]

    def rows(self, table: str) -> list[dict[str, Any]]:
        return list(IPNAT[table])

    def answer(self, command: int, data: bytearray) -> int:
        at, of = IPNAT["object"], IPNAT["natlookup"]
        if command != int(IPNAT["command"], 16) or len(data) != at["size"]:
            return self._errno("lookup", "another command")
        revision, length = struct.unpack_from("=II", data, at["rev"])
        pointer, kind = struct.unpack_from("=Qi", data, at["ptr"])
        for when, holds in (
            ("another revision", revision != self.revision),
            ("another size", length != of["size"]),
            ("another type", kind != self.type),
        ):
            if holds:
                return self._errno("lookup", when)
        target = ffi.cast("char *", pointer)
        inner = bytearray(ffi.buffer(target, length))
        version, flags = struct.unpack_from("=ii", inner, of["version"])
        v6 = version == 6
        question = Question(
            "ipnat",
            {IPNAT["flags"]["tcp"]: TCP, IPNAT["flags"]["udp"]: UDP}.get(flags, 0),
            (
                _host(bytes(inner[of["out"] : of["out"] + 16]), v6),
                _network16(inner, of["out_port"]),
            ),
            (_host(bytes(inner[of["in"] : of["in"] + 16]), v6), _network16(inner, of["in_port"])),
        )
        self.questions.append(question)
        found = [
            entry
            for entry in self.entries
            if (entry.proto, entry.client, entry.local)
            == (question.proto, question.client, question.local)
        ]
        for when, holds in (
            ("zero version", version == 0),
            ("zero flags", flags == 0),
            ("no entry", not found),
        ):
            if holds:
                return self._errno("lookup", when)
        packed = _packed(found[0].original[0])
        inner[of["real"] : of["real"] + len(packed)] = packed
        struct.pack_into(">H", inner, of["real_port"], found[0].original[1])
        ffi.memmove(target, inner, length)
        return 0


@contextlib.contextmanager
def pretend(machine: Machine) -> Iterator[Machine]:
    """Has the engines see `machine`'s devices instead of this machine's."""

    def guarded(call: Callable[..., int]) -> Callable[..., int]:
        def run(*arguments: Any) -> int:
            try:
                return call(*arguments)
            except BaseException:
                machine.faults.append(traceback.format_exc())
                return -errno.EFAULT

        return run

    system = ffi.new("char[]", machine.system.encode())
    calls = {
        "system": system,
        "open": ffi.callback(
            "int(*)(const char *, int)",
            guarded(lambda path, flags: machine.open(ffi.string(path).decode(), flags)),
        ),
        "control": ffi.callback("int(*)(int, unsigned long, void *)", guarded(machine.control)),
        "rdomain": ffi.callback("int(*)(int)", guarded(lambda fd: machine.socket_rdomain)),
    }
    seam = ffi.new("struct lc_machine *", calls)
    lib.lc_machine_is(seam)
    try:
        yield machine
    finally:
        lib.lc_machine_is(ffi.NULL)
    assert not machine.faults, "\n".join(machine.faults)
