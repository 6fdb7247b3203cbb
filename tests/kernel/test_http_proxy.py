"""examples/http_proxy between a client and an origin: who sees whom, by every way that connections
come in. What it makes of them: test_http_proxy_exchanges.py and test_http_proxy_policy.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from kernel.examples import shows
from kernel.http_lab import FORWARD, INTERCEPT, NAME, V4, Service, get, know, seen, serve, talk
from kernel.proxying import FAMILIES, fetch, intercept

from lusca_comm.address import spell
from lusca_comm.lab import Topology

v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
modes = pytest.mark.parametrize("mode", ["tproxy", "redirect"])


@v4_and_v6
@modes
@pytest.mark.parametrize("spoof", [True, False], ids=["spoofed", "plain"])
def test_an_intercepted_request(
    three_hosts: Topology, tmp_path: Path, family: int, mode: str, spoof: bool
) -> None:
    net = three_hosts
    intercept(net.router, mode=mode, port=INTERCEPT, spoof=spoof)
    know(net.router, tmp_path)
    serve(net)
    proxy = Service(net.router, tmp_path, "--via", "me", *(["--spoof"] if spoof else []))
    there = (net.origin_ip[family], 80)
    told = seen(net.client.run(talk, there, get("/seen?a=b", f"Host: {NAME}", "X-Mine: yes")))
    source = net.client_ip if spoof else net.router_origin_ip
    assert told["peer"] == source[family]
    assert told["start"] == ["GET", "/seen?a=b", "HTTP/1.1"]
    assert ["host", NAME] in told["fields"]
    assert ["x-mine", "yes"] in told["fields"]
    assert ["via", "1.1 me"] in told["fields"]
    (line,) = proxy.logged()
    assert (line["client"], line["status"]) == (net.client_ip[family], 200)
    assert (line["uri"], line["origin"]) == (f"http://{NAME}/seen?a=b", net.origin_ip[family])
    assert (line["result"], line["hierarchy"]) == ("TCP_MISS", "ORIGINAL_DST")
    proxy.end()


@v4_and_v6
def test_without_a_rule_the_proxy_sees_nothing(
    three_hosts: Topology, tmp_path: Path, family: int
) -> None:
    """The negative control: another port is intercepted."""
    net = three_hosts
    intercept(net.router, port=INTERCEPT, ports=(81,))
    serve(net)
    proxy = Service(net.router, tmp_path, "--spoof")
    told = seen(net.client.run(talk, (net.origin_ip[family], 80), get("/", f"Host: {NAME}")))
    assert told["peer"] == net.client_ip[family]
    assert "via" not in dict(told["fields"])
    assert proxy.lines() == []
    proxy.end()


@v4_and_v6
def test_who_calls_the_intercepting_port_itself_is_reset(
    three_hosts: Topology, tmp_path: Path, family: int
) -> None:
    net = three_hosts
    proxy = Service(net.router, tmp_path)
    answer = net.client.run(fetch, family, net.router_client_ip[family], INTERCEPT)
    assert answer.errno == errno.ECONNRESET
    proxy.says("refused: ")
    proxy.end()


@v4_and_v6
def test_forward_and_intercepting_at_once(
    three_hosts: Topology, tmp_path: Path, family: int
) -> None:
    net = three_hosts
    intercept(net.router, port=INTERCEPT, spoof=True)
    know(net.router, tmp_path)
    serve(net)
    clients = ("--allow", "192.0.2.0/24", "--allow", "2001:db8:1::/64")
    proxy = Service(net.router, tmp_path, "--spoof", *clients)
    here = (net.router_client_ip[family], FORWARD)
    there = (net.origin_ip[family], 80)
    uri = f"http://{spell(there)}/seen"
    told = seen(net.client.run(talk, here, get(uri, "Host: forged.example")))
    assert told["peer"] == net.router_origin_ip[family]
    assert told["start"] == ["GET", "/seen", "HTTP/1.1"]
    assert [value for name, value in told["fields"] if name == "host"] == [
        spell(there).removesuffix(":80")
    ]
    told = seen(net.client.run(talk, there, get("/seen", version="1.0")))
    assert told["peer"] == net.client_ip[family]
    assert ["host", spell(there).removesuffix(":80")] in told["fields"]
    assert [line["hierarchy"] for line in proxy.logged(2)] == ["HIER_DIRECT", "ORIGINAL_DST"]
    proxy.end()


def test_it_shows_itself() -> None:
    assert "ok     intercepted: 2001:db8:2::2 sees 2001:db8:1::2\n" in shows("http_proxy")


def test_only_what_redirect_brings_needs_no_privilege(
    three_hosts: Topology, tmp_path: Path
) -> None:
    net = three_hosts
    intercept(net.router, mode="redirect", port=INTERCEPT)
    serve(net)
    proxy = Service(net.router, tmp_path, "--redirect-only", "--host-verify", "off")
    told = seen(net.client.run(talk, (net.origin_ip[V4], 80), get("/", f"Host: {NAME}")))
    assert told["peer"] == net.router_origin_ip[V4]
    proxy.end()
