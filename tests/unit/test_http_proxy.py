"""What examples/http_proxy decides, asked about requests that nobody sent."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from http_proxy import FOLDER, FakeRequest, load

from lusca_comm.lab import wait_for
from lusca_comm.protocols.http_intercept import Rules

m = load()
ORIGIN, OTHER = "198.51.100.2", "203.0.113.9"
NAMES: dict[str, tuple[str, ...]] = {
    "www.example.org": (ORIGIN,),
    "two.example.org": ("2001:db8::9", OTHER),
    "local.example.org": ("127.0.0.1",),
    "none.example.org": (),
}


class Names:
    """A resolver that knows NAMES: at once, or when :meth:`tell` is called."""

    def __init__(self, at_once: bool = True, full: bool = False) -> None:
        self.at_once, self.full = at_once, full
        self.end = float("inf")
        self.waiting: list[Any] = []

    def known(self, name: str) -> tuple[str, ...] | None:
        return NAMES[name] if self.at_once else None

    def until(self, name: str) -> float:
        return self.end if NAMES[name] else 0.0

    def look_up(self, name: str, then: Any) -> bool:
        self.waiting.append((name, then))
        return not self.full

    def tell(self) -> None:
        for name, then in self.waiting:
            then(NAMES[name])
        self.waiting.clear()


def proxy(*arguments: str, names: Any = None, hook: Any = None) -> Any:
    options = m.options.parse(["--forward", "127.0.0.1:3128", "--via", "me", *arguments])
    rules = Rules(
        options.host_verify, "http", options.other, options.silent, "me", options.cdn_loop
    )
    return m.proxy.Proxy(options, rules, names or Names(), hook and m.hooks.Hook(hook))


def ask(*fields: str, by: Any = None, start: str = "GET / HTTP/1.1", **more: Any) -> FakeRequest:
    request = FakeRequest(start, *fields, **more)
    (by or proxy()).decide([request])
    return request


def forwarded(request: FakeRequest) -> tuple[Any, dict[str, Any]]:
    what, to, how = request.done
    assert what == "forward", request.done
    return to, how


# -- intercepted ---------------------------------------------------------------------------------


def test_an_intercepted_request_goes_on_as_it_came() -> None:
    to, how = forwarded(ask("Host: www.example.org"))
    assert to == (ORIGIN, 80)
    assert how == {
        "spoof": False,
        "start": None,
        "drop": (),
        "append": b"Via: 1.1 me\r\n",
        "origin_form": False,
        "keep_upgrade": False,
    }


def test_in_the_clients_name() -> None:
    by = proxy("--spoof", "--forwarded-for", "--cdn-loop", "cdn.example")
    _, how = forwarded(ask("Host: www.example.org", by=by, start="GET / HTTP/1.0"))
    assert how["spoof"] is True
    assert how["append"] == (
        b"Via: 1.0 me\r\nCDN-Loop: cdn.example\r\nX-Forwarded-For: 192.0.2.2\r\n"
    )


def test_the_usual_request_goes_as_one_like_it() -> None:
    by = proxy("--host-verify", "off")

    def repeated(*fields: str, **more: Any) -> bool:
        request = ask(*fields, by=by, **more)
        assert forwarded(request)
        return request.repeated

    assert not repeated("Host: www.example.org")
    assert repeated("Host: www.example.org", start="GET /other HTTP/1.1")
    assert not repeated("Host: www.example.org", "Upgrade: websocket")
    assert not repeated("Host: www.example.org", start="GET / HTTP/1.0")
    assert not repeated("Host: www.example.org", start="OPTIONS * HTTP/1.1")
    assert not repeated("Host: two.example.org")
    assert not repeated("Host: www.example.org", original=("198.51.100.3", 80))
    assert repeated("Host: www.example.org")


def test_what_was_looked_up_is_usual_for_as_long_as_it_is_known() -> None:
    names = Names()
    names.end = 0.0
    by = proxy("--host-verify", "original", names=names)

    def repeated(host: str) -> bool:
        request = ask(f"Host: {host}", by=by)
        assert forwarded(request)
        return request.repeated

    assert not repeated("www.example.org")
    assert not repeated("www.example.org")  # it is known for no time
    names.end = time.monotonic() + 3600
    assert not repeated("www.example.org")
    assert repeated("www.example.org")
    assert not repeated("two.example.org")  # believed to be another's
    assert repeated("two.example.org")
    assert not repeated("none.example.org")
    assert not repeated("none.example.org")
    assert by._usual.pop(FakeRequest("GET / HTTP/1.1", "Host: www.example.org").like)
    names.end = time.monotonic()
    assert not repeated("www.example.org")
    assert not repeated("www.example.org")


@pytest.mark.parametrize("more", [("--forwarded-for",), ("hook",)])
def test_what_depends_on_more_is_never_usual(more: tuple[str, ...]) -> None:
    hook = (lambda _: None) if more == ("hook",) else None
    by = proxy("--host-verify", "off", *(() if hook else more), hook=hook)
    assert not any(ask("Host: www.example.org", by=by).repeated for _ in range(2))


def test_the_usual_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    by = proxy("--host-verify", "off")
    monkeypatch.setattr(m.proxy, "USUAL", 8)
    for i in range(50):
        ask(f"Host: {i}.example.org", by=by)
        assert len(by._usual) <= 8


def test_a_loop_is_not_usual() -> None:
    by = proxy("--host-verify", "off", "--cdn-loop", "cdn.example")
    assert forwarded(ask("Host: www.example.org", by=by))
    assert ask("Host: www.example.org", "CDN-Loop: cdn.example", by=by).page == 508
    assert ask("Host: www.example.org", "Via: 1.1 other, 1.1 me", by=by).page == 508
    assert forwarded(ask("Host: www.example.org", by=by))


def test_without_host_it_gets_one() -> None:
    _, how = forwarded(ask())
    assert how["drop"] == ("host",)
    assert how["append"].endswith(f"\r\nHost: {ORIGIN}\r\n".encode())


@pytest.mark.parametrize(("policy", "status"), [("off", None), ("original", None), ("strict", 409)])
def test_a_forged_host(policy: str, status: int | None) -> None:
    request = ask("Host: two.example.org", by=proxy("--host-verify", policy))
    if status:
        assert request.page == status
    else:
        assert forwarded(request)[0] == (ORIGIN, 80)


def test_the_name_is_looked_up_while_others_go_on() -> None:
    names = Names(at_once=False)
    by = proxy(names=names)
    waits, passes = FakeRequest("GET / HTTP/1.1", "Host: www.example.org"), FakeRequest()
    by.decide([waits, passes])
    assert waits.done is None
    assert forwarded(passes)
    names.tell()
    assert forwarded(waits)[0] == (ORIGIN, 80)


def test_too_many_names() -> None:
    assert ask("Host: www.example.org", by=proxy(names=Names(False, full=True))).page == 503


@pytest.mark.parametrize("state", ["other", "h2", "silent"])
def test_what_is_no_http(state: str) -> None:
    by = proxy("--silent", "tunnel")
    assert ask(state=state, by=by).done == (
        "tunnel",
        (ORIGIN, 80),
        {"spoof": False, "reply": b""},
    )
    code = 408 if state == "silent" else 400
    refused = ask(state=state, by=proxy("--other", "refuse"))
    assert (refused.page, refused.done[2]) == (code, {"close": True})
    assert ask(state=state, original=None).page == code


def test_a_refusal_is_answered_and_the_connection_closed() -> None:
    request = ask(state="refused", status=431, why="too many fields")
    assert request.done[2] == {"close": True}
    assert request.done[1].startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"\r\nConnection: close\r\n" in request.done[1]


def test_loops() -> None:
    assert ask("Host: www.example.org", "Via: 1.1 other, 1.1 me").page == 508
    by = proxy("--cdn-loop", "cdn.example")
    assert ask("Host: www.example.org", "CDN-Loop: cdn.example", by=by).page == 508


def test_max_forwards() -> None:
    assert ask("Max-Forwards: 0", start="OPTIONS * HTTP/1.1").page == 204
    _, how = forwarded(ask("Max-Forwards: 5", "Host: www.example.org", start="OPTIONS * HTTP/1.1"))
    assert how["drop"] == ("max-forwards",)
    assert how["append"].endswith(b"\r\nMax-Forwards: 4\r\n")


@pytest.mark.parametrize(
    ("upgrade", "kept"),
    [("websocket", True), ("WebSocket", True), ("h2c", False), ("websocket, h2c", False)],
)
def test_upgrade_leads_to_what_is_allowed(upgrade: str, kept: bool) -> None:
    _, how = forwarded(ask("Host: www.example.org", f"Upgrade: {upgrade}"))
    assert how["keep_upgrade"] is kept


def test_an_old_request_without_a_length() -> None:
    assert ask("Host: www.example.org", start="POST / HTTP/1.0").page == 411
    assert forwarded(ask("Host: www.example.org", start="POST / HTTP/1.0", length=0))
    assert forwarded(ask("Host: www.example.org", start="POST / HTTP/1.1"))


# -- to the forward port -------------------------------------------------------------------------


def ask_proxy(start: str, *fields: str, **more: Any) -> FakeRequest:
    return ask(*fields, start=start, original=None, peer=more.pop("peer", ("10.0.0.7", 5)), **more)


def test_a_request_to_the_proxy_is_sent_in_origin_form() -> None:
    to, how = forwarded(ask_proxy("GET http://www.example.org/a HTTP/1.0", by=proxy("--spoof")))
    assert to == (ORIGIN, 80)
    assert (how["start"], how["origin_form"]) == (None, True)
    assert (how["drop"], how["spoof"]) == (("host",), False)
    assert how["append"] == b"Via: 1.0 me\r\nHost: www.example.org\r\n"


def test_every_address_is_tried_in_turn() -> None:
    by = proxy()
    for _ in range(2):
        request = ask_proxy("GET http://two.example.org/ HTTP/1.1", by=by)
        assert forwarded(request)[0] == ("2001:db8::9", 80)
    assert request.repeated
    request.fails("connect", errno.ENETUNREACH)
    by.decide([request])
    assert forwarded(request)[0] == (OTHER, 80)
    request.fails("connect", errno.ECONNREFUSED)
    by.decide([request])
    assert request.page == 503
    assert b"ECONNREFUSED" in request.done[1]


@pytest.mark.parametrize(
    ("failed", "number", "status"),
    [("response", 0, 502), ("time", 0, 504), ("connect", errno.ETIMEDOUT, 504)],
)
def test_an_origin_that_fails(failed: str, number: int, status: int) -> None:
    by = proxy()
    request = ask("Host: www.example.org", by=by)
    request.fails(failed, number)
    by.decide([request])
    assert request.page == status


def test_connect() -> None:
    request = ask_proxy("CONNECT www.example.org:443 HTTP/1.1")
    what, to, how = request.done
    assert (what, to, how["spoof"]) == ("tunnel", (ORIGIN, 443), False)
    assert how["reply"].startswith(b"HTTP/1.1 200 ")
    assert ask_proxy("CONNECT www.example.org:25 HTTP/1.1").page == 403
    ports = m.options.parse(["--forward", "127.0.0.1:3128"]).connect_ports
    assert {443, 8443} <= ports
    assert not {22, 25, 80} & ports
    assert ask_proxy("CONNECT local.example.org:443 HTTP/1.1").page == 403
    nameless = ask_proxy("CONNECT none.example.org:443 HTTP/1.1")
    assert nameless.page == 502
    assert b"; error=dns_error\r\n" in nameless.done[1]


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("127.0.0.1", True),
        ("192.168.4.5", True),
        ("::1", True),
        ("fe80::1%lo", True),
        ("192.0.2.2", True),
        ("2001:db8::1", True),
        ("192.0.3.2", False),
        ("2002:db8::1", False),
    ],
)
def test_it_is_no_open_proxy(peer: str, allowed: bool) -> None:
    start = "GET http://www.example.org/ HTTP/1.1"
    request = ask_proxy(start, peer=(peer, 1))
    assert (request.done[0] == "forward") is allowed
    if not allowed:
        assert request.page == 403
        by = proxy("--allow", "192.0.3.0/24", "--allow", "2002:db8::/32")
        assert forwarded(ask_proxy(start, peer=(peer, 1), by=by))


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
def test_who_is_on_this_machine_reaches_it_anyway(peer: str) -> None:
    start, by = "GET http://local.example.org:8000/ HTTP/1.1", proxy()
    assert forwarded(ask_proxy(start, peer=(peer, 1), by=by))[0] == ("127.0.0.1", 8000)
    assert ask_proxy(start, by=by).page == 403
    assert ask_proxy(start, peer=("192.168.4.5", 1), by=by).page == 403


# -- hooks ---------------------------------------------------------------------------------------


def test_a_hook_sees_the_request() -> None:
    seen: list[Any] = []

    def on_request(it: Any) -> None:
        seen.extend((it.method, it.uri, it.path, it.host, it.claimed, it.client, it.original))
        seen.extend((it.field("upgrade"), it.claims("example.org"), it.claims("xample.org")))

    assert forwarded(ask("Host: two.example.org", by=proxy(hook=on_request)))
    assert seen == [
        *("GET", f"http://{ORIGIN}/", "/", ORIGIN, "two.example.org"),
        *(("192.0.2.2", 5000), (ORIGIN, 80), None, True, False),
    ]


def test_a_hook_denies_and_redirects() -> None:
    by = proxy(hook=lambda _: m.hooks.Deny(451, "<no>"))
    assert ask(by=by).page == 451
    assert b"&lt;no&gt;" in ask(by=by).done[1]
    by = proxy(hook=lambda _: m.hooks.Redirect("http://new.example/"))
    page = ask(by=by).done[1]
    assert page.startswith(b"HTTP/1.1 302 Found\r\n")
    assert b"\r\nLocation: http://new.example/\r\n" in page
    assert forwarded(ask(by=proxy(hook=lambda _: m.hooks.Allow())))


@pytest.mark.parametrize("at_once", [True, False])
def test_a_hook_rewrites(at_once: bool) -> None:
    names = Names(at_once)
    rewrite = m.hooks.Rewrite("http://two.example.org/b", add=[("X", "y")], drop=["Cookie"])
    by = proxy("--host-verify", "off", names=names, hook=lambda _: rewrite)
    request = ask("Host: www.example.org", by=by, start="POST /a HTTP/1.1")
    names.tell()
    to, how = forwarded(request)
    assert to == ("2001:db8::9", 80)
    assert how["start"] == b"POST http://two.example.org/b HTTP/1.1\r\n"
    assert how["origin_form"]
    assert how["drop"] == ("host", "cookie")
    assert how["append"] == b"Via: 1.1 me\r\nHost: two.example.org\r\nX: y\r\n"


def test_a_hook_does_not_lead_to_the_loopback() -> None:
    by = proxy(hook=lambda _: m.hooks.Rewrite("http://local.example.org/"))
    assert ask("Host: www.example.org", by=by).page == 403


def test_a_hook_that_raises_costs_one_request(capsys: pytest.CaptureFixture[str]) -> None:
    def on_request(it: Any) -> None:
        if it.method == "POST":
            raise RuntimeError("of a hook")

    by = proxy(hook=on_request)
    one, two = FakeRequest("POST / HTTP/1.1"), FakeRequest()
    by.decide([one, two])
    assert one.page == 500
    assert forwarded(two)
    assert "RuntimeError: of a hook" in capsys.readouterr().err


def test_what_no_hook_may_say() -> None:
    for wrong in (
        lambda: m.hooks.Redirect("http://new.example/\r\nSet-Cookie: a=b"),
        lambda: m.hooks.Redirect("http://new.example/", 200),
        lambda: m.hooks.Rewrite(add=[("X", "a\r\nHost: b")]),
        lambda: m.hooks.Rewrite(add=[("X y", "a")]),
        lambda: m.hooks.Deny(200),
    ):
        with pytest.raises(ValueError, match=r"field|URL|status"):
            wrong()


def test_the_hook_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hooks", m.hooks)
    page = (FOLDER.parents[1] / "docs" / "http-proxy.md").read_text()
    path = tmp_path / "mine.py"
    path.write_text(page.partition("```python\n")[2].partition("```")[0])
    hook = m.hooks.load(str(path))
    assert hook.fields == ("user-agent",)
    by = proxy("--host-verify", "off", hook=hook.on_request)
    assert ask("Host: a.tracker.example", by=by).page == 403
    assert ask("Host: old.example", by=by).page == 302
    request = ask("Host: mirror.example", "Cookie: a", by=by, start="GET /x?y HTTP/1.1")
    to, how = forwarded(request)
    assert (to, how["start"]) == (("10.0.0.8", 80), b"GET http://10.0.0.8/x?y HTTP/1.1\r\n")
    assert forwarded(ask("Host: www.example.org", by=by))


def test_a_hook_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("FIELDS = ('User-Agent',)\ndef on_request(request): pass\n")
    assert m.hooks.load(str(path)).fields == ("user-agent",)
    path.write_text("")
    with pytest.raises(ValueError, match="on_request"):
        m.hooks.load(str(path))


# -- answers -------------------------------------------------------------------------------------


def test_pages() -> None:
    page = ask("Host: a b").done[1]
    head, _, body = page.partition(b"\r\n\r\n")
    assert f"\r\nContent-Length: {len(body)}".encode() in head
    assert b"\r\nProxy-Status: me; error=http_request_error\r\n" in page
    assert b"\r\nDate: " in head
    assert ask("Host: a b", start="HEAD / HTTP/1.1").done[1].endswith(b"\r\n\r\n")


def test_what_is_still_to_come_of_a_request_ends_the_connection() -> None:
    for length, close in ((None, False), (0, False), (5, True), (-1, True)):
        request = ask("Host: a b", start="POST / HTTP/1.1", length=length)
        assert request.done[2] == {"close": close}
        assert (b"\r\nConnection: close\r\n" in request.done[1]) is close


@pytest.mark.parametrize(
    ("version", "keeps", "said"),
    [("1.1", True, None), ("1.1", False, b"close"), ("1.0", True, b"keep-alive")],
)
def test_a_page_says_what_becomes_of_the_connection(
    version: str, keeps: bool, said: bytes | None
) -> None:
    request = ask("Host: a b", start=f"GET / HTTP/{version}", keep_alive=keeps)
    found = re.search(rb"\r\nConnection: (.*)\r\n", request.done[1])
    assert (found and found[1]) == said
    assert request.done[2] == {"close": not keeps}


def test_a_refused_head_has_no_body() -> None:
    request = ask("Host: a", start="HEAD / HTTP/1.1", state="refused", status=413, why="")
    assert request.done[1].startswith(b"HTTP/1.1 413 ")
    assert request.done[1].endswith(b"\r\n\r\n")


def test_a_request_that_ends_at_the_proxy_is_no_error() -> None:
    page = ask("Max-Forwards: 0", "Host: ", start="OPTIONS * HTTP/1.1").done[1]
    assert page.startswith(b"HTTP/1.1 204 ")
    assert b"Proxy-Status" not in page
    assert b"Content-Type" not in page


# -- the resolver --------------------------------------------------------------------------------


def test_names_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    go = threading.Event()

    def addresses_of(name: str) -> tuple[str, ...]:
        asked.append(name)
        assert go.wait(20)
        return NAMES[name]

    monkeypatch.setattr(m.resolver, "addresses_of", addresses_of)
    calls: list[Any] = []
    resolver = m.resolver.Resolver(lambda *call: calls.append(call), lambda *_: None, size=2)
    got: list[Any] = []
    assert resolver.look_up("www.example.org", got.append)
    assert resolver.look_up("www.example.org", got.append)
    assert resolver.look_up("none.example.org", got.append)
    assert not resolver.look_up("two.example.org", got.append)
    assert resolver.known("www.example.org") is None
    go.set()
    wait_for(lambda: len(calls) == 2, 20, "two answers")
    for call, *arguments in calls:
        call(*arguments)
    assert sorted(got) == [(), (ORIGIN,), (ORIGIN,)]
    assert sorted(asked) == ["none.example.org", "www.example.org"]
    assert resolver.known("www.example.org") == (ORIGIN,)
    assert resolver.known("none.example.org") == ()
    later = time.monotonic() + 6
    monkeypatch.setattr(m.resolver.time, "monotonic", lambda: later)
    assert resolver.known("www.example.org") == (ORIGIN,)
    assert resolver.known("none.example.org") is None
    assert resolver.look_up("two.example.org", got.append)
    wait_for(lambda: len(calls) == 3, 20, "the third answer")
    call, *arguments = calls[2]
    call(*arguments)
    assert resolver.known("two.example.org") == NAMES["two.example.org"]
    assert len(resolver._known) == 2


def test_nobody_waits_for_a_name_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    asked: list[str] = []

    def addresses_of(name: str) -> tuple[str, ...]:
        asked.append(name)
        assert go.wait(20)
        return NAMES[name]

    monkeypatch.setattr(m.resolver, "addresses_of", addresses_of)
    calls: list[Any] = []
    timers: list[Any] = []
    resolver = m.resolver.Resolver(
        lambda *call: calls.append(call), lambda *timer: timers.append(timer), keep_failure=0
    )
    got: list[Any] = []
    assert resolver.look_up("www.example.org", got.append)
    seconds, fn, data = timers.pop()
    fn(data)
    assert (seconds, got) == (5.0, [()])
    assert resolver.look_up("www.example.org", got.append)  # by the thread that has it already
    go.set()
    wait_for(lambda: calls, 20, "the answer")
    ((call, *arguments),) = calls
    call(*arguments)
    assert got == [(), (ORIGIN,)]
    assert asked == ["www.example.org"]
    _, fn, data = timers.pop()
    fn(data)
    assert len(got) == 2
    assert resolver.known("www.example.org") == (ORIGIN,)


def test_addresses_of_both_families() -> None:
    assert m.resolver.addresses_of("127.0.0.1") == ("127.0.0.1",)
    assert m.resolver.addresses_of("::1") == ("::1",)
    assert m.resolver.addresses_of("a" * 64 + ".example") == ()


# -- listeners, options --------------------------------------------------------------------------


def test_what_leads_here() -> None:
    leads = m.listeners.leads_here([("0.0.0.0", 3128), ("::", 3129), ("192.0.2.1", 3130)])
    assert leads(("127.0.0.1", 3128))
    assert not leads(("127.0.0.1", 3127))
    assert not leads(("127.0.0.1", 3129))
    assert leads(("::1", 3129))
    assert leads(("192.0.2.1", 3130))
    assert not leads((ORIGIN, 3128))


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--forward", "3128"],
        ["--forward", "::1:3128"],
        ["--forward", "127.0.0.1:0"],
        ["--intercept", "0.0.0.0:1", "--ports", "0"],
        ["--intercept", "0.0.0.0:1", "--mark", "-1"],
        ["--intercept", "0.0.0.0:1", "--head-time", "0"],
        ["--intercept", "0.0.0.0:1", "--via", "a b"],
        ["--intercept", "0.0.0.0:1", "--allow", "10.0.0.1/8"],
    ],
)
def test_bad_options(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        m.options.parse(wrong)
    assert "error: " in capsys.readouterr().err


def test_options() -> None:
    options = m.options.parse(["--intercept", "[::]:3129", "--ports", "80,8000-8002"])
    assert options.intercept == [("::", 3129)]
    assert options.ports == {80, 8000, 8001, 8002}
    assert options.via.startswith("lusca-comm-")


# -- the access log ------------------------------------------------------------------------------


def line(**more: Any) -> Any:
    values = {
        "client": "192.0.2.2",
        "method": "GET",
        "uri": "http://www.example.org/\u00e9",
        "status": 200,
        "result": "TCP_MISS",
        "hierarchy": "ORIGINAL_DST",
        "origin": ORIGIN,
        "up": 100,
        "down": 5000,
        "seconds": 0.25,
        "reused": True,
        "claimed": "",
    }
    return m.access_log.Line(**(values | more))


def test_squids_format() -> None:
    assert line().squid(1700000000.5) == (
        "1700000000.500    250 192.0.2.2 TCP_MISS/200 5000 GET http://www.example.org/\u00e9 - "
        f"ORIGINAL_DST/{ORIGIN} -\n"
    )
    assert " NONE_NONE/000 " in line(result="NONE_NONE", status=0).squid(0)


def test_json() -> None:
    row = json.loads(line().json(1.0))
    assert row == {"time": 1.0, **line()._asdict()}


def test_the_log_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = m.access_log.AccessLog(str(path), "squid")
    log.write([line(), line()])
    path.rename(tmp_path / "old.log")
    log.write([line()])
    log.reopen()
    log.write([line()])
    assert len((tmp_path / "old.log").read_bytes().splitlines()) == 3
    assert len(path.read_bytes().splitlines()) == 1
    os.close(log._fd)


def test_a_log_that_cannot_be_written_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = m.access_log.AccessLog("/dev/full", "json")
    log.write([line()])
    log.write([line()])
    assert capsys.readouterr().err.count("No space left") == 1
    os.close(log._fd)


def test_is_own() -> None:
    assert m.listeners.is_own(("127.0.0.1", 80))
    assert not m.listeners.is_own(("203.0.113.1", 80))
