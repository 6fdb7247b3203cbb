"""The self-check program, which is cross-compiled for every system, run on this one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not CSRC.is_dir():
        pytest.skip("needs a C compiler and the source tree")
    out = tmp_path_factory.mktemp("selfcheck") / "selfcheck"
    sources = [*CSRC.glob("*.c"), *(CSRC / "check").glob("*.c")]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", out, *sources], check=True)
    return out


def test_holds_here(program: Path) -> None:
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    lines = run.stdout.splitlines()
    assert lines[0] == "system linux"
    assert lines[-1] == "0 failed"
    assert sum(line.startswith("ok ") for line in lines) >= 2 + 6


def test_a_wrong_number_does_not_compile(tmp_path: Path) -> None:
    """The negative control of every static assertion in facts.c."""
    compiler = shutil.which("cc")
    if compiler is None or not CSRC.is_dir():
        pytest.skip("needs a C compiler and the source tree")
    right = (CSRC / "check" / "facts.c").read_text().replace('"../engine.h"', f'"{CSRC}/engine.h"')
    for text, fails in (
        (right, False),
        (right.replace("IS(IP_TRANSPARENT, 19)", "IS(IP_TRANSPARENT, 20)"), True),
    ):
        source = tmp_path / "facts.c"
        source.write_text(text)
        run = subprocess.run(
            [compiler, "-std=c11", "-fsyntax-only", source],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode != 0) is fails, run.stderr
        assert ("static assertion failed" in run.stderr) is fails
