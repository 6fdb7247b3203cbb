"""The demo's judgement, without packets: every field that is wrong is told, and a right line is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from lusca_comm.address import spell
from lusca_comm.cli.demo.checks import (
    LINES,
    Hosts,
    Line,
    Proxied,
    Response,
    Saw,
    as_json,
    judge,
    page,
)

BODY = b"the body of the request"
HOSTS = {
    "ipv4": Hosts("192.0.2.2", "192.0.2.1", "198.51.100.1", ("198.51.100.2", 80)),
    "ipv6": Hosts("2001:db8:1::2", "2001:db8:1::1", "2001:db8:2::1", ("2001:db8:2::2", 80)),
}
THROUGH = tuple(line for line in LINES if line.mode != "direct")


def name(line: Line) -> str:
    return f"{line.family}-{line.mode}-{'spoof' if line.spoof else 'plain'}"


every_line = pytest.mark.parametrize("line", LINES, ids=name)
through_the_proxy = pytest.mark.parametrize("line", THROUGH, ids=name)


def right(line: Line) -> Saw:
    """What everybody sees when all is well."""
    hosts = HOSTS[line.family]
    mine = (hosts.client, 40000)
    if line.mode == "direct":
        return Saw(Response(mine, 200, page(mine, BODY)), (), (mine,))
    source = (hosts.client if line.spoof else hosts.router, 50000)
    engine = {"tproxy": "tproxy4", "redirect": "netfilter"}[line.mode]
    proxied = Proxied(mine, hosts.origin, engine, line.mode == "redirect", source)
    return Saw(Response(mine, 200, page(source, BODY)), (proxied,), (source,))


def complaints(line: Line, saw: Saw) -> list[str]:
    return judge(line, HOSTS[line.family], BODY, saw)


def client(saw: Saw, **fields: Any) -> Saw:
    assert saw.client is not None
    return dataclasses.replace(saw, client=dataclasses.replace(saw.client, **fields))


def proxy(saw: Saw, **fields: Any) -> Saw:
    return dataclasses.replace(saw, proxy=(dataclasses.replace(saw.proxy[0], **fields),))


def test_the_lines_are_those_promised() -> None:
    lines = {(line.family, line.mode, line.spoof) for line in LINES}
    assert lines == {
        (family, mode, spoof)
        for family in ("ipv4", "ipv6")
        for mode, spoof in (
            ("direct", False),
            ("tproxy", True),
            ("tproxy", False),
            ("redirect", True),
            ("redirect", False),
        )
    }
    assert len(LINES) == 10


@every_line
def test_a_right_line(line: Line) -> None:
    assert complaints(line, right(line)) == []


@through_the_proxy
def test_a_rule_that_fails_open(line: Line) -> None:
    """All looks well to the client."""
    open_ = right(dataclasses.replace(line, mode="direct", spoof=False))
    assert "the connection did not go through the proxy" in complaints(line, open_)


@through_the_proxy
def test_a_control_that_is_intercepted(line: Line) -> None:
    told = complaints(Line(line.family, "direct"), right(line))
    assert f"without a rule the proxy saw {spell((HOSTS[line.family].client, 40000))}" in told


@through_the_proxy
@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("peer", ("192.0.2.9", 40000), "the proxy's peer is 192.0.2.9:40000, not "),
        ("address", ("192.0.2.1", 3129), "the proxy was told to go to 192.0.2.1:3129, not "),
        ("engine", "sockname", "engine sockname answered the proxy, not "),
        ("source", ("192.0.2.9", 50000), "not 192.0.2.9:50000"),
    ],
)
def test_a_wrong_word_from_the_proxy(line: Line, field: str, value: Any, text: str) -> None:
    (told,) = complaints(line, proxy(right(line), **{field: value}))
    assert text in told


@through_the_proxy
def test_translated_or_not(line: Line) -> None:
    saw = right(line)
    word = "untouched" if saw.proxy[0].translated else "translated"
    changed = proxy(saw, translated=not saw.proxy[0].translated)
    assert complaints(line, changed) == [f"the proxy holds the destination for {word}"]


@every_line
def test_a_wrong_peer_at_the_origin(line: Line) -> None:
    saw = right(line)
    hosts = HOSTS[line.family]
    seen = saw.origin[0]
    other = hosts.router if seen[0] == hosts.client else hosts.client
    for peer in ((other, seen[1]), (seen[0], seen[1] + 1)):
        changed = client(dataclasses.replace(saw, origin=(peer,)), body=page(peer, BODY))
        (told,) = complaints(line, changed)
        assert told.startswith("the origin saw ")


@every_line
def test_the_wrong_page(line: Line) -> None:
    saw = right(line)
    assert saw.client is not None
    for body in (b"", saw.client.body[:-1], saw.client.body + b"!", page(("192.0.2.9", 1), BODY)):
        told = complaints(line, client(saw, body=body))
        assert told == ["the client did not get the page that the origin sent"]


@every_line
def test_a_status_that_is_not_200(line: Line) -> None:
    assert complaints(line, client(right(line), status=502)) == [
        "the client got status 502, not 200"
    ]


@every_line
def test_a_client_elsewhere(line: Line) -> None:
    told = complaints(line, client(right(line), source=("192.0.2.9", 40000)))
    assert any(text.startswith("the client connected from 192.0.2.9, not ") for text in told)


@every_line
def test_nothing_at_all(line: Line) -> None:
    told = complaints(line, Saw(None, (), (), ("the client: timed out",)))
    assert told[0] == "the client: timed out"
    assert "the origin saw 0 requests for one" in told


@every_line
def test_two_for_one(line: Line) -> None:
    saw = right(line)
    told = complaints(line, dataclasses.replace(saw, origin=saw.origin * 2))
    assert "the origin saw 2 requests for one" in told
    if saw.proxy:
        told = complaints(line, dataclasses.replace(saw, proxy=saw.proxy * 2))
        assert "the proxy saw 2 connections for one" in told


@every_line
def test_an_error_spoils_a_line_that_looks_right(line: Line) -> None:
    saw = dataclasses.replace(right(line), errors=("the proxy: no route",))
    assert complaints(line, saw) == ["the proxy: no route"]


@every_line
def test_as_json(line: Line) -> None:
    row = json.loads(json.dumps(as_json(line, right(line), [])))
    assert (row["family"], row["mode"], row["spoof"]) == (line.family, line.mode, line.spoof)
    assert row["ok"] is True
    assert (row["proxy"] is None) == (line.mode == "direct")
    nothing = as_json(line, Saw(None, (), ()), ["why"])
    assert (nothing["client"], nothing["proxy"], nothing["origin"]) == (None, None, None)
    assert (nothing["ok"], nothing["wrong"]) == (False, ["why"])
