"""One list of what is left alone, at each of the three places that docs/bypass.md has."""

from __future__ import annotations

import pytest
from kernel.proxying import FAMILIES, PROXY_PORT, fetch, intercept, serve_origin
from kernel.test_plane_intercept import serve

from lusca_comm.bypass import Bypass, BypassRule
from lusca_comm.lab import Topology

PORTS = (80, 81)
PLACES = ("plan", "plane", "python")


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
@pytest.mark.parametrize("place", PLACES)
def test_the_same_connections_wherever_it_stands(
    three_hosts: Topology, family: int, place: str
) -> None:
    net = three_hosts
    bypass = Bypass(
        [
            BypassRule(
                source=net.client_ip[family], destination=net.origin_ip[family], ports=(80,)
            ),
            BypassRule(name="*.bank.example"),
        ]
    )
    options = bypass.plan_options() if place == "plan" else {}
    intercept(net.router, port=PROXY_PORT, ports=PORTS, **options)
    rows = bypass.rules() if place == "plane" else []
    proxy = serve(net.router, family, rows, answer="relay")
    there = net.origin_ip[family]
    for port in PORTS:
        serve_origin(net, family, port)
    left, taken = (net.client.run(fetch, family, there, port) for port in PORTS)
    assert left.body == taken.body == b"hello"
    # Left out by the plan it is the client's own connection, else the proxy's.
    whose = net.client_ip if place == "plan" else net.router_origin_ip
    assert left.source == whose[family]
    assert taken.source == net.router_origin_ip[family]
    proxy.send("totals")
    said = []
    while not hasattr(last := proxy.recv(), "accepted"):
        said.append(last)
    asked = [message[1:3] for message in said if message[0] == "asked"]
    seen = {"plan": 1, "plane": 2, "python": 2}[place]
    assert last.accepted == last.relayed == seen
    assert asked[-1] == (taken.mine, (there, 81))
    assert len(asked) == (2 if place == "python" else 1)
    assert [bool(bypass.match(*each)) for each in asked] == [True, False][-len(asked) :]
    assert bypass.needs_name(*asked[-1])
    assert bypass.match(*asked[-1], name="www.bank.example")
