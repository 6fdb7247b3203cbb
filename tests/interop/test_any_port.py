"""examples/any_port_relay.py between real clients and servers that speak first: curl and aiosmtpd,
ssh-keyscan and sshd.

    client ---- router (the relay) ---- origin
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interop.programs import needs
from interop.web import FAMILIES, Program, v4_and_v6
from kernel.privileged import real_root

from lusca_comm.firewall import Plan, apply
from lusca_comm.lab import Lab, Topology

EXAMPLE = Path(__file__).parents[2] / "examples/any_port_relay.py"
SMTP, SSH = 25, 22


class Place:
    def __init__(self, net: Topology, folder: Path) -> None:
        self.net, self.folder = net, folder
        self.relay = Program(net.router, folder / "relay", sys.executable, EXAMPLE, "--spoof")
        self.relay.says("^ready")
        server = (sys.executable, "-m", "aiosmtpd", "-n", "-d", "-d", "-l")
        self.mail = {
            family: Program(
                net.origin, folder / f"smtp{int(family)}", *server, f"{net.origin_ip[family]}:25"
            )
            for family in FAMILIES
        }
        for mail in self.mail.values():
            mail.says("Server is listening")

    def client(self, *command: Any, **options: Any) -> str:
        words = [str(word) for word in command]
        return self.net.client.check_output(words, stderr=subprocess.STDOUT, **options)

    def saw(self, port: int, protocol: str, family: int) -> None:
        """A connection of the client's has come and gone."""
        ip = re.escape(self.net.client_ip[family])
        self.relay.says(rf"^\[?{ip}\]?:\d+ -> .*:{port} {protocol} up .* eof$")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Lab() as lab:
        place = Place(lab.three(), tmp_path_factory.mktemp("any_port"))
        for family in FAMILIES:  # the control: nothing is between
            place.client("curl", "-sS", *_mail(place, family))
        assert "->" not in place.relay.text()
        place.net.router.run(_apply, Plan(ports=((1, 65535),), spoof=True))
        yield place
        assert "Traceback" not in place.relay.text()


def _apply(plan: Plan) -> None:
    apply(plan)


def _mail(place: Place, family: int) -> list[Any]:
    letter = place.folder / "letter"
    letter.write_text(f"Subject: {family}\n\nthrough the relay\n")
    ip = place.net.origin_ip[family]
    url = f"smtp://[{ip}]" if ":" in ip else f"smtp://{ip}"
    people = ("--mail-from", "one@client.test", "--mail-rcpt", "two@origin.test")
    return ["--noproxy", "*", "--max-time", 20, *people, "-T", letter, url]


@v4_and_v6
def test_curl_sends_mail(place: Place, family: int) -> None:
    """Its server speaks first, and sees the client."""
    output = place.client("curl", "-sSv", *_mail(place, family))
    assert re.search(r"^< 220 .*SMTP", output, re.MULTILINE), output
    place.saw(SMTP, "server-first", family)
    assert place.net.client_ip[family] in place.mail[family].text()


@real_root
@v4_and_v6
def test_ssh(place: Place, family: int) -> None:
    """ssh speaks at once, ssh-keyscan waits for the server's version; both exchange keys with sshd,
    which takes another user to separate its privileges."""
    key = place.folder / f"key{int(family)}"
    place.client("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    _, public, _ = key.with_suffix(".pub").read_text().split(maxsplit=2)
    Path("/run/sshd").mkdir(exist_ok=True)
    ip = place.net.origin_ip[family]
    options = ("-D", "-e", "-f", "/dev/null", "-h", key, "-o", f"ListenAddress={ip}")
    sshd, log = needs("sshd", "openssh-server"), place.folder / f"sshd{int(family)}"
    server = Program(place.net.origin, log, sshd, *options)
    server.says("Server listening")
    output = place.client(needs("ssh-keyscan", "openssh-client"), "-T", "10", "-t", "ed25519", ip)
    assert public in output
    place.saw(SSH, "server-first", family)

    known = place.folder / f"known{int(family)}"
    hosts = (
        "-F",
        "/dev/null",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        f"UserKnownHostsFile={known}",
    )
    with pytest.raises(subprocess.CalledProcessError) as caught:
        place.client("ssh", *hosts, "-o", "BatchMode=yes", "-l", "nobody", ip)
    assert "Permission denied" in caught.value.output  # there is nobody whom it would let in
    assert public in known.read_text()
    place.saw(SSH, "ssh", family)
    server.says(f"(from|by).* {re.escape(place.net.client_ip[family])}")
