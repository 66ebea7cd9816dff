"""Run seeds in the simulation, shrink the plans that fail, and show why they fail. Exit with 1 if one fails."""

import argparse
import math
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from typing import Any

from tests.command import say
from tests.consistency.history import Operation, outcome_text
from tests.simulation import regressions, survey, worker
from tests.simulation.kernel import START
from tests.simulation.plan import Plan, PlanError, plan_of
from tests.simulation.regressions import RegressionsError
from tests.simulation.run import Outcome
from tests.simulation.survey import Found
from tests.simulation.worker import Result

MOST_UNDECIDED = 0.01  # of all histories
CHUNK = 10  # seeds that a process is given at once
LINE_EVERY = 60.0  # seconds
MOST_SHOWN = 5  # failures that are shrunk and shown; of the others only the seed is named
NAME_WIDTH = 34


# What each way of running takes, and its defaults; the way is named by the first of its options, or it runs seeds.
DEFAULTS: dict[str, dict[str, Any]] = {
    "plan": {"plan": None, "fault": None},
    "regressions": {"regressions": True, "write": False},
    "defects": {"defects": True, "seeds": 2000, "first": 1, "jobs": 1},
    "seeds": {
        "seeds": 1000,
        "first": 1,
        "jobs": 1,
        "twice": 100,
        "fault": None,
        "until_found": False,
        "no_shrink": False,
    },
}


def main(arguments: list[str] | None = None) -> int:
    way, options = _options(arguments)
    match way:
        case "plan":
            return _run_plan(options)
        case "regressions":
            return _write_regressions() if options.write else _run_regressions()
        case "defects":
            return _show_defects(options)
        case _:
            return _run_seeds(options)


def _options(arguments: list[str] | None) -> tuple[str, argparse.Namespace]:
    """Return the way of running, and its options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--seeds", type=_count, help="how many (default: 1000; 2000 with --defects)")
    parser.add_argument("--first", type=_seed, help="the first seed (default: 1)")
    parser.add_argument("--jobs", type=_count, help="processes (default: 1)")
    parser.add_argument("--twice", type=_count, metavar="N", help="run every Nth seed twice (default: 100)")
    parser.add_argument("--fault", choices=worker.faults(), metavar="DEFECT", help="put this defect into the product")
    parser.add_argument("--until-found", action="store_true", help="end at the first failure")
    parser.add_argument("--no-shrink", action="store_true", help="show the plans that fail as they are")
    parser.add_argument("--plan", type=_plan, help="run this plan, or the plan of this seed, and show its trace")
    parser.add_argument("--regressions", action="store_true", help="run the plans that once failed")
    parser.add_argument("--write", action="store_true", help="with --regressions: look for the plans again")
    parser.add_argument("--defects", action="store_true", help="show for each defect the first seed that finds it")
    given = vars(parser.parse_args(arguments))
    way = next((name for name in DEFAULTS if name in given), "seeds")
    if wrong := [name for name in given if name not in DEFAULTS[way]]:
        reason = "without argument --regressions" if way == "seeds" else f"with argument --{way}"
        parser.error(f"argument --{wrong[0].replace('_', '-')}: not allowed {reason}")
    return way, argparse.Namespace(**DEFAULTS[way] | given)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed: a seed is a number from 0 on")
    return int(text)


def _plan(text: str) -> Plan:
    if text.isdecimal():
        return plan_of(int(text))
    try:
        return Plan.from_json(text)
    except PlanError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run_plan(options: argparse.Namespace) -> int:
    worker.set_up(options.fault)
    outcome = worker.run(options.plan, keep_trace=True)
    say(*_explain(outcome), f"digest {outcome.digest:08x}")
    return 1 if outcome.failures else 0


def _run_regressions() -> int:
    worker.set_up()
    failed = False
    try:
        for regression in regressions.read():
            problems = regression.problems()
            say(f"{'FAILED' if problems else 'passed'}: {regression.defect}", *problems)
            failed = failed or bool(problems)
    except RegressionsError as error:
        say(str(error))
        return 1
    return 1 if failed else 0


def _write_regressions() -> int:
    worker.set_up()
    try:
        for line in regressions.write():
            say(line)
    except RegressionsError as error:
        say(str(error))
        return 1
    return 0


def _show_defects(options: argparse.Namespace) -> int:
    seeds = range(options.first, options.first + options.seeds)
    are_all_found = True
    for row in survey.table(seeds, options.jobs):
        say(str(row))
        are_all_found = are_all_found and not (isinstance(row, Found) and row.seed is None)
    return 0 if are_all_found else 1


def _run_seeds(options: argparse.Namespace) -> int:
    total = Total()
    failed = list(islice(_failures(options, total), 1 if options.until_found else None))
    say(*total.table())
    if failed:
        worker.set_up(options.fault)
        for result in failed[:MOST_SHOWN]:
            _show(result, options)
        say(*(f"failed, not shown: seed {result.seed}" for result in failed[MOST_SHOWN:]))
    elif options.fault is not None and not total.reached_fault:
        say(f"no run has called anything that {options.fault} replaces: that none has failed says nothing")
        return 2
    if total.knows_too_little:
        say(f"FAILED: more than {MOST_UNDECIDED:.0%} of the histories are undecided, so that too little is known")
        return 1
    if not options.until_found:
        say(f"to go on from here: --first {options.first + options.seeds} (FIRST={options.first + options.seeds})")
    return 1 if failed else 0


class Total:
    """The results of all seeds so far, added up."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seeds = self.failed = self.twice = 0
        self.digest = 0  # of all runs; the order in which their results come makes no difference
        self.reached_fault = False
        self._started = self._last_line = time.monotonic()
        self._cpu = 0.0

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.failed += bool(result.failures)
        self.twice += result.ran_twice
        self.reached_fault = self.reached_fault or result.reached_fault
        self._cpu += result.cpu
        self.counts.update(result.counts)
        self.digest = (self.digest + zlib.crc32(f"{result.seed} {result.digest}".encode())) % 2**32
        if time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            say(
                f"{self.seeds:,} seeds, {self.failed:,} failed, {self._rate():,.0f} a minute, "
                f"{self.counts['starts']:,} starts, {self.counts['power losses']:,} power losses"
            )

    @property
    def knows_too_little(self) -> bool:
        return self.counts["histories undecided"] > MOST_UNDECIDED * self.counts["histories judged"]

    def table(self) -> Iterator[str]:
        yield _row("seeds", f"{self.seeds:,}")
        yield _row("  of these, run twice", f"{self.twice:,}")
        for name, count in self.counts.items():
            yield _row(name, f"{count:,}")
        yield _row("seeds a minute", f"{self._rate():,.0f}")
        yield _row("seeds a minute of CPU", f"{60 * self.seeds / max(self._cpu, 1e-9):,.0f}")
        yield _row("digest of all", f"{self.digest:08x}")
        yield _row("failed", f"{self.failed:,}")

    def _rate(self) -> float:
        return 60 * self.seeds / max(time.monotonic() - self._started, 1e-9)


