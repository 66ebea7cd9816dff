"""A process that runs seeds, one after the other."""

import gc
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import process_time
from types import FrameType
from typing import Any

from greenlet import GreenletExit

from tests.simulation import patches, shrink
from tests.simulation import run as runs
from tests.simulation.faults import FAULTS, seeded, shown
from tests.simulation.kernel import World
from tests.simulation.plan import Plan, plan_of
from tests.simulation.reductions import smaller
from tests.simulation.run import Outcome

MOST_RUNS = 600  # to shrink a plan
MOST_CPU = 30.0  # seconds that a run may take
AGAIN_AFTER = 1.0  # seconds, if something has caught what should end the run
# The name of what a coroutine does if it is dropped while it waits; its loop is gone then.
DROPPED = ("coroutine", "async_generator", "generator")


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


class Stuck(GreenletExit):  # type: ignore[misc]  # greenlet has no types
    """A run takes too long. As it is a GreenletExit, no thread of the simulation takes it for an error of its own."""


class _Worker:
    """What holds for all runs of this process."""

    is_set_up = False
    fault: str | None = None  # a defect in the product
    unraisable: list[str] = []  # noqa: RUF012  # what was raised in finalizers
    reached_fault = False  # by the last run


def faults() -> list[str]:
    return sorted(FAULTS)


def set_up(fault: str | None = None) -> None:
    """Call it before the first run."""
    if _Worker.is_set_up:
        return
    _Worker.is_set_up, _Worker.fault = True, fault
    patches.apply()
    sys.unraisablehook = _note_unraisable
    signal.signal(signal.SIGPROF, _stuck)
    gc.collect()
    gc.freeze()
    gc.disable()


def _note_unraisable(unraisable: Any) -> None:
    """Note what was raised in a finalizer, which nobody can catch.

    A run that ends drops its coroutines where they wait. What they raise then is not the product's fault: they find
    neither a loop nor a process.
    """
    error, source = unraisable.exc_value, unraisable.object
    is_dropped = type(source).__name__ in DROPPED or isinstance(error, GreenletExit)
    if not (is_dropped and (World.kernel.closing or World.kernel.current is None)):
        _Worker.unraisable.append(f"a finalizer raised {error!r} in {getattr(source, '__qualname__', type(source))}")


def _stuck(_number: int, frame: FrameType | None) -> None:
    kernel = World.kernel
    kernel.fail(f"it is stuck: it took {MOST_CPU:g} s of CPU, in\n{''.join(traceback.format_stack(frame)[-12:])}")
    raise Stuck


@contextmanager
def _limited() -> Iterator[None]:
    """Interrupt what takes too long, again and again: the product may catch it."""
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU, AGAIN_AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def run(plan: Plan, *, keep_trace: bool = False) -> Outcome:
    """Run a plan. Whatever it raises is a failure of this run."""
    _Worker.unraisable.clear()
    with nullcontext() if _Worker.fault is None else seeded(_Worker.fault) as defect, _limited():
        outcome = runs.run(plan, keep_trace=keep_trace)
    _Worker.reached_fault = defect is not None and defect.was_reached
    gc.collect()  # at no other moment: what a collection finds dead depends on when it comes
    outcome.failures += _Worker.unraisable
    return outcome


def run_seeds(seeds: Sequence[int], twice: int) -> Iterator[Result]:
    """twice: one seed in so many is run twice, to see whether both runs are the same."""
    for seed in seeds:
        plan, started = plan_of(seed), process_time()
        outcome = run(plan)
        cpu = process_time() - started
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
    """Return the smallest plan that was found to fail in the same way, and the runs that it took."""
    kinds = run(plan).kinds[:1]
    if not kinds:  # such as one that failed only because two runs were not the same
        return plan, 1

    def fails(candidate: Plan) -> bool:
        outcome = run(candidate)
        return outcome.kinds[:1] == kinds and finding(outcome.failures, _Worker.fault) is not None

    return shrink.shrink(plan, smaller, fails, MOST_RUNS)
