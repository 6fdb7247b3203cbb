"""The rules, routes and policy routing around a transparent proxy.

::

    plan = Plan(mode="tproxy", port=3129, ports=(80, 443), interfaces=("lan0",))
    print(render(plan), render_commands(plan))      # what it would do, as nft(8) and ip(8) take it
    with apply(plan):                               # in force until the end of the block
        serve()
"""

from .apply import Applied, apply, remove
from .nftables import oldest_kernel, render
from .plan import Exempt, Only, Plan, Skip
from .routing import render_commands

__all__ = [
    "Applied",
    "Exempt",
    "Only",
    "Plan",
    "Skip",
    "apply",
    "oldest_kernel",
    "remove",
    "render",
    "render_commands",
]
