"""The rules of intercepted and forwarded requests: vectors, and what holds for every request."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lusca_comm.protocols import http_intercept
from lusca_comm.protocols.authority import Authority, canonical, parse_authority
from lusca_comm.protocols.http_intercept import (
    Rules,
    Verdict,
    forwarded,
    hops_left,
    intercepted,
    loops,
    path_of,
    unframed,
)
from lusca_comm.protocols.reachable import may_reach

VECTORS = Path(__file__).parents[1] / "vectors" / "http"
ORIGINAL = ("198.51.100.2", 80)
OWN = ("192.0.2.1", 3129)


def rules_of(case: dict[str, Any]) -> Rules:
    verify = case.get("verify", "original")
    return Rules(verify, own=lambda address: address[:2] == OWN, **case.get("rules", {}))


def judge(case: dict[str, Any]) -> Verdict:
    rules, hosts = rules_of(case), [host.encode() for host in case["hosts"]]
    method, target = case["method"].encode(), case["target"].encode()
    answers = tuple(case["answers"]) if "answers" in case else None
    if "original" in case:
        return intercepted(rules, method, target, hosts, tuple(case["original"]), answers)
    return forwarded(rules, method, target, hosts, answers)


def said(verdict: Verdict, case: dict[str, Any]) -> dict[str, Any]:
    """A verdict, as far as the vector speaks of it."""
    claimed = verdict.claimed
    everything = vars(verdict) | {
        "uri": verdict.uri(case["target"].encode()).decode(),
        "claimed": claimed.spell().decode() if claimed else None,
        "to": [list(address) for address in verdict.to],
        "field": verdict.field.decode() if verdict.field is not None else None,
    }
    return {name: everything[name] for name in case["expect"]}


def cases(name: str) -> Any:
    rows = json.loads((VECTORS / name).read_text())
    return pytest.mark.parametrize("case", rows, ids=[row["name"] for row in rows])


@cases("intercepted.json")
def test_intercepted(case: dict[str, Any]) -> None:
    verdict = judge(case)
    assert said(verdict, case) == case["expect"]
    if verdict.action == "forward":
        assert verdict.to == (tuple(case["original"]),)
        for name in ("claimed", "field"):  # what a vector says nothing of is not there
            assert getattr(verdict, name) is None or name in case["expect"]


@cases("forwarded.json")
def test_forwarded(case: dict[str, Any]) -> None:
    verdict = judge(case)
    assert said(verdict, case) == case["expect"]
    assert verdict.field is None or "field" in case["expect"]
    assert verdict.origin_form == ("origin_form" in case["expect"])


def test_requests_that_differ_in_their_path_share_a_verdict() -> None:
    rules, hosts = Rules(), [b"www.example.org"]
    for base in (b"", b"http://www.example.org"):
        one, two = (
            intercepted(rules, b"GET", base + path, hosts, ORIGINAL, ("198.51.100.2",))
            for path in (b"/a", b"/b")
        )
        assert one is two
    one, two = (
        forwarded(rules, b"GET", b"http://www.example.org" + path, hosts, ("198.51.100.2",))
        for path in (b"/a", b"/b?c")
    )
    assert one is two
    assert [one.uri(b"/a"), one.uri(b"http://www.example.org/b?c")] == [
        b"http://www.example.org/a",
        b"http://www.example.org/b?c",
    ]


def test_what_is_longer_than_a_name_is_not_remembered() -> None:
    """Or clients could fill the memory with it, 16 KiB a request."""
    long = b"a" * 261
    caches = (http_intercept._by_host, http_intercept._by_target, http_intercept._to_target)
    before = [cache.cache_info().currsize for cache in caches]
    for verdict in (
        intercepted(Rules(), b"GET", b"/", [long], ORIGINAL),
        intercepted(Rules(), b"GET", b"http://%s/" % long, [], ORIGINAL),
        intercepted(Rules(), b"GET", b"%s://a/" % long, [], ORIGINAL),
        forwarded(Rules(), b"GET", b"http://%s/" % long, []),
        forwarded(Rules(), b"GET", b"http://a/", [long]),
        forwarded(Rules(), b"GET", b"%s://a/" % long, []),
        forwarded(Rules(), b"CONNECT", long + b":443", []),
    ):
        assert (verdict.action, verdict.status) == ("refuse", 400)
    assert [cache.cache_info().currsize for cache in caches] == before


# -- what holds for every request ----------------------------------------------------------------

texts = st.binary(max_size=40)
addresses = st.ip_addresses().map(str)
names = st.from_regex(r"\A[a-z0-9_-]{1,9}(\.[a-z0-9_-]{1,9}){0,3}\.?(:[0-9]{0,5})?\Z").map(
    str.encode
)
hosts = st.lists(st.one_of(texts, names, addresses.map(str.encode)), max_size=2)
targets = st.one_of(
    texts,
    texts.map(lambda rest: b"/" + rest),
    st.tuples(names, texts).map(lambda parts: b"http://%s/%s" % parts),
    names,
    st.just(b"*"),
)
methods = st.sampled_from([b"GET", b"OPTIONS", b"CONNECT", b"POST"])
answers = st.one_of(st.none(), st.lists(addresses, max_size=3).map(tuple))
verifies = st.sampled_from(["off", "original", "strict"])


@given(methods, targets, hosts, addresses, st.integers(1, 65535), answers, verifies)
def test_an_intercepted_request_goes_to_its_original_destination_or_nowhere(
    method: bytes,
    target: bytes,
    hosts: list[bytes],
    host: str,
    port: int,
    answers: tuple[str, ...] | None,
    verify: str,
) -> None:
    original = (canonical(host), port)
    verdict = intercepted(Rules(verify), method, target, hosts, original, answers)
    assert verdict.to == (() if verdict.action in ("refuse", "resolve") else (original,))
    assert (verdict.action == "refuse") == bool(verdict.status)
    if verdict.action == "resolve":
        assert answers is None
        assert verify != "off"
        assert parse_authority(verdict.host.encode()) == Authority(verdict.host, None, False)
    if verdict.action == "forward" and method != b"CONNECT":
        scheme, _, rest = verdict.uri(target).partition(b"://")
        authority = parse_authority(rest.partition(b"/")[0].partition(b"?")[0])
        assert scheme == b"http"
        assert authority is not None
        assert authority.host == verdict.host
        if verify == "strict":
            assert verdict.verified is True
        if verify != "off" and authority.literal:
            assert (authority.host, authority.port or 80) == original
        if verdict.verified and not authority.literal:
            assert original[0] in map(canonical, answers or ())
        assert (verdict.verified is False) == (verdict.claimed is not None)


@given(methods, targets, hosts, answers)
def test_a_forward_proxy_goes_to_what_was_asked_for(
    method: bytes, target: bytes, hosts: list[bytes], answers: tuple[str, ...] | None
) -> None:
    verdict = forwarded(Rules(), method, target, hosts, answers)
    ports = Rules().connect_ports if method == b"CONNECT" else Rules().ports
    for address, port in verdict.to:
        assert address in [*map(canonical, answers or ()), verdict.host]
        assert port in ports
        assert may_reach(address)
    assert (verdict.action == "tunnel") <= (method == b"CONNECT")
    assert bool(verdict.to) == (verdict.action in ("forward", "tunnel"))
    assert verdict.origin_form == (verdict.action == "forward")
    if verdict.origin_form:
        assert path_of(target).startswith(b"/")
        assert verdict.uri(target) == verdict.base + path_of(target)


@given(st.one_of(texts, names, addresses.map(str.encode)))
def test_an_authority_has_one_spelling(text: bytes) -> None:
    authority = parse_authority(text)
    if authority is None:
        return
    spelled = authority.spell()
    again = parse_authority(spelled)
    assert again is not None
    assert again == authority._replace(port=again.port)
    assert (again.port or 80) == (authority.port or 80)
    assert again.spell() == spelled
    assert spelled == spelled.lower()
    if not authority.literal:
        with pytest.raises(ValueError):
            ipaddress.ip_address(authority.host)


@given(st.ip_addresses(v=6).map(str))
def test_an_ipv6_literal_needs_its_brackets(host: str) -> None:
    assert parse_authority(host.encode()) is None
    assert parse_authority(f"[{host}]".encode()) == Authority(canonical(host), None, True)


def test_rules_that_are_none() -> None:
    for wrong in ({"verify": "yes"}, {"other": "drop"}, {"silent": ""}, {"scheme": "ftp"}):
        with pytest.raises(ValueError, match="one of"):
            Rules(**wrong)  # type: ignore[arg-type]


# -- what is no request --------------------------------------------------------------------------


def test_what_is_not_http_goes_to_where_it_was_going() -> None:
    verdict = unframed(Rules(), ORIGINAL)
    assert (verdict.action, verdict.to, verdict.uri(b"")) == (
        "tunnel",
        (ORIGINAL,),
        b"198.51.100.2:80",
    )
    assert unframed(Rules(other="refuse"), ORIGINAL).status == 400
    assert unframed(Rules(), None).status == 400
    assert unframed(Rules(), ORIGINAL, silent=True).status == 408
    assert unframed(Rules(), None, silent=True).status == 408
    assert unframed(Rules(silent="tunnel"), ORIGINAL, silent=True).action == "tunnel"
    assert unframed(Rules(own=lambda _: True), ORIGINAL).status == 508


# -- loops ---------------------------------------------------------------------------------------

MINE = Rules(pseudonym="Proxy-1", cdn_id="cdn.example")


@pytest.mark.parametrize(
    ("via", "here"),
    [
        ([], False),
        (["1.1 proxy-1"], True),
        (["1.1 PROXY-1"], True),
        (["HTTP/1.1 proxy-1 (a comment)"], True),
        (["1.0 fred, 1.1 proxy-1"], True),
        (["1.0 fred", "1.1 other,1.1\tproxy-1"], True),
        (["1.1 proxy-10"], False),
        (["1.1 a-proxy-1"], False),
        (["1.1 other (1.1 proxy-1)"], False),
        (["1.1 other (a, 1.1 proxy-1 (b, 1.1 proxy-1))"], False),
        (["1.1 other (\\), 1.1 proxy-1)"], False),
        (["1.1 other (x), 1.1 proxy-1"], True),
        (["1.1 other (never closed, 1.1 proxy-1"], True),
        (["1.1 other ((closed) never closed, 1.1 proxy-1"], True),
        (["1.1 other \\(x, 1.1 proxy-1)"], False),
        (["proxy-1"], False),
        (["", ",,", "1.1"], False),
    ],
)
def test_via(via: list[str], here: bool) -> None:
    assert loops(MINE, [value.encode() for value in via]) is here


@pytest.mark.parametrize(
    ("cdn_loop", "here"),
    [
        ([], False),
        (["cdn.example"], True),
        (["CDN.example"], True),
        (['foo123.foocdn.example, cdn.example; trace="abcdef"'], True),
        (['other; a="x, cdn.example"'], False),
        (['other; a="x\\", cdn.example"'], False),
        (['other; a="never closed, cdn.example'], True),
        (["cdn.example:80"], False),
        (["other", "third;x, cdn.example ;y=1"], True),
    ],
)
def test_cdn_loop(cdn_loop: list[str], here: bool) -> None:
    values = [value.encode() for value in cdn_loop]
    assert loops(MINE, [], values) is here
    assert loops(Rules(pseudonym="Proxy-1"), [], values) is False


@given(st.lists(texts, max_size=3), st.lists(texts, max_size=3))
def test_loops_are_found_behind_anything(via: list[bytes], cdn_loop: list[bytes]) -> None:
    loops(MINE, via, cdn_loop)
    assert loops(MINE, [*via, b"1.1 proxy-1"])
    assert loops(MINE, [], [*cdn_loop, b"cdn.example"])


@pytest.mark.parametrize("part", [b"(", b"()", b"(\\", b'"', b'"\\"', b'\\"', b"( "])
def test_what_takes_long_is_read_once(part: bytes) -> None:
    """Minutes, were it looked at again for each of its parts."""
    value = part * 300_000 + b")" * 300_000
    assert not loops(MINE, [value], [value])


@pytest.mark.parametrize(
    ("method", "values", "left"),
    [
        (b"OPTIONS", [b"0"], -1),
        (b"TRACE", [b"1"], 0),
        (b"OPTIONS", [b"10"], 9),
        (b"GET", [b"0"], None),
        (b"OPTIONS", [], None),
        (b"OPTIONS", [b"x"], None),
        (b"OPTIONS", [b"-1"], None),
        (b"OPTIONS", [b"1", b"2"], None),
        (b"OPTIONS", [b"9" * 30], None),
    ],
)
def test_max_forwards(method: bytes, values: list[bytes], left: int | None) -> None:
    assert hops_left(method, values) == left


@given(addresses)
def test_reachable_addresses(address: str) -> None:
    ip = ipaddress.ip_address(canonical(address))
    assume(ip.is_global and not ip.is_multicast)
    assert may_reach(address)
