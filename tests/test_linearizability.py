"""The checker of histories finds what is wrong, and nothing else (K1)."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.base import START
from tests.consistency.history import NO_STATES, Operation, apply, lines
from tests.consistency.linearizability import Undecided, linearize
from tests.consistency.shrink import shrink

M, N = "m", "n"
NEVER = math.inf


def made(method: str, *arguments: str, at: tuple[float, float], result: Any = None, answered: bool = True) -> Operation:
    return Operation("c", method, "ann", arguments, *at, answered, result)


def get(state: str, *, at: tuple[float, float], module: str = M) -> Operation:
    return made("get", module, at=at, result=state)


def put(state: str, *, at: tuple[float, float], module: str = M) -> Operation:
    return made("set", module, state, at=at)


def maybe_put(state: str, *, at: float, until: float = NEVER, module: str = M) -> Operation:
    return made("set", module, state, at=(at, until), answered=False)


def swap(expected: str, state: str, *, at: tuple[float, float], result: tuple[bool, str]) -> Operation:
    return made("compare_and_set", M, expected, state, at=at, result=result)


def maybe_swap(expected: str, state: str, *, at: float) -> Operation:
    return made("compare_and_set", M, expected, state, at=(at, NEVER), answered=False)


def put_all(state: str, *, at: tuple[float, float], count: int) -> Operation:
    return made("set_all", state, at=at, result=count)


GOOD = {
    "nothing": [],
    "one after the other": [get(START, at=(0, 1)), put("a", at=(2, 3)), get("a", at=(4, 5))],
    "a get beside a set may show either": [put("a", at=(0, 9)), get(START, at=(1, 2)), get("a", at=(3, 4))],
    "two sets at once come in any order": [
        put("a", at=(0, 5)),
        put("b", at=(0, 5)),
        get("b", at=(6, 7)),
        get("b", at=(8, 9)),
    ],
    "what got no answer may show late": [
        maybe_put("a", at=0),
        put("b", at=(1, 2)),
        get("b", at=(3, 4)),
        get("a", at=(5, 6)),
    ],
    "what got no answer may never show": [maybe_put("a", at=0), get(START, at=(1, 2)), get(START, at=(9, 10))],
    "what got no answer may take effect until then": [
        maybe_put("a", at=0, until=5),
        get(START, at=(4, 6)),
        get("a", at=(7, 8)),
    ],
    "too late for it only if it is to be seen": [maybe_put("a", at=0, until=5), get(START, at=(6, 7))],
    "before a get that comes too late for it": [
        maybe_put("b", at=0, until=2),
        put("a", at=(1, 9)),
        get("a", at=(3, 4)),
        get("a", at=(5, 6)),
    ],
    "a swap tells what was there": [
        swap(START, "a", at=(0, 1), result=(True, START)),
        swap("b", "c", at=(2, 3), result=(False, "a")),
        get("a", at=(4, 5)),
    ],
    "a swap without an answer is one, or none": [
        put("a", at=(0, 1)),
        maybe_swap("a", "b", at=2),
        get("a", at=(3, 4)),
        get("b", at=(5, 6)),
    ],
    "all that are there": [
        put("a", at=(0, 1)),
        put("b", at=(2, 3), module=N),
        put_all("c", at=(4, 5), count=2),
        get("c", at=(6, 7), module=N),
        put_all(START, at=(8, 9), count=2),
        put_all("d", at=(10, 11), count=0),
        get(START, at=(12, 13)),
    ],
}

BAD = {
    "lost": [put("a", at=(0, 1)), get(START, at=(2, 3))],
    "taken back": [put("a", at=(0, 9)), get("a", at=(1, 2)), get(START, at=(3, 4))],
    "invented": [get("x", at=(0, 1))],
    "seen before it was asked for": [get("a", at=(0, 1)), put("a", at=(2, 3))],
    "applied twice": [
        put("a", at=(0, 9)),
        get("a", at=(1, 2)),
        put("b", at=(3, 4)),
        get("b", at=(5, 6)),
        get("a", at=(7, 8)),
    ],
    "applied twice, without an answer": [
        maybe_put("a", at=0),
        get("a", at=(1, 2)),
        put("b", at=(3, 4)),
        get("b", at=(5, 6)),
        get("a", at=(7, 8)),
    ],
    "applied too late": [
        maybe_put("a", at=0, until=2),
        get(START, at=(3, 4)),
        get("a", at=(5, 6)),
    ],
    "swapped, and answered that it did not": [
        put("a", at=(0, 1)),
        swap("a", "b", at=(2, 3), result=(False, "b")),
    ],
    "swapped twice": [
        put("a", at=(0, 1)),
        swap("a", "b", at=(2, 5), result=(True, "a")),
        swap("a", "c", at=(2, 5), result=(True, "a")),
    ],
    "a wrong count": [put("a", at=(0, 1)), put_all("b", at=(2, 3), count=2)],
    "two answers swapped": [
        put("a", at=(0, 1)),
        put("b", at=(0, 1), module=N),
        get("b", at=(2, 3)),
        get("a", at=(2, 3), module=N),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    order = linearize(GOOD[name])
    assert order is not None
    assert explains(order)
    assert {operation for operation in GOOD[name] if operation.answered} <= set(order)


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    assert linearize(BAD[name]) is None


# Against the definition, over all small histories

TIMES = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda pair: (float(min(pair)), float(max(pair))))
STATES = st.sampled_from(["a", "b", START])
MODULES = st.sampled_from([M, N])
RESULTS = {
    "get": STATES,
    "set": st.none(),
    "compare_and_set": st.tuples(st.booleans(), STATES),
    "set_all": st.integers(0, 2),
}
ARGUMENTS = {
    "get": st.tuples(MODULES),
    "set": st.tuples(MODULES, STATES),
    "compare_and_set": st.tuples(MODULES, STATES, STATES),
    "set_all": st.tuples(STATES),
}


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    method = draw(st.sampled_from(sorted(RESULTS)))
    answered = method == "get" or draw(st.integers(0, 3)) > 0
    called, returned = draw(TIMES)
    result = draw(RESULTS[method]) if answered else None
    return Operation("c", method, "ann", draw(ARGUMENTS[method]), called, returned, answered, result)


@st.composite
def plausible(draw: st.DrawFn) -> list[Operation]:
    """Answers that a store gave, of which at most one was changed: else nearly all histories are wrong."""
    history, states = draw(st.lists(operations(), max_size=6)), NO_STATES
    answered = []
    for operation in sorted(history, key=lambda operation: operation.called + operation.returned):
        states, result = apply(states, operation)
        answered.append(with_result(operation, result) if operation.answered else operation)
    return answered[:-1] + [draw(st.sampled_from([operation, answered[-1]])) for operation in history[-1:]]


def with_result(operation: Operation, result: Any) -> Operation:
    return made(operation.method, *operation.arguments, at=(operation.called, operation.returned), result=result)


def by_definition(history: Sequence[Operation]) -> bool:
    """Tries all orders of all that may have taken effect."""
    needed = [operation for operation in history if operation.answered]
    others = [operation for operation in history if not operation.answered]
    return any(
        explains(order)
        for size in range(len(others) + 1)
        for chosen in itertools.combinations(others, size)
        for order in itertools.permutations([*needed, *chosen])
    )


def explains(order: Sequence[Operation]) -> bool:
    states, latest = NO_STATES, -math.inf
    for operation in order:
        latest = max(latest, operation.called)
        if operation.returned < latest:
            return False
        states, result = apply(states, operation)
        if operation.answered and result != operation.result:
            return False
    return True


@settings(max_examples=1000)
@given(st.one_of(plausible(), st.lists(operations(), max_size=4)))
def test_it_says_what_the_definition_says(history: list[Operation]) -> None:
    order = linearize(history)
    assert (order is not None) == by_definition(history)
    if order is not None:
        assert explains(order)
        assert {operation for operation in history if operation.answered} <= set(order)


def test_both_answers_are_tried() -> None:
    seen = set()

    @settings(max_examples=200, database=None, derandomize=True)
    @given(plausible())
    def look(history: list[Operation]) -> None:
        if len(history) > 2:
            seen.add(linearize(history) is not None)

    look()
    assert seen == {True, False}


# Long ones


def busy(clients: int, rounds: int) -> list[Operation]:
    """In each round all write at once and see what the last of them wrote; of every tenth no answer came."""
    history = []
    for turn in range(rounds):
        start = 10.0 * turn
        for client in range(clients):
            value, at = f"{turn}.{client}", (start, start + 4)
            lost = (turn * clients + client) % 10 == 0
            history.append(maybe_put(value, at=start) if lost else put(value, at=at))
        history += [get(f"{turn}.{clients - 1}", at=(start + 5, start + 6)) for _ in range(clients)]
    return history


def test_a_long_history_takes_no_time() -> None:
    assert linearize(busy(8, 50)) is not None


def test_a_wrong_end_of_a_long_history_is_found() -> None:
    history = [*busy(8, 20), get("0.1", at=(1000, 1001))]
    assert linearize([operation for operation in history if operation.answered]) is None


def test_what_would_take_too_long_is_not_called_good() -> None:
    with pytest.raises(Undecided, match="no answer after 10 steps"):
        linearize(busy(8, 20), max_steps=10)


# What is shown


def test_a_violation_is_shown_without_what_has_nothing_to_do_with_it() -> None:
    before = [put("x", at=(-9, -8)), get("x", at=(-7, -6)), put("y", at=(-5, -4), module=N)]
    after = [put("z", at=(20, 21)), get("z", at=(22, 23))]
    shown = shrink([*before, *BAD["applied twice"], *after])
    assert linearize(shown) is None
    assert [operation.arguments[-1] for operation in shown] == ["a", M, "b", M]


@pytest.mark.parametrize("name", BAD)
def test_what_is_shown_is_wrong(name: str) -> None:
    shown = shrink(BAD[name])
    assert linearize(shown) is None
    assert len(shown) <= len(BAD[name])


def test_lines() -> None:
    assert list(lines([get("b", at=(0.0105, 0.0125)), maybe_put("b", at=0.01)])) == [
        "     0.000 ..        inf  c      set(m, b) -> no answer",
        "     0.500 ..      2.500  c      get(m) -> b",
    ]
