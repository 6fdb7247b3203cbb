"""What of examples/sni_filter.py and its policy does no I/O: lines, names, and where they lead."""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import sni_filter
import sni_policy
from hypothesis import given
from hypothesis import strategies as st
from sni_filter import Denied, Filter
from sni_policy import DEFAULT, Policy

from lusca_comm.protocols.sni import ClientHello, Verdict

CLIENT, THERE = ("192.0.2.2", 40000), ("198.51.100.2", 443)
EXAMPLE = "".join(
    line.strip() + "\n"
    for line in (sni_policy.__doc__ or "").splitlines()
    if line.startswith("    ")
)


def named(name: str, **more: Any) -> ClientHello:
    return ClientHello(Verdict.NAME, name, **more)


def allowed(policy: Policy, hello: ClientHello, peer: Any = CLIENT, there: Any = THERE) -> bool:
    return policy.decide(hello, peer, there).allowed


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("example.org", "allow .example.org"),
        ("a.b.example.org", "allow .example.org"),
        ("EXAMPLE.org.", "allow .example.org"),
        ("ads.example.org", "deny ads.example.org"),
        ("x.ads.example.org", "allow .example.org"),
        ("badexample.org", ""),
        ("example.org.evil.test", ""),
        ("a.example.net", "allow *.example.net port 443,8443"),
        ("example.net", ""),
        ("org", ""),
        ("example.org\n", ""),
        ("198.51.100.2", ""),
    ],
)
def test_the_policy_that_the_module_shows(name: str, rule: str) -> None:
    decision = Policy(EXAMPLE, "shown").decide(named(name), CLIENT, THERE)
    assert decision.rule.partition(": ")[2] == (rule or "no line matches")
    assert decision.allowed is rule.startswith("allow")


def test_the_first_line_counts() -> None:
    policy = Policy("deny a.test\nallow .a.test\ndeny any\nallow b.test\n\n# nothing", "p")
    assert len(policy) == 4
    assert policy.decide(named("a.test"), CLIENT, THERE).rule == "p:1: deny a.test"
    assert allowed(policy, named("x.a.test"))
    assert policy.decide(named("b.test"), CLIENT, THERE).rule == "p:3: deny any"
    again = Policy("allow a.test\ndeny a.test")
    assert allowed(again, named("a.test"))


def test_who_and_where_to() -> None:
    policy = Policy(
        "allow a.test from 192.0.2.0/25\n"
        "allow b.test to 2001:db8::/32 port 1-442,444\n"
        "allow not-tls to 198.51.100.2 port 443"
    )
    assert allowed(policy, named("a.test"))
    assert not allowed(policy, named("a.test"), peer=("192.0.2.200", 1))
    assert not allowed(policy, named("b.test"))
    assert not allowed(policy, named("b.test"), there=("2001:db8::1", 443))
    decision = policy.decide(named("b.test"), CLIENT, ("2001:db8::1", 444))
    assert (decision.allowed, decision.bound) == (True, True)
    assert allowed(policy, ClientHello(Verdict.NOT_TLS))
    assert not allowed(policy, ClientHello(Verdict.NOT_TLS), there=("198.51.100.2", 22))
    assert not allowed(policy, ClientHello(Verdict.NOT_PARSED))


@pytest.mark.parametrize("verdict", [Verdict.NO_SNI, Verdict.NOT_TLS, Verdict.NOT_PARSED])
def test_what_has_no_name_has_a_verdict_of_its_own(verdict: Verdict) -> None:
    word = verdict.value.replace(" ", "-").lower()
    hello = ClientHello(verdict)
    assert Policy("").decide(hello, CLIENT, THERE) == DEFAULT
    assert allowed(Policy(f"allow {word}"), hello)
    assert allowed(Policy("allow any"), hello)
    assert not allowed(Policy("allow .test\nallow ech"), hello)
    others = {"no-sni", "not-tls", "not-parsed"} - {word}
    assert not allowed(Policy("".join(f"allow {other}\n" for other in others)), hello)


def test_ech_goes_by_its_outer_name_unless_a_line_is_about_it() -> None:
    hello = named("public.test", ech=True)
    assert allowed(Policy("allow public.test"), hello)
    assert not allowed(Policy("deny ech\nallow public.test"), hello)
    assert allowed(Policy("allow ech"), ClientHello(Verdict.NO_SNI, ech=True))


