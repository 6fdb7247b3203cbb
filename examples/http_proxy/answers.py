"""What the proxy answers itself: small pages, and redirects."""

from __future__ import annotations

import errno
import html
import time
from email.utils import formatdate
from http import HTTPStatus

EMPTY = frozenset({204, 304})

# RFC 9209, 2.3: the name of what went wrong, for machines.
_ERRORS = {
    400: "http_request_error",
    408: "connection_read_timeout",
    411: "http_request_error",
    413: "http_request_error",
    414: "http_request_error",
    431: "http_request_error",
    500: "proxy_internal_error",
    501: "http_request_error",
    502: "http_protocol_error",
    503: "destination_unavailable",
    504: "connection_timeout",
    505: "http_request_error",
    508: "proxy_loop_detected",
}


class Answers:
    """Whole responses; `pseudonym` is the proxy in Proxy-Status."""

    def __init__(self, pseudonym: str) -> None:
        self._pseudonym = pseudonym
        self._date = (0, "")

    def page(
        self,
        status: int,
        why: str = "",
        *,
        head: bool = False,
        connection: str = "",
        error: str = "",
    ) -> bytes:
        """One of an error, or of a request that ends here. `head`: without its body; `connection`:
        what becomes of it, where that has to be said; `error`: its name, where it is not the usual
        one of `status`."""
        title = f"{status} {phrase(status)}"
        body = (
            f"<!DOCTYPE html>\n<html lang=en><title>{title}</title>\n"
            f"<h1>{title}</h1>\n<p>{html.escape(why)}\n"
        )
        error = error or _ERRORS.get(status, "http_request_denied")
        fields = [f"Proxy-Status: {self._pseudonym}; error={error}"] if status >= 400 else []
        return self.whole(status, body.encode(), fields, head=head, connection=connection)

    def redirect(self, status: int, url: str, *, head: bool = False, connection: str = "") -> bytes:
        return self.whole(status, b"", [f"Location: {url}"], head=head, connection=connection)

    def whole(
        self, status: int, body: bytes, fields: list[str], *, head: bool, connection: str
    ) -> bytes:
        lines = [f"HTTP/1.1 {status} {phrase(status)}", f"Date: {self._now()}", *fields]
        if status not in EMPTY:
            lines.append(f"Content-Length: {len(body)}")
        if body and status not in EMPTY:
            lines += ["Content-Type: text/html; charset=utf-8", "Cache-Control: no-store"]
        if connection:
            lines.append(f"Connection: {connection}")
        start = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        return start if head or status in EMPTY else start + body

    def _now(self) -> str:
        second = int(time.time())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True))
        return self._date[1]


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def of_failure(failed: str, number: int) -> tuple[int, str]:
    """The status, and why, of an origin that did not answer: "connect", "response" or "time"."""
    if failed == "time":
        return 504, "the origin did not answer in time"
    if failed == "response":
        return 502, "the origin broke off, or what it said is no HTTP"
    if number == errno.ETIMEDOUT:
        return 504, "the origin cannot be reached: no answer"
    return 503, f"the origin cannot be reached: {errno.errorcode.get(number, str(number))}"
