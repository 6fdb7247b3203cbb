"""HTTP sessions of the data plane: peers that mean harm get no more than they are due."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from http_sessions import GET, OK, answer, proxying, wait_for

from lusca_comm.http import Request

EMPTY = OK % (0, b"")


def test_an_origin_of_which_a_part_came_is_not_the_next_ones_begin() -> None:
    """What was read of a response that broke off is nobody's, also where another one is asked."""

    def decide(requests: list[Request]) -> None:
        for request in requests:
            request.forward(proxy.to)

    with proxying(decide=decide) as proxy:
        client = proxy.client()
        client.send(GET % 1)
        upstream = proxy.upstream()
        upstream.head()
        upstream.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: of another")
        upstream.close()
        fresh = proxy.upstream()
        fresh.head()
        fresh.send(answer(b"whole"))
        head, body = client.response()
        assert b"of another" not in head
        assert body == b"whole"
        assert [r.failed for r in proxy.seen] == ["", "response"]


@pytest.mark.parametrize("reads", [True, False])
def test_interim_responses_without_end(reads: bool) -> None:
    """They end the exchange, whether the client takes them or not, and keep nobody waiting."""
    with proxying() as proxy:
        client, bystander = proxy.client(), proxy.client()
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.send(GET % 1)
        flood = proxy.upstream()
        flood.head()

        def pour() -> None:
            with contextlib.suppress(OSError):
                while True:
                    flood.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1000)

        thread = threading.Thread(target=pour)
        thread.start()
        upstream = None
        for i in range(10):
            upstream = proxy.exchange(bystander, upstream, i)
        if reads:
            client.until(b"HTTP/1.1 502 ")
            assert "response" in [r.failed for r in proxy.seen]
        client.close()
        thread.join()


def test_blank_lines_before_a_request_are_no_part_of_it() -> None:
    """A log has a line for each exchange."""
    with proxying() as proxy:
        client = proxy.client()
        client.send(b"\r\n\r\n" + GET % 1)
        upstream = proxy.upstream()
        assert upstream.head() == GET % 1
        upstream.send(answer())
        client.response()
        wait_for(lambda: proxy.exchanges)
        assert proxy.exchanges[0].start == b"GET /1 HTTP/1.1"


def test_a_last_response_is_not_lost_to_a_slow_sender() -> None:
    """What the client still sends is thrown away by its bytes, not by how many pieces it comes in:
    a connection that is closed over unread bytes is reset, and the response may be lost."""

    def decide(requests: list[Request]) -> None:
        for request in requests:
            request.respond(EMPTY)

    with proxying(decide=decide) as proxy:
        client, other = proxy.client(), proxy.client()
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.send(b"POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 9999\r\n\r\n")
        for i in range(50):
            client.send(b"piece")
            other.send(GET % i)  # once it is answered, the piece was read
            other.response()
        assert client.response()[0].startswith(b"HTTP/1.1 200 ")
        assert client.ended()
