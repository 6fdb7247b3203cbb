"""What an intercepted HTTP request means, and what one to a forward proxy does. No sockets here.

The framer (csrc/framer.h) has judged the bytes; these rules take the ranges it found (method,
target, the values of Host) and never look at framing again. A :class:`Verdict` says two things that
must not be confused: the URI that a request is to be judged by, and the address to connect to.

======================= ======================================= ================================
target                  intercepted                             to a forward proxy
======================= ======================================= ================================
``/path``               ``http://`` Host ``/path``, sent to the 400
                        original destination
``http://name/path``    the same; Host is overridden by the     ``/path`` is sent to the name's
                        target (RFC 9112, 3.2.2), which is sent addresses, and Host overridden
                        as it came
``*`` (OPTIONS)         ``http://`` Host, to the original       answered here
                        destination
``name:port`` (CONNECT) the original destination, which may be  tunnelled to the name's
                        a proxy, gets it as it came; or refused addresses; ports are limited
anything else           400                                     400
HTTP/2, not HTTP        tunnelled to the original destination,  400
                        or refused (`other`)
a silent client         408, or tunnelled (`silent`)            408
======================= ======================================= ================================

**Host is a label, not a target.** Any page's script can send any Host to any address, so a proxy
that connects to what Host names lends its own place in the network, and one that caches by Host
serves one client's forgery to all (CVE-2009-0801). An intercepted request therefore goes to its
original destination, always, and nowhere else: also where the name has more addresses, because what
is between the client and those is not the proxy's to skip. Whether Host is *believed* is the policy
`verify`:

``off``
    as said. Rules by name then bind honest clients alone, and nothing may be cached for others.
``original``
    if the name has the original address, and the port is the same. Otherwise the request is judged
    by the original address, and what was said is in :attr:`Verdict.claimed`.
``strict``
    or else 409.

The addresses of a name are the caller's to find: a verdict "resolve" says which name, and the same
call with `answers` goes on from there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from .authority import LONGEST, Authority, canonical, parse_authority
from .http_hops import cdn_ids, hops_left, received_by
from .reachable import may_reach

__all__ = [
    "Ports",
    "Rules",
    "Verdict",
    "forwarded",
    "hops_left",
    "intercepted",
    "loops",
    "unframed",
]

Address: TypeAlias = tuple[Any, ...]
"""``(host, port)``, or for link-local addresses ``(host, port, flowinfo, scope_id)``."""
Ports: TypeAlias = frozenset[int]

VERIFY = ("off", "original", "strict")
OTHER = ("tunnel", "refuse")
_PORT_OF = {"http": 80, "https": 443}
_OURS = (
    b"http",
    b"ws",
)  # a WebSocket begins as a request (RFC 6455, 4.1); some clients ask for it so
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]{0,30})://([^/?#]*)([^#]*)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is to be done with a request. One is shared by requests that differ in their path
    alone, so that it can be the key to what was made of it (it is compared by identity)."""

    action: str
    """"forward", "tunnel" (every byte, as it is), "resolve" (ask again with the addresses of
    `host`), "answer" (by the proxy itself, with `status`), "refuse" (the same, an error)."""
    base: bytes = b""
    """Scheme and authority to judge by; ``host:port`` of a tunnel."""
    host: str = ""
    """The host in `base`: a name or an address."""
    to: tuple[Address, ...] = ()
    """Where to connect, in turn."""
    verified: bool | None = None
    """Whether `to` and `base` are known to belong together, so that the answer may be kept for
    others, too. None: not looked at."""
    claimed: Authority | None = None
    """What the client said, where it is not believed. A list of what is forbidden is to be asked
    about both, a list of what is allowed about `host` alone."""
    path: bytes | None = None
    """What follows `base` in the URI, of a tunnel; None: the target's path."""
    origin_form: bool = False
    """The target is to be sent without its scheme and authority (:func:`path_of`)."""
    field: bytes | None = None
    """The value of Host to be sent in place of what came; None: as it came."""
    status: int = 0
    why: str = ""

    def uri(self, target: bytes) -> bytes:
        """The absolute URI to judge by, of a request with this target."""
        return self.base + (path_of(target) if self.path is None else self.path)


def path_of(target: bytes) -> bytes:
    """Path and query of a target in origin-form or absolute-form; b"" of ``*``."""
    if target[:1] == b"/":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return b""
    path: bytes = absolute[3]
    return path if path[:1] == b"/" else b"/" + path


