"""An exchange that is over, as Python is told of it."""

from __future__ import annotations

from .address import Address
from .http_wire import COUNTS, EXCHANGE, LENGTH, SPAN, STATUS, address_at
from .relayed import ENDS

__all__ = ["Exchange"]


class Exchange:
    """A request and its response, once they are over."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @property
    def id(self) -> int:
        """Of the session."""
        return int(LENGTH(self._raw, 0)[0])

    @property
    def start(self) -> bytes:
        """The request's start line, without its CRLF."""
        at = EXCHANGE
        return self._raw[at : at + SPAN(self._raw, 16)[1]]

    @property
    def status(self) -> int:
        """Of the response; 0: there was none."""
        return int(STATUS(self._raw, 14)[0])

    @property
    def end(self) -> str:
        """ "eof": the response was delivered. Else what came between: "reset", "idle", "killed",
        "error"."""
        return ENDS[self._raw[16]]

    @property
    def reused(self) -> bool:
        """The upstream had served before."""
        return bool(self._raw[17])

    @property
    def up(self) -> int:
        """Bytes delivered to the upstream."""
        return int(COUNTS(self._raw, 24)[0])

    @property
    def down(self) -> int:
        """Bytes delivered to the client."""
        return int(COUNTS(self._raw, 24)[1])

    @property
    def seconds(self) -> float:
        """From the whole head of the request to the response's last byte."""
        return float(COUNTS(self._raw, 24)[2])

    @property
    def peer(self) -> Address | None:
        """The client."""
        return address_at(self._raw, 56)

    @property
    def original(self) -> Address | None:
        return address_at(self._raw, 84)

    @property
    def upstream(self) -> Address | None:
        """Who answered; None: no upstream did."""
        return address_at(self._raw, 112)
