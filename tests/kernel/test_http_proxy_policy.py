"""What examples/http_proxy allows: Host and its verification, loops, what is no HTTP, who may use
it and for what, hooks; and its life: signals, logs, privileges."""

from __future__ import annotations

import os
import pwd
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel.http_lab import (
    FORGED,
    FORWARD,
    INTERCEPT,
    NAME,
    V4,
    V6,
    Service,
    get,
    know,
    opened_lab,
    seen,
    serve,
    status,
    talk,
)
from kernel.proxying import intercept

from lusca_comm.lab import Topology, wait_for

ALLOW = ("--allow", "192.0.2.0/24")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with opened_lab() as net:
        intercept(net.router, port=INTERCEPT, spoof=True)
        serve(net)
        know(net.router, tmp_path_factory.mktemp("names"))
        yield net


Start = Callable[..., Service]


@pytest.fixture
def start(net: Topology, tmp_path: Path) -> Iterator[Start]:
    """Starts the proxy of a test, with options."""
    running: list[Service] = []

    def start(*options: str) -> Service:
        running.append(Service(net.router, tmp_path, *options))
        return running[0]

    yield start
    for proxy in running:
        if proxy.process.poll() is None:
            proxy.process.kill()
            proxy.process.wait()


def ask(net: Topology, *parts: bytes, **how: Any) -> bytes:
    return net.client.run(talk, (net.origin_ip[V4], 80), *parts, **how)


def ask_proxy(net: Topology, *parts: bytes, **how: Any) -> bytes:
    return net.client.run(talk, (net.router_client_ip[V4], FORWARD), *parts, **how)


def connect(to: str) -> bytes:
    return f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n".encode()


# -- Host ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["off", "original", "strict"])
def test_a_forged_host(net: Topology, start: Start, policy: str) -> None:
    proxy = start("--spoof", "--host-verify", policy)
    answer = ask(net, get("/seen", f"Host: {FORGED}"))
    honest = seen(ask(net, get("/seen", f"Host: {NAME}")))
    assert honest["peer"] == net.client_ip[V4]
    forged, line = proxy.logged(2)
    assert line["uri"] == f"http://{NAME}/seen"
    if policy == "strict":
        assert (status(answer), forged["status"]) == (409, 409)
    else:
        assert seen(answer)["peer"] == net.client_ip[V4]
        assert forged["origin"] == net.origin_ip[V4]
    if policy == "original":
        assert forged["uri"] == f"http://{net.origin_ip[V4]}/seen"
        assert forged["claimed"] == FORGED
    if policy == "off":
        assert forged["uri"] == f"http://{FORGED}/seen"
    proxy.end()


def test_a_name_that_is_none_is_not_believed(net: Topology, start: Start) -> None:
    proxy = start()
    assert seen(ask(net, get("/seen", "Host: no.example.org")))
    assert proxy.logged()[0]["claimed"] == "no.example.org"
    proxy.end()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_request_without_host_goes_where_it_was_going(
    net: Topology, start: Start, version: str
) -> None:
    proxy = start("--spoof", "--via", "me", *ALLOW)
    told, there = seen(ask(net, get("/seen", version=version))), net.origin_ip[V4]
    assert told["peer"] == net.client_ip[V4]
    assert [value for name, value in told["fields"] if name == "host"] == [there]
    assert proxy.logged()[0]["uri"] == f"http://{there}/seen"
    again = get("/seen", "Via: 1.1 me", version=version)
    assert status(ask(net, again)) == 508
    direct = ask_proxy(net, get(f"http://{there}/seen", version=version))
    assert status(direct) == (400 if version == "1.1" else 200)  # RFC 9112, 3.2
    proxy.end()


def test_absolute_form_on_an_intercepted_port(net: Topology, start: Start) -> None:
    proxy = start()
    told = seen(ask(net, get(f"http://{NAME}/seen", f"Host: {FORGED}")))
    assert told["start"][1] == f"http://{NAME}/seen"
    assert [value for name, value in told["fields"] if name == "host"] == [NAME]
    assert proxy.logged()[0]["uri"] == f"http://{NAME}/seen"
    proxy.end()


