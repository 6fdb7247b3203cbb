"""The options that describe a firewall plan, for the commands that need one."""

from __future__ import annotations

import argparse
import grp
import pwd
from collections.abc import Callable
from typing import Any

from lusca_comm.errors import CommError
from lusca_comm.firewall import Exempt, Only, Plan, Skip

__all__ = ["add_plan_options", "plan_of"]

PLAIN = Plan()
"""Where the defaults come from."""


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Every field of :class:`lusca_comm.firewall.Plan`, by its name."""
    what = parser.add_argument_group("what is intercepted")
    what.add_argument("--mode", choices=("tproxy", "redirect"), default=PLAIN.mode)
    what.add_argument(
        "--ports",
        type=ports,
        default=PLAIN.ports,
        metavar="LIST",
        help="destination ports, such as 80,443,8000-8010 (default: 80)",
    )
    what.add_argument(
        "--udp",
        type=ports,
        nargs="?",
        const=(),
        metavar="LIST",
        help="datagrams too: to these ports, or without a list to those of --ports",
    )
    what.add_argument("--no-tcp", dest="tcp", action="store_false", help="datagrams alone")
    what.add_argument(
        "--bypass-ports", type=ports, default=(), metavar="LIST", help="ports left alone"
    )
    what.add_argument(
        "--bypass",
        action="append",
        default=[],
        metavar="NETWORK",
        help="destinations left alone, such as 10.0.0.0/8; may be repeated",
    )
    what.add_argument(
        "--skip",
        type=skip,
        action="append",
        default=[],
        metavar="WORDS",
        help="what else is left alone, where all of it is true, such as 'source 192.0.2.0/24 "
        "destination 10.0.0.0/8 ports 53,123 protocol udp mark 0x100/0xf00 interface lan0'; may "
        "be repeated",
    )
    families = what.add_mutually_exclusive_group()
    for version in "46":
        families.add_argument(
            f"-{version}",
            f"--ipv{version}",
            dest="families",
            action="store_const",
            const=(f"ipv{version}",),
            default=PLAIN.families,
            help=f"IPv{version} only",
        )
    what.add_argument(
        "--interface",
        dest="interfaces",
        action="append",
        default=[],
        metavar="NAME",
        help="where the clients are; may be repeated (default: anywhere)",
    )
    what.add_argument(
        "--no-forwarded",
        dest="forwarded",
        action="store_false",
        help="not what this machine forwards",
    )
    what.add_argument("--own", action="store_true", help="what this machine sends itself, too")
    for word, does in (("exempt", "left alone"), ("only", "intercepted, and no other")):
        for kind, parse, name, whose in (
            ("mark", number, "MARK", "by SO_MARK"),
            ("uid", user, "USER", "a user's"),
            ("gid", group, "GROUP", "a group's"),
            ("cgroup", str, "PATH", "a control group's"),
        ):
            option, text = f"--{word}-{kind}", f"own traffic {does}: {whose}"
            what.add_argument(option, type=parse, metavar=name, help=text)
    what.add_argument(
        "--refuse-rest",
        dest="rest",
        action="store_const",
        const="refuse",
        default=PLAIN.rest,
        help="what is neither intercepted nor left alone does not pass",
    )
    proxy = parser.add_argument_group("the proxy")
    proxy.add_argument(
        "--port", type=int, default=PLAIN.port, help="where it listens (default: %(default)s)"
    )
    for version in "46":
        proxy.add_argument(
            f"--listen{version}",
            metavar="ADDRESS",
            help=f"if it listens on this IPv{version} address alone",
        )
    proxy.add_argument("--spoof", action="store_true", help="it goes on under the client's address")
    proxy.add_argument(
        "--same-port", action="store_true", help="and from the client's port, with --spoof"
    )
    proxy.add_argument(
        "--origin-interface",
        dest="origin_interfaces",
        action="append",
        default=[],
        metavar="NAME",
        help="where the origins are, for --same-port; may be repeated",
    )
    names = parser.add_argument_group("names and numbers, if others have taken these")
    names.add_argument("--name", default=PLAIN.name, help="of the nftables table (%(default)s)")
    names.add_argument(
        "--mark",
        type=mark,
        default=(PLAIN.mark, PLAIN.mask),
        metavar="MARK[/MASK]",
        help=f"of packets to be delivered here ({PLAIN.mark:#x})",
    )
    names.add_argument(
        "--table", type=number, default=PLAIN.table, help="of the routes (%(default)s)"
    )
    names.add_argument(
        "--zone",
        type=number,
        default=PLAIN.zone,
        help="of conntrack, for --same-port (%(default)s)",
    )


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the options describe. Raises CommError (EINVAL) where they contradict."""
    mark, mask = options.mark
    protocols = ("tcp",) * options.tcp + ("udp",) * (options.udp is not None)
    same = (
        "mode port ports bypass_ports families interfaces forwarded own rest listen4 listen6 "
        "spoof same_port origin_interfaces zone table name"
    )
    fields = {name: getattr(options, name) for name in same.split()}
    return Plan(
        mark=mark,
        mask=mask,
        exempt=Exempt(**owners("exempt", options)),
        only=Only(**owners("only", options)),
        protocols=protocols,
        udp_ports=options.udp or None,
        bypass=(*options.bypass, *options.skip),
        **fields,
    )


def owners(word: str, options: argparse.Namespace) -> dict[str, Any]:
    given = {kind: getattr(options, f"{word}_{kind}") for kind in ("uid", "gid", "cgroup")}
    lists = {f"{kind}s": () if one is None else (one,) for kind, one in given.items()}
    return {"mark": getattr(options, f"{word}_mark"), **lists}


def number(text: str) -> int:
    return int(text, 0)


def mark(text: str) -> tuple[int, int | None]:
    bits, slash, mask = text.partition("/")
    return number(bits), number(mask) if slash else None


def ports(text: str) -> tuple[int | tuple[int, int], ...]:
    pairs = (part.partition("-") for part in text.split(","))
    return tuple((int(first), int(last)) if dash else int(first) for first, dash, last in pairs)


def skip(text: str) -> Skip:
    """Pairs of a field's name and its value, as the help shows them."""
    words = text.split()
    if len(words) % 2:
        raise argparse.ArgumentTypeError(f"{text!r}: names and values in pairs")
    fields: dict[str, Any] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name not in SKIP or name in fields:
            raise argparse.ArgumentTypeError(f"{name!r}: once each of {', '.join(SKIP)}")
        fields[name] = SKIP[name](value)
    if "mark" in fields:
        fields["mark"], fields["mask"] = fields["mark"]
    try:
        return Skip(**fields)
    except CommError as why:
        raise argparse.ArgumentTypeError(str(why.strerror)) from None


SKIP: dict[str, Callable[[str], Any]] = {
    "source": str,
    "destination": str,
    "ports": ports,
    "protocol": str,
    "mark": mark,
    "interface": str,
}


def group(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no group {text!r}") from None


def user(text: str) -> int:
    try:
        return int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no user {text!r}") from None
