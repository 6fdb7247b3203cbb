"""Hosts in Linux network namespaces, declared in Python: for tests, demos and benchmarks.

::

    with Lab() as lab:
        net = lab.three()
        server = net.origin.start(serve)
        net.client.run(fetch, net.origin_ip[socket.AF_INET])

Works as root and as an ordinary user, and needs no program but Python: the extra ``cli`` brings
pyroute2.
"""

from lusca_comm.lab.host import Host
from lusca_comm.lab.process import Channel, ChildError, ChildTraceback, Process
from lusca_comm.lab.topology import Lab, Link, Topology, three_hosts
from lusca_comm.lab.unavailable import LabUnavailable
from lusca_comm.lab.waiting import LabTimeout, wait_for

__all__ = [
    "Channel",
    "ChildError",
    "ChildTraceback",
    "Host",
    "Lab",
    "LabTimeout",
    "LabUnavailable",
    "Link",
    "Process",
    "Topology",
    "three_hosts",
    "wait_for",
]
