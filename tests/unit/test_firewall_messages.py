"""A plan's messages as pyroute2 encodes them: nothing left out, and every difference noticed."""

from __future__ import annotations

import asyncio
import copy
import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from firewall_plans import PLANS
from hypothesis import given
from hypothesis import strategies as st

from lusca_comm.errors import CommError
from lusca_comm.firewall import Plan, apply, kernel, remove
from lusca_comm.firewall.nftables import table
from lusca_comm.firewall.nla import MESSAGES
from lusca_comm.firewall.transaction import (
    Part,
    elements,
    holds,
    listed_elements,
    parts,
    same_rules,
)

plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def decoded(part: Part) -> Any:
    """The part on its way through the kernel: encoded, and decoded anew."""
    message = MESSAGES[part.kind]()
    message["attrs"] = copy.deepcopy(part.attrs)
    message.encode()
    answer = MESSAGES[part.kind](message.data)
    answer.decode()
    return answer


@plans
def test_pyroute2_knows_every_attribute(plan: Plan) -> None:
    made = list(parts(table(plan)))
    assert all(holds(decoded(part), part.attrs) for part in made if part.kind in ("table", "chain"))
    assert same_rules(made, [decoded(part) for part in made if part.kind == "rule"])
    for name, filled in elements(made).items():
        of_set = [
            decoded(part)
            for part in made
            if part.kind == "setelem" and ("NFTA_SET_ELEM_LIST_SET", name) in part.attrs
        ]
        assert listed_elements(of_set) == filled


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a part's attributes that holds a value: its container, and the key there."""
    if isinstance(value, dict):
        yield from leaves(value["attrs"])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, tuple) and not isinstance(item[1], (dict, list)):
                yield value, index
            else:
                yield from leaves(item[1] if isinstance(item, tuple) else item)


MORE = {int: 1, str: "x", bytes: b"x"}


@given(st.sampled_from(sorted(PLANS)), st.data())
def test_another_value_anywhere_in_a_rule_is_noticed(name: str, data: st.DataObject) -> None:
    made = [part for part in parts(table(PLANS[name])) if part.kind == "rule"]
    listed = [decoded(part) for part in made]
    changed = copy.deepcopy(made)
    places = [place for part in changed for place in leaves(part.attrs)]
    where, index = data.draw(st.sampled_from(places))
    key, value = where[index]
    other = frozenset() if isinstance(value, frozenset) else value + MORE[type(value)]
    where[index] = (key, other)
    assert not same_rules(changed, listed)
    assert not same_rules(made, listed[1:])
    assert same_rules(made, listed)


def test_classes_of_pyroute2_that_were_used_before_do_no_harm() -> None:
    """A class inherits its parent's compiled table of attributes."""
    code = """
from pyroute2.netlink.nfnetlink.nftsocket import nft_rule_msg, nft_set_elem_list_msg
for used in nft_rule_msg, nft_set_elem_list_msg, nft_rule_msg.nft_expr:
    used()
import pytest
raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", "FILE", "-k", "knows_every"]))
""".replace("FILE", __file__)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("do", [apply, remove])
def test_without_pyroute2_it_says_what_to_install(do: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    with pytest.raises(CommError, match=r"pip install 'lusca-comm\[cli\]'") as caught:
        do(Plan())
    assert caught.value.errno == errno.ENOSYS


def test_a_thread_of_its_own_where_a_loop_runs() -> None:
    def inside() -> int:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return threading.get_ident()

    async def main() -> int:
        return kernel.outside_asyncio(inside)

    assert kernel.outside_asyncio(inside) == threading.get_ident()
    assert asyncio.run(main()) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(fails())


async def fails() -> None:
    kernel.outside_asyncio(lambda: 1 // 0)
