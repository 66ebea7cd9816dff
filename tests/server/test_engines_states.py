"""Effects are absolute: a second time changes nothing, and from the middle on they lead to the same end."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored.engines.base import START
from statestored.engines.sessions import DONE, EXPIRED, OPENED
from statestored.engines.states import CLEAR, PUT, Effect, States
from tests.server.models import TODAY, Model, apply, content, days, effects, remembered, small_buckets, without_empty

Commits = list[tuple[int, Sequence[Effect]]]

# As commits are: the day never goes back.
commits = st.lists(st.tuples(days, st.lists(effects, max_size=5)), max_size=30).map(
    lambda commits: sorted(commits, key=lambda commit: commit[0])
)


@pytest.fixture(scope="module", autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets():
        yield


def apply_all(states: States, commits: Commits) -> None:
    for day, some in commits:
        states.apply(some, day)


@given(commits=commits)
def test_effects_do_to_states_what_they_do_to_dicts(commits: Commits) -> None:
    states, models = States(), dict[bytes, Model]()
    apply_all(states, commits)
    changes = sum(apply(models, effect, day) for day, some in commits for effect in some)
    assert content(states) == without_empty(models)
    assert len(states) == sum(map(len, models.values()))
    assert states.changes == changes


@given(commits=commits, data=st.data())
def test_applying_effects_to_what_has_some_of_them_changes_nothing(commits: Commits, data: st.DataObject) -> None:
    """What makes a fuzzy snapshot right."""
    once, twice = States(), States()
    apply_all(once, commits)
    apply_all(twice, commits[: data.draw(st.integers(0, len(commits)))])
    apply_all(twice, commits)
    assert content(twice) == content(once)


def test_namespaces_are_apart() -> None:
    states = States()
    states.apply([(PUT, b"one", b"m", b"ann", b"A"), (PUT, b"two", b"m", b"ann", b"B"), (CLEAR, b"one")], TODAY)
    assert content(states) == {b"two": {(b"m", b"ann"): (b"B", TODAY)}}


steps = st.lists(st.one_of(commits, st.sampled_from(["cut", "settle", "revert"])), max_size=15)


@given(steps=steps)
def test_all_that_is_not_settled_is_taken_back(steps: list[Commits | str]) -> None:
    """In namespaces that some steps have to do with, and others have not."""
    states, models, settled = States(), dict[bytes, Model](), dict[bytes, Model]()
    at_cut: dict[bytes, Model] | None = None
    for step in steps:
        if step == "cut" and at_cut is None:
            states.cut()
            at_cut = copy.deepcopy(models)
        elif step == "settle" and at_cut is not None:
            states.settle()
            settled, at_cut = at_cut, None
        elif step == "revert":
            states.revert()
            models, at_cut = copy.deepcopy(settled), None
            assert not any(table.unsettled for table in states.tables.values())
        elif not isinstance(step, str):
            apply_all(states, step)
            for day, some in step:
                for effect in some:
                    apply(models, effect, day)
        assert content(states) == without_empty(models)
        assert len(states) == sum(map(len, models.values()))
    states.revert()
    assert content(states) == without_empty(settled)


def settle(states: States) -> None:
    states.cut()
    states.settle()


def test_what_was_cleared_is_left_to_be_freed_slowly_once_that_is_settled() -> None:
    states = States()
    states.apply([(PUT, b"one", b"m", b"s%d" % number, b"A") for number in range(20)], TODAY)
    states.apply([(CLEAR, b"one")], TODAY)
    assert len(states) == 0
    states.cut()
    assert states.garbage == []
    states.settle()
    assert len(states.garbage) > 5
    assert sum(map(len, states.garbage)) == 20


def test_what_was_cleared_is_freed_in_the_order_of_the_commits() -> None:
    states, names = States(), [b"namespace%d" % number for number in range(50)]
    for name in names:
        states.apply([(PUT, name, b"m", name, b"A")], TODAY)
    settle(states)
    for name in reversed(names):
        states.apply([(CLEAR, name)], TODAY)
    settle(states)
    assert [sender for bucket in states.garbage for sender in bucket] == names[::-1]


def test_what_was_cleared_is_no_garbage_where_that_is_taken_back() -> None:
    states = States()
    states.apply([(PUT, b"one", b"m", b"s%d" % number, b"A") for number in range(20)], TODAY)
    settle(states)
    states.apply([(CLEAR, b"one")], TODAY)
    states.revert()
    settle(states)
    assert states.garbage == []
    assert len(states) == 20


def test_an_effect_of_no_known_kind_is_refused() -> None:
    unknown: Any = (6, 1)
    with pytest.raises(ValueError, match="kind 6"):
        States().apply([unknown], TODAY)


def test_states_and_sessions_are_taken_back_together() -> None:
    states = States()
    states.apply([(OPENED, 7), (PUT, b"one", b"m", b"ann", b"A"), (DONE, 7, 1, 1, b"A")], TODAY)
    settle(states)
    states.apply([(PUT, b"one", b"m", b"ann", b"B"), (DONE, 7, 2, 1, b"B")], TODAY)
    states.cut()
    states.apply([(DONE, 7, 3, 1, b"C"), (EXPIRED, 7), (OPENED, 8)], TODAY)
    assert states.changes == 8
    states.revert()
    assert remembered(states.sessions) == {7: (1, {1: (b"A", None)})}
    assert states.table(b"one").get(b"m", b"ann") == b"A"
    settle(states)
    states.revert()
    assert remembered(states.sessions) == {7: (1, {1: (b"A", None)})}


def test_what_changes_nothing_is_no_change() -> None:
    states = States()
    assert not states.apply([(PUT, b"one", b"m", b"ann", START), (CLEAR, b"one")], TODAY)
    assert states.apply([(PUT, b"one", b"m", b"ann", b"A")], TODAY)
    assert not states.apply([(PUT, b"one", b"m", b"ann", b"A")], TODAY + 1)
    assert states.apply([(PUT, b"one", b"m", b"ann", b"A"), (CLEAR, b"one")], TODAY)
    assert states.changes == 2