def test_unicode_and_its_other_form_are_one_name() -> None:
    for line in ("allow *.bücher.test", "allow *.xn--bcher-kva.test"):
        assert allowed(Policy(line), named("www.XN--BCHER-KVA.test"))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("permit a.test", "'permit' is none of allow, deny"),
        ("allow", "allow what?"),
        ("allow a..test", "a name such as"),
        ("allow *", "a name such as"),
        ("allow a*.test", "a name such as"),
        ("allow 198.51.100.2", "a name such as"),
        ("allow a.test to 198.51.100.2/24", "a network such as"),
        ("allow a.test to b.test", "a network such as"),
        ("allow a.test port https", "port 'https': numbers"),
        ("allow a.test port 0", "a number from 1"),
        ("allow a.test port 443-", "numbers such as"),
        ("allow a.test port 9-8", "runs backwards"),
        ("allow a.test from", "'from': from NETWORK"),
        ("allow a.test port 1 port 2", "each once"),
        ("allow a.test via x", "'via': from NETWORK"),
        ("allow a.test to ::1 from 127.0.0.1", "two families"),
    ],
)
def test_a_line_that_makes_no_sense(line: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"\Ap:2: ") as caught:
        Policy(f"allow fine.test\n{line}\nallow fine.test", "p")
    assert text in str(caught.value)
    assert "firewall" not in str(caught.value)


def test_all_wrong_lines_are_told() -> None:
    with pytest.raises(ValueError) as caught:
        Policy("allow\nallow a.test\nno", "p")
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == ["p:1", "p:3"]


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_a_value_error(text: str) -> None:
    try:
        policy = Policy(text)
    except ValueError:
        return
    assert policy.decide(named("a.test"), CLIENT, THERE).rule


@given(st.text(max_size=30), st.sampled_from(list(Verdict)))
def test_any_name_gets_a_decision(name: str, verdict: Verdict) -> None:
    decision = Policy(EXAMPLE).decide(ClientHello(verdict, name), CLIENT, THERE)
    assert not decision.allowed or verdict in (Verdict.NAME, Verdict.NOT_TLS)


# -- where a name leads ------------------------------------------------------------------------


def where(
    monkeypatch: pytest.MonkeyPatch, pin: str, *addresses: str, original: Any = THERE
) -> tuple[Any, str]:
    """With a resolver that has these addresses."""

    async def go() -> tuple[Any, str]:
        def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            assert (host, options["family"]) == (
                "a.test",
                socket.AF_INET6 if ":" in original[0] else socket.AF_INET,
            )
            return [(0, 0, 0, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        options = argparse.Namespace(pin=pin, spoof=False, patience=1, silence=1)
        return await Filter(Policy(""), options)._where("a.test", original)

    return asyncio.run(go())


def test_a_name_that_has_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for pin in ("resolve", "check", "off"):
        assert where(monkeypatch, pin, "203.0.113.9", THERE[0])[0] == THERE


def test_a_name_that_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    to, why = where(monkeypatch, "resolve", "203.0.113.9", "203.0.113.10")
    assert (to, why) == (
        ("203.0.113.9", 443),
        "the name has not the client's address, but this one",
    )
    with pytest.raises(Denied, match=r"the name has 203\.0\.113\.9, not this address"):
        where(monkeypatch, "check", "203.0.113.9")
    assert where(monkeypatch, "off", "203.0.113.9")[0] == THERE
    to, _ = where(monkeypatch, "resolve", "2001:db8::9", original=("2001:db8::2", 443))
    assert to == ("2001:db8::9", 443)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1"])
def test_a_name_that_leads_to_the_machine_itself(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    original = ("2001:db8::2", 443) if ":" in address else THERE
    with pytest.raises(Denied, match="where nobody may go by name"):
        where(monkeypatch, "resolve", address, original=original)


def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Denied, match="no address"):
        where(monkeypatch, "resolve")


def test_names_whose_servers_are_silent_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host != "a.test":
            over.wait()
        return [(0, 0, 0, "", (THERE[0], port))]

    async def go() -> None:
        options = argparse.Namespace(pin="resolve", spoof=False, patience=1, silence=1)
        filter_ = Filter(Policy(""), options)
        silent = [asyncio.ensure_future(filter_._where(f"{n}.test", THERE)) for n in range(60)]
        await asyncio.sleep(0)
        assert (await filter_._where("a.test", THERE))[0] == THERE
        assert not any(one.done() for one in silent)
        for one in silent:
            one.cancel()
        monkeypatch.setattr(sni_filter, "LOOK_UP", 0.01)
        with pytest.raises(Denied, match="no address after"):
            await filter_._where("silent.test", THERE)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        asyncio.run(go())
    finally:
        over.set()


def test_a_bad_policy_keeps_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy"
    options = argparse.Namespace(pin="off", spoof=False, patience=1, silence=1)
    old = Policy("allow a.test")
    filter_ = Filter(old, options)
    for text in (b"allow", b"\xff", None):
        if text is None:
            file.unlink()
        else:
            file.write_bytes(text)
        sni_filter.reload(filter_, file)
        assert filter_.policy is old
        assert "stays as it was" in capsys.readouterr().out
    file.write_text("allow b.test\n")
    sni_filter.reload(filter_, file)
    assert allowed(filter_.policy, named("b.test"))
