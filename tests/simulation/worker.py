"""A process that runs seeds, one after the other."""

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from tests.simulation import patches, shrink
from tests.simulation import run as runs
from tests.simulation.faults import FAULTS, seeded, shown
from tests.simulation.plan import Plan, plan_of, smaller
from tests.simulation.run import Outcome

MOST_RUNS = 600  # to shrink a plan


@dataclass(frozen=True, slots=True)
class Result:
    """Of one seed. cpu: the seconds that its first run took. reached_fault: it has called what the defect replaces."""

    seed: int
    failures: list[str]
    counts: dict[str, int]
    digest: int
    ran_twice: bool
    cpu: float
    reached_fault: bool


class _Worker:
    """What holds for all runs of this process."""

    is_set_up = False
    fault: str | None = None  # a defect in the product
    reached_fault = False  # by the last run


def faults() -> list[str]:
    return sorted(FAULTS)


def set_up(fault: str | None = None) -> None:
    """Call it before the first run."""
    if _Worker.is_set_up:
        return
    _Worker.is_set_up, _Worker.fault = True, fault
    patches.apply()
    sys.unraisablehook = lambda _: None  # coroutines are dropped with their loop
    gc.collect()
    gc.freeze()
    gc.disable()


def run(plan: Plan, *, keep_trace: bool = False) -> Outcome:
    with nullcontext() if _Worker.fault is None else seeded(_Worker.fault) as defect:
        outcome = runs.run(plan, keep_trace=keep_trace)
    _Worker.reached_fault = defect is not None and defect.was_reached
    gc.collect()  # at no other moment: what a collection finds dead depends on when it comes
    return outcome


def run_seeds(seeds: Sequence[int], twice: int) -> Iterator[Result]:
    """twice: one seed in so many is run twice, to see whether both runs are the same."""
    for seed in seeds:
        plan, started = plan_of(seed), time.process_time()
        outcome = run(plan)
        cpu = time.process_time() - started
        failures, ran_twice = outcome.failures, seed % twice == 0
        if ran_twice and (again := run(plan).digest) != outcome.digest:
            failures = [*failures, f"two runs are not the same: digests {outcome.digest:08x} and {again:08x}"]
        yield Result(seed, failures, outcome.counts, outcome.digest, ran_twice, cpu, _Worker.reached_fault)


def run_seeds_to_list(seeds: Sequence[int], twice: int) -> list[Result]:
    return list(run_seeds(seeds, twice))


def finding(failures: list[str], fault: str | None) -> str | None:
    """Return the first failure, or with a defect in the product the first that this must show. None: there is none."""
    return next(iter(failures), None) if fault is None else shown(fault, failures)


def shrunk(plan: Plan) -> tuple[Plan, int]:
    """Return the smallest plan that was found to fail as well, and the runs that it took."""

    def fails(candidate: Plan) -> bool:
        return finding(run(candidate).failures, _Worker.fault) is not None

    return shrink.shrink(plan, smaller, fails, MOST_RUNS)
