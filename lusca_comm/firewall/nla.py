"""What pyroute2 (0.9.7) lacks of nf_tables' attributes, beside its own classes and untouched by us.

* NFTA_FIB_RESULT is a number; pyroute2 takes it for flags.
* NFTA_SOCKET_LEVEL (5.13) is missing.
* NFTA_SET_ELEM_FLAGS can't be given by name.

The two messages derive from nfgen_msg, not from pyroute2's: a class whose parent has been used
already inherits the table of attributes that was compiled for the parent, and ignores its own.
"""

from __future__ import annotations

from typing import Any, Final

from pyroute2.netlink import nla
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWSETELEM,
    nft_chain_msg,
    nft_has_comment,
    nft_regs,
    nft_rule_msg,
    nft_set_elem_list_msg,
    nft_set_msg,
    nft_table_msg,
)


class _Rule(nfgen_msg, nft_has_comment):  # type: ignore[misc]
    prefix = nft_rule_msg.prefix
    nla_map = nft_rule_msg.nla_map

    class nft_expr(nft_rule_msg.nft_expr):  # type: ignore[misc]
        class nft_fib(nft_regs):  # type: ignore[misc]
            nla_map = (
                ("NFTA_FIB_UNSPEC", "none"),
                ("NFTA_FIB_DREG", "regs"),
                ("NFTA_FIB_RESULT", "be32"),
                ("NFTA_FIB_FLAGS", "be32"),
            )

        class nft_socket(nft_regs):  # type: ignore[misc]
            nla_map = (
                ("NFTA_SOCKET_UNSPEC", "none"),
                ("NFTA_SOCKET_KEY", "be32"),
                ("NFTA_SOCKET_DREG", "regs"),
                ("NFTA_SOCKET_LEVEL", "be32"),
            )


class _Elements(nfgen_msg):  # type: ignore[misc]
    prefix = nft_set_elem_list_msg.prefix
    nla_map = nft_set_elem_list_msg.nla_map

    class set_elem(nla):  # type: ignore[misc]
        header_type = 1  # NFTA_LIST_ELEM
        nla_map = (
            ("NFTA_SET_ELEM_UNSPEC", "none"),
            ("NFTA_SET_ELEM_KEY", "data_attributes"),
            ("NFTA_SET_ELEM_DATA", "data_attributes"),
            ("NFTA_SET_ELEM_FLAGS", "be32"),
        )
        data_attributes = nft_set_elem_list_msg.set_elem.data_attributes


MESSAGES: Final[dict[str, Any]] = {
    "table": nft_table_msg,
    "chain": nft_chain_msg,
    "rule": _Rule,
    "set": nft_set_msg,
    "setelem": _Elements,
}
"""By the last part of the message types' names: NFT_MSG_NEWTABLE and so on."""

ANSWERS: Final = {10 << 8 | NFT_MSG_NEWRULE: _Rule, 10 << 8 | NFT_MSG_NEWSETELEM: _Elements}
