"""Effects are absolute: a second time changes nothing, and from the middle on they lead to the same end."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored.engines.base import START
from statestored.engines.states import CLEAR, PUT, Effect, States
from tests.server.models import TODAY, Model, apply, content, days, effects, small_buckets, without_empty

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


def test_what_was_cleared_is_left_to_be_freed_slowly() -> None:
    states = States()
    states.apply([(PUT, b"one", b"m", b"s%d" % number, b"A") for number in range(20)], TODAY)
    states.apply([(CLEAR, b"one")], TODAY)
    assert len(states) == 0
    assert len(states.garbage) > 5
    assert sum(map(len, states.garbage)) == 20


def test_what_changes_nothing_is_no_change() -> None:
    states = States()
    assert not states.apply([(PUT, b"one", b"m", b"ann", START), (CLEAR, b"one")], TODAY)
    assert states.apply([(PUT, b"one", b"m", b"ann", b"A")], TODAY)
    assert not states.apply([(PUT, b"one", b"m", b"ann", b"A")], TODAY + 1)
    assert states.apply([(PUT, b"one", b"m", b"ann", b"A"), (CLEAR, b"one")], TODAY)
    assert states.changes == 2
