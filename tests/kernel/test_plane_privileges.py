"""What a plane's thread may do: what the thread could that gave it its first command."""

from __future__ import annotations

import errno
import socket

import pytest
from kernel.proxying import serve_origin
from planes import connection, until

import lusca_comm as lc
from lusca_comm.lab import Topology
from lusca_comm.lab.capabilities import keep_only


@pytest.mark.parametrize(
    ("kept", "when", "outcome"),
    [
        (("CAP_NET_RAW",), "before", ("eof", 0)),
        (("CAP_NET_ADMIN",), "before", ("eof", 0)),
        ((), "before", ("connect", errno.EPERM)),
        # Capabilities are a thread's own: a thread that began earlier keeps what it had.
        ((), "after", ("eof", 0)),
    ],
)
def test_spoofing_from_the_planes_thread(
    three_hosts: Topology, kept: tuple[str, ...], when: str, outcome: tuple[str, int]
) -> None:
    net, family = three_hosts, socket.AF_INET
    serve_origin(net, family)
    origin = net.origin_ip[family]

    def run() -> tuple[str, int]:
        plane = lc.Plane()
        if when == "after":
            plane.fileno()
        client, near = connection()
        keep_only(kept)
        results: list[lc.RelayResult] = []
        # A local source, which needs no reply path; the right to a foreign one is asked for first.
        plane.connect_relay(
            near,
            (origin, 80),
            results.append,
            source=(net.router_origin_ip[family], 0),
            flags=lc.COMM_TPROXY_REM,
            timeout=5,
        )
        client.shutdown(socket.SHUT_WR)
        until(plane, lambda: results)
        client.close()
        if results[0].client is not None:
            results[0].client.close()
        plane.stop()
        return results[0].end, results[0].errno

    assert net.router.run(run) == outcome
