"""What every run states and enforces, whatever the tests are about.

* the header names the kernel, the user and the interpreter: half of the results depend on them;
* in CI a skip fails the run unless its reason is listed here;
* no child process outlives the run.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Regular expressions for the reasons that may skip a test in CI, each with why.
ALLOWED_SKIPS: tuple[str, ...] = (
    # of the ordinary user's run; root's run has the test
    "^a cgroup is made by root only$",
    "^setuid to another user needs root outside of user namespaces$",
)

IN_CI = bool(os.environ.get("CI"))
HERE = Path(__file__).parent

# No deadline anywhere: the speed of a shared machine is not a property of the code.
settings.register_profile("dev", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", deadline=None, max_examples=5_000)
settings.load_profile("ci" if IN_CI else "dev")


def pytest_report_header() -> str:
    user = "root" if os.geteuid() == 0 else f"ordinary user (uid {os.geteuid()})"
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"kernel: {kernel}, user: {user}, python: {sys.executable}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE / "kernel"):
            item.add_marker(pytest.mark.kernel)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Verdict())


class Verdict:
    """Fails a run whose tests all passed, for what no single test can see."""

    def __init__(self) -> None:
        self.complaints: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._judge(report)

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not IN_CI or not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        reason = reason.removeprefix("Skipped: ")
        if not any(re.search(allowed, reason) for allowed in ALLOWED_SKIPS):
            self.complaints.append(f"skipped in CI: {report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.complaints += [f"still running: {child}" for child in children()]
        if self.complaints and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.complaints:
            terminalreporter.section("what no single test can see", red=True)
            for complaint in self.complaints:
                terminalreporter.line(complaint, red=True)


def children() -> list[str]:
    """This process's children, unreaped ones included, as "pid command line"."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            words = command.replace(b"\0", b" ").decode(errors="replace").strip()
            found.append(f"{stat.parent.name} {words or '(ended, not waited for)'}")
    return found
