"""examples/adapters/mitmproxy_lusca.py in the real mitmproxy."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop.web import (
    ADAPTERS,
    NAME,
    Place,
    Program,
    curl,
    installed,
    intercepted,
    modes,
    v4_and_v6,
)

from lusca_comm.lab import Lab

MITMDUMP = installed("mitmdump", "mitmproxy")
OURS = ("-s", ADAPTERS / "mitmproxy_lusca.py")
SPOOFING, PLAIN, REDIRECT, BARE = 3129, 3130, 3131, 3132
PROXIES = {
    SPOOFING: (*OURS, "--set", "lusca_spoof=true"),
    PLAIN: OURS,
    REDIRECT: (*OURS, "--set", "lusca_tproxy=false"),
    BARE: (),
}

# Another addon, as its users write them: what mitmproxy itself makes of each connection.
SEEN = """
def response(flow):
    client, server = flow.client_conn, flow.server_conn
    print("seen", client.peername[0], server.address[0], flow.request.pretty_url)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab, tmp_path_factory.mktemp("mitmproxy"))
        addon = place.folder / "seen.py"
        addon.write_text(SEEN)
        settings = (
            f"confdir={place.folder}",
            f"ssl_verify_upstream_trusted_ca={place.origin_ca}",
            "flow_detail=0",
        )
        common = [MITMDUMP, "-s", addon, *(f"--set={setting}" for setting in settings)]
        commands = {
            port: [*common, "--mode", f"transparent@{port}", *options]
            for port, options in PROXIES.items()
        }
        place.start({SPOOFING: commands.pop(SPOOFING)})  # it makes the CA of them all
        place.start({REDIRECT: commands.pop(REDIRECT)}, capabilities=())
        place.start(commands)
        for port in (SPOOFING, PLAIN, REDIRECT):
            place.proxies[port].says(rf"Port {port} takes (TPROXY and )?REDIRECT")
        yield place


def seen(place: Place, family: int, url: str) -> str:
    """What mitmproxy says of a request from the client to the origin."""
    net = place.net
    return re.escape(f"seen {net.client_ip[family]} {net.origin_ip[family]} {url}")


@v4_and_v6
@modes
@pytest.mark.parametrize("port", [SPOOFING, PLAIN], ids=["spoofed", "plain"])
def test_http(place: Place, family: int, mode: str, port: int) -> None:
    net, spoof, path = place.net, port == SPOOFING, f"/{family}/{mode}"
    with intercepted(net.router, mode=mode, port=port, spoof=spoof):
        page = json.loads(curl(net, family, path=path))
    source = (net.client_ip if spoof else net.router_origin_ip)[family]
    assert page == {"peer": source, "host": NAME, "path": path}
    place.proxies[port].says(seen(place, family, f"http://{NAME}{path}"))


@v4_and_v6
@modes
def test_https(place: Place, family: int, mode: str) -> None:
    """The client trusts mitmproxy's CA, mitmproxy the origin's, and neither the other's."""
    net, path, ca = place.net, f"/{family}/{mode}", place.folder / "mitmproxy-ca-cert.pem"
    with intercepted(net.router, mode=mode, port=SPOOFING, spoof=True):
        page = json.loads(curl(net, family, "https", "--cacert", ca, path=path))
        with pytest.raises(subprocess.CalledProcessError):
            curl(net, family, "https", "--cacert", place.origin_ca)
    assert page == {"peer": net.client_ip[family], "host": NAME, "path": path}
    place.proxies[SPOOFING].says(seen(place, family, f"https://{NAME}{path}"))


@v4_and_v6
def test_redirect_takes_no_privilege(place: Place, family: int) -> None:
    net = place.net
    with intercepted(net.router, mode="redirect", port=REDIRECT):
        assert json.loads(curl(net, family))["peer"] == net.router_origin_ip[family]
    place.proxies[REDIRECT].says(seen(place, family, f"http://{NAME}/"))


def test_tproxy_takes_a_privilege(place: Place, tmp_path: Path) -> None:
    command = (MITMDUMP, f"--set=confdir={tmp_path}", "--mode", "transparent@3133", *OURS)
    log = tmp_path / "log"
    program = Program(place.net.router, log, *command, capabilities=())
    program.says(r"a foreign address .* needs CAP_NET_ADMIN or CAP_NET_RAW")
    assert program.process.wait(timeout=10) != 0


@v4_and_v6
def test_without_a_rule_the_client_meets_the_origin(place: Place, family: int) -> None:
    net = place.net
    page = json.loads(curl(net, family, "https", "--cacert", place.origin_ca, path="/direct"))
    assert page["peer"] == net.client_ip[family]
    assert not any(proxy.said("/direct") for proxy in place.proxies.values())


@v4_and_v6
def test_mitmproxy_alone_knows_no_tproxy(place: Place, family: int) -> None:
    """The control: TPROXY finds no transparent listener, and lets the packets go on."""
    net = place.net
    with intercepted(net.router, port=BARE):
        page = json.loads(curl(net, family, path="/unseen"))
    assert page["peer"] == net.client_ip[family]
    assert not place.proxies[BARE].said("/unseen")


@v4_and_v6
def test_mitmproxy_alone_goes_in_its_own_name(place: Place, family: int) -> None:
    net = place.net
    with intercepted(net.router, mode="redirect", port=BARE):
        page = json.loads(curl(net, family))
    assert page["peer"] == net.router_origin_ip[family]
    place.proxies[BARE].says(seen(place, family, f"http://{NAME}/"))


@v4_and_v6
def test_a_direct_connection_is_refused(place: Place, family: int) -> None:
    net = place.net

    def knock() -> bytes:
        address = (net.router_client_ip[family], PLAIN)
        with socket.create_connection(address, timeout=10) as sock:
            return sock.recv(100)

    assert net.client.run(knock) == b""
    place.proxies[PLAIN].says("NotIntercepted")
