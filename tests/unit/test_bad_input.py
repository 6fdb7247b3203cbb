"""Nonsense, call by call: a clear exception each, nothing leaked, and the reactor goes on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contract.reactors import Watched, watched
from hypothesis import given
from hypothesis import strategies as st

import lusca_comm as lc
from lusca_comm import CommError

READ, WRITE = lc.COMM_SELECT_READ, lc.COMM_SELECT_WRITE
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
HERE = ("127.0.0.1", 0)


@pytest.fixture
def reactor() -> Iterator[Watched]:
    with watched() as reactor:
        yield reactor
        served: list[Any] = []
        listener = reactor.comm_open(address=HERE)
        reactor.comm_listen(listener)
        reactor.comm_set_select(listener, READ, lambda *args: served.append(args))
        with socket.create_connection(listener.getsockname()):
            reactor.until(lambda: served)


def nothing(*_: Any) -> None:
    pass


# -- every call, with what is no socket ------------------------------------------------------------

CALLS: dict[str, Callable[[Watched, Any], Any]] = {
    "listen": lambda r, s: r.comm_listen(s),
    "accept": lambda r, s: r.comm_accept(s),
    "connect": lambda r, s: r.comm_connect(s, ("127.0.0.1", 1), nothing),
    "error": lambda r, s: r.comm_error(s),
    "set_select": lambda r, s: r.comm_set_select(s, READ, nothing),
    "set_timeout": lambda r, s: r.comm_set_timeout(s, 1),
    "read": lambda r, s: r.comm_read(s, 1, nothing),
    "write": lambda r, s: r.comm_write(s, b"x"),
    "defer": lambda r, s: r.comm_defer(s),
    "resume": lambda r, s: r.comm_resume(s),
    "detach": lambda r, s: r.comm_detach(s),
    "note": lambda r, s: r.comm_note(s, "note"),
    "add_close_handler": lambda r, s: r.comm_add_close_handler(s, nothing),
    "remove_close_handler": lambda r, s: r.comm_remove_close_handler(s, nothing),
    "spoof": lambda r, s: r.comm_spoof(s),
    "local_port": lambda r, s: r.comm_local_port(s),
    "sendto": lambda r, s: r.comm_udp_sendto(s, ("127.0.0.1", 9), b""),
    "recvfrom": lambda r, s: r.comm_udp_recvfrom(s),
    "recvmany": lambda r, s: r.comm_udp_recvmany(s),
    "relay": lambda r, s: r.relay(s, s, nothing),
    "original_destination": lambda r, s: lc.original_destination(s),
    "fdopen": lambda r, s: r.comm_fdopen(s),
}
CLOSES: dict[str, Callable[[Watched, Any], Any]] = {
    "close": lambda r, s: r.comm_close(s),
    "reset_close": lambda r, s: r.comm_reset_close(s),
    "lingering_close": lambda r, s: r.comm_lingering_close(s),
}


def closed_socket() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("handle", [closed_socket(), -1, 1 << 20, 1 << 40])
def test_closed_descriptors(reactor: Watched, call: str, handle: Any) -> None:
    with pytest.raises(CommError) as caught:
        CALLS[call](reactor, handle)
    assert caught.value.errno == errno.EBADF
    assert len(reactor.table) == 0


@pytest.mark.parametrize("call", {**CALLS, **CLOSES})
@pytest.mark.parametrize("handle", [None, "3", 3.0, object(), True, b"", []], ids=repr)
def test_what_is_no_socket_at_all(reactor: Watched, call: str, handle: Any) -> None:
    with pytest.raises(TypeError):
        {**CALLS, **CLOSES}[call](reactor, handle)
    assert len(reactor.table) == 0


@pytest.mark.parametrize("call", CLOSES)
def test_double_close(reactor: Watched, call: str) -> None:
    sock = reactor.comm_open()
    fd = sock.fileno()
    for _ in range(3):
        CLOSES[call](reactor, sock)
    CLOSES[call](reactor, fd)  # closed, and nobody has the number
    CLOSES[call](reactor, closed_socket())
    CLOSES[call](reactor, socket.socket())  # never seen before: closed
    for number in (-1, 1 << 40):
        with pytest.raises(CommError) as caught:
            CLOSES[call](reactor, number)
        assert caught.value.errno == errno.EBADF
    with socket.socket() as foreign:
        with pytest.raises(CommError) as caught:
            CLOSES[call](reactor, foreign.fileno())
        assert caught.value.errno == errno.EBADF
        assert "owner" in str(caught.value.strerror)
    assert len(reactor.table) == 0


# -- open ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"address": ("example.com", 80)}, errno.EINVAL),
        ({"address": ("127.0.0.1", 70000)}, errno.EINVAL),
        ({"type": 77}, errno.EINVAL),
        ({"type": socket.SOCK_RAW}, errno.EINVAL),
        ({"family": socket.AF_UNIX}, errno.EINVAL),
        ({"flags": 1 << 20}, errno.EINVAL),
        ({"flags": -1}, errno.EINVAL),
        ({"flags": lc.COMM_TPROXY_LCL}, errno.EINVAL),
        ({"flags": lc.COMM_TPROXY_REM}, errno.EINVAL),
        ({"flags": lc.COMM_TRANSPARENT_PORT, "address": HERE}, errno.EINVAL),
        ({"dualstack": True, "address": HERE}, errno.EINVAL),
        ({"address": ("::1", 0), "family": socket.AF_INET}, errno.EAFNOSUPPORT),
        ({"tos": 1 << 40}, errno.EINVAL),
        ({"tos": 256}, errno.EINVAL),
        ({"tos": -1}, errno.EINVAL),
        ({"mark": -1}, errno.EINVAL),
        ({"mark": 1 << 32}, errno.EINVAL),
        ({"device": "a-name-that-is-much-too-long"}, errno.EINVAL),
        ({"device": "exactly-16-bytes"}, errno.EINVAL),
        ({"device": ""}, errno.EINVAL),
        ({"device": "eth\0"}, errno.EINVAL),
        ({"device": "nosuchif0"}, errno.ENODEV),
        ({"address": ("192.0.2.77", 80)}, errno.EADDRNOTAVAIL),
        ({"proto": 250}, errno.EPROTONOSUPPORT),
        ({"type": DGRAM, "address": HERE, "flags": lc.COMM_INTERCEPT}, errno.EOPNOTSUPP),
    ],
    ids=repr,
)
def test_open(reactor: Watched, arguments: Any, code: int) -> None:
    with pytest.raises(CommError) as caught:
        reactor.comm_open(**arguments)
    assert caught.value.errno == code, caught.value
    assert caught.value.strerror != os.strerror(code)  # says more than that


@pytest.mark.parametrize("mark", [-1, 1 << 32])
def test_marks_of_listeners_in_the_plane(reactor: Watched, mark: int) -> None:
    service = reactor.http_service(lambda requests: None)
    lsock = reactor.comm_open(address=HERE)
    reactor.comm_listen(lsock)
    for call in (reactor.intercept_relay, service.listen):
        with pytest.raises(CommError, match=r"is outside 0-0xffffffff") as caught:
            call(lsock, engine="sockname", mark=mark)
        assert caught.value.errno == errno.EINVAL
    reactor.comm_close(lsock)


@pytest.mark.parametrize(
    "arguments",
    [
        {"address": "127.0.0.1:80"},
        {"address": ("127.0.0.1", "80")},
        {"flags": "reuse"},
        {"flags": True},
        {"proto": "tcp"},
        {"mark": "1"},
        {"device": 3},
        {"tos": None},
    ],
    ids=repr,
)
def test_open_with_wrong_types(reactor: Watched, arguments: Any) -> None:
    with pytest.raises(TypeError):
        reactor.comm_open(**arguments)


def test_taken_address(reactor: Watched) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(CommError) as caught:
            reactor.comm_open(address=other.getsockname())
        assert caught.value.errno == errno.EADDRINUSE
        assert "ss -ltnup" in str(caught.value)


anything: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8)
)


@given(
    st.dictionaries(
        st.sampled_from(["type", "proto", "address", "family", "flags", "tos", "mark", "device"]),
        st.one_of(anything, st.tuples(st.sampled_from(["127.0.0.1", "::1", "x"]), anything)),
        min_size=1,
    )
)
def test_open_with_anything(arguments: Any) -> None:
    with watched() as reactor:
        try:
            sock = reactor.comm_open(**arguments)
        except (CommError, TypeError):
            return
        reactor.comm_close(sock)


# -- the other arguments ---------------------------------------------------------------------------

BAD_ARGUMENTS: list[tuple[Callable[[Watched, Any], Any], Any]] = [
    (lambda r, s: r.comm_set_select(s, 0, nothing), errno.EINVAL),
    (lambda r, s: r.comm_set_select(s, 4, nothing), errno.EINVAL),
    (lambda r, s: r.comm_set_select(s, "read", nothing), errno.EINVAL),
    (lambda r, s: r.comm_set_select(s, READ, "handler"), TypeError),
    (lambda r, s: r.comm_set_select(s, READ, nothing, None, "1"), TypeError),
    (lambda r, s: r.comm_set_select(s, READ, nothing, None, float("nan")), errno.EINVAL),
    (lambda r, s: r.comm_set_timeout(s, float("nan")), errno.EINVAL),
    (lambda r, s: r.comm_set_timeout(s, None), TypeError),
    (lambda r, s: r.comm_set_timeout(s, 1, "handler"), TypeError),
    (lambda r, s: r.comm_add_event(float("nan"), nothing), errno.EINVAL),
    (lambda r, s: r.comm_add_event("1", nothing), TypeError),
    (lambda r, s: r.comm_add_event(1, None), TypeError),
    (lambda r, s: r.comm_select(float("nan")), errno.EINVAL),
    (lambda r, s: r.comm_select(None), TypeError),
    (lambda r, s: r.call_soon_threadsafe(None), TypeError),
    (lambda r, s: r.comm_connect(s, ("host", 80), nothing), errno.EINVAL),
    (lambda r, s: r.comm_connect(s, None, nothing), TypeError),
    (lambda r, s: r.comm_connect(s, HERE, None), TypeError),
    (lambda r, s: r.comm_connect(s, HERE, nothing, timeout=float("nan")), errno.EINVAL),
    (lambda r, s: r.comm_connect(s, HERE, nothing, timeout="1"), TypeError),
    (lambda r, s: r.comm_read(s, 0, nothing), errno.EINVAL),
    (lambda r, s: r.comm_read(s, "1", nothing), TypeError),
    (lambda r, s: r.comm_read(s, 1.5, nothing), TypeError),
    (lambda r, s: r.comm_read(s, 1, None), TypeError),
    (lambda r, s: r.comm_write(s, "text"), TypeError),
    (lambda r, s: r.comm_write(s, memoryview(b"abcd")[::2]), TypeError),
    (lambda r, s: r.comm_write(s, b"", "callback"), TypeError),
    (lambda r, s: r.comm_add_close_handler(s, None), TypeError),
    (lambda r, s: r.comm_remove_close_handler(s, nothing), errno.ENOENT),
    (lambda r, s: r.comm_listen(s, defer="1"), TypeError),
    (lambda r, s: r.comm_listen(s, defer=float("nan")), errno.EINVAL),
    (lambda r, s: r.comm_listen(s, defer=-1), errno.EINVAL),
    (lambda r, s: r.comm_accept(s), errno.EINVAL),
    (lambda r, s: r.comm_udp_recvfrom(s), errno.EPROTOTYPE),
    (lambda r, s: r.comm_udp_recvmany(s), errno.EPROTOTYPE),
    (lambda r, s: r.comm_udp_recvmany(s, 0), errno.EINVAL),
    (lambda r, s: r.comm_udp_recvmany(s, True), TypeError),
    (lambda r, s: r.comm_udp_sendto(s, HERE, b""), errno.EPROTOTYPE),
    (lambda r, s: r.comm_udp_reply(None, b""), TypeError),
    (lambda r, s: r.comm_udp_reply(lc.Datagram(b"", HERE, None), b""), TypeError),
    (lambda r, s: r.comm_udp_replymany([(lc.Datagram(b"", HERE, None), b"")]), TypeError),
    (lambda r, s: r.comm_fdopen(s), errno.EEXIST),
    (lambda r, s: r.relay(s, s, nothing), errno.EINVAL),
    (lambda r, s: lc.original_destination(s), errno.ENOTCONN),
    (lambda r, s: lc.original_destination(s, engine="no such engine"), errno.EINVAL),
]


@pytest.mark.parametrize("number", range(len(BAD_ARGUMENTS)))
def test_bad_arguments(reactor: Watched, number: int) -> None:
    call, error = BAD_ARGUMENTS[number]
    sock = reactor.comm_open()
    if isinstance(error, int):
        with pytest.raises(CommError) as caught:
            call(reactor, sock)
        assert caught.value.errno == error
        assert caught.value.strerror
    else:
        with pytest.raises(error):
            call(reactor, sock)
    entry = reactor.table.find(sock)
    assert entry is not None
    assert (entry.wants, entry.pending, len(reactor.timers)) == (0, {}, 0)


def test_a_blocking_listener_is_refused(reactor: Watched) -> None:
    """accept(2) would stop the loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for handle in (listener, listener.fileno()):
            with pytest.raises(CommError) as caught:
                reactor.comm_accept(handle)
            assert caught.value.errno == errno.EINVAL
            assert "comm_listen" in str(caught.value)
        assert len(reactor.table) == 0
        reactor.comm_listen(listener)
        assert reactor.comm_accept(listener) is None
        assert reactor.comm_accept(listener.fileno()) is None
        listener.setblocking(True)
        with pytest.raises(CommError):
            reactor.comm_accept(listener)
        reactor.comm_detach(listener)


