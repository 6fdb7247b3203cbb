"""examples/proxy_header_relay.py in front of nginx and HAProxy, and headers that HAProxy makes.

client ---- router (the relay) ---- origin (nginx on 80, HAProxy on 81)
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from firewall_peers import in_force
from interop.programs import needs
from interop.web import Program, v4_and_v6

from lusca_comm.firewall import Plan
from lusca_comm.lab import Channel, Lab, Topology
from lusca_comm.protocols.proxy_header import Header, parse

EXAMPLE = Path(__file__).parents[2] / "examples/proxy_header_relay.py"
NGINX, HAPROXY, MAKES = 80, 81, 82
VERSIONS = {1: 3128, 2: 3129}  # and the port of the relay for each
BEHIND = 9000

NGINX_CONF = """
daemon off;
master_process off;
user root root;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/t1;
    proxy_temp_path {folder}/t2;
    fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4;
    scgi_temp_path {folder}/t5;
    server {{
        listen 80 proxy_protocol;
        listen [::]:80 proxy_protocol;
        set_real_ip_from 198.51.100.1;
        set_real_ip_from 2001:db8:2::1;
        real_ip_header proxy_protocol;
        set $header "$remote_addr $proxy_protocol_port $proxy_protocol_server_addr";
        return 200 "$header $realip_remote_addr";
    }}
}}
"""

SAYS = "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_unique_id]"
HAPROXY_CONF = f"""
defaults
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend takes
    mode http
    bind :{HAPROXY} accept-proxy
    bind :::{HAPROXY} v6only accept-proxy
    http-request return status 200 content-type text/plain lf-string "{SAYS}"
frontend makes
    mode tcp
    bind :{MAKES}
    bind :::{MAKES} v6only
    unique-id-format number-7
    default_backend behind
backend behind
    mode tcp
    server made 127.0.0.1:{BEHIND} send-proxy-v2 proxy-v2-options crc32c,unique-id
"""


class Place:
    def __init__(self, net: Topology, folder: Path) -> None:
        self.net = net
        (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder))
        (folder / "haproxy.cfg").write_text(HAPROXY_CONF)
        nginx = (needs("nginx", "nginx-light"), "-e", "stderr", "-c", folder / "nginx.conf")
        haproxy = (needs("haproxy"), "-db", "-f", folder / "haproxy.cfg")
        self.servers = [
            Program(net.origin, folder / "nginx", *nginx),
            Program(net.origin, folder / "haproxy", *haproxy),
        ]
        for port in (NGINX, HAPROXY, MAKES):
            net.origin.wait_listening(port)
        self.relays = []
        for version, port in VERSIONS.items():
            options = ("--version", version, "--port", port)
            relay = Program(
                net.router, folder / f"relay{version}", sys.executable, EXAMPLE, *options
            )
            relay.says("^ready")
            self.relays.append(relay)

    def ask(self, family: int, port: int) -> list[str]:
        """The client's port, and the words of the page that it gets."""
        return self.net.client.run(get, (self.net.origin_ip[family], port))


def get(address: tuple[str, int]) -> list[str]:
    with socket.create_connection(address, 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: origin.test\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(1000), b"")).decode()
        return [str(sock.getsockname()[1]), *answer.rpartition("\r\n\r\n")[2].split()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab.three(), tmp_path_factory.mktemp("proxy_header"))
        yield place
        for program in (*place.servers, *place.relays):
            assert "Traceback" not in program.text()


@v4_and_v6
@pytest.mark.parametrize("server", [NGINX, HAPROXY], ids=["nginx", "haproxy"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_learns_who_its_client_is(
    place: Place, family: int, server: int, version: int
) -> None:
    net = place.net
    client, origin = net.client_ip[family], net.origin_ip[family]
    with contextlib.suppress(ConnectionResetError):  # the control: without a header, no page
        assert client not in place.ask(family, server)
    with in_force(net.router, Plan(ports=(server,), port=VERSIONS[version])):
        mine, *page = place.ask(family, server)
    if server == NGINX:
        assert page == [client, mine, origin, net.router_origin_ip[family]]
    else:
        number = page[4:]
        assert page[:4] == [client, mine, origin, str(server)]
        assert (version == 2) == bool(number and number[0].isdecimal())


def read_header(channel: Channel) -> tuple[Header, int]:
    with socket.create_server(("127.0.0.1", BEHIND)) as listener:
        channel.send("ready")
        sock, _ = listener.accept()
        data = b""
        with sock:
            while (got := parse(data)) is None:
                data += sock.recv(1000)
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    return got


@v4_and_v6
def test_what_haproxy_makes_is_understood(place: Place, family: int) -> None:
    """With a checksum over it."""
    behind = place.net.origin.start(read_header)
    behind.recv()
    mine, *_ = place.ask(family, MAKES)
    header, _ = behind.result()
    assert header == Header(
        (place.net.client_ip[family], int(mine)),
        (place.net.origin_ip[family], MAKES),
        tlvs=((5, b"number-7"),),
    )