@dataclass(frozen=True, eq=False)
class Rules:
    """The policy, of which there is one for a proxy."""

    verify: str = "original"
    """See above."""
    scheme: str = "http"
    """Of intercepted requests; "https" where the caller has taken TLS off."""
    other: str = "tunnel"
    """What is not HTTP/1 on an intercepted port, or is CONNECT: "tunnel" or "refuse"."""
    silent: str = "refuse"
    """A client that says nothing: "refuse", or "tunnel" for protocols in which the server begins.
    Whoever waits long enough gets a tunnel then, and what it says in that is not judged."""
    pseudonym: str = "lusca_comm"
    """This proxy in Via (RFC 9110, 7.6.3). Every proxy of a path needs its own."""
    cdn_id: str = ""
    """And in CDN-Loop (RFC 8586); empty: none."""
    ports: Ports = frozenset({80, 443, *range(1024, 65536)})
    """Where a forward proxy goes."""
    connect_ports: Ports = frozenset({443})
    """Where it makes tunnels to."""
    local: bool = False
    """Whether a forward proxy goes to its own machine's loopback, and to link-local addresses."""
    own: Callable[[Address], bool] = lambda _: False
    """Whether an address is one of the proxy's listeners."""

    def __post_init__(self) -> None:
        if self.verify not in VERIFY:
            raise ValueError(f"verify {self.verify!r}: one of {', '.join(VERIFY)}")
        for name in ("other", "silent"):
            if getattr(self, name) not in OTHER:
                raise ValueError(f"{name} {getattr(self, name)!r}: one of {', '.join(OTHER)}")
        if self.scheme not in _PORT_OF:
            raise ValueError(f"scheme {self.scheme!r}: one of {', '.join(_PORT_OF)}")

    @property
    def port(self) -> int:
        """The port that `scheme` has where none is given."""
        return _PORT_OF[self.scheme]

    def base(self, authority: Authority) -> bytes:
        return b"%s://%s" % (self.scheme.encode(), authority.spell(self.port))


def _refuse(status: int, why: str, base: bytes = b"", host: str = "") -> Verdict:
    return Verdict("refuse", base, host, status=status, why=why)


_TARGET = _refuse(400, "the target is no URI of http")
_HOSTS = _refuse(400, "more than one Host")
_HOST = _refuse(400, "Host is no host")
_LOOP = _refuse(508, "the destination is this proxy itself")
_OTHER = _refuse(400, "this is no HTTP/1 request")
_SILENT = _refuse(408, "no request came")
_OWN_ANSWER = Verdict("answer", status=204, why="about the proxy itself")


# -- intercepted -------------------------------------------------------------------------------


def intercepted(
    rules: Rules,
    method: bytes,
    target: bytes,
    hosts: Sequence[bytes],
    original: Address,
    answers: tuple[str, ...] | None = None,
) -> Verdict:
    """Judges a request of a connection that was going to `original`.

    :param hosts: the values of Host, as many as there are.
    :param answers: numeric addresses, after a verdict "resolve"; () where the name has none, or
        could not be looked up.
    """
    if method == b"CONNECT":
        verdict = unframed(rules, original)
        return replace(verdict, action="forward") if verdict.action == "tunnel" else verdict
    if len(hosts) > 1:
        return _HOSTS
    if b"#" in target:
        return _TARGET
    if hosts and len(hosts[0]) > LONGEST:
        return _HOST  # and it is in no cache
    if target[:1] == b"/" or (target == b"*" and method == b"OPTIONS"):
        return _by_host(rules, tuple(hosts), original, answers)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or len(absolute[2]) > LONGEST:
        return _TARGET
    scheme, text, _ = absolute.groups()
    return _by_target(rules, scheme, text, tuple(hosts), original, answers)


@functools.lru_cache(maxsize=4096)
def _by_host(
    rules: Rules, hosts: tuple[bytes, ...], original: Address, answers: tuple[str, ...] | None
) -> Verdict:
    if not hosts or not hosts[0]:
        own = _of(original)
        verdict = _by_authority(rules, own, original, answers)
        return verdict if verdict.status else replace(verdict, field=own.spell(rules.port))
    authority = parse_authority(hosts[0])
    if authority is None:
        return _HOST
    return _by_authority(rules, authority, original, answers)


@functools.lru_cache(maxsize=4096)
def _by_target(
    rules: Rules,
    scheme: bytes,
    text: bytes,
    hosts: tuple[bytes, ...],
    original: Address,
    answers: tuple[str, ...] | None,
) -> Verdict:
    authority = parse_authority(text)
    if authority is None:
        return _TARGET
    if scheme.lower() != rules.scheme.encode():
        return _refuse(501, f"scheme {scheme.decode()}")
    said = parse_authority(hosts[0]) if hosts else None
    spelled = authority.spell(rules.port)
    differs = said is None or said.spell(rules.port) != spelled
    if differs and hosts and rules.verify == "strict":
        why = "Host and the target differ"
        return _refuse(409, why, rules.base(authority), authority.host)
    verdict = _by_authority(rules, authority, original, answers)
    if verdict.action != "forward" or not differs:
        return verdict
    return replace(verdict, field=spelled)


