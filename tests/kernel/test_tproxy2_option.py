"""The emulated option through real system calls: every answer, and what a program may pass."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import threading
from typing import Any

from emulators.tproxy2 import kernel, supervise
from emulators.tproxy2.calls import ask, raw_get, raw_set, tell
from emulators.tproxy2.cases import ASK, CASES, FOREIGN, TAKE, Step, flags
from kernel.tproxy2 import needs_nft

from lusca_comm.lab import Channel, Lab
from lusca_comm.lab.capabilities import keep_only

pytestmark = needs_nft
KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "icmp": (socket.SOCK_RAW, socket.IPPROTO_ICMP),
}


def read_only() -> ctypes.c_void_p:
    """A page of zeroes, which ask for the version."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return ctypes.c_void_p(libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, flags, -1, 0))


def at(host: str, what: Any) -> Any:
    """The same bytes with this host for the foreign one."""
    if not isinstance(what, bytes):
        return what
    return what.replace(socket.inet_aton(FOREIGN[0]), socket.inet_aton(host))


def run_case(steps: list[Step], host: str) -> list[tuple[Step, int | bytes]]:
    """The steps that went otherwise than they should."""
    sockets, wrong = dict[str, socket.socket](), []
    for step in steps:
        step = step._replace(argument=at(host, step.argument), answer=at(host, step.answer))
        sock = sockets.get(step.who)
        answer: int | bytes = 0
        if step.what == "open":
            sockets[step.who] = socket.socket(socket.AF_INET, *KINDS[step.argument])
        elif sock is None:
            raise AssertionError(step)
        elif step.what == "set":
            answer = tell(sock, step.argument)
        elif step.what == "get":
            answer = ask(sock, step.argument)
        elif step.what == "bind":
            sock.bind((step.argument, 0))
        elif step.what == "reuse":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif step.what == "connect":
            sock.connect(sockets[step.argument].getsockname())
        else:
            getattr(sock, step.what)()
        if answer != step.answer:
            wrong.append((step, answer))
    for sock in sockets.values():
        sock.close()
    return wrong


def run_cases(channel: Channel) -> dict[str, Any]:
    """A foreign address for each: the supervisor hears of a socket's end a moment after close(2),
    where the real kernel acts at once."""
    hosts = {name: f"203.0.113.{number}" for number, name in enumerate(CASES, 1)}
    return {name: bad for name in CASES if (bad := run_case(CASES[name], hosts[name]))}


def test_every_answer(lab: Lab) -> None:
    assert supervise(lab.host("proxy"), run_cases).result() == {}


def run_without_the_patch(channel: Channel) -> list[int | bytes]:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        return [
            answer
            for sock in (tcp, udp)
            for answer in (
                tell(sock, kernel.number(kernel.VERSION, 0x02000000)),
                tell(sock, TAKE),
                ask(sock, kernel.number(kernel.VERSION)),
            )
        ]


def test_todays_kernel_knows_no_such_option(lab: Lab) -> None:
    """The control: all of the above is the supervisor's doing."""
    answers = lab.host("proxy").start(run_without_the_patch).result()
    assert answers == [errno.ENOPROTOOPT] * 6


def lose_the_capability(channel: Channel, lose: bool) -> list[int]:
    """ASSIGN before and after; FLAGS, which was settled by ASSIGN."""
    with socket.socket() as a, socket.socket() as b:
        for sock in (a, b):
            sock.bind(("127.0.0.1", 0))
        codes = [tell(a, TAKE)]
        if lose:
            keep_only({"CAP_NET_RAW"})
        codes.append(tell(a, flags(kernel.ITP_CONNECT)))
        codes.append(tell(b, kernel.address(kernel.ASSIGN, FOREIGN[0], 81)))
        with socket.socket() as unbound:
            codes.append(tell(unbound, TAKE))
    return codes


def test_assign_needs_the_capability_at_that_moment(lab: Lab) -> None:
    host = lab.host("proxy")
    kept = supervise(host, lose_the_capability, False).result()
    assert kept == [0, 0, 0, errno.EINVAL]
    lost = supervise(host, lose_the_capability, True).result()
    assert lost == [0, 0, errno.EPERM, errno.EPERM]


def pass_nonsense(channel: Channel) -> dict[str, int]:
    with socket.socket() as sock, socket.socket(socket.AF_INET6) as sock6:
        fd, wild = sock.fileno(), ctypes.c_void_p(8)
        good = ctypes.create_string_buffer(kernel.number(kernel.VERSION, 0x02000000), 12)
        size = ctypes.c_uint32(12)
        pipe, _ = os.pipe()
        return {
            "set: no memory": raw_set(fd, wild, 12),
            "set: nowhere": raw_set(fd, None, 12),
            "set: negative size": raw_set(fd, good, -1),
            "get: no memory": raw_get(fd, wild, ctypes.byref(size)),
            "get: no size": raw_get(fd, good, None),
            "get: read-only memory": raw_get(fd, read_only(), ctypes.byref(size)),
            "good": raw_set(fd, good, 12),
            "closed": raw_set(1000, good, 12),
            "negative": raw_set(-1, good, 12),
            "a pipe": raw_set(pipe, good, 12),
            "IPv6": raw_set(sock6.fileno(), good, 12),
            "another level": set_other(sock, socket.SOL_SOCKET, kernel.OPTION),
            "another option": set_other(sock, socket.SOL_IP, 11273),
            "an option of today's": set_other(sock, socket.SOL_IP, socket.IP_TTL),
        }


def set_other(sock: socket.socket, level: int, option: int) -> int:
    try:
        sock.setsockopt(level, option, 9)
    except OSError as why:
        return why.errno or 0
    return 0


def test_what_a_program_may_pass(lab: Lab) -> None:
    assert supervise(lab.host("proxy"), pass_nonsense).result() == {
        "set: no memory": errno.EFAULT,
        "set: nowhere": errno.EFAULT,
        "set: negative size": errno.EINVAL,
        "get: no memory": errno.EFAULT,
        "get: no size": errno.EFAULT,
        "get: read-only memory": errno.EFAULT,
        "good": 0,
        "closed": errno.EBADF,
        "negative": errno.EBADF,
        "a pipe": errno.ENOTSOCK,
        "IPv6": errno.ENOPROTOOPT,
        "another level": errno.ENOPROTOOPT,
        "another option": errno.ENOPROTOOPT,
        "an option of today's": 0,
    }


def ask_in_threads(channel: Channel, count: int) -> list[int | bytes]:
    """Each thread with a socket of its own, all at once: calls of threads that lead no group."""
    answers: list[int | bytes] = []

    def one() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            tell(sock, kernel.address(kernel.ASSIGN, FOREIGN[0], port))
            told = ask(sock, ASK)
            answers.append(told == kernel.address(kernel.QUERY, FOREIGN[0], port))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_threads(lab: Lab) -> None:
    assert supervise(lab.host("proxy"), ask_in_threads, 20).result() == [True] * 20


def die_asking(channel: Channel) -> None:
    """A child that is killed while it asks again and again."""
    pid = os.fork()
    if pid == 0:
        with socket.socket() as sock:
            channel.send("asking")
            while True:
                tell(sock, kernel.number(kernel.VERSION, 0x02000000))
    channel.recv()
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    with socket.socket() as sock:
        assert tell(sock, kernel.number(kernel.VERSION, 0x02000000)) == 0


def test_a_process_that_dies_asking(lab: Lab) -> None:
    program = supervise(lab.host("proxy"), die_asking)
    assert program.recv() == "asking"
    program.send("kill it")
    program.result()
