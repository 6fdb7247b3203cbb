"""What the tests of the lab share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lusca_comm.lab import Channel
from lusca_comm.lab.namespaces import CLONE_NEWUSER, unshare
from lusca_comm.lab.process import Process

IP_TRANSPARENT = 19  # linux/in.h
NONE: frozenset[str] = frozenset()
R = TypeVar("R")


def echo(channel: Channel, family: int, address: tuple[str, int]) -> str:
    """Serve one connection: send back what comes until its end; the client's address."""
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        channel.send("listening")
        conn, peer = listener.accept()
        with conn:
            while data := conn.recv(65536):
                conn.sendall(data)
    return str(peer[0])


def ask(family: int, address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, timeout=10) as sock:
        assert sock.family == family
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def become_transparent() -> int:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        return sock.getsockopt(socket.SOL_IP, IP_TRANSPARENT)


def in_child(fn: Callable[[], R]) -> R:
    """``fn()`` in a forked child that stays in this process's namespaces."""
    process = Process(lambda: None, lambda channel: fn(), "the child")
    try:
        return process.result()
    finally:
        process.stop()


def own_user_namespace() -> None:
    """Have all capabilities over a new user namespace, and limits of one's own."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
