"""The pollers that the contract is held against: each that this system has, and the emulated
kqueue where there is no real one."""

from __future__ import annotations

import select
from collections.abc import Callable

from emulators import kqueue as emulated

from lusca_comm.reactor.kqueue import KqueuePoller
from lusca_comm.reactor.poller import Poller

MAKERS: dict[str, Callable[[], Poller]] = {}
if hasattr(select, "epoll"):
    from lusca_comm.reactor.epoll import EpollPoller

    MAKERS["epoll"] = EpollPoller
if hasattr(select, "kqueue"):
    MAKERS["kqueue"] = KqueuePoller
else:
    MAKERS["kqueue, emulated"] = lambda: KqueuePoller(emulated)
KQUEUES = [name for name in MAKERS if name.startswith("kqueue")]
