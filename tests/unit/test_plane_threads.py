"""The plane without Python, from several threads at once, under ThreadSanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
CSRC = HERE.parent / "csrc"


@pytest.mark.parametrize("name", ["plane_driver", "http_driver"])
def test_no_data_race(tmp_path: Path, name: str) -> None:
    driver = tmp_path / "driver"
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    sources = [str(path) for path in sorted(CSRC.glob("*.c"))]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-pthread"]
    sources.append(str(HERE / f"c/{name}.c"))
    command = ["gcc", *flags, "-fsanitize=thread", f"-I{CSRC}", "-o", str(driver), *sources]
    subprocess.run(command, check=True, env=environment)
    done = subprocess.run(
        [str(driver)], capture_output=True, text=True, timeout=100, env=environment
    )
    assert "ThreadSanitizer" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
