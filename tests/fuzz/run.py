"""Fuzzes the framers of csrc, from the corpus of tests/vectors/http, for so many seconds.

    python tests/fuzz/run.py [-max_total_time=SECONDS] [-runs=N] [-seed=N]

With clang it is libFuzzer, else gcc and the mutations of mutate.c; ASan and UBSan with both. What
makes it fail is in the directory that is named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
VECTORS = HERE.parent / "vectors" / "http"
WARN = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
SANITIZE = "address,undefined"
# What a file's rows are given to, and which of their columns the bytes are in.
ROWS = {"requests.txt": (0, 2), "responses.txt": (1, 3), "chunks.txt": (4, 2), "edits.txt": (0, 2)}
HELLO = bytes.fromhex("160301000901000005030300000000")


def corpus(into: Path) -> int:
    into.mkdir(parents=True, exist_ok=True)
    inputs = [b"\2\0\0\0" + HELLO, b"\3\0\0\0\0\3abc"]
    for name, (way, column) in ROWS.items():
        for line in (VECTORS / name).read_text("ascii").splitlines():
            if line and not line.startswith("#"):
                text = (line + " ").split(" | ")[column]
                data = text.encode("ascii").decode("unicode_escape").encode("latin-1")
                for how in (b"\0\7\0", b"\x38\3\7"):
                    inputs.append(bytes([way]) + how + data)
    for number, data in enumerate(inputs):
        (into / f"{number:04}").write_bytes(data)
    return len(inputs)


def build(into: Path, clang: str | None = None) -> Path:
    program = into / "fuzz"
    sources = [HERE / "framer.c", *sorted(CSRC.glob("framer*.c"))]
    if clang:
        compiler = [clang, f"-fsanitize=fuzzer,{SANITIZE}"]
    else:
        compiler = ["gcc", f"-fsanitize={SANITIZE}"]
        sources.append(HERE / "mutate.c")
    command = [*compiler, *WARN, "-fno-sanitize-recover=all", "-o", program, *sources]
    # A sanitized Python preloads ASan, which the compiler is not built for.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(command, check=True, env=environment)
    return program


def run(
    into: Path, arguments: list[str], clang: str | None = None
) -> subprocess.CompletedProcess[str]:
    corpus(into / "corpus")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(
        [build(into, clang), *arguments, "corpus"],
        cwd=into,
        env=environment | {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=1"},
        capture_output=True,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
    done = run(directory, sys.argv[1:] or ["-max_total_time=60"], shutil.which("clang"))
    sys.stdout.write(done.stdout + done.stderr)
    if done.returncode == 0:
        shutil.rmtree(directory)
    else:
        sys.stdout.write(f"what made it fail: {directory}\n")
    sys.exit(done.returncode)