def test_accept_on_what_does_not_listen(reactor: Watched) -> None:
    for sock in (reactor.comm_open(), reactor.comm_open(DGRAM)):
        with pytest.raises(CommError) as caught:
            reactor.comm_accept(sock)
        assert caught.value.errno in (errno.EINVAL, errno.EOPNOTSUPP)


def test_a_foreign_address_without_the_flag_says_which(reactor: Watched) -> None:
    with pytest.raises(CommError) as caught:
        reactor.comm_open(address=("192.0.2.77", 80))
    assert "COMM_TPROXY_LCL" in str(caught.value)
    assert "COMM_TPROXY_REM" in str(caught.value)


@pytest.mark.parametrize(
    "lines", [b"Content-Length: 1\r\n", b"Via: 1.1 x", b"Via: 1.1 x\r\n\r\n", b"no field\r\n"]
)
def test_lines_that_no_response_can_have(reactor: Watched, lines: bytes) -> None:
    with pytest.raises(CommError, match="append_response") as caught:
        reactor.http_service(nothing, append_response=lines)
    assert caught.value.errno == errno.EINVAL


def test_a_name_that_is_longer_than_any_field_has(reactor: Watched) -> None:
    reactor.http_service(nothing, fields=("x" * 255,))
    with pytest.raises(CommError, match="255 bytes") as caught:
        reactor.http_service(nothing, fields=("host", "x" * 256))
    assert caught.value.errno == errno.EINVAL
