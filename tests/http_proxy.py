"""examples/http_proxy as the tests have it: its modules, and requests that nobody sent."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples" / "http_proxy"
_numbers: dict[str, int] = {}  # of what requests are like
MODULES = ("access_log", "answers", "hooks", "listeners", "options", "resolver", "proxy")


def load() -> Any:
    """The folder's modules, under their short names, which stay theirs alone."""
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    sys.path.insert(0, str(FOLDER))
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


class FakeRequest:
    """What the data plane would ask about; :attr:`done` is the answer it got."""

    def __init__(
        self,
        start: str = "GET / HTTP/1.1",
        *fields: str,
        original: Any = ("198.51.100.2", 80),
        peer: Any = ("192.0.2.2", 5000),
        **more: Any,
    ) -> None:
        method, target, version = start.encode().split(b" ")
        self.method, self.target, self.version = method, target, version
        self._fields: dict[str, list[bytes]] = {}
        for field in fields:
            name, _, value = field.partition(": ")
            self._fields.setdefault(name.lower(), []).append(value.encode())
        self.original, self.peer = original, peer
        self.state, self.length, self.expect = "request", None, False
        self.keep_alive = version == b"HTTP/1.1"
        self.connect, self.upgrade = method == b"CONNECT", "upgrade" in self._fields
        self.id = id(self)
        self.repeated = False
        self.done: Any = None
        self.__dict__.update(more)

    @property
    def like(self) -> int:
        """Of the same parts as the data plane's."""
        if self.state != "request":
            return 0
        target = self.target
        if not self.connect and (start := re.match(rb"(\w+://[^/?]*)?[/?*]?", target)):
            target = start[0]
        looked_at = [(name, self._fields.get(name)) for name in ("host", "via", "cdn-loop")]
        flags = (self.length is None, self.expect, self.upgrade)
        ends = (self.original, self.peer[0])
        what = repr((self.method, target, self.version, looked_at, flags, ends))
        return _numbers.setdefault(what, len(_numbers) + 1)

    def field(self, name: str) -> bytes | None:
        return next(iter(self._fields.get(name, ())), None)

    def fields(self, name: str) -> list[bytes]:
        return self._fields.get(name, [])

    def forward(self, to: Any, **how: Any) -> Any:
        self._done("forward", to, how)
        return self.done

    def again(self, answer: Any) -> None:
        self._done(*answer)
        self.repeated = True

    def tunnel(self, to: Any, **how: Any) -> None:
        self._done("tunnel", to, how)

    def respond(self, page: bytes, *, close: bool = False) -> None:
        self._done("respond", page, {"close": close})

    def deny(self) -> None:
        self._done("deny", None, {})

    def _done(self, *answer: Any) -> None:
        assert self.done is None, "answered twice"
        self.done = answer

    def fails(self, failed: str, errno: int = 0) -> None:
        """The upstream that was gone to failed."""
        self.state, self.failed, self.errno, self.done = "failed", failed, errno, None

    @property
    def answered(self) -> bool:
        return self.done is not None

    @property
    def page(self) -> int:
        """The status of the page it got."""
        assert self.done[0] == "respond", self.done
        return int(self.done[1].split()[1])