# -- what is no HTTP/1 ---------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["tunnel", "refuse"])
def test_other_protocols(net: Topology, start: Start, other: str) -> None:
    proxy = start("--spoof", "--other", other)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for said, heard in (
        (b"\x16\x03\x01 is another protocol\n", b"seen: \x16"),
        (preface, b"h2 seen"),
        (b"CONNECT mail.example:25 HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT seen: mail.example:25"),
    ):
        answer = ask(net, said, shut=True)
        if other == "tunnel":
            assert heard in answer
        else:
            assert status(answer) == 400
    results = [line["result"] for line in proxy.logged(3)]
    tunnelled = ["TCP_TUNNEL", "TCP_TUNNEL", "TCP_MISS"]
    assert results == (tunnelled if other == "tunnel" else ["TCP_DENIED"] * 3)
    proxy.end()


# -- loops ---------------------------------------------------------------------------------------


def test_loops(net: Topology, start: Start) -> None:
    options = ("--via", "me", "--cdn-loop", "cdn.example", "--ports", "1-65535", *ALLOW)
    proxy = start(*options)
    host = f"Host: {NAME}"
    assert status(ask(net, get("/seen", host, "Via: 1.1 other, 1.1 me"))) == 508
    assert status(ask(net, get("/seen", host, "CDN-Loop: cdn.example"))) == 508
    told = dict(seen(ask(net, get("/seen", host, "Via: 1.1 other", "CDN-Loop: x")))["fields"])
    assert told["via"] == "1.1 me"
    here = f"{net.router_client_ip[V4]}:{FORWARD}"
    assert status(ask_proxy(net, get(f"http://{here}/", f"Host: {here}"))) == 508
    here = f"{net.router_origin_ip[V4]}:{INTERCEPT}"
    assert status(ask_proxy(net, get(f"http://{here}/", f"Host: {here}"))) == 508
    proxy.end()


# -- forward -------------------------------------------------------------------------------------


def test_the_forward_port(net: Topology, start: Start) -> None:
    proxy = start(*ALLOW, "--connect-ports", "80", "--connect-time", "1")
    told = seen(ask_proxy(net, get(f"http://{NAME}/seen", f"Host: {NAME}")))
    assert told["peer"] in (net.router_origin_ip[V4], net.router_origin_ip[V6])
    told = seen(
        ask_proxy(net, get("http://deaf.example.org/seen", "Host: deaf.example.org"))
    )  # by its second address
    assert told["peer"] == net.router_origin_ip[V4]
    tunnel = connect(f"{net.origin_ip[V4]}:80")
    answer = ask_proxy(net, tunnel, get("/seen", f"Host: {NAME}"))
    assert status(answer) == 200
    assert seen(answer.partition(b"\r\n\r\n")[2])["peer"] == net.router_origin_ip[V4]
    line = proxy.logged(3)[2]
    assert (line["result"], line["status"], line["down"]) == ("TCP_TUNNEL", 200, len(answer))
    assert line["uri"] == f"{net.origin_ip[V4]}:80"
    for target, code in (
        ("/seen", 400),
        ("http://loopback.example.org/", 403),
        ("http://127.0.0.1/", 403),
        ("http://[::1]/", 403),
        (f"http://{NAME}:25/", 403),
        ("http://no.example.org/", 502),
        (f"http://{net.origin_ip[V4]}:1234/", 503),
        ("http://203.0.113.9/", 503),
        ("https://www.example.org/", 501),
    ):
        assert status(ask_proxy(net, get(target, f"Host: {NAME}"))) == code, target
    for to in (f"{NAME}:25", "loopback.example.org:80", "[::1]:80"):
        assert status(ask_proxy(net, connect(to))) == 403, to
    assert status(ask_proxy(net, connect(f"{net.router_client_ip[V4]}:80"))) == 503
    assert status(ask_proxy(net, get("*", f"Host: {NAME}", method="OPTIONS"))) == 204
    proxy.end()


def test_it_is_no_open_proxy(net: Topology, start: Start) -> None:
    proxy = start("--allow", "10.0.0.0/8")
    for request in (get(f"http://{NAME}/", f"Host: {NAME}"), connect("www.example.org:443")):
        assert status(ask_proxy(net, request)) == 403
    assert {line["result"] for line in proxy.logged(2)} == {"TCP_DENIED"}
    proxy.end()


# -- hooks ---------------------------------------------------------------------------------------

HOOK = """
from hooks import Deny, Redirect, Rewrite

FIELDS = ("x-ask",)

def on_request(request):
    asked = request.field("x-ask")
    if asked == "deny":
        return Deny(451, "not here")
    if asked == "redirect":
        return Redirect("http://elsewhere.example/")
    if asked == "rewrite":
        return Rewrite("http://www.example.org/seen?new", [("X-Added", "1")], ["X-Ask"])
    if asked == "raise":
        raise RuntimeError("of the hook")
"""


