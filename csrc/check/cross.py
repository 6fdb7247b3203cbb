"""Compiles the shim for the other systems, against their own headers, warnings as errors.

    pip install cffi setuptools ziglang
    python csrc/check/cross.py [TARGET...]

For each target: every C file and the static assertions of facts.c, linked with selfcheck.c into a
program; and the extension module as cffi writes it, linked into a shared library. Nothing is run:
the programs are for other machines. They are left in the directory that CROSS_OUT names
(build/cross); ZIG_GLOBAL_CACHE_DIR keeps what the next run need not compile again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = Path(os.environ.get("CROSS_OUT") or ROOT / "build" / "cross")
SYSTEMS = ("freebsd", "netbsd.11.0", "openbsd", "macos")
TARGETS = [f"{cpu}-{system}" for system in SYSTEMS for cpu in ("x86_64", "aarch64")]
FLAGS = ["-std=c11", "-Os", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
# What cffi itself writes is not held to our warnings.
LENIENT = ["-Wno-unused-parameter", "-Wno-cast-function-type"]


def emit() -> tuple[Path, Path]:
    """The extension's C source as cffi writes it, and Python's headers for any 64-bit system."""
    sys.path.insert(0, str(HERE.parent))
    from build_shim import ffibuilder

    include = OUT / "include"
    shutil.rmtree(include, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), include)
    shutil.copy(HERE / "python" / "pyconfig.h", include)
    source = OUT / "_shim.c"
    ffibuilder.emit_c_code(str(source))
    return source, include


def zig(target: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *FLAGS]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def build(target: str, module: Path, include: Path) -> tuple[str, list[str]]:
    """What was built, and what went wrong."""
    began = time.monotonic()
    shim = sorted((ROOT / "csrc").glob("*.c"))
    into = OUT / target
    into.mkdir(parents=True, exist_ok=True)
    undefined = ["-Wl,-undefined,dynamic_lookup"] if "macos" in target else []
    compiled = into / "_shim.o"
    runs = [
        zig(target, "-o", into / "selfcheck", *sorted(HERE.glob("*.c")), *shim),
        zig(target, *LENIENT, "-I", include, "-c", "-o", compiled, module),
        zig(target, "-shared", *undefined, "-o", into / "_shim.abi3.so", compiled, *shim),
    ]
    errors = [run.stderr for run in runs if run.returncode or run.stderr.strip()]
    return f"{target:22} {time.monotonic() - began:5.1f} s", errors


def main(targets: list[str]) -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    module, include = emit()
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line, errors in pool.map(lambda target: build(target, module, include), targets):
            print(line, "FAILED" if errors else "ok", flush=True)
            for error in errors:
                failed += 1
                print(error)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or TARGETS))
