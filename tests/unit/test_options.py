"""Options by what they mean, read back from the kernel."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lusca_comm as lc
from lusca_comm import CommError, Reactor

reactor = Reactor()
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])


@pytest.fixture
def sock(family: int) -> Iterator[socket.socket]:
    with socket.socket(family) as made:
        yield made


@FAMILIES
@pytest.mark.parametrize("tos", [0, 0x10, 0xB8, 0xFC])
def test_tos(sock: socket.socket, family: int, tos: int) -> None:
    for handle in (sock, sock.fileno()):
        reactor.comm_set_tos(handle, 0)
        reactor.comm_set_tos(handle, tos)
        assert reactor.comm_get_tos(handle) == tos
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == tos  # of v4-mapped packets too
    if family == socket.AF_INET6:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == tos


@FAMILIES
def test_tos_at_open(family: int) -> None:
    sock = reactor.comm_open(family=family, tos=0x10)
    assert reactor.comm_get_tos(sock) == 0x10
    reactor.comm_close(sock)


@FAMILIES
def test_keepalive(sock: socket.socket, family: int) -> None:
    before = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
    reactor.comm_set_keepalive(sock, 60, 10, 35)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4  # 35 s, rounded up
    reactor.comm_set_keepalive(sock, 0, 20, 0)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 20
    assert before != 4


@FAMILIES
def test_nodelay(sock: socket.socket, family: int) -> None:
    assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    reactor.comm_set_nodelay(sock)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@FAMILIES
def test_buffers(sock: socket.socket, family: int) -> None:
    reactor.comm_set_buffer_size(sock, 20_000)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        assert sock.getsockopt(socket.SOL_SOCKET, option) in (20_000, 40_000)  # Linux doubles


@FAMILIES
def test_no_pmtu_discovery(sock: socket.socket, family: int) -> None:
    reactor.comm_set_no_pmtu_discover(sock)
    ip_mtu_discover, ipv6_mtu_discover, dont = 10, 23, 0  # linux/in.h, linux/in6.h
    assert sock.getsockopt(socket.IPPROTO_IP, ip_mtu_discover) == dont
    if family == socket.AF_INET6:
        assert sock.getsockopt(socket.IPPROTO_IPV6, ipv6_mtu_discover) == dont


@FAMILIES
def test_priority(sock: socket.socket, family: int) -> None:
    reactor.comm_set_priority(sock, 5)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 5


@FAMILIES
def test_local_port(sock: socket.socket, family: int) -> None:
    assert reactor.comm_local_port(sock) == 0
    sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    assert reactor.comm_local_port(sock) == sock.getsockname()[1]


CALLS: dict[str, Any] = {
    "tos": reactor.comm_set_tos,
    "buffer size": reactor.comm_set_buffer_size,
    "priority": reactor.comm_set_priority,
    "keepalive idle": lambda sock, value: reactor.comm_set_keepalive(sock, value, 1, 1),
    "keepalive interval": lambda sock, value: reactor.comm_set_keepalive(sock, 1, value, 1),
    "keepalive timeout": lambda sock, value: reactor.comm_set_keepalive(sock, 1, 1, value),
}


@pytest.mark.parametrize("call", CALLS)
@given(value=st.one_of(st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=3)))
def test_any_value_is_taken_or_refused_clearly(call: str, value: Any) -> None:
    with socket.socket() as sock:
        try:
            CALLS[call](sock, value)
        except TypeError:
            assert isinstance(value, bool) or not isinstance(value, int | float)
        except CommError as why:
            assert why.errno in (errno.EINVAL, errno.EPERM)  # noqa: PT017
            assert why.strerror  # noqa: PT017


@pytest.mark.parametrize("name", [name for name in dir(Reactor) if name.startswith("comm_set_")])
def test_of_a_closed_socket(name: str) -> None:
    sock = socket.socket()
    sock.close()
    arguments = {
        "comm_set_keepalive": (1, 1, 1),
        "comm_set_nodelay": (),
        "comm_set_no_pmtu_discover": (),
        "comm_set_select": (lc.COMM_SELECT_READ, print),
    }.get(name, (1,))
    for handle in (sock, 1 << 20):
        with pytest.raises(CommError) as caught:
            getattr(reactor, name)(handle, *arguments)
        assert caught.value.errno == errno.EBADF


def test_no_delay_of_a_datagram_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(CommError) as caught:
            reactor.comm_set_nodelay(sock)
        assert caught.value.errno in (errno.EOPNOTSUPP, errno.ENOPROTOOPT)
