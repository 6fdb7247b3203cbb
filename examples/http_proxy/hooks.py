"""What a hook module (``--hook FILE.py``) is made of.

A hook is a Python file with one function, which is called for each request before anything is
connected to. It decides at once, because every other request waits for it meanwhile::

    from hooks import Deny, Redirect, Request, Rewrite

    FIELDS = ("user-agent",)                     # that request.field() will be asked for

    def on_request(request: Request):
        if request.claims("tracker.example"):
            return Deny(403, "not from here")
        if request.host == "old.example":
            return Redirect("http://new.example/")
        if request.host == "www.example":
            return Rewrite(add=[("X-Proxy", "lusca_comm")], drop=["User-Agent"])

None, or :class:`Allow`, lets it pass.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lusca_comm.protocols.http_intercept import Verdict, path_of

__all__ = ["Allow", "Deny", "Hook", "Redirect", "Request", "Rewrite", "load"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")


@dataclass(frozen=True)
class Allow:
    """Goes on as it would have."""


@dataclass(frozen=True)
class Deny:
    """Answers with a page in the origin's place."""

    status: int = 403
    why: str = "denied"

    def __post_init__(self) -> None:
        if not 400 <= self.status < 600:
            raise ValueError(f"{self}: a status from 400 to 599")


@dataclass(frozen=True)
class Redirect:
    """Sends the client elsewhere."""

    url: str
    status: int = 302

    def __post_init__(self) -> None:
        if not (_VALUE.fullmatch(self.url) and 300 <= self.status < 400):
            raise ValueError(f"{self}: a URL in ASCII, and a status from 300 to 399")


@dataclass(frozen=True)
class Rewrite:
    """Goes on with another request."""

    uri: str | None = None
    """An absolute URI in its place. The proxy connects to the addresses of the name in it, and no
    more to where an intercepted client was going. The client is not told."""
    add: Sequence[tuple[str, str]] = ()
    """Fields: names and values."""
    drop: Sequence[str] = ()
    """Names of fields."""

    def __post_init__(self) -> None:
        for name, value in self.add:
            if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
                raise ValueError(f"{name}: {value!r} is no field")

    @property
    def lines(self) -> bytes:
        return "".join(f"{name}: {value}\r\n" for name, value in self.add).encode("latin-1")


class Request:
    """What a hook is asked about."""

    def __init__(self, request: Any, verdict: Verdict) -> None:
        self._request = request
        self._verdict = verdict

    @property
    def method(self) -> str:
        return str(self._request.method, "latin-1")

    @property
    def uri(self) -> str:
        """The absolute URI to judge by; ``host:port`` of a tunnel."""
        return self._verdict.uri(self._request.target).decode("latin-1")

    @property
    def path(self) -> str:
        """What follows the authority in it."""
        path = self._verdict.path
        return str(path_of(self._request.target) if path is None else path, "latin-1")

    @property
    def host(self) -> str:
        """The host in `uri`, in lower case: what a list of allowed ones is to be asked about."""
        return self._verdict.host

    @property
    def claimed(self) -> str:
        """The host that the client named, where it is not believed (``--host-verify original``);
        otherwise empty."""
        return self._verdict.claimed.host if self._verdict.claimed else ""

    def claims(self, domain: str) -> bool:
        """Whether it is about `domain` or a name below it, believed or not: what a list of
        forbidden ones is to be asked about."""
        return any(
            name == domain or name.endswith("." + domain) for name in (self.host, self.claimed)
        )

    @property
    def client(self) -> tuple[Any, ...]:
        """Its address."""
        return tuple(self._request.peer)

    @property
    def original(self) -> tuple[Any, ...] | None:
        """Where an intercepted client was going; None: it asked for a proxy."""
        return self._request.original  # type: ignore[no-any-return]

    def field(self, name: str) -> str | None:
        """The first value of a field that is in ``FIELDS``."""
        value = self._request.field(name)
        return None if value is None else str(value, "latin-1")


Decision = None | Allow | Deny | Redirect | Rewrite


@dataclass(frozen=True)
class Hook:
    """A loaded module."""

    on_request: Callable[[Request], Decision]
    fields: tuple[str, ...] = ()


def load(path: str) -> Hook:
    """Raises what the module raises, OSError, or ValueError where it has no ``on_request``."""
    spec = importlib.util.spec_from_file_location("hook_of_the_proxy", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: a hook is a Python file, NAME.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    on_request = getattr(module, "on_request", None)
    if not callable(on_request):
        raise ValueError(f"{path} has no function on_request(request)")
    return Hook(on_request, tuple(name.lower() for name in getattr(module, "FIELDS", ())))
