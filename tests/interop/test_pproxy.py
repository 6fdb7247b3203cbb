"""examples/adapters/pproxy_lusca.py with the real pproxy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interop.web import (
    ADAPTERS,
    HTTP,
    HTTPS,
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

installed("pproxy", "pproxy")
# Without uvloop: pproxy does not get on with the newer ones (see the adapter).
ITSELF = "import sys; sys.modules['uvloop'] = None; from pproxy.server import main; main()"
BARE = [sys.executable, "-c", ITSELF]
OURS = [sys.executable, ADAPTERS / "pproxy_lusca.py"]
HOSTS = ("0.0.0.0", "[::]")
SPOOFING, PLAIN, REDIRECT, OWN = 3129, 3130, 3131, 3132
PROXIES: dict[int, list[Any]] = {
    SPOOFING: [*OURS, *(f"-llusca{{spoof}}://{host}:{SPOOFING}" for host in HOSTS)],
    PLAIN: [*OURS, "-l", f"lusca+http://:{PLAIN}"],
    REDIRECT: [*OURS, "-l", f"lusca{{redirect}}://:{REDIRECT}"],
    OWN: [*BARE, *(f"-lredir://{host}:{OWN}" for host in HOSTS)],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab, tmp_path_factory.mktemp("pproxy"))
        commands = {port: [*command, "-v"] for port, command in PROXIES.items()}
        place.start({REDIRECT: commands.pop(REDIRECT)}, capabilities=())
        place.start(commands)
        yield place


def told(place: Place, family: int, port: int, protocol: str = "lusca") -> str:
    """What pproxy says of a connection from the client to the origin."""
    client, origin = place.net.client_ip[family], place.net.origin_ip[family]
    return rf"^{protocol} (::ffff:)?{client}:\d+ -> {re.escape(f'{origin}:{port}')}$"


@v4_and_v6
@modes
@pytest.mark.parametrize("port", [SPOOFING, PLAIN], ids=["spoofed", "plain"])
def test_http_and_https(place: Place, family: int, mode: str, port: int) -> None:
    net, spoof, path = place.net, port == SPOOFING, f"/{family}/{mode}"
    with intercepted(net.router, mode=mode, port=port, spoof=spoof):
        pages = [
            curl(net, family, path=path),
            curl(net, family, "https", "--cacert", place.origin_ca, path=path),
        ]
    source = (net.client_ip if spoof else net.router_origin_ip)[family]
    for page in pages:
        assert json.loads(page) == {"peer": source, "host": NAME, "path": path}
    place.proxies[port].says(told(place, family, HTTP))
    place.proxies[port].says(told(place, family, HTTPS))


@v4_and_v6
def test_redirect_takes_no_privilege(place: Place, family: int) -> None:
    net = place.net
    with intercepted(net.router, mode="redirect", port=REDIRECT):
        assert json.loads(curl(net, family))["peer"] == net.router_origin_ip[family]
    place.proxies[REDIRECT].says(told(place, family, HTTP))


@v4_and_v6
def test_a_client_that_knows_of_the_proxy(place: Place, family: int) -> None:
    """``lusca+http://`` tells a direct connection from one that was intercepted."""
    net = place.net
    through = ("--noproxy", "", "--proxy", spell((net.router_client_ip[family], PLAIN)))
    url = f"http://{spell((net.origin_ip[family], HTTP))}/known"
    page = net.client.check_output(["curl", "-sS", "--fail", *through, url])
    assert json.loads(page)["peer"] == net.router_origin_ip[family]
    place.proxies[PLAIN].says(told(place, family, HTTP, "http"))


@v4_and_v6
def test_without_a_rule_the_client_meets_the_origin(place: Place, family: int) -> None:
    net = place.net
    before = [proxy.text() for proxy in place.proxies.values()]
    assert json.loads(curl(net, family))["peer"] == net.client_ip[family]
    assert [proxy.text() for proxy in place.proxies.values()] == before


@v4_and_v6
def test_pproxy_alone_knows_no_tproxy(place: Place, family: int) -> None:
    """The control: TPROXY finds no transparent listener, and lets the packets go on."""
    net = place.net
    before = place.proxies[OWN].text()
    with intercepted(net.router, port=OWN):
        assert json.loads(curl(net, family))["peer"] == net.client_ip[family]
    assert place.proxies[OWN].text() == before


@v4_and_v6
def test_pproxy_alone_goes_in_its_own_name(place: Place, family: int) -> None:
    net = place.net
    with intercepted(net.router, mode="redirect", port=OWN):
        assert json.loads(curl(net, family))["peer"] == net.router_origin_ip[family]
    place.proxies[OWN].says(told(place, family, HTTP, "redir"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("-l", "lusca{spof}://:3133"), r"lusca\{spof\}: spoof, redirect, or both with a comma"),
        (("-l", "lusca{spoof}://:3133", "-r", "http://192.0.2.9:1"), "another proxy would see"),
    ],
    ids=["unknown", "another proxy"],
)
def test_what_it_cannot_do(
    place: Place, tmp_path: Path, options: tuple[str, ...], error: str
) -> None:
    Program(place.net.router, tmp_path / "log", *OURS, *options).says(error)
