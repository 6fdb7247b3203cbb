"""Plans of every form, shared by the tests of texts and of what the kernel makes of them."""

from __future__ import annotations

from lusca_comm.firewall import Exempt, Only, Plan, Skip

SKIPS = (
    Skip(source="192.0.2.0/25"),
    Skip(source="2001:db8:1::/64", destination="2001:db8:2::7", ports=(80, (90, 99)), mark=1),
    Skip(source="192.0.2.200", destination="198.51.100.0/24", protocol="udp"),
    Skip(destination="203.0.113.0/24", ports=(123,), protocol="udp"),
    Skip(ports=(22,)),
    Skip(ports=((8000, 8010),), protocol="tcp"),
    Skip(protocol="udp", interface="lan0", mark=0x100, mask=0xF00),
    Skip(mark=0xF0000000, mask=0xF0000000),
    Skip(interface="lan1"),
)
PLANS: dict[str, Plan] = {
    "tproxy": Plan(),
    "tproxy-one-interface": Plan(ports=(80, 443), interfaces=("lan0",)),
    "tproxy-listeners": Plan(listen4="127.0.0.1", listen6="::1"),
    "tproxy-v4-only": Plan(families=("ipv4",), listen4="127.0.0.1", bypass=("10.0.0.0/9",)),
    "tproxy-bypass": Plan(
        ports=((1, 65535),),
        bypass_ports=(22, (8000, 8010)),
        bypass=("10.0.0.0/8", "192.0.2.1", "192.168.0.0/16", "224.0.0.0/3", "::1", "2000::/3"),
        interfaces=("lan0", "lan10", "b", "a"),
    ),
    "tproxy-bypass-one": Plan(bypass=("172.16.0.0/12", "2001:db8::/29")),
    "tproxy-bypass-all": Plan(bypass=("0.0.0.0/0", "::/0")),
    "tproxy-own": Plan(own=True, exempt=Exempt(mark=0x539, uids=(13,))),
    "tproxy-only-own": Plan(own=True, forwarded=False, exempt=Exempt(uids=(33, 13), cgroups=(17,))),
    "tproxy-spoof": Plan(spoof=True),
    "tproxy-same-port": Plan(spoof=True, same_port=True, ports=(80, (8000, 8010))),
    "tproxy-whole-mark": Plan(mark=1, mask=0xFFFFFFFF, own=True, exempt=Exempt(mark=2)),
    "tproxy-wide-mask": Plan(mark=0x40, mask=0xFF, own=True, exempt=Exempt(mark=2)),
    "tproxy-high-mask": Plan(
        mark=0x40000000, mask=0xF0000000, own=True, exempt=Exempt(mark=2), table=100
    ),
    "tproxy-udp": Plan(protocols=("udp",), ports=(53,), interfaces=("lan0",)),
    "tproxy-both": Plan(
        protocols=("tcp", "udp"),
        ports=(80, 443),
        udp_ports=(443,),
        spoof=True,
        same_port=True,
        own=True,
        exempt=Exempt(gids=(13, 7)),
        listen6="::1",
    ),
    "tproxy-skip": Plan(
        protocols=("tcp", "udp"),
        own=True,
        exempt=Exempt(mark=0x539),
        bypass=("10.0.0.0/8", *SKIPS),
    ),
    "tproxy-skip-v6-only": Plan(families=("ipv6",), bypass=SKIPS),
    "redirect-skip": Plan(mode="redirect", bypass=SKIPS, own=True, exempt=Exempt(mark=0x539)),
    "tproxy-refuse": Plan(
        ports=((1, 65535),),
        interfaces=("lan0",),
        bypass=("10.0.0.0/8", *SKIPS),
        bypass_ports=(22,),
        rest="refuse",
    ),
    "tproxy-refuse-own": Plan(
        own=True,
        forwarded=False,
        families=("ipv6",),
        exempt=Exempt(gids=(7,)),
        only=Only(mark=9, uids=(13, 14), cgroups=(17,)),
        bypass=(Skip(destination="2001:db8:2::53", ports=(53,)),),
        rest="refuse",
    ),
    "redirect-refuse-own": Plan(
        mode="redirect", own=True, only=Only(gids=(13,), cgroups=(17,)), rest="refuse"
    ),
    "redirect": Plan(mode="redirect"),
    "redirect-v6-only": Plan(mode="redirect", families=("ipv6",), bypass=("2001:db8::1",)),
    "redirect-range": Plan(mode="redirect", ports=((8000, 8010),), interfaces=("lan0",)),
    "redirect-own": Plan(mode="redirect", own=True, exempt=Exempt(mark=0x539)),
    "redirect-spoof": Plan(mode="redirect", spoof=True),
    "redirect-same-port": Plan(
        mode="redirect",
        spoof=True,
        same_port=True,
        interfaces=("lan0",),
        origin_interfaces=("wan0", "wan1"),
        zone=7,
        name="other",
        table=4294967295,
    ),
}
