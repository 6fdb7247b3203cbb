"""examples/sni_filter.py between real TLS clients and a real server: openssl, GnuTLS, curl.

client ---- router (the filter) ---- origin (openssl s_server, with a certificate)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interop.programs import needs
from interop.web import FAMILIES, HTTPS, NAME, Certificates, Program, v4_and_v6

from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Lab, Topology

EXAMPLE = Path(__file__).parents[2] / "examples/sni_filter.py"
HOSTS = f"""
198.51.100.2   {NAME}
2001:db8:2::2  {NAME}
"""
POLICY = f"allow {NAME}"


class Place:
    def __init__(self, net: Topology, folder: Path) -> None:
        self.net, self.folder = net, folder
        made = Certificates(folder)
        self.ca = made.ca
        old = ("-cipher", "ALL:@SECLEVEL=0")  # TLS 1.0 too
        serve = ("-accept", HTTPS, "-cert", made.chain, "-key", made.key, "-www", *old)
        for number, family in enumerate(("-4", "-6")):
            log = folder / f"s_server{number}"
            Program(net.origin, log, "openssl", "s_server", *serve, family).says("ACCEPT")
        (folder / "hosts").write_text(HOSTS)
        (folder / "policy").write_text(POLICY)
        net.router.check_output(["mount", "--bind", str(folder / "hosts"), "/etc/hosts"])
        options = (folder / "policy", "--spoof")
        self.filter = Program(net.router, folder / "filter", sys.executable, EXAMPLE, *options)
        self.filter.says('"ready"')

    def run(self, *command: Any) -> tuple[int, str]:
        """In the client: the exit status, and all that was printed."""
        with self.net.client.popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as program:
            output, _ = program.communicate(timeout=30)
        return program.returncode, output

    def curl(self, ip: str, name: str) -> tuple[int, str]:
        """To this address, whatever the name."""
        where = f"{name}:{HTTPS}:{f'[{ip}]' if ':' in ip else ip}"
        options = ("-sS", "--noproxy", "*", "--max-time", 20, "--cacert", self.ca)
        return self.run("curl", *options, "--resolve", where, f"https://{name}/")

    def s_client(self, family: int, *options: str) -> tuple[int, str]:
        ip = self.net.origin_ip[family]
        there = f"[{ip}]:{HTTPS}" if ":" in ip else f"{ip}:{HTTPS}"
        return self.run("openssl", "s_client", "-connect", there, "-CAfile", self.ca, *options)

    def verdict(self) -> dict[str, Any]:
        """The last."""
        lines = self.filter.text().splitlines()
        told = [json.loads(line) for line in lines if '"verdict"' in line]
        return dict(told[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab.three(), tmp_path_factory.mktemp("sni"))
        for family in FAMILIES:  # the control: nothing is between, and any name is answered
            status, _ = place.s_client(family, "-servername", "elsewhere.test", "-brief")
            assert status == 0
        plan = Plan(ports=((1, 65535),), spoof=True, rest="refuse")
        place.net.router.run(_apply, plan)
        yield place
        assert "Traceback" not in place.filter.text()


def _apply(plan: Plan) -> None:
    apply(plan)


@v4_and_v6
def test_curl_gets_the_page_of_an_allowed_name(place: Place, family: int) -> None:
    status, page = place.curl(place.net.origin_ip[family], NAME)
    assert (status, "Ciphers supported in s_server" in page) == (0, True), page
    told = place.verdict()
    assert (told["verdict"], told["name"], told["rule"]) == (
        "allow",
        NAME,
        f"policy:1: allow {NAME}",
    )
    assert told["client"].startswith(("192.0.2.2:", "[2001:db8:1::2]:"))


@v4_and_v6
def test_curl_is_told_that_a_name_is_denied(place: Place, family: int) -> None:
    status, complaint = place.curl(place.net.origin_ip[family], "elsewhere.test")
    assert (status, "alert access denied" in complaint) == (35, True), complaint
    told = place.verdict()
    assert (told["verdict"], told["name"]) == ("deny", "elsewhere.test")


@v4_and_v6
def test_an_allowed_name_opens_its_own_address_alone(place: Place, family: int) -> None:
    """The client believes that the name is elsewhere, where nobody is, and gets its page."""
    elsewhere = f"{place.net.origin_ip[family][:-1]}77"
    status, page = place.curl(elsewhere, NAME)
    assert (status, "Ciphers supported in s_server" in page) == (0, True), page
    told = place.verdict()
    assert elsewhere in told["original"]
    assert place.net.origin_ip[family] in told["to"]
    assert "not the client's address" in told["why"]


@v4_and_v6
@pytest.mark.parametrize(
    "version", [("-tls1", "-cipher", "ALL:@SECLEVEL=0"), ("-tls1_2",), ("-tls1_3",)]
)
def test_s_client_of_every_version(place: Place, family: int, version: tuple[str, ...]) -> None:
    status, output = place.s_client(family, "-servername", NAME, *version)
    assert place.verdict()["verdict"] == "allow"
    assert (status, "Verify return code: 0 (ok)" in output) == (0, True), output
    status, output = place.s_client(family, "-servername", "elsewhere.test", *version)
    assert (status, "alert access denied" in output) == (1, True)
    assert place.verdict()["name"] == "elsewhere.test"


@v4_and_v6
def test_no_name_and_no_tls(place: Place, family: int) -> None:
    status, output = place.s_client(family, "-noservername")
    assert (status, "alert access denied" in output) == (1, True)
    assert (place.verdict()["saw"], place.verdict()["verdict"]) == ("no SNI", "deny")
    ip = place.net.origin_ip[family]
    url = f"http://[{ip}]:{HTTPS}/" if ":" in ip else f"http://{ip}:{HTTPS}/"
    status, complaint = place.run("curl", "-sS", "--noproxy", "*", "--max-time", 20, url)
    assert (status, "reset" in complaint) == (56, True), complaint
    assert (place.verdict()["saw"], place.verdict()["verdict"]) == ("not TLS", "deny")


@v4_and_v6
def test_gnutls(place: Place, family: int) -> None:
    cli = needs("gnutls-cli", "gnutls-bin")
    ip = place.net.origin_ip[family]
    options = ("--x509cafile", place.ca, "--port", HTTPS, ip)
    status, output = place.run(cli, "--sni-hostname", NAME, "--verify-hostname", NAME, *options)
    assert "Handshake was completed" in output, output
    assert (place.verdict()["verdict"], place.verdict()["name"]) == ("allow", NAME)
    status, output = place.run(cli, "--sni-hostname", "elsewhere.test", *options)
    assert (status, "Access was denied" in output) == (1, True), output
