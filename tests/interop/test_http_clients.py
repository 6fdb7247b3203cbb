"""Real clients, which know of no proxy, through examples/http_proxy to nginx and to an origin that
says what it saw: the right pages, while the origin sees the client's address."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from interop.programs import needs
from kernel.http_lab import (
    INTERCEPT,
    NAME,
    V6,
    Service,
    know,
    opened_lab,
    origin,
    pattern,
)
from kernel.proxying import FAMILIES, intercept

from lusca_comm.lab import Topology, wait_for

SEEN = f"http://{NAME}:8080"
PAGES = f"http://{NAME}"
GIB = 1 << 30
v4_and_v6 = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])

NGINX = """
daemon off;
master_process off;
user root root;
error_log {folder}/nginx.said;
pid {folder}/nginx.pid;
events {{ }}
http {{
    log_format seen '$remote_addr $status $request_method $uri';
    access_log {folder}/nginx.log seen;
    types {{ text/html html; text/plain txt; application/javascript js; }}
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_types *;
    gzip_proxied any;
    sendfile on;
    server {{
        listen 80;
        listen [::]:80 ipv6only=on;
        root {folder}/pages;
        autoindex on;
        location /x-auto {{ return 200 "$remote_addr"; }}
    }}
}}
"""


class Scene:
    """The lab with nginx, the origin that tells, and the proxy."""

    def __init__(self, net: Topology, folder: Path) -> None:
        self.net = net
        self.folder = folder
        self.pages = folder / "pages"
        self.pages.mkdir()
        intercept(net.router, port=INTERCEPT, ports=(80, 8080), spoof=True)
        for host in (net.client, net.router):
            know(host, folder)
        for family in FAMILIES:
            assert net.origin.start(origin, family, 8080).recv() == "ready"
        conf = folder / "nginx.conf"
        conf.write_text(NGINX.format(folder=folder))
        nginx = needs("nginx", "nginx-light")
        net.origin.popen([nginx, "-e", f"{folder}/nginx.said", "-c", str(conf)])
        net.origin.wait_listening(80)
        self.proxy = Service(net.router, folder, "--spoof", "--via", "under-test")
        self._read = 0

    def run(self, program: str, *arguments: str, package: str = "", **how: Any) -> bytes:
        """What `program` says on the client; it must end with status 0."""
        args: Sequence[str] = [needs(program, package), *arguments]
        timeout = how.pop("timeout", 60)
        with self.net.client.popen(
            args,
            stdin=subprocess.PIPE if "input" in how else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **{name: value for name, value in how.items() if name != "input"},
        ) as running:
            out, err = running.communicate(how.get("input"), timeout)
        assert running.returncode == 0, (args, out[-2000:], err[-4000:])
        return bytes(out)

    def curl(self, *arguments: str, **how: Any) -> bytes:
        return self.run("curl", "-sS", "--fail-with-body", *arguments, **how)

    def nginx_saw(self) -> set[str]:
        """The clients of what it has logged since the last time."""
        text = self.folder.joinpath("nginx.log").read_text()
        new, self._read = text[self._read :], len(text)
        return {line.split()[0] for line in new.splitlines()}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with opened_lab() as net:
        scene = Scene(net, tmp_path_factory.mktemp("scene"))
        yield scene
        scene.proxy.end()


@pytest.fixture
def through(scene: Scene) -> Iterator[Scene]:
    """The scene; afterwards the proxy has seen requests, and nginx nobody but the client."""
    before = len(scene.proxy.lines())
    scene.nginx_saw()
    yield scene
    wait_for(lambda: len(scene.proxy.lines()) > before, 20, "a line in the access log")
    clients = {scene.net.client_ip[family] for family in FAMILIES}
    assert scene.nginx_saw() <= clients


# -- curl ----------------------------------------------------------------------------------------


@v4_and_v6
def test_curl_over_both_families(through: Scene, family: int) -> None:
    flag = "-6" if family == V6 else "-4"
    told = json.loads(through.curl(flag, f"{SEEN}/seen"))
    assert told["peer"] == through.net.client_ip[family]
    assert ["via", "1.1 under-test"] in told["fields"]
    assert through.curl(flag, f"{PAGES}/x-auto").decode() == through.net.client_ip[family]


def test_curl_ranges(through: Scene) -> None:
    (through.pages / "data.txt").write_bytes(pattern(100_000))
    assert through.curl("-r", "100-199", f"{PAGES}/data.txt") == pattern(100_000)[100:200]
    assert through.curl("-r", "-10", f"{PAGES}/data.txt") == pattern(100_000)[-10:]
    parts = through.curl("-r", "0-3,8-11", f"{PAGES}/data.txt")
    assert parts.count(b"Content-Range: bytes ") == 2
    out = through.folder / "continued"
    out.write_bytes(pattern(100_000)[:40_000])
    through.curl("-C", "-", "-o", str(out), f"{PAGES}/data.txt")
    assert out.read_bytes() == pattern(100_000)


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
def test_curl_posts(through: Scene, expect: str) -> None:
    data = through.folder / "post"
    data.write_bytes(pattern(2_000_000))
    told = json.loads(through.curl("-H", expect, "--data-binary", f"@{data}", f"{SEEN}/seen"))
    assert told["body"] == hashlib.sha256(pattern(2_000_000)).hexdigest()


def test_curl_uploads_in_chunks(through: Scene) -> None:
    told = json.loads(through.curl("-T", "-", f"{SEEN}/seen", input=pattern(500_000)))
    assert ["transfer-encoding", "chunked"] in told["fields"]
    assert told["body"] == hashlib.sha256(pattern(500_000)).hexdigest()


def test_curl_uploads_slowly(through: Scene) -> None:
    data = through.folder / "slow"
    data.write_bytes(pattern(60_000))
    told = json.loads(through.curl("--limit-rate", "40k", "-T", str(data), f"{SEEN}/seen"))
    assert told["body"] == hashlib.sha256(pattern(60_000)).hexdigest()
    assert through.curl("--limit-rate", "40k", f"{SEEN}/pattern?60000") == pattern(60_000)


def test_curl_gets_trailers(through: Scene) -> None:
    head = through.folder / "head"
    assert through.curl("-D", str(head), f"{SEEN}/chunked") == b"hello world"
    assert "X-End:" in head.read_text()


def test_curl_of_1996(through: Scene) -> None:
    told = json.loads(through.curl("--http1.0", f"{SEEN}/seen"))
    assert ["via", "1.0 under-test"] in told["fields"]
    assert through.curl("--http1.0", f"{SEEN}/until-close") == pattern(100_000)


def test_curl_head(through: Scene) -> None:
    (through.pages / "head.txt").write_bytes(b"x" * 12345)
    assert b"\r\nContent-Length: 12345\r\n" in through.curl("-I", f"{PAGES}/head.txt")


def test_curl_compressed(through: Scene) -> None:
    (through.pages / "long.html").write_bytes(b"all the same " * 10_000)
    head = through.folder / "compressed"
    body = through.curl("--compressed", "-D", str(head), f"{PAGES}/long.html")
    assert body == b"all the same " * 10_000
    assert "content-encoding: gzip" in head.read_text().lower()


def test_curl_websocket(through: Scene) -> None:
    key = base64.b64encode(bytes(16)).decode()
    fields = ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {key}")
    arguments = [part for field in fields for part in ("-H", field)]
    said = through.curl("-i", "-N", "-m", "20", *arguments, f"{SEEN}/websocket?bye")
    assert said.startswith(b"HTTP/1.1 101 ")
    assert said.endswith(b"\r\n\r\nbye")


def test_curl_many_requests(through: Scene) -> None:
    many = through.curl(*[f"{SEEN}/pattern?{n}" for n in range(1, 40)])
    assert len(many) == sum(range(1, 40))
    many = through.curl("-Z", "--parallel-max", "8", *[f"{SEEN}/pattern?{n}" for n in range(1, 40)])
    assert len(many) == sum(range(1, 40))


def test_curl_a_gibibyte(through: Scene) -> None:
    with (through.pages / "big.bin").open("wb") as big:
        big.truncate(GIB)
    with through.net.client.popen(
        [needs("curl"), "-sS", "--fail", f"{PAGES}/big.bin"], stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        digest, size = hashlib.sha256(), 0
        while chunk := running.stdout.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    assert running.returncode == 0
    assert size == GIB
    # of 2**30 zero bytes
    assert digest.hexdigest() == "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14"
    wait_for(lambda: through.proxy.lines()[-1]["down"] >= GIB, 20, "the line in the access log")


# -- wget, apt, pip ------------------------------------------------------------------------------


def test_wget(through: Scene) -> None:
    folder = through.pages / "site"
    folder.mkdir()
    (folder / "a.html").write_text('<a href="b.html">b</a>')
    (folder / "b.html").write_text("the second page")
    out = through.folder / "wget"
    through.run("wget", "-q", "-r", "-np", "-P", str(out), f"{PAGES}/site/a.html")
    assert (out / NAME / "site" / "b.html").read_text() == "the second page"
    (out / "part").write_bytes(b"")
    assert through.run("wget", "-qO-", "--no-http-keep-alive", f"{SEEN}/pattern?777") == pattern(
        777
    )


def test_apt_get(through: Scene) -> None:
    """A Debian archive of one package. apt sends requests ahead of the answers."""
    needs("apt-get")
    folder = through.folder / "apt"
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: told\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\n"
        "Description: of a test\n"
    )
    (through.pages / "debian").mkdir()
    package = through.pages / "debian" / "told_1_all.deb"
    through.run("dpkg-deb", "-b", str(tree), str(package), package="dpkg")
    data = package.read_bytes()
    (through.pages / "debian" / "Packages").write_text(
        "Package: told\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\n"
        f"Filename: ./told_1_all.deb\nSize: {len(data)}\n"
        f"SHA256: {hashlib.sha256(data).hexdigest()}\nDescription: of a test\n"
    )
    for name in ("state/lists/partial", "cache/archives/partial", "etc"):
        (folder / name).mkdir(parents=True)
    (folder / "etc" / "sources.list").write_text(f"deb [trusted=yes] {PAGES}/debian ./\n")
    (folder / "status").write_text("")
    options = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::http::Proxy": "false",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    configuration = {**os.environ, "APT_CONFIG": "/dev/null"}
    through.run("apt-get", *flags, "-q", "update", env=configuration)
    through.run("apt-get", *flags, "-q", "download", "told", env=configuration, cwd=folder)
    assert (folder / "told_1_all.deb").read_bytes() == data


def test_pip(through: Scene) -> None:
    index = through.pages / "simple" / "told"
    index.mkdir(parents=True)
    wheel = index / "told-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("told.py", "VALUE = 1\n")
        made.writestr(
            "told-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: told\nVersion: 1.0\n"
        )
        made.writestr(
            "told-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        made.writestr("told-1.0.dist-info/RECORD", "")
    target = through.folder / "pip"
    through.run(
        sys.executable,
        *("-m", "pip", "--isolated", "--disable-pip-version-check", "--no-cache-dir", "download"),
        *("-q", "--no-deps", "-d", str(target), "--trusted-host", NAME),
        *("--index-url", f"{PAGES}/simple/", "told"),
    )
    assert (target / wheel.name).read_bytes() == wheel.read_bytes()


# -- a browser -----------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<title>of a test</title>
<p id=script>not run</p><p id=socket>nothing</p>
<script src=/script.js></script>
"""
SCRIPT = """
const put = (id, text) => document.getElementById(id).textContent = text;
Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map(n =>
    fetch(`/part${n}.txt`).then(answer => answer.text()))).then(
        parts => put("script", parts.join("+")));
const socket = new WebSocket("ws://www.example.org:8080/websocket");
socket.onopen = () => put("socket", "open");
"""


def test_chromium(through: Scene) -> None:
    """A page with a script, eight more requests, and a WebSocket."""
    (through.pages / "page.html").write_text(PAGE)
    (through.pages / "script.js").write_text(SCRIPT)
    for n in range(1, 9):
        (through.pages / f"part{n}.txt").write_text(str(n))
    profile = through.folder / "profile"
    dom = through.run(
        "chromium",
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", f"--user-data-dir={profile}", "--virtual-time-budget=5000"),
        *("--dump-dom", f"{PAGES}/page.html"),
        env={**os.environ, "HOME": str(through.folder)},
        timeout=90,
    ).decode()
    assert re.search("<p id=.script.>1\\+2\\+3\\+4\\+5\\+6\\+7\\+8</p>", dom), dom
    assert re.search("<p id=.socket.>open</p>", dom), dom
    assert f"{PAGES}/part8.txt" in {line["uri"] for line in through.proxy.lines()}
