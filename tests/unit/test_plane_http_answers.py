"""HTTP sessions of the data plane: what Python may answer, and when."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from http_sessions import GET, Peer, Proxy, answer, proxying, wait_for

from lusca_comm import CommError, HttpLimits
from lusca_comm.http import Request, Response

POST = b"POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 4\r\n\r\nbody"
CONNECT = b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n"
Answer = Callable[[Request], object]


def each(answer: Answer) -> Callable[[list[Request]], object]:
    def decide(requests: list[Request]) -> None:
        for request in requests:
            answer(request)

    return decide


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxying() as proxy:
        yield proxy


def test_respond_keeps_the_connection() -> None:
    with proxying(decide=each(lambda r: r.respond(answer(r.target)))) as proxy:
        client = proxy.client()
        client.send(GET % 1 + POST + GET % 2)
        assert [client.response()[1] for _ in range(3)] == [b"/1", b"/", b"/2"]
        wait_for(lambda: len(proxy.exchanges) == 3)
        assert {(e.status, e.upstream) for e in proxy.exchanges} == {(200, None)}


def test_respond_before_the_body_is_there_is_the_last_one() -> None:
    with proxying(decide=each(lambda r: r.respond(answer()))) as proxy:
        client = proxy.client()
        client.send(POST[:-1])
        assert client.response()[1] == b"fine"
        assert client.ended()


def test_origin_form() -> None:
    with proxying() as proxy:
        proxy.options = {"origin_form": True}
        client = proxy.client()
        client.send(b"GET http://example.org/1?x HTTP/1.1\r\nHost: other\r\n\r\n")
        assert proxy.upstream().head() == b"GET /1?x HTTP/1.1\r\nHost: example.org\r\n\r\n"
        proxy.peers[-1].send(answer())
        assert client.response()[1] == b"fine"


def test_again_is_what_forward_was() -> None:
    answers: list[bytes] = []

    def decide(request: Request) -> None:
        if answers:
            request.again(answers[0])
        else:
            answers.append(request.forward(proxy.to, drop=["x"], append=b"Y: 1\r\n"))

    with proxying(decide=each(decide)) as proxy:
        client = proxy.client()
        client.send(GET % 1 + b"GET /2 HTTP/1.1\r\nX: 2\r\nHost: example.org\r\n\r\n")
        upstream = proxy.upstream()
        for number in (1, 2):
            assert upstream.head() == (GET % number)[:-2] + b"Y: 1\r\n\r\n"
            upstream.send(answer())
            assert client.response()[1] == b"fine"
        with pytest.raises(CommError, match="answered already"):
            proxy.seen[0].again(answers[0])


def test_respond_and_close() -> None:
    with proxying(decide=each(lambda r: r.respond(answer(), close=True))) as proxy:
        client = proxy.client()
        client.send(GET % 1 + GET % 2)
        assert client.response()[1] == b"fine"
        assert client.ended()


def test_deny_resets() -> None:
    with proxying(decide=each(Request.deny)) as proxy:
        client = proxy.client()
        client.send(GET % 1)
        assert client.was_reset()
        wait_for(lambda: proxy.exchanges)
        assert [(e.end, e.status) for e in proxy.exchanges] == [("killed", 0)]


def test_a_client_that_resets_while_it_is_asked_about_is_gone() -> None:
    with proxying(decide=lambda requests: None) as proxy:
        client = proxy.client()
        client.send(GET % 1)
        wait_for(lambda: proxy.seen)
        client.reset()
        wait_for(lambda: proxy.live == 0)
        proxy.seen[0].forward(proxy.to)


def test_take_gives_the_connection_and_what_was_read() -> None:
    taken: list[tuple[socket.socket, bytes]] = []
    with proxying(decide=each(lambda r: taken.append(r.take()))) as proxy:
        client = proxy.client()
        client.send(POST)
        wait_for(lambda: taken)
        sock, prefix = taken[0]
        assert prefix == POST
        with sock:
            client.send(b"more")
            sock.settimeout(30)
            assert sock.recv(10) == b"more"
        assert client.ended()


def test_a_client_that_is_gone_cannot_be_taken() -> None:
    with proxying(decide=lambda requests: None) as proxy:
        client = proxy.client()
        client.send(GET % 1)
        wait_for(lambda: proxy.seen)
        proxy.plane.kill_id(proxy.seen[0].id)
        wait_for(lambda: proxy.live == 0)
        with pytest.raises(CommError) as why:
            proxy.seen[0].take()
        assert why.value.errno == errno.ESRCH
        proxy.seen[0].respond(answer())  # reaches nobody


def test_answers_may_come_later_and_in_any_order() -> None:
    with proxying(decide=lambda requests: None) as proxy:
        clients = [proxy.client() for _ in range(4)]
        for i, client in enumerate(clients):
            client.send(GET % i)
        wait_for(lambda: len(proxy.seen) == 4)
        for request in reversed(proxy.seen):
            request.respond(answer(request.target))
        assert [c.response()[1] for c in clients] == [b"/0", b"/1", b"/2", b"/3"]
        with pytest.raises(CommError) as why:
            proxy.seen[0].deny()
        assert why.value.errno == errno.EALREADY


def test_decide_that_raises_leaves_nobody_waiting() -> None:
    def decide(requests: list[Request]) -> None:
        for request in requests:
            if request.target == b"/1":
                raise ValueError("no idea")
            request.respond(answer())

    with proxying(decide=decide) as proxy:
        client = proxy.client()
        client.send(GET % 0)
        assert client.response()[1] == b"fine"
        client.send(GET % 1)
        assert client.response()[0].startswith(b"HTTP/1.1 500 ")
        assert client.ended()
        wait_for(lambda: proxy.errors)
        assert [str(why) for why in proxy.errors] == ["no idea"]
        proxy.errors.clear()


def test_a_head_is_written_as_it_is_told(proxy: Proxy) -> None:
    proxy.options = {
        "start": b"GET /other HTTP/1.1\r\n",
        "drop": ("cookie", "X-None"),
        "append": b"Via: 1.1 me\r\n",
    }
    client = proxy.client()
    client.send(
        b"GET http://a/ HTTP/1.1\r\nHost: a\r\nCookie: c\r\nConnection: x-hop\r\nX-Hop: 1\r\n"
        b"Proxy-Connection: keep-alive\r\nKeep-Alive: 3\r\nX-End: 2\r\n\r\n"
    )
    head = proxy.upstream().head()
    assert head == b"GET /other HTTP/1.1\r\nHost: a\r\nX-End: 2\r\nVia: 1.1 me\r\n\r\n"


def test_an_edit_that_would_change_the_framing_is_refused(proxy: Proxy) -> None:
    proxy.options = {"append": b"Content-Length: 7\r\n"}
    client = proxy.client()
    client.send(GET % 1)
    assert client.response()[0].startswith(b"HTTP/1.1 502 ")
    assert proxy.seen[-1].errno == errno.EINVAL


@pytest.mark.parametrize("call", [Request.forward, Request.tunnel])
@pytest.mark.parametrize("mark", [-1, 1 << 32, "1"])
def test_a_mark_that_is_none(call: Any, mark: Any) -> None:
    """Nothing was answered, so that another answer can be."""
    raised: list[Exception] = []

    def decide(request: Request) -> None:
        try:
            call(request, proxy.to, mark=mark)
        except Exception as why:
            raised.append(why)
        request.respond(answer())

    with proxying(decide=each(decide)) as proxy:
        client = proxy.client()
        client.send(GET % 1)
        assert client.response()[1] == b"fine"
    (why,) = raised
    if isinstance(mark, str):
        assert isinstance(why, TypeError)
    else:
        assert isinstance(why, CommError)
        assert (why.errno, why.strerror) == (errno.EINVAL, f"mark {mark} is outside 0-0xffffffff")


@pytest.mark.parametrize("sent", [b"", b"GET", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_request_cannot_be_forwarded(sent: bytes) -> None:
    def decide(requests: list[Request]) -> None:
        for request in requests:
            if request.state == "failed":
                request.respond(answer(str(request.errno).encode()))
            else:
                request.forward(proxy.to)

    patience = 0.1 if sent in (b"", b"GET") else 60
    with proxying(decide=decide, limits=HttpLimits(head_time=patience)) as proxy:
        client = proxy.client()
        client.send(sent)
        assert client.response()[1] == str(errno.EINVAL).encode()
        assert client.ended()
        wait_for(lambda: proxy.exchanges)
        assert 0 <= proxy.exchanges[0].seconds < 60


# -- tunnels ---------------------------------------------------------------------------------------


def established(request: Request, proxy: Proxy) -> None:
    reply = b"HTTP/1.1 200 Connection established\r\n\r\n" if request.connect else b""
    if request.state == "failed":
        request.respond(b"HTTP/1.1 502 x\r\nContent-Length: 0\r\n\r\n", close=True)
    else:
        request.tunnel(proxy.to, reply=reply)


def test_connect_becomes_a_relay() -> None:
    with proxying(decide=each(lambda r: established(r, proxy))) as proxy:
        client = proxy.client()
        client.send(CONNECT + b"early")
        upstream = proxy.upstream()
        assert client.head() == b"HTTP/1.1 200 Connection established\r\n\r\n"
        assert upstream.exactly(5) == b"early"
        data = os.urandom(2_000_000)
        sender = threading.Thread(target=client.send, args=(data,))
        sender.start()
        assert upstream.exactly(len(data)) == data
        sender.join()
        upstream.send(b"back")
        assert client.exactly(4) == b"back"
        client.sock.shutdown(socket.SHUT_WR)
        assert upstream.ended()
        upstream.send(b"still")
        assert not proxy.exchanges
        upstream.close()
        assert client.all() == b"still"
        wait_for(lambda: proxy.exchanges)
        (exchange,) = proxy.exchanges
        assert exchange.start == CONNECT.partition(b"\r\n")[0]
        assert (exchange.end, exchange.up, exchange.status) == ("eof", len(data) + 5, 200)


def test_a_tunnel_that_is_idle() -> None:
    limits = HttpLimits(tunnel_time=0.2)
    with proxying(decide=each(lambda r: established(r, proxy)), limits=limits) as proxy:
        client = proxy.client()
        client.send(CONNECT)
        client.head()
        assert client.was_reset()
        wait_for(lambda: proxy.exchanges)
        assert [told.end for told in proxy.exchanges] == ["idle"]


def test_connect_that_is_not_reached() -> None:
    with proxying(decide=each(lambda r: established(r, proxy))) as proxy:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            proxy.to = nobody.getsockname()
            client = proxy.client()
            client.send(CONNECT)
            assert client.response()[0].startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize(
    "first", [b"\x16\x03\x01\x00\x05hello", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_what_is_no_http_goes_along_as_it_came(first: bytes) -> None:
    with proxying(decide=each(lambda r: established(r, proxy))) as proxy:
        client = proxy.client()
        client.send(first)
        upstream = proxy.upstream()
        assert upstream.exactly(len(first)) == first
        upstream.send(b"answer")
        assert client.exactly(6) == b"answer"


def test_a_server_that_speaks_first() -> None:
    limits = HttpLimits(head_time=0.1)
    with proxying(decide=each(lambda r: established(r, proxy)), limits=limits) as proxy:
        client = proxy.client()
        proxy.upstream().send(b"220 ready\r\n")
        assert client.until(b"\r\n") == b"220 ready\r\n"
        assert proxy.seen[0].state == "silent"


UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_an_upgrade_that_is_kept(proxy: Proxy) -> None:
    proxy.options = {"keep_upgrade": True}
    client = proxy.client()
    client.send(UPGRADE + b"frame")
    upstream = proxy.upstream()
    head = upstream.head()
    assert b"Upgrade: websocket\r\n" in head
    upstream.send(SWITCH + b"hello")
    head = client.head()
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Upgrade: websocket\r\n" in head
    assert client.exactly(5) == b"hello"
    assert upstream.exactly(5) == b"frame"
    client.send(GET % 1)  # no longer anything but bytes
    assert upstream.head() == GET % 1
    assert len(proxy.seen) == 1


def test_an_upgrade_that_is_declined(proxy: Proxy) -> None:
    proxy.options = {"keep_upgrade": True}
    client = proxy.client()
    client.send(UPGRADE)
    upstream = proxy.upstream()
    upstream.head()
    upstream.send(answer(b"no"))
    assert client.response()[1] == b"no"
    proxy.exchange(client, upstream, number=3)


def test_an_upgrade_that_is_not_kept(proxy: Proxy) -> None:
    client = proxy.client()
    client.send(UPGRADE)
    assert b"pgrade" not in proxy.upstream().head()


# -- responses -------------------------------------------------------------------------------------


def with_responses(decide: Callable[[list[Response]], object] | None) -> Iterator[Proxy]:
    with proxying(decide_response=decide) as proxy:
        proxy.options = {"on_response": True}
        yield proxy


def test_a_response_is_asked_about() -> None:
    seen: list[Response] = []

    def decide(responses: list[Response]) -> None:
        for response in responses:
            seen.append(response)
            response.forward(drop=("server",), append=b"X-Seen: 1\r\n")

    for proxy in with_responses(decide):
        client = proxy.client()
        client.send(GET % 1 + GET % 2)
        upstream = proxy.upstream()
        for i in (1, 2):
            upstream.head()
            upstream.send(b"HTTP/1.1 404 No\r\nServer: x\r\nDate: y\r\nContent-Length: 4\r\n\r\nb")
            wait_for(lambda i=i: len(seen) == i)
            upstream.send(b"ody")
            head, body = client.response()
            assert (head, body) == (
                b"HTTP/1.1 404 No\r\nDate: y\r\nContent-Length: 4\r\n"
                b"Via: 1.1 lusca_comm\r\nX-Seen: 1\r\n\r\n",
                b"body",
            )
        assert (seen[0].status, seen[0].field("server"), seen[0].length) == (404, b"x", 4)
        assert seen[0].id == proxy.seen[0].id


def test_a_date_that_python_adds_is_the_only_one() -> None:
    def decide(responses: list[Response]) -> None:
        for response in responses:
            response.forward(append=b"Date: x\r\n")

    for proxy in with_responses(decide):
        client = proxy.client()
        client.send(GET % 1)
        upstream = proxy.upstream()
        upstream.head()
        upstream.send(answer())
        assert re.findall(rb"Date: (.*)\r\n", client.response()[0]) == [b"x"]


def test_a_response_is_replaced() -> None:
    def decide(responses: list[Response]) -> None:
        for response in responses:
            response.replace(answer(b"mine"))

    for proxy in with_responses(decide):
        client = proxy.client()
        client.send(GET % 1)
        upstream = proxy.upstream()
        upstream.head()
        upstream.send(answer(b"theirs"))
        assert client.response()[1] == b"mine"
        assert upstream.all() == b""
        proxy.options = {}
        proxy.exchange(client, number=2)


def test_responses_that_nobody_asks_about_go_on() -> None:
    for proxy in with_responses(None):
        proxy.exchange(proxy.client(), number=1)


def test_a_request_that_goes_wrong_while_its_response_is_asked_about() -> None:
    waiting: list[Response] = []
    limits = HttpLimits(body=100)
    with proxying(decide_response=waiting.extend, limits=limits) as proxy:
        proxy.options = {"on_response": True}
        client = proxy.client()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        upstream = proxy.upstream()
        upstream.head()
        upstream.send(answer())
        wait_for(lambda: waiting)
        client.send(b"100\r\n" + bytes(0x100))
        assert client.was_reset()
        waiting[0].forward()  # reaches nobody


# -- connections from elsewhere --------------------------------------------------------------------


def test_a_connection_that_was_accepted_elsewhere(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Peer(socket.create_connection(listener.getsockname()))
        proxy.peers.append(client)
        sock, _ = listener.accept()
        proxy.service.serve(sock, original=("192.0.2.1", 80), prefix=(GET % 1)[:7])
        assert sock.fileno() == -1
        client.send((GET % 1)[7:])
        upstream = proxy.upstream()
        assert upstream.head() == GET % 1
        upstream.send(answer())
        assert client.response()[1] == b"fine"
        assert proxy.seen[0].original == ("192.0.2.1", 80)
        proxy.exchange(client, upstream, number=2)


def test_where_it_was_going_stands_in_for_host() -> None:
    """An intercepted request without Host is asked about, and goes on once it has one."""
    bare = b"GET /%s HTTP/1.1\r\nAccept: */*\r\n\r\n"

    def decide(requests: list[Request]) -> None:
        for request in requests:
            if request.state == "request":
                assert (request.field("host"), request.fields("accept")) == (None, [b"*/*"])
                named = b"" if request.target == b"/bare" else b"Host: 192.0.2.1\r\n"
                request.forward(proxy.to, append=named)
            else:
                code = request.status or 502
                request.respond(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % code)

    def served(**where: Any) -> Peer:
        client = Peer(socket.create_connection(listener.getsockname()))
        proxy.peers.append(client)
        proxy.service.serve(listener.accept()[0], **where)
        return client

    with proxying(decide=decide) as proxy, socket.create_server(("127.0.0.1", 0)) as listener:
        client = served(original=("192.0.2.1", 80))
        client.send(bare % b"")
        upstream = proxy.upstream()
        assert b"\r\nHost: 192.0.2.1\r\n" in upstream.head()
        upstream.send(answer())
        assert client.response()[1] == b"fine"
        client.send(bare % b"bare")
        assert client.response()[0].startswith(b"HTTP/1.1 502 ")
        assert proxy.seen[-1].errno == errno.EINVAL
        to_a_proxy = served()
        to_a_proxy.send(bare % b"")
        assert to_a_proxy.response()[0].startswith(b"HTTP/1.1 400 ")


def test_close_lets_sessions_go_on(proxy: Proxy) -> None:
    client = proxy.client()
    upstream = proxy.exchange(client)
    proxy.service.close()
    proxy.exchange(client, upstream, number=2)
    proxy.service.close()