def _by_authority(
    rules: Rules, said: Authority, original: Address, answers: tuple[str, ...] | None
) -> Verdict:
    if rules.own(original):
        return _LOOP
    base = rules.base(said)
    verified: bool | None = None
    if rules.verify != "off":
        there = canonical(original[0])
        if (said.port or rules.port) != original[1]:
            verified = False
        elif said.literal:
            verified = said.host == there
        elif answers is None:
            return Verdict("resolve", base, said.host)
        else:
            verified = there in map(canonical, answers)
    if verified is not False:
        return Verdict("forward", base, said.host, (original,), verified)
    if rules.verify == "strict":
        why = "Host does not belong to the address that the connection was going to"
        return _refuse(409, why, base, said.host)
    own = _of(original)
    return Verdict("forward", rules.base(own), own.host, (original,), False, said)


def unframed(rules: Rules, original: Address | None, silent: bool = False) -> Verdict:
    """Judges what is no HTTP/1 request: HTTP/2, another protocol, or a client that says nothing
    (`silent`). A tunnel is judged once, by its address: where rules have to see every request,
    "refuse" is the policy."""
    if original is None:
        return _SILENT if silent else _OTHER
    if rules.own(original):
        return _LOOP
    there = _of(original)
    base = there.spell(0)
    if (rules.silent if silent else rules.other) == "refuse":
        return replace(_SILENT if silent else _OTHER, base=base, host=there.host, path=b"")
    return Verdict("tunnel", base, there.host, (original,), True, path=b"")


def _of(original: Address) -> Authority:
    return Authority(canonical(original[0]), original[1], True)


# -- to a forward proxy ------------------------------------------------------------------------


def forwarded(
    rules: Rules,
    method: bytes,
    target: bytes,
    hosts: Sequence[bytes],
    answers: tuple[str, ...] | None = None,
) -> Verdict:
    """Judges a request that a client sent to this proxy as its proxy; see :func:`intercepted`."""
    if len(hosts) > 1:
        return _HOSTS
    if method == b"CONNECT":
        authority = parse_authority(target)
        if authority is None or authority.port is None:
            return _refuse(400, "CONNECT takes HOST:PORT")
        verdict = _to_name(rules, authority, authority.port, rules.connect_ports, answers)
        base = authority.spell(0)
        action = "tunnel" if verdict.action == "forward" else verdict.action
        return replace(verdict, action=action, base=base, path=b"")
    if target == b"*" and method == b"OPTIONS":
        return _OWN_ANSWER
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        if target[:1] == b"/":
            return _refuse(400, "a request to a proxy has an absolute URI")
        return _TARGET
    scheme, text, _ = absolute.groups()
    if len(text) > LONGEST or (hosts and len(hosts[0]) > LONGEST):
        return _TARGET
    return _to_target(rules, scheme, text, tuple(hosts), answers)


@functools.lru_cache(maxsize=4096)
def _to_target(
    rules: Rules,
    scheme: bytes,
    text: bytes,
    hosts: tuple[bytes, ...],
    answers: tuple[str, ...] | None,
) -> Verdict:
    authority = parse_authority(text)
    if authority is None:
        return _TARGET
    if scheme.lower() not in _OURS:
        return _refuse(501, f"scheme {scheme.decode()}")
    verdict = _to_name(rules, authority, authority.port or 80, rules.ports, answers)
    if verdict.action != "forward":
        return verdict
    spelled = authority.spell()
    return replace(verdict, origin_form=True, field=None if hosts == (spelled,) else spelled)


def _to_name(
    rules: Rules,
    authority: Authority,
    port: int,
    ports: Ports,
    answers: tuple[str, ...] | None,
) -> Verdict:
    base = b"http://" + authority.spell()
    if port not in ports:
        return _refuse(403, f"port {port}", base, authority.host)
    if authority.literal:
        answers = (authority.host,)
    if answers is None:
        return Verdict("resolve", base, authority.host)
    if not answers:
        return _refuse(502, f"the name {authority.host} has no address", base, authority.host)
    to = tuple((address, port) for address in dict.fromkeys(map(canonical, answers)))
    if any(map(rules.own, to)):
        return replace(_LOOP, base=base, host=authority.host)
    if not rules.local:
        to = tuple(address for address in to if may_reach(address[0]))
    if not to:
        return _refuse(403, "an address of this machine's own", base, authority.host)
    return Verdict("forward", base, authority.host, to, True)


# -- loops ----------------------------------------------------------------------------


def loops(rules: Rules, via: Sequence[bytes], cdn_loop: Sequence[bytes] = ()) -> bool:
    """Whether a request has been here before, by the values of its Via and CDN-Loop."""
    return any(rules.pseudonym.lower() in received_by(value) for value in via) or (
        bool(rules.cdn_id) and any(rules.cdn_id.lower() in cdn_ids(value) for value in cdn_loop)
    )
