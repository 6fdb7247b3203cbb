"""What ``dns_interceptor.py --lab`` shows: a client, a resolver, and the interceptor between them.

The resolver answers every name with the address that asked it, and ``big.test`` with a hundred.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dns_message as dns
from _lab import FAMILIES, Stage

from lusca_comm.firewall import Plan
from lusca_comm.lab import Channel

TABLE = """
198.51.100.7  www.table.test *.table.test
2001:db8::7   www.table.test
block         ads.test *.ads.test
"""
PORT = 3153
MANY = [ipaddress.ip_address(f"203.0.113.{number}") for number in range(1, 101)]


def resolver(channel: Channel) -> None:
    """Tells the channel of every query: name, who asked, and by what."""
    with selectors.DefaultSelector() as waiting:
        for family in FAMILIES:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = socket.socket(family, kind)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 53))
                if kind == socket.SOCK_STREAM:
                    sock.listen()
                waiting.register(sock, selectors.EVENT_READ, sock)
        channel.send("ready")
        while True:
            for key, _ in waiting.select():
                sock = key.data
                if sock.type == socket.SOCK_DGRAM:
                    message, peer = sock.recvfrom(65535)
                    sock.sendto(_reply(channel, message, peer[0], "udp"), peer)
                else:
                    _serve(channel, *sock.accept())


def _serve(channel: Channel, sock: socket.socket, peer: Any) -> None:
    with sock, sock.makefile("rwb") as stream:
        while size := stream.read(2):
            message = stream.read(int.from_bytes(size, "big"))
            reply = _reply(channel, message, peer[0], "tcp")
            stream.write(len(reply).to_bytes(2, "big") + reply)
            stream.flush()


def _reply(channel: Channel, message: bytes, peer: str, how: str) -> bytes:
    query = dns.parse_query(message)
    assert query is not None
    channel.send((query.name, peer, how))
    who = ipaddress.ip_address(peer)
    found = MANY if query.name == "big.test" else [who]
    kind = dns.A if found[0].version == 4 else dns.AAAA
    found = found if query.type == kind else []
    return dns.answer(query, dns.NOERROR, found, size=query.size if how == "udp" else 65535)


def query_for(name: str, kind: int, number: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", number, dns.RD, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, kind, 1)


def told(reply: bytes) -> tuple[int, bool, list[str]]:
    """The code, whether it is cut down, and the addresses."""
    _, flags, _, count, _, _ = struct.unpack_from(">6H", reply)
    at = reply.index(b"\0", 12) + 5
    found = []
    for _ in range(count):
        (size,) = struct.unpack_from(">H", reply, at + 10)
        found.append(str(ipaddress.ip_address(reply[at + 12 : at + 12 + size])))
        at += 12 + size
    return flags & 0xF, bool(flags & dns.TC), found


def ask(there: str, name: str, kind: int) -> tuple[int, bool, list[str]]:
    """By UDP, from a socket that takes an answer from `there` alone."""
    with socket.socket(socket.AF_INET6 if ":" in there else socket.AF_INET, 2) as sock:
        sock.settimeout(10)
        sock.connect((there, 53))
        sock.send(query_for(name, kind, 7))
        reply = sock.recv(65535)
        assert reply[:2] == b"\0\7", "the answer has the query's number"
        return told(reply)


def ask_by_tcp(there: str, names: Sequence[str], kind: int) -> dict[int, Any]:
    """All by one connection, in pieces that have nothing to do with where messages end."""
    with socket.create_connection((there, 53), 10) as sock, sock.makefile("rb") as stream:
        queries = [query_for(name, kind, number) for number, name in enumerate(names)]
        stuff = b"".join(len(query).to_bytes(2, "big") + query for query in queries)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(stuff), 7):
            sock.sendall(stuff[at : at + 7])
        found = {}
        for _ in names:
            reply = stream.read(int.from_bytes(stream.read(2), "big"))
            found[int.from_bytes(reply[:2], "big")] = told(reply)
        return found


def play(stage: Stage) -> None:
    net = stage.net
    origin = net.origin.start(resolver)
    origin.recv()
    plan = Plan(
        protocols=("tcp", "udp"),
        ports=(53,),
        port=PORT,
        interfaces=(net.client_link.b_ifname,),
        spoof=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "hosts")
        table.write_text(TABLE)
        stage.example(plan, "--spoof", "--port", str(PORT), "--hosts", str(table))
        for family in FAMILIES:
            _one_family(stage, family, origin)


def _one_family(stage: Stage, family: int, origin: Any) -> None:
    net, kind = stage.net, dns.A if family == socket.AF_INET else dns.AAAA
    there, me = net.origin_ip[family], net.client_ip[family]
    ours = "198.51.100.7" if kind == dns.A else "2001:db8::7"

    def asked(name: str) -> tuple[int, bool, list[str]]:
        return net.client.run(ask, there, name, kind)

    stage.check(f"{there}: a name of the table", asked("WWW.table.test") == (0, False, [ours]))
    stage.check(f"{there}: a blocked name", asked("x.ads.test") == (dns.NXDOMAIN, False, []))
    stage.check(
        f"{there}: any other name, asked for by {me}", asked("who.test") == (0, False, [me])
    )
    stage.check("the resolver was asked for that alone", origin.recv() == ("who.test", me, "udp"))
    if kind == dns.A:
        stage.check("too much for a datagram: cut down", asked("big.test") == (0, True, []))
        origin.recv()
    names = ["who.test", "www.table.test", "big.test", "ads.test", "who.test"]
    found = net.client.run(ask_by_tcp, there, names, kind)
    many = [str(one) for one in MANY] if kind == dns.A else []
    expected = [[me], [ours], many, [], [me]]
    stage.check(
        "by TCP: five queries by one connection, and all of what was too much",
        [found[number][2] for number in range(5)] == expected,
    )
    seen = [origin.recv() for _ in range(3)]
    passed_on = [(name, me, "tcp") for name in ("who.test", "big.test", "who.test")]
    stage.check("the resolver saw three of them, from the client", seen == passed_on)
