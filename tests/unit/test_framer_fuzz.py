"""A short run of the fuzzer under ASan and UBSan: its corpus, and mutations that a seed decides.
`tox run -e fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

from fuzz import run


def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    done = run.run(tmp_path, ["-runs=100000", "-seed=20260101"])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == "100000 runs\n"
