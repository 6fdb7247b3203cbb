"""Waiting for a descriptor, in any event loop."""

from __future__ import annotations

import asyncio

__all__ = ["readable", "writable"]


def _set(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


async def writable(loop: asyncio.AbstractEventLoop, fd: int, due: float | None) -> bool:
    """False: it is not, and ``loop.time()`` is `due`."""
    future: asyncio.Future[bool] = loop.create_future()
    timer = None if due is None else loop.call_at(due, _set, future, False)
    loop.add_writer(fd, _set, future, True)
    try:
        return await future
    finally:
        loop.remove_writer(fd)
        if timer is not None:
            timer.cancel()


async def readable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    future: asyncio.Future[bool] = loop.create_future()
    loop.add_reader(fd, _set, future, True)
    try:
        await future
    finally:
        loop.remove_reader(fd)
