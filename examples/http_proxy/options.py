"""The command line."""

from __future__ import annotations

import argparse
import ipaddress
import re
import secrets

from lusca_comm.cli.relay import address, mark, seconds

# Who may use the forward port unless --allow says otherwise: this machine, private networks (RFC
# 1918, 4193, 4291), and those of documentation and labs, which no router of the internet knows (RFC
# 5737, 2544, 3849). Never everybody.
PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "192.0.2.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
        "2001:db8::/32",
    )
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="http_proxy",
        description="An HTTP proxy: intercepting, forward, or both at once. docs/http-proxy.md",
        epilog="signals: TERM or INT ends it once its requests have ended, a second one at once; "
        "HUP opens the access log anew and loads the hook again; USR1 opens the log anew",
    )
    parser.add_argument("--lab", action="store_true", help="show it in a lab of its own")
    add = parser.add_argument_group("what comes in").add_argument
    add("--intercept", type=address, action="append", default=[], metavar="ADDRESS:PORT",
        help="where the firewall's rules lead")  # fmt: skip
    add("--forward", type=address, action="append", default=[], metavar="ADDRESS:PORT",
        help="where clients that are told of the proxy connect to")  # fmt: skip
    add("--redirect-only", action="store_true",
        help="--intercept without TPROXY, which needs no privilege")  # fmt: skip
    add("--engine", metavar="NAME",
        help="ask this engine alone where a connection was going")  # fmt: skip
    add("--allow", type=ipaddress.ip_network, action="append", metavar="NETWORK",
        help="who may use --forward; unless given: this machine and private networks")  # fmt: skip

    add = parser.add_argument_group("what goes out").add_argument
    add("--spoof", action="store_true", help="intercepted requests go on in the client's name")
    add("--mark", type=mark, metavar="MARK", help="SO_MARK of the outgoing connections")
    add("--host-verify", choices=("off", "original", "strict"), default="original",
        help="whether Host is believed, after CVE-2009-0801 (default: %(default)s)")  # fmt: skip
    add("--other", choices=("tunnel", "refuse"), default="tunnel",
        help="what is not HTTP/1 on an intercepted port (default: %(default)s)")  # fmt: skip
    add("--silent", choices=("tunnel", "refuse"), default="refuse",
        help="clients of an intercepted port that say nothing for --head-time: the server may "
        "have to begin. What is said in a tunnel is not judged (default: %(default)s)")  # fmt: skip
    add("--ports", type=ports, default="80,443,1024-65535", metavar="PORTS",
        help="that --forward goes to (default: %(default)s)")  # fmt: skip
    add("--connect-ports", type=ports, default="443,1024-65535", metavar="PORTS",
        help="that CONNECT goes to (default: %(default)s)")  # fmt: skip
    add("--local", action="store_true",
        help="--forward goes to loopback and link-local addresses for every client, not only for "
        "those on this machine")  # fmt: skip
    add("--upgrade", action="append", metavar="PROTOCOL",
        help="that Upgrade may lead to; unless given: websocket")  # fmt: skip
    add("--via", type=token, default=f"lusca-comm-{secrets.token_hex(4)}", metavar="NAME",
        help="the proxy's name in Via: each has its own (default: %(default)s)")  # fmt: skip
    add("--cdn-loop", type=token, default="", metavar="ID",
        help="and in CDN-Loop; unless given: not sent")  # fmt: skip
    add("--forwarded-for", action="store_true", help="tell origins the client's address")
    add("--hook", metavar="FILE", help="a Python module that is asked about each request")

    add = parser.add_argument_group("limits").add_argument
    for name, default, what in (
        ("head-time", 30.0, "until a request's head is there (408)"),
        ("idle-time", 60.0, "between two requests of a connection"),
        ("body-time", 60.0, "without a byte of a body"),
        ("dns-time", 5.0, "until a name that is not found has no address"),
        ("connect-time", 30.0, "until an origin is connected (504)"),
        ("response-time", 120.0, "until an origin answers (504)"),
        ("tunnel-time", 3600.0, "without a byte of a tunnel"),
        ("drain-time", 60.0, "from TERM to the end of what still runs"),
    ):
        add(f"--{name}", type=seconds, default=default, metavar="SECONDS",
            help=f"{what} (default: %(default)g)")  # fmt: skip
    for name, size, what in (
        ("max-line", 16384, "bytes of the first line, and of a field (414, 431)"),
        ("max-head", 65536, "bytes of a head (431)"),
        ("max-fields", 256, "fields of a head (431)"),
        ("pool", 1024, "idle connections to origins"),
    ):
        text = f"{what} (default: %(default)s)"
        add(f"--{name}", type=count, default=size, metavar="N", help=text)
    add("--max-body", type=count, metavar="N", help="bytes of a request's body (413)")

    add = parser.add_argument_group("the service").add_argument
    add("--user", metavar="NAME", help="become this user once the listeners are open")
    add("--access-log", metavar="FILE", help="a line for each exchange; - is standard output")
    add("--access-log-format", choices=("squid", "json"), default="squid",
        help="of its lines (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    if not (options.intercept or options.forward or options.lab):
        parser.error("--intercept, --forward, or both; or --lab")
    options.allow = tuple(options.allow or PRIVATE)
    options.upgrade = frozenset(name.lower() for name in options.upgrade or ["websocket"])
    return options


def ports(text: str) -> frozenset[int]:
    """``80,443,1024-65535``"""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found.update(range(int(first), int(last if dash else first) + 1))
    if not found or min(found) < 1 or max(found) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: such as 80,443,1024-65535")
    return frozenset(found)


def token(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits and . _ : - alone")
    return text


def count(text: str) -> int:
    number = int(text)
    if not 1 <= number < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0")
    return number
