"""Names to addresses while nobody waits: getaddrinfo(3) in threads, and a small cache."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

Answer = tuple[str, ...]
Then = Callable[[Answer], object]


class Resolver:
    """Asks for a name once, however many wait for it, and lets nobody wait longer than `patience`.

    getaddrinfo tells no time to live, so an answer is good for `keep` seconds, and that there is
    none for `keep_failure`. Threads start with the first question: after privileges were dropped.

    :param call_soon: ``call_soon(fn, *args)`` hands a call over to the thread of the reactor.
    :param call_later: ``call_later(seconds, fn, data)`` calls ``fn(data)`` in it.
    """

    def __init__(
        self,
        call_soon: Callable[..., object],
        call_later: Callable[[float, Callable[[Any], object], Any], object],
        *,
        patience: float = 5.0,
        threads: int = 8,
        size: int = 4096,
        keep: float = 60.0,
        keep_failure: float = 5.0,
    ) -> None:
        self._call_soon, self._call_later = call_soon, call_later
        self._patience = patience
        self._threads, self._size = threads, size
        self._keep, self._keep_failure = keep, keep_failure
        self._known: dict[str, tuple[float, Answer]] = {}
        self._waiting: dict[str, list[Then]] = {}
        self._asked: set[str] = set()  # that threads have, or will have
        self._names: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._started = 0

    def known(self, name: str) -> Answer | None:
        """What is in the cache; () where the name has no address."""
        found = self._known.get(name)
        return found[1] if found is not None and found[0] > time.monotonic() else None

    def until(self, name: str) -> float:
        """How long what is known of it stays so, by time.monotonic(); 0: nothing is, or that it has
        no address, which may be known better soon."""
        until, answer = self._known.get(name, (0.0, ()))
        return until if answer else 0.0

    def look_up(self, name: str, then: Then) -> bool:
        """Calls ``then(addresses)`` later. False: too many wait, and nobody is called."""
        waiting = self._waiting.get(name)
        if waiting is not None:
            waiting.append(then)
            return True
        if len(self._waiting) >= self._size or len(self._asked) >= self._size:
            return False
        self._waiting[name] = waiting = [then]
        self._call_later(self._patience, self._too_late, (name, waiting))
        if name not in self._asked:
            self._asked.add(name)
            if self._started < min(self._threads, len(self._asked)):
                self._started += 1
                threading.Thread(target=self._work, name="resolver", daemon=True).start()
            self._names.put(name)
        return True

    def _work(self) -> None:
        while True:
            name = self._names.get()
            self._call_soon(self._found, name, addresses_of(name))

    def _found(self, name: str, answer: Answer) -> None:
        self._asked.discard(name)
        self._remember(name, answer)
        self._tell(name, answer)

    def _too_late(self, asked: tuple[str, list[Then]]) -> None:
        name, waiting = asked
        if self._waiting.get(name) is waiting:  # no others that came since
            self._remember(name, ())
            self._tell(name, ())

    def _remember(self, name: str, answer: Answer) -> None:
        self._known.pop(name, None)
        if len(self._known) >= self._size:
            del self._known[next(iter(self._known))]  # the oldest
        keep = self._keep if answer else self._keep_failure
        self._known[name] = (time.monotonic() + keep, answer)

    def _tell(self, name: str, answer: Answer) -> None:
        for then in self._waiting.pop(name, ()):
            then(answer)


def addresses_of(name: str) -> Answer:
    """Both families, in the order of RFC 6724. () for every kind of failure."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))
