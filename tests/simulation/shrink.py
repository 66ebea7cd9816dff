"""Find the smallest plan that still fails."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

MAX_RUNS = 300
Plan = TypeVar("Plan", bound=Hashable)


def shrink(
    plan: Plan, smaller: Callable[[Plan], Iterable[Plan]], fails: Callable[[Plan], bool], max_runs: int = MAX_RUNS
) -> tuple[Plan, int]:
    """Replace a plan that fails by a smaller one that fails, until there is none, or for `max_runs` runs.

    Args:
        smaller: Returns smaller plans, the boldest first, in about the same order for similar plans.
        fails: Runs a plan, and returns whether it fails in the same way. It is called once for each plan.

    Returns:
        The smallest plan found that fails, and the number of runs.
    """
    tried = {plan}
    candidates = list(smaller(plan))
    runs = position = rejected = 0
    while rejected < len(candidates) and runs < max_runs:
        candidate = candidates[position % len(candidates)]
        if candidate not in tried:
            tried.add(candidate)
            runs += 1
            if fails(candidate):
                plan, rejected = candidate, 0
                candidates = list(smaller(plan))
                # Go on at the same position: what was rejected for the larger plan is most likely needed here, too.
                continue
        position += 1
        rejected += 1
    return plan, runs
