"""The history of a simulated run: calls as operations of one sender each."""

from dataclasses import replace
from unittest.mock import ANY

import pytest

from statestore.base import START, Entry
from tests.simulation.history import OTHER_SENDERS, Call, History, large_pairs, operations_of
from tests.simulation.kernel import Kernel
from tests.simulation.plan import Event, Plan, Trouble, plan_of

SENDERS = ["s0", "s1"]
SWAP = Call("compare_and_set", "s0", ("a", "x", "y"))
PLAN = replace(plan_of(1), senders=("s0", "s1"), cold=False, latency=0.002, events=(Event(0.5, Trouble.FULL_DISK, 1),))


@pytest.mark.parametrize(
    ("call", "result", "operations"),
    [
        (Call("get", "s0", ("a",)), "x", [("s0", "get", ("a",), "x")]),
        (Call("get_many", "s0", ("a", "b")), ["x", "y"], [("s0", "get", ("a",), "x"), ("s0", "get", ("b",), "y")]),
        (Call("set_many", "s1", ("x", "y")), None, [("s1", "set", ("a", "x"), None), ("s1", "set", ("b", "y"), None)]),
        (Call("clear"), None, [("s0", "set_all", (START,), ANY), ("s1", "set_all", (START,), ANY)]),
        (Call("scan"), [Entry("a", "s1", "x", 1), Entry("a", "other3", "y", 1)], [("s1", "get", ("a",), "x")]),
        (Call("count"), 7, []),
        (SWAP, [True, "x"], [("s0", "compare_and_set", ("a", "x", "y"), (True, "x"))]),
    ],
)
def test_a_call_is_an_operation_for_each_entry_of_a_checked_sender(
    call: Call, result: object, operations: list[object]
) -> None:
    assert list(operations_of(call, result, SENDERS, answered=True)) == operations


def test_of_a_large_call_only_the_checked_senders_count() -> None:
    assert len(large_pairs(SENDERS)) == 2 * (2 + OTHER_SENDERS)
    written = list(operations_of(Call("set_many_large", "", ("x.1",)), None, SENDERS, answered=True))
    assert [(sender, arguments) for sender, _, arguments, _ in written] == [
        ("s0", ("a", "x.1a")),
        ("s0", ("b", "x.1b")),
        ("s1", ("a", "x.1a")),
        ("s1", ("b", "x.1b")),
    ]


def test_the_first_trouble_counts_from_the_first_client_and_a_cold_start_or_a_slow_network_is_one() -> None:
    kernel = Kernel("test")
    history, cold, slow = (History(kernel, replace(PLAN, **more)) for more in ({}, {"cold": True}, {"latency": 0.02}))
    began = kernel.now
    for each in (history, cold, slow):
        each.clients_began()
    kernel.now += 3.0
    history.clients_began()
    assert (history.first_trouble_at, cold.first_trouble_at, slow.first_trouble_at) == (began + 0.5, 0.0, 0.0)


def test_it_knows_until_when_writes_without_an_answer_may_be_carried_out() -> None:
    history = History(Kernel("test"), PLAN)
    history.add("0x", Call("set", "s0", ("a", "x")), 1.0, 6.0, answered=False, result=None)
    history.add("0x", Call("set", "s0", ("a", "y")), 2.0, 9.0, answered=True, result=None)
    assert history.writes_end_at == 6.0


@pytest.mark.parametrize(
    ("plan", "are_safe"),
    [
        (replace(PLAN, fsync="always", max_sessions=10_000, session_lifetime=3600.0), True),
        (replace(PLAN, fsync="everysec", max_sessions=10_000, session_lifetime=3600.0), False),
        (replace(PLAN, fsync="always", max_sessions=6, session_lifetime=3600.0), False),
        (replace(PLAN, fsync="always", max_sessions=10_000, session_lifetime=2.0), False),
    ],
)
def test_sessions_are_safe_if_they_neither_expire_nor_go_with_an_unsynced_write(plan: Plan, are_safe: bool) -> None:
    assert History(Kernel("test"), plan).are_sessions_safe is are_safe
