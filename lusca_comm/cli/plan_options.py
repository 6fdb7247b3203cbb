"""The options that describe a firewall plan, for the commands that need one."""

from __future__ import annotations

import argparse
import pwd

from lusca_comm.firewall import Exempt, Plan

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
        "--bypass-ports", type=ports, default=(), metavar="LIST", help="ports left alone"
    )
    what.add_argument(
        "--bypass",
        action="append",
        default=[],
        metavar="NETWORK",
        help="destinations left alone, such as 10.0.0.0/8; may be repeated",
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
    what.add_argument(
        "--exempt-mark", type=number, metavar="MARK", help="own traffic left alone: by SO_MARK"
    )
    what.add_argument(
        "--exempt-uid", type=user, metavar="USER", help="own traffic left alone: a user's"
    )
    what.add_argument(
        "--exempt-cgroup", metavar="PATH", help="own traffic left alone: a control group's"
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
    exempt = Exempt(
        mark=options.exempt_mark,
        uids=() if options.exempt_uid is None else (options.exempt_uid,),
        cgroups=() if options.exempt_cgroup is None else (options.exempt_cgroup,),
    )
    same = (
        "mode port ports bypass bypass_ports families interfaces forwarded own listen4 listen6 "
        "spoof same_port origin_interfaces zone table name"
    )
    fields = {name: getattr(options, name) for name in same.split()}
    return Plan(mark=mark, mask=mask, exempt=exempt, **fields)


def number(text: str) -> int:
    return int(text, 0)


def mark(text: str) -> tuple[int, int | None]:
    bits, slash, mask = text.partition("/")
    return number(bits), number(mask) if slash else None


def ports(text: str) -> tuple[int | tuple[int, int], ...]:
    pairs = (part.partition("-") for part in text.split(","))
    return tuple((int(first), int(last)) if dash else int(first) for first, dash, last in pairs)


def user(text: str) -> int:
    try:
        return int(text) if text.isdigit() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no user {text!r}") from None
