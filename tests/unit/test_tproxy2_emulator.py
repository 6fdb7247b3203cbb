"""The emulated cttproxy: its state machine, the packets' elements, and the seccomp filter."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from typing import Any

import pytest
from emulators.tproxy2 import kernel, nat, seccomp
from emulators.tproxy2.cases import CASES, FOREIGN, Step
from emulators.tproxy2.kernel import NOWHERE, Kernel, Socket
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

# -- the answers --------------------------------------------------------------------------------


class Pretended:
    """Sockets by name, without a system."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.sockets: dict[str, Socket] = {}

    def do(self, step: Step) -> int | bytes:
        sock = self.sockets.get(step.who)
        if step.what == "open":
            self.sockets[step.who] = Socket(1 + len(self.sockets), step.argument)
            return 0
        assert sock is not None
        if step.what == "set":
            return self.kernel.setsockopt(sock, True, step.argument)
        if step.what == "get":
            answer = self.kernel.getsockopt(sock, step.argument)
            return answer.code or answer.data + step.argument[len(answer.data) :]
        if step.what == "close":
            self.kernel.closed(sock.cookie)
        elif step.what == "bind":
            sock = replace(sock, local=(step.argument, 40000 + sock.cookie))
        elif step.what == "reuse":
            sock = replace(sock, reuse=True)
        elif step.what == "connect":
            sock = replace(sock, connected=True, remote=self.sockets[step.argument].local)
        self.sockets[step.who] = sock
        return 0


@pytest.mark.parametrize("name", CASES)
def test_answers(name: str) -> None:
    system = Pretended()
    for step in CASES[name]:
        assert system.do(step) == step.answer, step


def test_the_capability_is_asked_for_first_and_by_assign_alone() -> None:
    machine, sock = Kernel(), Socket(1, "tcp")
    take = kernel.address(kernel.ASSIGN, *FOREIGN)
    assert machine.setsockopt(sock, False, take) == errno.EPERM
    sock = replace(sock, local=("192.0.2.1", 4000))
    assert machine.setsockopt(sock, False, take) == errno.EPERM
    assert machine.setsockopt(sock, True, take) == 0
    for op in (kernel.FLAGS, kernel.CONNECT, kernel.UNASSIGN):
        assert machine.setsockopt(sock, False, kernel.number(op)) == 0


def test_ports_run_out() -> None:
    machine = Kernel(ports=range(5000, 5003))
    codes = []
    for number in range(4):
        sock = Socket(number, "tcp", ("192.0.2.1", 4000 + number))
        machine.setsockopt(sock, True, kernel.address(kernel.ASSIGN, FOREIGN[0], 0))
        codes.append(machine.setsockopt(sock, True, kernel.number(kernel.ALLOC)))
    assert codes == [0, 0, 0, errno.EFAULT]
    ports = [one.foreign[1] for one in machine.assignments.values()]
    assert ports == [5000, 5001, 5002, 0]


def test_the_port_that_nat_chose_stays() -> None:
    chosen: list[int | None] = [None, 61001, None]
    machine = Kernel(chosen=lambda key: chosen.pop(0))
    sock = Socket(1, "tcp", ("192.0.2.1", 4000))
    machine.setsockopt(sock, True, kernel.address(kernel.ASSIGN, FOREIGN[0], 0))
    machine.setsockopt(sock, True, kernel.number(kernel.FLAGS, kernel.ITP_CONNECT))
    told = [machine.getsockopt(sock, kernel.address(kernel.QUERY)).data for _ in range(3)]
    assert [kernel.address_in(data)[1] for data in told] == [0, 61001, 61001]


def test_a_connection_of_a_listener_finds_its_assignment_and_leaves_it() -> None:
    machine = Kernel()
    listener = Socket(1, "tcp", ("192.0.2.1", 4000))
    machine.setsockopt(listener, True, kernel.address(kernel.ASSIGN, *FOREIGN))
    machine.setsockopt(listener, True, kernel.number(kernel.FLAGS, kernel.ITP_LISTEN))
    accepted = replace(listener, cookie=2, remote=("198.51.100.2", 999), connected=True)
    ask = kernel.address(kernel.QUERY)
    assert kernel.address_in(machine.getsockopt(accepted, ask).data) == FOREIGN
    assert machine.setsockopt(accepted, True, kernel.number(kernel.UNASSIGN)) == 0
    machine.closed(2)
    assert machine.getsockopt(listener, ask).code == 0


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_conntrack_forgets_datagrams_alone(protocol: str) -> None:
    forgotten: list[Any] = []
    machine = Kernel(forget=forgotten.append)
    sock = Socket(1, protocol, ("192.0.2.1", 4000))
    machine.setsockopt(sock, True, kernel.address(kernel.ASSIGN, *FOREIGN))
    machine.setsockopt(sock, True, kernel.number(kernel.FLAGS, kernel.ITP_CONNECT))
    machine.setsockopt(sock, True, kernel.number(kernel.UNASSIGN))
    assert forgotten == ([("udp", sock.local)] * 2 if protocol == "udp" else [])


