"""Plans: what comes of a seed, what is read from JSON, and what may be left out."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation.plan import FAILING_DISKS, FULL_DISKS, Plan, PlanError, Trouble, plan_of
from tests.simulation.reductions import smaller
from tests.simulation.shrink import shrink

ROOT = Path(__file__).parents[1]
PLANS = [plan_of(seed) for seed in range(1, 200)]


def test_a_plan_is_the_same_after_it_was_written_down() -> None:
    for plan in PLANS[:20]:
        assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("senders", "[]", "the plan's senders are []: expected a list of 1 to 100 names"),
        ("senders", '"s0"', "the plan's senders are 's0': expected a list of 1 to 100 names"),
        ("methods", '["get", "put"]', "there is no 'put'"),
        ("calls", "[[1]]", "expected a list for each of the 4 clients"),
        ("calls", "[[1], [1], [1], [-1]]", "expected a list for each of the 4 clients"),
        ("calls", "7", "expected a list for each of the 4 clients"),
        ("last_outage", '"late"', "the plan's last_outage is 'late'"),
    ],
)
def test_a_plan_that_is_none_is_refused_with_the_reason(field: str, value: str, error: str) -> None:
    text = re.sub(
        rf'("{field}": )(\[\[.*?\]\]|\[.*?\]|"[^"]*")', lambda found: found[1] + value, plan_of(1).to_json(), count=1
    )
    with pytest.raises(PlanError) as raised:
        Plan.from_json(text)
    assert error in str(raised.value)


def test_troubles_fit_their_plan() -> None:
    for plan in PLANS:
        troubles = {event.trouble for event in plan.events}
        assert plan.tokens or Trouble.REVOKE_TOKEN not in troubles
        assert plan.addresses > 1 or Trouble.ADDRESS_DOWN not in troubles
        assert not (troubles & FAILING_DISKS and troubles & FULL_DISKS)


def test_each_trouble_takes_effect_within_150_seeds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seeds", "150"],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    counts = dict(re.findall(r"^  (\w+) +([\d,]+)$", done.stdout, re.MULTILINE))
    assert set(Trouble) <= counts.keys(), done.stdout + done.stderr
    assert not [trouble for trouble in Trouble if counts[trouble] == "0"]


def calls_of(plan: Plan) -> int:
    return sum(map(sum, plan.calls))


@pytest.mark.parametrize(
    ("fails", "calls", "clients"),
    [
        (lambda plan: len(plan.calls) >= 3 and plan.calls[2][1] >= 3, 3, 3),
        (lambda plan: max(map(max, plan.calls)) >= 7, 7, 1),
        (lambda plan: "s1" in plan.senders and "set_all" in plan.methods, 0, 1),
    ],
)
def test_a_plan_is_shrunk_to_the_calls_that_it_needs(fails: Callable[[Plan], bool], calls: int, clients: int) -> None:
    plan = next(plan for plan in PLANS if len(plan.senders) > 1 and calls_of(plan) == 80)
    shrunk, _ = shrink(plan, smaller, fails, 5000)
    assert (calls_of(shrunk), shrunk.clients) == (calls, clients)
    assert len(shrunk.senders) == 1
    assert len(shrunk.methods) == 1
    assert not shrunk.events


def test_every_smaller_plan_is_one() -> None:
    for plan in PLANS[:5]:
        for candidate in smaller(plan):
            assert candidate != plan
            assert Plan.from_json(candidate.to_json()) == candidate
