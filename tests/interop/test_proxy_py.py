"""examples/adapters/proxy_py_lusca.py with the real proxy.py."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interop.web import (
    ADAPTERS,
    HTTP,
    NAME,
    Place,
    Program,
    curl,
    installed,
    intercepted,
    modes,
    v4_and_v6,
)

from lusca_comm.address import spell
from lusca_comm.lab import Lab

BARE = [installed("proxy", "proxy.py")]
OURS = [sys.executable, ADAPTERS / "proxy_py_lusca.py"]
BOTH = ("--hostname", "0.0.0.0", "--hostnames", "::")
SPOOFING, PLAIN, REDIRECT, OWN = 3129, 3130, 3131, 3132
PROXIES: dict[int, list[Any]] = {
    SPOOFING: [*OURS, *BOTH, "--lusca-spoof"],
    PLAIN: [*OURS, *BOTH],
    REDIRECT: [*OURS, *BOTH, "--lusca-redirect"],
    OWN: [*BARE, "--hostname", "::"],  # its IPv6 sockets take IPv4 also
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab, tmp_path_factory.mktemp("proxy.py"))
        small = ("--num-acceptors", "1", "--num-workers", "1")
        commands = {port: [*own, "--port", port, *small] for port, own in PROXIES.items()}
        place.start({REDIRECT: commands.pop(REDIRECT)}, capabilities=())
        place.start(commands)
        yield place


def told(place: Place, family: int, path: str) -> str:
    """What proxy.py's access log says of a request from the client to the origin."""
    client, origin = place.net.client_ip[family], place.net.origin_ip[family]
    return rf"{client}:\d+ - GET {re.escape(f'{origin}:{HTTP}{path}')} - 200 OK"


@v4_and_v6
@modes
@pytest.mark.parametrize("port", [SPOOFING, PLAIN], ids=["spoofed", "plain"])
def test_http(place: Place, family: int, mode: str, port: int) -> None:
    net, spoof, path = place.net, port == SPOOFING, f"/{family}/{mode}"
    with intercepted(net.router, mode=mode, port=port, spoof=spoof):
        page = json.loads(curl(net, family, path=path))
        two = curl(net, family, "http", "--next", f"http://{NAME}/two", path="/one")
        body = "x" * 100_000
        assert curl(net, family, "http", "--data-binary", body) == body
    source = (net.client_ip if spoof else net.router_origin_ip)[family]
    assert page == {"peer": source, "host": NAME, "path": path}
    assert two.count(source) == 2
    place.proxies[port].says(told(place, family, path))


@v4_and_v6
def test_redirect_takes_no_privilege(place: Place, family: int) -> None:
    net = place.net
    with intercepted(net.router, mode="redirect", port=REDIRECT):
        assert json.loads(curl(net, family))["peer"] == net.router_origin_ip[family]
    place.proxies[REDIRECT].says(told(place, family, "/"))


def test_a_client_that_knows_of_the_proxy(place: Place) -> None:
    """IPv4: proxy.py takes no IPv6 host out of a URL."""
    net, family = place.net, socket.AF_INET
    through = ("--noproxy", "", "--proxy", spell((net.router_client_ip[family], SPOOFING)))
    url = f"http://{net.origin_ip[family]}/known"
    page = net.client.check_output(["curl", "-sS", "--fail", *through, url])
    assert json.loads(page)["peer"] == net.router_origin_ip[family]
    place.proxies[SPOOFING].says(told(place, family, "/known"))


@v4_and_v6
def test_without_a_rule_the_client_meets_the_origin(place: Place, family: int) -> None:
    net = place.net
    assert json.loads(curl(net, family, path="/direct"))["peer"] == net.client_ip[family]
    assert not any(proxy.said("/direct") for proxy in place.proxies.values())


@v4_and_v6
def test_proxy_py_alone_takes_an_intercepted_request_for_its_own(place: Place, family: int) -> None:
    """The control: it answers 404 as the web server that it is."""
    net = place.net
    with intercepted(net.router, mode="redirect", port=OWN):
        with pytest.raises(subprocess.CalledProcessError):
            curl(net, family)


def test_one_clients_connections_are_not_shared(place: Place, tmp_path: Path) -> None:
    options = ("--lusca-spoof", "--enable-conn-pool", "--port", "3133")
    Program(place.net.router, tmp_path / "log", *OURS, *options).says("clients would share")
