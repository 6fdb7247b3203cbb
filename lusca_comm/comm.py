"""The comm API: the classic callback calls, as methods of a Reactor and as functions of the module.

The way of a connection through the files: :mod:`~lusca_comm.sockets` accepts it,
:mod:`~lusca_comm.intercept` says where it was going, :mod:`~lusca_comm.spoof` opens the socket that
goes there in the client's name, :mod:`~lusca_comm.connect` connects it,
:mod:`~lusca_comm.relay` moves the bytes, and :mod:`~lusca_comm.closing` ends it. Datagrams have
:mod:`~lusca_comm.datagram` to themselves.
"""

from __future__ import annotations

from .datagram import Datagrams
from .http import HttpServices
from .intercept import original_destination
from .intercept_flows import FlowRelays
from .options import Options

__all__ = ["Reactor", "default_reactor"]


class Reactor(Datagrams, FlowRelays, HttpServices, Options):
    """A loop with every ``comm_`` call. The functions of :mod:`lusca_comm` are those of
    ``default_reactor``."""

    original_destination = staticmethod(original_destination)


default_reactor = Reactor()
