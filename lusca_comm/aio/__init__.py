"""Interception for programs on asyncio, with the loop of the standard library or uvloop's.

One file for each matter: :mod:`~lusca_comm.aio.server` listens, :mod:`~lusca_comm.aio.connection`
is what a handler gets, :mod:`~lusca_comm.aio.relaying` hands connections to the data plane of the
loop.
"""
