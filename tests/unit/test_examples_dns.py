"""examples/dns_message.py and what of dns_interceptor.py does no I/O."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from typing import Any

import dns_interceptor as example
import dns_message as dns
import pytest
from hypothesis import given
from hypothesis import strategies as st

LABEL = st.binary(min_size=1, max_size=63)
NAME = st.lists(LABEL, max_size=3)
FOUR = ipaddress.ip_address("192.0.2.1")
SIX = ipaddress.ip_address("2001:db8::1")


def message(
    labels: list[bytes],
    kind: int = 1,
    id: int = 7,
    flags: int = 0x0100,
    more: bytes = b"",
    n: int = 0,
) -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack(">6H", id, flags, 1, 0, 0, n) + name + struct.pack(">2H", kind, 1) + more


def opt(size: int, flags: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">BHHIH", 0, 41, size, flags, len(data)) + data


@given(NAME, st.integers(0, 65535), st.integers(0, 65535))
def test_a_query_is_understood(labels: list[bytes], kind: int, id: int) -> None:
    query = dns.parse_query(message(labels, kind, id))
    assert query is not None
    assert (query.id, query.type, query.size, query.edns) == (id, kind, 512, False)
    assert query.name.count(".") == max(0, len(labels) - 1)
    if all(label.isalnum() and label.isascii() for label in labels):
        assert query.name == b".".join(labels).lower().decode()


@given(NAME, st.integers(0, 65535), st.booleans(), st.binary(max_size=20), st.booleans())
def test_edns(labels: list[bytes], size: int, dnssec: bool, data: bytes, second: bool) -> None:
    record = opt(size, 0x8000 if dnssec else 0, data)
    if second:  # behind another record, with a compressed name
        record = struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + b"1234" + record
    query = dns.parse_query(message(labels, more=record, n=1 + second))
    assert query is not None
    assert (query.edns, query.dnssec, query.size) == (True, dnssec, max(512, size))


@given(st.binary(max_size=80))
def test_anything_is_a_query_or_none(data: bytes) -> None:
    try:
        query = dns.parse_query(data)
    except dns.Malformed:
        query = None
        assert dns.malformed(data)[:2] == data[:2]
        assert dns.parse_query(dns.malformed(data)) is None
    if query is not None:
        assert data[12:].startswith(query.question)
        assert dns.parse_query(dns.answer(query, dns.NXDOMAIN)) is None  # an answer is no query


@given(NAME, st.data())
def test_a_query_that_breaks_off(labels: list[bytes], data: st.DataObject) -> None:
    """Before its question ends it can't be judged, and behind it there is no need to."""
    whole = message(labels, more=opt(1232), n=1)
    end = len(whole) - len(opt(1232))
    query = dns.parse_query(whole[: data.draw(st.integers(end, len(whole) - 1))])
    assert query is not None
    assert (query.question, query.edns) == (whole[12:end], False)
    assert dns.parse_query(whole[: data.draw(st.integers(0, 11))]) is None
    with pytest.raises(dns.Malformed):
        dns.parse_query(whole[: data.draw(st.integers(12, end - 1))])


@pytest.mark.parametrize(
    "data",
    [
        message([b"a"], flags=0x8100),  # an answer
        message([b"a"], flags=0x2900),  # UPDATE
        message([b"a"])[:4] + b"\0\2" + message([b"a"])[6:],  # two questions
        message([b"a"])[:-1] + b"\3",  # of the class CHAOS
    ],
)
def test_what_is_passed_on(data: bytes) -> None:
    assert dns.parse_query(data) is None


COMPRESSED = message([b"a"])[:12] + b"\xc0\x12\0\1\0\1\3bad\4test\0"


@pytest.mark.parametrize("data", [COMPRESSED, message([b"x" * 63] * 4)], ids=["pointer", "long"])
def test_a_question_that_others_may_understand(data: bytes) -> None:
    with pytest.raises(dns.Malformed):
        dns.parse_query(data)
    assert dns.malformed(data) == data[:2] + b"\x81\x81" + bytes(8)
    interceptor = example.Interceptor(example.Table("block bad.test"), None, False, None)
    assert interceptor._ours(data, ("192.0.2.2", 4000), by_udp=True) == dns.malformed(data)


@pytest.mark.parametrize(
    "data",
    [
        message([b"bad", b"test"], n=1),  # a record is announced, and there is none
        message([b"bad", b"test"], more=opt(512)[:-1], n=1),
        message([b"bad", b"test"], more=opt(512, 1 << 16), n=1),  # EDNS of a later version
        message([b"bad", b"test"])[:-1] + b"\xff",  # of any class
    ],
)
def test_what_dnsmasq_answers_does_not_get_by_the_table(data: bytes) -> None:
    interceptor = example.Interceptor(example.Table("block bad.test"), None, False, None)
    reply = interceptor._ours(data, ("192.0.2.2", 4000), by_udp=True)
    assert reply is not None
    assert reply[3] & 0xF == dns.NXDOMAIN


@given(st.integers(0, 200), st.integers(100, 4000), st.booleans(), st.booleans())
def test_an_answer_fits_or_is_cut_down(count: int, size: int, edns: bool, blocked: bool) -> None:
    asked = message([b"WwW", b"a"], more=opt(4096, 0x8000) if edns else b"", n=int(edns))
    query = dns.parse_query(asked)
    assert query is not None
    reply = dns.answer(query, dns.NOERROR, [FOUR] * count, size=size, blocked=blocked)
    id, flags, questions, answers, authority, additional = struct.unpack_from(">6H", reply)
    assert (id, questions, authority, additional) == (7, 1, 0, edns)
    assert flags & 0xFD7F == 0x8100  # an answer, "recursion desired" as it was, no error
    assert reply[12:].startswith(b"\3WwW\1a\0\0\1\0\1")
    assert dns.answers(reply, asked)
    extra = 11 + 6 * blocked if edns else 0
    if cut := bool(flags & dns.TC):
        assert answers == 0
        assert 12 + 11 + 16 * count + extra > size
    else:
        assert answers == count
        assert len(reply) == 12 + 11 + 16 * count + extra
    assert cut == (12 + 11 + 16 * count + extra > size)