# -- any order of calls -------------------------------------------------------------------------

HOSTS = st.sampled_from(["0.0.0.0", "203.0.113.7", "203.0.113.8"])
PORTS = st.integers(0, 3)


class AnyOrder(RuleBasedStateMachine):
    """What holds whatever a program does."""

    sockets = Bundle("sockets")

    def __init__(self) -> None:
        super().__init__()
        self.machine = Kernel(ports=range(1, 4))
        self.count = 0
        self.open: set[int] = set()

    @rule(
        target=sockets,
        protocol=st.sampled_from(["tcp", "udp"]),
        port=st.integers(4000, 4004),
        reuse=st.booleans(),
    )
    def new(self, protocol: str, port: int, reuse: bool) -> Socket:
        self.count += 1
        self.open.add(self.count)
        return Socket(self.count, protocol, ("192.0.2.1", port), reuse=reuse)

    @rule(sock=sockets, op=st.integers(0, 8), host=HOSTS, port=PORTS, may=st.booleans())
    def with_address(self, sock: Socket, op: int, host: str, port: int, may: bool) -> None:
        if sock.cookie in self.open:
            self.machine.setsockopt(sock, may, kernel.address(op, host, port))

    @rule(sock=sockets, op=st.integers(0, 8), value=st.sampled_from([0, 1, 2, 4, 0x80002, 7]))
    def with_number(self, sock: Socket, op: int, value: int) -> None:
        if sock.cookie in self.open:
            self.machine.setsockopt(sock, True, kernel.number(op, value))

    @rule(sock=sockets)
    def close(self, sock: Socket) -> None:
        self.open.discard(sock.cookie)
        self.machine.closed(sock.cookie)

    @rule(sock=sockets, data=st.binary(max_size=20))
    def anything(self, sock: Socket, data: bytes) -> None:
        answer = self.machine.getsockopt(sock, data)
        assert len(answer.data) == (len(data) if len(data) < 8 else min(len(data), 12))

    @invariant()
    def nothing_outlives_its_socket(self) -> None:
        for one in self.machine.assignments.values():
            assert one.sockets
            assert one.sockets <= self.open

    @invariant()
    def no_map_has_two_values_for_a_key(self) -> None:
        elements = nat.elements(self.machine.assignments.values())
        keys = [(name, text.partition(" : ")[0]) for name, text in elements]
        assert len(set(keys)) == len(keys)

    @invariant()
    def no_two_can_make_the_same_connection(self) -> None:
        reserved = [
            (one.protocol, one.foreign, one.reserved)
            for one in self.machine.assignments.values()
            if one.reserved is not None
        ]
        assert len(set(reserved)) == len(reserved)
        for protocol, foreign, remote in reserved:
            if remote == NOWHERE:
                assert [r[:2] for r in reserved].count((protocol, foreign)) == 1


TestAnyOrder = AnyOrder.TestCase


# -- the filter ---------------------------------------------------------------------------------


def verdict(program: list[seccomp.Instruction], number: int, arch: int, *args: int) -> int:
    """The program run on a ``struct seccomp_data``, as the kernel does."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    accumulator, place = 0, 0
    while True:
        code, if_true, if_false, k = program[place]
        place += 1
        if code == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == seccomp.JUMP_EQUAL:
            place += if_true if accumulator == k else if_false
        else:
            assert code == seccomp.RETURN
            return k


@pytest.mark.parametrize("name", seccomp.MACHINES)
@pytest.mark.parametrize("options", [range(11274, 11275), range(20, 26)], ids=str)
def test_the_filter_takes_these_options_and_nothing_else(name: str, options: range) -> None:
    machine = seccomp.MACHINES[name]
    program = seccomp.program(machine, 0, options, seccomp.ASK)
    for number in (machine.setsockopt, machine.getsockopt):
        for option in options:
            assert verdict(program, number, machine.audit, 3, 0, option) == seccomp.ASK
            # the upper half of a register with an int in it is anything
            wide = (3 | 7 << 32, 1 << 32, option | 5 << 32)
            assert verdict(program, number, machine.audit, *wide) == seccomp.ASK
            assert verdict(program, number, machine.audit, 3, 1, option) == seccomp.ALLOW
            assert verdict(program, number, 0x40000003, 3, 0, option) == seccomp.ALLOW
        for option in (0, options.start - 1, options.stop):
            assert verdict(program, number, machine.audit, 3, 0, option) == seccomp.ALLOW
    for number in set(range(460)) - {machine.setsockopt, machine.getsockopt}:
        assert verdict(program, number, machine.audit, 3, 0, options[0]) == seccomp.ALLOW
