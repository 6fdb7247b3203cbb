"""examples/dns_interceptor.py between the real dig and the real dnsmasq."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop.web import FAMILIES, Program, v4_and_v6

from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Lab, Topology, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples/dns_interceptor.py"
PORT = 3153
TABLE = """
198.51.100.7  www.table.test *.table.test
2001:db8::7   www.table.test
block         ads.test *.ads.test
"""
# What the resolver knows: a name, one with too much for a datagram, and who it is.
ZONE = [
    "--address=/plain.test/203.0.113.80",
    "--address=/plain.test/2001:db8:ff::80",
    "--txt-record=txt.test,Mixed Case and spaces",
    *(f"--txt-record=big.test,{number:03}{'x' * 97}" for number in range(30)),
    "--mx-host=plain.test,mail.plain.test,10",
    "--caa-record=plain.test,0,issue,ca.test",
    "--address=/www.table.test/203.0.113.99",
    "--local=/test/",
]


def tool(name: str, package: str) -> str:
    path = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        pytest.skip(f"needs {name}: apt install {package}", allow_module_level=True)
    return path


DIG, DNSMASQ = tool("dig", "bind9-dnsutils"), tool("dnsmasq", "dnsmasq-base")


class Place:
    def __init__(self, net: Topology, folder: Path) -> None:
        self.net = net
        plain = ["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user="]
        log = ["--log-queries=extra", "--log-facility=-", "--log-async=0"]
        self.resolver = Program(net.origin, folder / "dnsmasq", DNSMASQ, *plain, *log, *ZONE)
        self.resolver.says("started, version")
        (folder / "hosts").write_text(TABLE)
        options = ("--spoof", "--port", PORT, "--hosts", folder / "hosts")
        self.proxy = Program(net.router, folder / "example", sys.executable, EXAMPLE, *options)
        self.proxy.says("ready on port")

    def dig(self, family: int, *words: str) -> str:
        """What dig prints, without the comments that change."""
        return self.net.client.check_output(
            [DIG, f"@{self.net.origin_ip[family]}", "+tries=1", "+timeout=5", *words]
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab.three(), tmp_path_factory.mktemp("dns"))
        plan = Plan(protocols=("tcp", "udp"), ports=(53,), port=PORT, spoof=True)
        direct = {family: place.dig(family, "+short", "www.table.test", "A") for family in FAMILIES}
        assert set(direct.values()) == {"203.0.113.99\n"}  # the control: nothing is between
        place.net.router.run(_apply, plan)
        yield place
        assert "Traceback" not in place.proxy.text()


def _apply(plan: Plan) -> None:
    apply(plan)


EDNS = [(), ("+noedns",), ("+bufsize=512",), ("+bufsize=4096",), ("+dnssec",), ("+nocookie",)]
hows = pytest.mark.parametrize("how", ["+notcp", "+tcp"], ids=["udp", "tcp"])


@v4_and_v6
@hows
@pytest.mark.parametrize("edns", EDNS, ids=lambda words: " ".join(words) or "plain")
def test_ours_and_theirs(place: Place, family: int, how: str, edns: tuple[str, ...]) -> None:
    for name, kind, found in (
        ("www.table.test", "A", ["198.51.100.7"]),
        ("deep.below.table.test", "A", ["198.51.100.7"]),
        ("WWW.Table.Test", "AAAA", ["2001:db8::7"]),
        ("www.table.test", "HTTPS", []),
        ("plain.test", "A", ["203.0.113.80"]),
        ("plain.test", "AAAA", ["2001:db8:ff::80"]),
        ("plain.test", "MX", ["10 mail.plain.test."]),
        ("plain.test", "CAA", ['0 issue "ca.test"']),
        ("txt.test", "TXT", ['"Mixed Case and spaces"']),
    ):
        assert place.dig(family, how, *edns, "+short", name, kind).splitlines() == found, name


@v4_and_v6
@hows
def test_what_is_blocked_says_why(place: Place, family: int, how: str) -> None:
    text = place.dig(family, how, "x.ads.test")
    assert "status: NXDOMAIN" in text
    if "EDE" in text:  # dig from 9.18 knows it
        assert "EDE: 15 (Blocked)" in text
    text = place.dig(family, how, "+noedns", "ads.test")
    assert "status: NXDOMAIN" in text
    assert "OPT" not in text
    assert "WARNING" not in text


@v4_and_v6
def test_too_much_for_a_datagram_comes_by_tcp(place: Place, family: int) -> None:
    """dig asks again by itself, and the resolver hears of both."""
    name = "big.test"
    cut = place.dig(family, "+ignore", name, "TXT")
    assert re.search(r";; flags: qr .*\btc\b", cut)
    assert "ANSWER: 0," in cut or "ANSWER: 30" not in cut
    whole = place.dig(family, name, "TXT")
    assert "Truncated, retrying in TCP mode" in whole
    assert "ANSWER: 30," in whole
    assert len(re.findall(r'"\d{3}x{97}"', whole)) == 30


@v4_and_v6
def test_many_queries_by_one_connection(place: Place, family: int) -> None:
    names = ["plain.test", "www.table.test", "big.test", "ads.test", "txt.test"] * 4
    words = [word for name in names for word in (name, "TXT" if name[0] in "bt" else "A")]
    text = place.dig(family, "+tcp", "+keepopen", "+noall", "+answer", *words)
    assert text.count("203.0.113.80") == text.count("198.51.100.7") == 4
    assert text.count("Mixed Case and spaces") == 4
    assert len(re.findall(r'"\d{3}x{97}"', text)) == 4 * 30


@v4_and_v6
@hows
def test_the_resolver_sees_the_client(place: Place, family: int, how: str) -> None:
    name = f"seen-{family}-{how.strip('+')}.test"
    assert "status: NXDOMAIN" in place.dig(family, how, name)
    asked = rf"{re.escape(place.net.client_ip[family])}/\d+ query\[A\] {re.escape(name)}"
    place.resolver.says(asked)
    place.dig(family, how, "www.table.test")
    place.dig(family, how, "x.ads.test")
    assert not place.resolver.said(r"query\[A\] x\.ads\.test")


def test_the_client_that_everybody_has(place: Place, tmp_path: Path) -> None:
    """getaddrinfo(3): both families at once, from one socket."""
    net = place.net
    config = tmp_path / "resolv.conf"
    config.write_text("".join(f"nameserver {net.origin_ip[family]}\n" for family in FAMILIES))
    code = "import json,socket,sys; print(json.dumps(sorted({i[4][0] for n in sys.argv[1:] "
    code += "for i in socket.getaddrinfo(n, 80)})))"
    command = f'mount --bind {config} /etc/resolv.conf && exec {sys.executable} -c "$0" "$@"'
    names = ["www.table.test", "plain.test"]
    text = net.client.check_output(["sh", "-c", command, code, *names])
    assert json.loads(text) == sorted(
        ["198.51.100.7", "2001:db8::7", "203.0.113.80", "2001:db8:ff::80"]
    )
    wait_for(lambda: place.proxy.said("plain.test 28: passed on"), what="the query for IPv6")
