"""A plan that fails is shrunk to what it takes to fail, in a bounded number of runs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest

from tests.simulation.shrink import shrink


@dataclass(frozen=True)
class Plan:
    troubles: tuple[int, ...] = ()
    calls: int = 1


def smaller(plan: Plan) -> Iterator[Plan]:
    for size in (8, 4, 2, 1):
        for start in range(0, len(plan.troubles), size):
            yield replace(plan, troubles=plan.troubles[:start] + plan.troubles[start + size :])
    if plan.calls > 1:
        yield replace(plan, calls=plan.calls // 2)
        yield replace(plan, calls=plan.calls - 1)


LARGE = Plan(tuple(range(16)), 40)


def needs(*troubles: int, calls: int = 1) -> Callable[[Plan], bool]:
    return lambda plan: set(troubles) <= set(plan.troubles) and plan.calls >= calls


@pytest.mark.parametrize("troubles", [(), (0,), (15,), (3, 4), (0, 7, 15)])
@pytest.mark.parametrize("calls", [1, 13, 40])
def test_only_what_is_needed_is_left(troubles: tuple[int, ...], calls: int) -> None:
    shrunk, runs = shrink(LARGE, smaller, needs(*troubles, calls=calls))
    assert shrunk == Plan(troubles, calls)
    assert runs < 100


def test_a_plan_of_which_nothing_can_be_left_out_stays() -> None:
    assert shrink(LARGE, smaller, lambda _: False)[0] is LARGE
    assert shrink(Plan(), smaller, lambda _: True) == (Plan(), 0)


def test_the_result_fails_although_a_plan_fails_only_by_chance() -> None:
    """Leaving one thing out shifts everything else, so that many smaller plans pass."""
    for salt, modulus in product(range(20), (2, 3, 5)):
        tried: list[Plan] = []

        def fails(plan: Plan, salt: int = salt, modulus: int = modulus, tried: list[Plan] = tried) -> bool:
            tried.append(plan)
            return (sum(plan.troubles) + plan.calls + salt) % modulus == 0

        shrunk, runs = shrink(LARGE, smaller, fails)
        assert shrunk is LARGE or fails(shrunk)
        assert not any(candidate not in tried for candidate in smaller(shrunk) if candidate != LARGE)
        assert len(set(tried[:runs])) == runs  # none is run twice


@pytest.mark.parametrize("max_runs", [0, 1, 7])
def test_the_number_of_runs_is_bounded(max_runs: int) -> None:
    ran: list[Plan] = []

    def fails(plan: Plan) -> bool:
        ran.append(plan)
        return needs(3, 11, calls=7)(plan)

    shrunk, runs = shrink(LARGE, smaller, fails, max_runs)
    assert runs == len(ran) == max_runs
    assert needs(3, 11, calls=7)(shrunk)
