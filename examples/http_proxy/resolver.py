"""Names to addresses while nobody waits: getaddrinfo(3) in threads, and a small cache."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable

Answer = tuple[str, ...]
Then = Callable[[Answer], object]


class Resolver:
    """Asks for a name once, however many wait for it.

    getaddrinfo tells no time to live, so an answer is good for `keep` seconds, and that there is
    none for `keep_failure`. Threads start with the first question: after privileges were dropped.

    :param call_soon: hands a call over to the thread of the reactor.
    """

    def __init__(
        self,
        call_soon: Callable[..., object],
        *,
        threads: int = 8,
        size: int = 4096,
        keep: float = 60.0,
        keep_failure: float = 5.0,
    ) -> None:
        self._call_soon = call_soon
        self._threads, self._size = threads, size
        self._keep, self._keep_failure = keep, keep_failure
        self._known: dict[str, tuple[float, Answer]] = {}
        self._waiting: dict[str, list[Then]] = {}
        self._names: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._started = 0

    def known(self, name: str) -> Answer | None:
        """What is in the cache; () where the name has no address."""
        found = self._known.get(name)
        return found[1] if found is not None and found[0] > time.monotonic() else None

    def look_up(self, name: str, then: Then) -> bool:
        """Calls ``then(addresses)`` later. False: too many wait, and nobody is called."""
        waiting = self._waiting.get(name)
        if waiting is not None:
            waiting.append(then)
            return True
        if len(self._waiting) >= self._size:
            return False
        self._waiting[name] = [then]
        if self._started < min(self._threads, len(self._waiting)):
            self._started += 1
            threading.Thread(target=self._work, name="resolver", daemon=True).start()
        self._names.put(name)
        return True

    def _work(self) -> None:
        while True:
            name = self._names.get()
            self._call_soon(self._found, name, addresses_of(name))

    def _found(self, name: str, answer: Answer) -> None:
        if len(self._known) >= self._size:
            del self._known[next(iter(self._known))]  # the oldest
        self._known.pop(name, None)
        keep = self._keep if answer else self._keep_failure
        self._known[name] = (time.monotonic() + keep, answer)
        for then in self._waiting.pop(name):
            then(answer)


def addresses_of(name: str) -> Answer:
    """Both families, in the order of RFC 6724. () for every kind of failure."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))
