"""pytest fixtures for tests across hosts: ``lab`` and ``three_hosts``.

pytest loads this file in every run where lusca-comm is installed, so it imports nothing of weight.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lusca_comm.lab import Lab, Topology


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An open :class:`lusca_comm.lab.Lab`, closed after the test.

    Where the machine does not allow namespaces the test is skipped with the reason, or fails with
    it if the environment has ``LUSCA_COMM_LAB=require``.
    """
    from lusca_comm.lab import Lab, LabUnavailable

    try:
        opened = Lab()
    except LabUnavailable as why:
        if os.environ.get("LUSCA_COMM_LAB") == "require":
            raise
        pytest.skip(str(why))
    with opened:
        yield opened


@pytest.fixture
def three_hosts(lab: Lab) -> Topology:
    """Client, router and origin in ``lab``: see :class:`lusca_comm.lab.Topology`."""
    return lab.three()