def test_a_hook(net: Topology, start: Start, tmp_path: Path) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    proxy = start("--spoof", "--hook", str(hook))

    def asking(what: str) -> bytes:
        return ask(net, get("/seen", f"Host: {FORGED}", f"X-Ask: {what}"))

    assert status(asking("deny")) == 451
    assert b"\r\nLocation: http://elsewhere.example/\r\n" in asking("redirect")
    told = seen(asking("rewrite"))
    assert told["start"][1] == "/seen?new"
    fields = dict(told["fields"])
    assert (fields["host"], fields["x-added"], "x-ask" in fields) == (NAME, "1", False)
    assert status(asking("raise")) == 500
    proxy.says("RuntimeError: of the hook")
    assert seen(asking("nothing"))["start"][1] == "/seen"

    hook.write_text("def on_request(request):\n    from hooks import Deny\n    return Deny()\n")
    proxy.process.send_signal(signal.SIGHUP)
    proxy.says("the hook was loaded again")
    assert status(asking("nothing")) == 403
    hook.write_text("on_request = None\n")
    proxy.process.send_signal(signal.SIGHUP)
    proxy.says("the hook stays as it was")
    assert status(asking("nothing")) == 403
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(20) == 0


# -- its life ------------------------------------------------------------------------------------


def test_what_runs_is_finished_and_then_it_ends(net: Topology, start: Start) -> None:
    proxy = start("--spoof")

    def client(channel: Any) -> bytes:
        with socket.create_connection((net.origin_ip[V4], 80), 20) as sock:
            sock.sendall(
                f"POST /seen HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\n\r\n".encode()
            )
            channel.send("begun")
            channel.recv(20)
            sock.sendall(b"body")
            return b"".join(iter(lambda: sock.recv(65536), b""))

    running = net.client.start(client)
    assert running.recv() == "begun"
    wait_for(lambda: proxy.descriptors() and connected(net), 20, "the request at the origin")
    proxy.process.send_signal(signal.SIGTERM)
    proxy.says("no new connections")
    assert proxy.process.poll() is None
    running.send("go on")
    assert seen(running.result())["size"] == 4
    assert proxy.process.wait(20) == 0
    proxy.says("ended")


def connected(net: Topology) -> bool:
    """Whether the origin has a connection (proc_pid_net(5): state 01)."""

    def look() -> bool:
        lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        return any(line.split()[3] == "01" for line in lines)

    return net.origin.run(look)


def test_a_second_signal_ends_it_at_once(net: Topology, start: Start) -> None:
    proxy = start()

    def client(channel: Any) -> bytes:
        with socket.create_connection((net.origin_ip[V4], 80), 20) as sock:
            sock.sendall(f"GET /stalls HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            channel.send("begun")
            try:
                return sock.recv(65536)
            except ConnectionResetError:
                return b"RESET"

    running = net.client.start(client)
    assert running.recv() == "begun"
    wait_for(lambda: connected(net), 20, "the request at the origin")
    proxy.process.send_signal(signal.SIGINT)
    proxy.says("no new connections")
    proxy.process.send_signal(signal.SIGINT)
    assert proxy.process.wait(20) == 0
    assert running.result() == b"RESET"


def test_the_log_is_rotated(net: Topology, start: Start, tmp_path: Path) -> None:
    proxy = start()
    assert seen(ask(net, get("/seen", f"Host: {NAME}")))
    proxy.logged(1)
    old = tmp_path / "old"
    proxy.access.rename(old)
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for(proxy.access.exists, 20, "the new log")
    assert seen(ask(net, get("/seen", f"Host: {NAME}")))
    proxy.logged(1)
    assert len(old.read_text().splitlines()) == 1
    proxy.end()


@pytest.mark.skipif(
    os.geteuid() != 0, reason="setuid to another user needs root outside of user namespaces"
)
def test_privileges_are_dropped(net: Topology, start: Start) -> None:
    proxy = start("--spoof", "--user", "nobody")
    text = Path(f"/proc/{proxy.process.pid}/status").read_text()
    fields = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}
    assert int(fields["CapEff"], 16) == 1 << 13  # CAP_NET_RAW, linux/capability.h
    assert seen(ask(net, get("/seen", f"Host: {NAME}")))["peer"] == net.client_ip[V4]
    proxy.end()
