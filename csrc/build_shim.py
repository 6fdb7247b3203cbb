"""Builds ``lusca_comm._shim`` from csrc (cffi, API mode); setup.py names it in ``cffi_modules``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror"]


def declarations(header: str) -> str:
    """The part of shim.h that Python sees, and its LC_HAS_ and LC_OPT_ macros as constants."""
    body = header.split("/* cdef begin */")[1].split("/* cdef end */")[0]
    macros = re.findall(r"^#\s*define (LC_(?:HAS|OPT)_\w+)", header, re.MULTILINE)
    return body + "".join(f"static const int {name};\n" for name in dict.fromkeys(macros))


# "address,undefined" or "thread"
sanitize = os.environ.get("LUSCA_COMM_SANITIZE", "")
extra = [f"-fsanitize={sanitize}", "-g", "-O1", "-fno-omit-frame-pointer"] if sanitize else []

ffibuilder = FFI()
ffibuilder.cdef(declarations((HERE / "shim.h").read_text()))
ffibuilder.set_source(
    "lusca_comm._shim",
    '#include "shim.h"',
    sources=sorted(f"csrc/{path.name}" for path in HERE.glob("*.c")),
    depends=[f"csrc/{path.name}" for path in HERE.glob("*.h")],
    include_dirs=["csrc"],
    # What cffi itself writes is not held to our warnings: see unused parameters and casts.
    extra_compile_args=[*FLAGS, "-Wno-unused-parameter", "-Wno-cast-function-type", *extra],
    extra_link_args=extra,
)

if __name__ == "__main__":
    os.chdir(HERE.parent)
    print(ffibuilder.compile(verbose=True))