def _row(name: str, value: str) -> str:
    return f"{name:{NAME_WIDTH}} {value:>14}"


def _failures(options: argparse.Namespace, total: Total) -> Iterator[Result]:
    """Run all seeds, and yield each that failed as soon as it is known."""
    for result in _results(options):
        total.add(result)
        if (failure := worker.finding(result.failures, options.fault)) is not None:
            say(f"FAILED seed {result.seed} ({total.seeds:,} tried): {failure[:400]}")
            yield result
        elif result.failures:
            say(f"seed {result.seed} fails, but not as {options.fault} must: {result.failures[0][:400]}")


def _results(options: argparse.Namespace) -> Iterator[Result]:
    seeds = range(options.first, options.first + options.seeds)
    chunks = iter([seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)])
    if options.jobs == 1:
        worker.set_up(options.fault)
        for chunk in chunks:
            yield from worker.run_seeds(chunk, options.twice)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, initializer=worker.set_up, initargs=(options.fault,)) as executor:
        pending: set[Future[list[Result]]] = set()
        try:
            while True:
                for chunk in islice(chunks, 2 * options.jobs - len(pending)):
                    pending.add(executor.submit(worker.run_seeds_to_list, chunk, options.twice))
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _show(result: Result, options: argparse.Namespace) -> None:
    """Shrink the plan of a failure, and say how to run it again."""
    plan, runs = plan_of(result.seed), 0
    if not options.no_shrink:
        plan, runs = worker.shrunk(plan)
    outcome = worker.run(plan, keep_trace=True)
    size = ", ".join(
        (
            _counted(plan.clients, "client"),
            _counted(len(plan.events), "trouble"),
            _counted(outcome.counts["calls"], "call"),
        )
    )
    fault = "" if options.fault is None else f" --fault {options.fault}"
    say(
        "",
        f"FAILED seed {result.seed}: {worker.finding(result.failures, options.fault)}",
        f"not shrunk: {size}:" if options.no_shrink else f"shrunk in {_counted(runs, 'run')} to {size}:",
        f"  python -m tests.simulation{fault} --plan '{plan.to_json()}'",
        *_explain(outcome),
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _explain(outcome: Outcome) -> Iterable[str]:
    yield from ("", "the trace: seconds, who, what, detail", *outcome.trace)
    if outcome.violation:
        yield from ("", f"the shortest history of {outcome.violation[0].sender} that no store could have:")
        yield "   called at  answered at  actor   call -> answer"
        yield from map(_operation_line, outcome.violation)
    yield from ("", *(outcome.failures or ["nothing failed"]))


def _operation_line(operation: Operation) -> str:
    """Return a line with the times of the trace. inf: the call may take effect at any time later, or never."""
    returned = "inf" if math.isinf(operation.returned) else f"{operation.returned - START:.6f}"
    call = f"{operation.method}({', '.join(operation.arguments)}) -> {outcome_text(operation)}"
    return f"{operation.called - START:12.6f} {returned:>12}  {operation.client:6}  {call}"


if __name__ == "__main__":
    sys.exit(main())
