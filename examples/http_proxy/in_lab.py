"""What ``--lab`` shows: requests that were meant for somebody else, and some for a proxy."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lusca_comm.firewall import Plan
from lusca_comm.lab import Channel

sys.path.append(str(Path(__file__).parents[1]))  # where the examples' stage is
from _lab import FAMILIES, Stage, show

INTERCEPT, FORWARD = 3129, 3128
STRANGER = "203.0.113.9"


class Origin(ThreadingHTTPServer):
    """Tells whom it sees, and what it was asked for."""

    address_family = socket.AF_INET6
    daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            peer = self.client_address[0].removeprefix("::ffff:")
            told = {"peer": peer, "path": self.path, "via": self.headers.get("Via", "")}
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass


def serve(channel: Channel) -> None:
    with Origin(("::", 80), Origin.Handler) as server:
        channel.send("ready")
        server.serve_forever()


def get(host: str, port: int, target: str, **fields: str) -> tuple[int, dict[str, str]]:
    """The status, and what the origin told."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("GET", target, headers=fields)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, json.loads(body) if response.status == 200 else {}


def main() -> int:
    return show(play)


def play(stage: Stage) -> None:
    net = stage.net
    stage.serve(net.origin, serve)
    v4 = FAMILIES[0]
    _, told = net.client.run(get, net.origin_ip[v4], 80, "/")
    stage.check("no proxy: the origin is asked directly", told["via"] == "")
    plan = Plan(port=INTERCEPT, spoof=True, interfaces=(net.client_link.b_ifname,))
    listeners = [
        part
        for name, port in (("--intercept", INTERCEPT), ("--forward", FORWARD))
        for address in ("0.0.0.0", "[::]")
        for part in (name, f"{address}:{port}")
    ]
    clients = ("--allow", "192.0.2.0/24", "--via", "shown", "--access-log", "-")
    program = stage.example(plan, *listeners, "--spoof", *clients)
    for family in FAMILIES:
        address, me = net.origin_ip[family], net.client_ip[family]
        status, told = net.client.run(get, address, 80, "/page")
        stage.said("/page")
        stage.check(f"intercepted: {address} sees {me}", told.get("peer") == me)
        stage.check("the request went through the proxy", told.get("via") == "1.1 shown")
    status, told = net.client.run(get, net.origin_ip[v4], 80, "/forged", Host=STRANGER)
    line = stage.said("/forged")
    stage.check("Host is forged: it still goes where it was going", status == 200)
    stage.check("and is judged by that address", f"http://{net.origin_ip[v4]}/forged" in line)
    status, _ = net.client.run(get, net.origin_ip[v4], 80, "/", Via="1.1 shown")
    stage.check("it has been here before: 508", status == 508)
    router = net.router_client_ip[v4]
    status, told = net.client.run(get, router, FORWARD, f"http://{net.origin_ip[v4]}/asked")
    stage.check(
        "as a forward proxy: the origin sees the router",
        (told.get("peer"), told.get("path")) == (net.router_origin_ip[v4], "/asked"),
    )
    status, _ = net.client.run(get, router, FORWARD, "http://127.0.0.1/")
    stage.check("but it does not go to its own loopback: 403", status == 403)
    program.terminate()
    stage.check("it ends in order", program.wait() == 0)
