"""Other people's programs: found, or the reason why not."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(program: str, package: str = "") -> str:
    """The path of `program`; without it the test is skipped, and in CI it fails. Debian keeps some
    where an ordinary user's PATH does not lead."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        reason = f"needs the program {program}: apt install {package or program}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
