"""What is refused where the store is full, and what never is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.base import Limits
from statestore.errors import Full
from statestored.engines.quota import Quota
from statestored.engines.states import PUT, States
from statestored.engines.table import entry_memory, sender_memory
from tests.server.models import TODAY

SMALL = Limits(module=10, sender=10, state=10)


def puts(*triples: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [(PUT, b"n", *triple) for triple in triples]


def states_of(*triples: tuple[Any, ...]) -> States:
    states = States()
    states.table(b"n")
    if triples:
        states.apply(puts(*triples), TODAY)
    return states


def is_refused(quota: Quota, states: States, *triples: tuple[Any, ...]) -> bool:
    try:
        quota.check(states, states.table(b"n"), puts(*triples))
    except Full:
        return True
    return False


FULL = Quota.of(SMALL, 0, 100)


def test_without_room_nothing_new_is_stored() -> None:
    """L5."""
    states = states_of((b"m", b"ann", b"A"))
    assert is_refused(FULL, states, (b"m", b"ben", b"A"))
    assert is_refused(FULL, states, (b"m", b"ann", b"B"), (b"other", b"ann", b"A"))
    assert is_refused(FULL, states, (b"m", None, b"A"))


def test_without_room_what_is_there_can_be_changed_and_removed() -> None:
    """L5."""
    states = states_of((b"m", b"ann", b"A"), (b"m", None, b"A"), (b"m", b"ben", b"B"))
    for state in (b"A", b"B", b"START"):
        assert not is_refused(FULL, states, (b"m", b"ann", state), (b"m", None, state))
    assert not is_refused(FULL, states, (b"m", b"nobody", b"START"))
    assert not is_refused(FULL, states)


def test_without_room_a_state_that_nobody_has_takes_the_place_of_one_that_nobody_else_has() -> None:
    """L5: each would have to be kept."""
    states = states_of((b"m", b"ann", b"A"), (b"m", None, b"A"), (b"m", b"ben", b"BB"), (b"n", b"ann", b"C"))
    assert not is_refused(FULL, states, (b"m", b"ben", b"DD"))
    assert is_refused(FULL, states, (b"m", b"ben", b"DDD"))
    assert is_refused(FULL, states, (b"m", b"ann", b"D"))
    assert is_refused(FULL, states, (b"m", b"ann", b"C"))  # another module's
    assert is_refused(FULL, states, (b"m", b"ben", b"DD"), (b"m", b"ann", b"BB"))  # it is not rid of that state


def test_a_full_store_has_some_room_for_new_states_and_none_for_entries() -> None:
    """L5."""
    states = states_of(*[(b"m", b"s%d" % number, b"A") for number in range(1000)])
    quota = Quota.of(SMALL, states.memory, 100)
    for number in range(1000):
        assert is_refused(quota, states, (b"m", b"ann", b"A"))
        if is_refused(quota, states, (b"m", b"s%d" % number, b"B%d" % number)):
            break
        states.apply(puts((b"m", b"s%d" % number, b"B%d" % number)), TODAY)
    assert 10 < number < 30
    assert quota.memory < states.memory <= quota.memory + quota.memory // 16
    assert not is_refused(quota, states, *[(b"m", b"s%d" % number, b"B1") for number in range(1000)])


def test_a_call_that_would_not_fit_as_a_whole_is_refused_as_a_whole() -> None:
    one = entry_memory(b"m", b"s0", b"A")
    states = states_of()
    three = [(b"m", b"s%d" % number, b"A") for number in range(3)]
    assert not is_refused(Quota.of(SMALL, 3 * one, 100), states, *three)
    assert is_refused(Quota.of(SMALL, one, 100), states, *three)
    assert not is_refused(Quota.of(SMALL, one, 100), states, *[three[0]] * 50)  # it is one entry


@given(
    stored=st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from([b"x", None]), st.binary(max_size=3))),
    asked=st.lists(
        st.tuples(st.binary(max_size=2), st.sampled_from([b"x", b"y", None]), st.binary(max_size=3)), max_size=9
    ),
    memory=st.integers(0, 5000),
    modules=st.integers(1, 5),
)
def test_what_is_let_in_stays_within_the_quota(stored: Any, asked: Any, memory: int, modules: int) -> None:
    states = states_of(*stored)
    before, most = states.memory, states.table(b"n").most_modules
    quota = Quota.of(SMALL, memory, modules)
    if is_refused(quota, states, *asked):
        assert any(states.table(b"n").get(module, sender) != state for module, sender, state in asked)
        return
    count = len(states)
    if asked:
        states.apply(puts(*asked), TODAY)
    assert states.memory <= max(before, memory if len(states) > count else memory + memory // 16)
    assert states.table(b"n").most_modules <= max(most, modules)


def test_a_sender_has_no_more_modules_than_allowed() -> None:
    """L1."""
    quota = Quota(modules=3)
    states = states_of((b"a", b"ann", b"A"), (b"b", b"ann", b"A"))
    assert not is_refused(quota, states, (b"c", b"ann", b"A"))
    assert is_refused(quota, states, (b"c", b"ann", b"A"), (b"d", b"ann", b"A"))
    assert not is_refused(quota, states, *[(b"c", b"s%d" % number, b"A") for number in range(10)])
    states.apply(puts((b"c", b"ann", b"A")), TODAY)
    assert is_refused(quota, states, (b"d", b"ann", b"A"))
    assert not is_refused(quota, states, (b"a", b"ann", b"B"), (b"d", b"ann", b"START"), (b"d", b"ben", b"A"))


def test_removing_makes_room_and_taking_that_back_takes_it() -> None:
    states = states_of((b"m", b"ann", b"A"))
    states.cut()
    states.settle()
    full = states.memory
    quota = Quota.of(SMALL, full + sender_memory(b"ben", 1) - 1, 100)
    assert is_refused(quota, states, (b"m", b"ben", b"A"))
    states.apply(puts((b"m", b"ann", b"START")), TODAY)
    assert states.memory == 0
    assert not is_refused(quota, states, (b"m", b"ben", b"A"))
    states.revert()
    assert states.memory == full


def test_refusals_name_no_sender() -> None:
    with pytest.raises(Full) as refusal:
        FULL.check(states_of(), states_of().table(b"n"), puts((b"lists", b"ann@example.org", b"A")))
    assert "ann" not in str(refusal.value)
