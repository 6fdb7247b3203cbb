"""The pytest plugin as its users have it: in a pytest of their own, and in the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernel.labs import in_child, own_user_namespace

import lusca_comm

DOCS = Path(__file__).parents[2] / "docs" / "lab.md"


@pytest.fixture
def project(tmp_path: Path, pytestconfig: pytest.Config) -> UsersProject:
    return UsersProject(tmp_path, pytestconfig.pluginmanager.hasplugin("lusca_comm_lab"))


class UsersProject:
    """A directory in which a user of the library runs pytest."""

    def __init__(self, folder: Path, installed: bool) -> None:
        self.folder = folder
        self.options = [] if installed else ["-p", "lusca_comm.lab.pytest_plugin"]

    def pytest(self, **environment: str) -> str:
        """What pytest prints, with LUSCA_COMM_LAB as given and not as inherited."""
        inherited = {k: v for k, v in os.environ.items() if k not in ("CI", "LUSCA_COMM_LAB")}
        found = {"PYTHONPATH": str(Path(lusca_comm.__file__).parents[1])}
        command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
        done = subprocess.run(
            [*command, *self.options],
            cwd=self.folder,
            env=inherited | found | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
        return done.stdout


def test_the_example_in_the_documentation(project: UsersProject) -> None:
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", DOCS.read_text(), re.M | re.S)
    assert [name for name, _ in blocks] == ["my_proxy.py", "test_my_proxy.py"]
    for name, text in blocks:
        (project.folder / name).write_text(text)
    output = project.pytest(LUSCA_COMM_LAB="require")
    assert "= 7 passed in" in output, output


def test_its_proxy_tests_can_fail(project: UsersProject) -> None:
    """The documented tests against a proxy that lies about the destination."""
    for name, text in re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```$", DOCS.read_text(), re.M | re.S
    ):
        broken = text.replace("port {there.address[1]}", "port 81")
        (project.folder / name).write_text(broken)
    output = project.pytest(LUSCA_COMM_LAB="require")
    assert "= 4 failed, 3 passed in" in output, output


def test_nothing_heavy_is_loaded_before_use(project: UsersProject) -> None:
    (project.folder / "test_it.py").write_text(
        "import sys\n"
        "def test_before(): assert 'pyroute2' not in sys.modules\n"
        "def test_use(lab): assert lab.host('a').check_output(['echo', 'b']) == 'b\\n'\n"
        "def test_three(three_hosts): assert three_hosts.client.name == 'client'\n"
    )
    output = project.pytest()
    assert "= 3 passed in" in output, output


def refused(project: UsersProject, **environment: str) -> str:
    """pytest's output where no network namespace may be made."""
    (project.folder / "test_it.py").write_text("def test_it(three_hosts): pass\n")

    def limited() -> str:
        own_user_namespace()
        Path("/proc/sys/user/max_net_namespaces").write_text("0")
        return project.pytest(**environment)

    return in_child(limited)


def test_where_namespaces_are_refused_it_skips_with_the_reason(project: UsersProject) -> None:
    output = refused(project)
    assert "= 1 skipped in" in output, output
    assert "user.max_net_namespaces is 0. Allow them: sudo sysctl -w user.max_net" in output


def test_where_a_lab_is_required_it_fails_with_the_reason(project: UsersProject) -> None:
    output = refused(project, LUSCA_COMM_LAB="require")
    assert "= 1 error in" in output, output
    assert "LabUnavailable: [Errno 28] no network namespaces here" in output
