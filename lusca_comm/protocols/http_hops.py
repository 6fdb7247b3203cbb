"""What requests say of the way they came, and of the way they may go."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

__all__ = ["cdn_ids", "hops_left", "received_by"]

# RFC 9110, 5.6.4 and 5.6.5: both may hold commas, and comments nest. One that is not closed is
# text, so that nothing in front of a name hides it.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(")?')
_PART = re.compile(r"\\.|[()]")


def _without_comments(text: str) -> str:
    """In one pass: a client may send many kilobytes of parentheses."""
    kept, depth, at = [], 0, 0  # `at`: where what is not dealt with begins
    for found in _PART.finditer(text):
        part = found[0] if depth > 0 else found[0][-1]  # outside of a comment \ quotes nothing
        if part == "(":
            if depth == 0:
                kept.append(text[at : found.end() - 1])
                at = found.end() - 1
            depth += 1
        elif part == ")" and depth > 0:
            depth -= 1
            if depth == 0:
                at = found.end()
                kept.append(" ")
    return "".join((*kept, text[at:]))


@functools.lru_cache(maxsize=64)
def received_by(via: bytes) -> frozenset[str]:
    """The proxies in a value of Via, in lower case. ``1.1 Name, HTTP/1.0 other:3128 (a comment)``:
    name, other:3128."""
    text = _without_comments(via.decode("latin-1").lower())
    parts = (member.split() for member in text.split(","))
    return frozenset(part[1] for part in parts if len(part) > 1)


@functools.lru_cache(maxsize=64)
def cdn_ids(cdn_loop: bytes) -> frozenset[str]:
    """Those in a value of CDN-Loop, in lower case. ``one; a="b,c", Two:8080``: one, two:8080."""
    text = _QUOTED.sub(lambda m: " " if m[1] else m[0], cdn_loop.decode("latin-1").lower())
    return frozenset(member.partition(";")[0].strip() for member in text.split(","))


def hops_left(method: bytes, max_forwards: Sequence[bytes]) -> int | None:
    """What Max-Forwards allows beyond this proxy, which is to be sent on; negative: the proxy is
    the last and answers; None: the field is of no concern (RFC 9110, 7.6.2)."""
    if method not in (b"OPTIONS", b"TRACE") or len(max_forwards) != 1:
        return None
    value = max_forwards[0]
    return min(int(value), 1 << 31) - 1 if value.isdigit() and len(value) < 20 else None