def test_what_answers_a_query() -> None:
    asked = message([b"Www", b"a"], id=0x1234)
    query = dns.parse_query(asked)
    assert query is not None
    right = dns.answer(query, dns.NOERROR, [FOUR])
    assert dns.answers(right, asked)
    for wrong in (
        b"\x12\x35" + right[2:],  # another number
        right[:2] + b"\x01" + right[3:],  # a query
        right.replace(b"Www", b"wwW"),  # the letters of another
        right[:-17],
        b"",
        asked,
        right[:4] + b"\0\0" + right[6:12],  # no question, and no error either
    ):
        assert not dns.answers(wrong, asked)
    refused = right[:3] + b"\5\0\0" + bytes(6)
    assert dns.answers(refused, asked)
    update = message([b"a"], id=0x1234, flags=0x2800)
    assert dns.answers(b"\x12\x34\xa8\0" + bytes(8), update)


TABLE = """
# names                  and more
192.0.2.1    www.example Other.Example.  # two
2001:db8::1  www.example
192.0.2.2    www.example
block        ads.example *.ads.example
192.0.2.3    *.example good.ads.example b\u00fccher.example
"""


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("www.example", ["192.0.2.1", "2001:db8::1", "192.0.2.2"]),
        ("other.example", ["192.0.2.1"]),
        ("ads.example", []),
        ("x.y.ads.example", []),
        ("good.ads.example", ["192.0.2.3"]),
        ("x.example", ["192.0.2.3"]),
        ("xn--bcher-kva.example", ["192.0.2.3"]),
        ("example", None),
        ("", None),
    ],
)
def test_the_table(name: str, found: list[str] | None) -> None:
    table = example.Table(TABLE)
    addresses = table.find(name)
    assert (None if addresses is None else [str(one) for one in addresses]) == found
    query = dns.parse_query(message([part.encode() for part in name.split(".") if part]))
    assert query is not None
    reply = table.answer(query, 512)
    assert (reply is None) == (found is None)
    if reply is not None:
        code, count = reply[3] & 0xF, int.from_bytes(reply[6:8], "big")
        four = [one for one in found or () if ":" not in one]
        assert (code, count) == (0 if found else dns.NXDOMAIN, len(four))


def test_other_types_of_a_name_of_the_table_have_no_records() -> None:
    table = example.Table(TABLE)
    for kind in (65, 16, 255):
        query = dns.parse_query(message([b"www", b"example"], kind))
        assert query is not None
        reply = table.answer(query, 512)
        assert reply is not None
        assert (reply[3] & 0xF, reply[6:8]) == (0, b"\0\0")


@pytest.mark.parametrize("line", ["192.0.2 www.example", "192.0.2.1 a..b", "blocked ads.example"])
def test_a_line_that_makes_no_sense(line: str) -> None:
    with pytest.raises(SystemExit, match="line 2: "):
        example.Table(f"block a.example\n{line}\n")


def read(data: bytes, cuts: list[int]) -> list[Any]:
    """What comes of a stream that arrives in these pieces."""

    async def run() -> list[Any]:
        reader, found = asyncio.StreamReader(), []

        async def feed() -> None:
            start = 0
            for cut in [*sorted(cuts), len(data)]:
                reader.feed_data(data[start:cut])
                start = cut
                await asyncio.sleep(0)
            reader.feed_eof()

        feeding = asyncio.create_task(feed())
        try:
            while one := await example.read_message(reader):
                found.append(one)
        except ConnectionError as why:
            found.append(str(why))
        await feeding
        return found

    return asyncio.run(run())


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5), st.data())
def test_messages_by_tcp_come_in_any_pieces(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(len(one).to_bytes(2, "big") + one for one in messages)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert read(stream, cuts) == messages
    ends = {sum(len(one) + 2 for one in messages[:count]) for count in range(len(messages) + 1)}
    short = data.draw(st.integers(0, len(stream)).filter(lambda at: at not in ends) | st.none())
    if short is not None:
        whole = sum(end <= short for end in ends) - 1
        assert read(stream[:short], []) == [*messages[:whole], "a message broke off"]


class Asked:
    """A query by UDP whose resolver never answers."""

    original = ("203.0.113.1", 53)
    answered = 0

    def __init__(self, client: str, data: bytes) -> None:
        self.peer, self.data = (client, 4000), data

    def reply(self, _: bytes) -> None:
        Asked.answered += 1


def test_a_client_that_asks_for_ever_leaves_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interceptor = example.Interceptor(example.Table("192.0.2.1 ours.test"), None, False, None)
    theirs, ours = message([b"theirs", b"test"]), message([b"ours", b"test"])

    async def ask(*_: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def run() -> None:
        def meet(client: str, data: bytes) -> Any:
            coming = interceptor.datagram(Asked(client, data))  # type: ignore[arg-type]
            return coming and asyncio.ensure_future(coming)

        tasks = [meet("192.0.2.66", theirs) for _ in range(example.QUERIES_OF_ONE)]
        assert None not in tasks
        assert meet("192.0.2.66", theirs) is None
        assert meet("192.0.2.66", ours) is None
        assert Asked.answered == 1
        tasks.append(meet("192.0.2.67", theirs))
        assert tasks[-1] is not None
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not interceptor.shares._taken

    monkeypatch.setattr(interceptor, "_ask", ask)
    asyncio.run(run())
