"""A kernel with Balabit's cttproxy 2.0.6, as far as a program and its packets can tell.

::

    program = supervise(host, fn, *args)    # fn(channel, *args), as with Host.start
    program.result()

``fn`` runs in a child of its own under a seccomp filter that hands setsockopt and getsockopt of
(SOL_IP, 11274) to the supervisor; every other system call is the kernel's own. So do the programs
that it executes. The supervisor answers as the patch would (:mod:`kernel`), and has nftables put
the foreign addresses into the packets (:mod:`nat`).

What differs: the end of a socket frees what it held a moment after close(2), not at once. What is
missing: the patch's iptables table ``tproxy`` (use REDIRECT), the control messages of
IP_RECVORIGADDRS, ITP_UNIDIR for sending, and programs of another architecture than the machine's.
"""

from emulators.tproxy2.supervisor import supervise

__all__ = ["supervise"]
