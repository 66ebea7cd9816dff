"""`python -m tests.simulation`: run seeds, shrink what fails, show why. Exits 1 if anything failed."""

import argparse
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from tests.command import say
from tests.simulation import worker
from tests.simulation.plan import Plan, PlanError, plan_of
from tests.simulation.run import Outcome
from tests.simulation.worker import Result

REGRESSIONS = Path(__file__).with_name("regressions.txt")
CHUNK = 10  # seeds that a process is given at once
LINE_EVERY = 60.0  # seconds
MOST_SHOWN = 5  # failures that are shrunk and shown; of the others only the seed is named
NAME_WIDTH = 34


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.plan is not None:
        worker.set_up(options.fault)
        outcome = worker.run(options.plan, keep_trace=True)
        say(*_explain(outcome), f"digest {outcome.digest:08x}")
        return 1 if outcome.failures else 0
    if options.regressions:
        return _run_regressions()
    total = Total()
    failed = list(islice(_failures(options, total), 1 if options.until_found else None))
    say(*total.table())
    if failed:
        worker.set_up(options.fault)
        for result in failed[:MOST_SHOWN]:
            _show(result)
        say(*(f"failed, not shown: seed {result.seed}" for result in failed[MOST_SHOWN:]))
    return 1 if failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_count, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=_seed, default=1, help="the first seed (default: %(default)s)")
    parser.add_argument("--jobs", type=_count, default=1, help="processes (default: %(default)s)")
    parser.add_argument(
        "--twice", type=_count, default=100, help="one seed in so many runs twice (default: %(default)s)"
    )
    parser.add_argument("--plan", type=_plan, help="run this plan, or that of this seed, and show the trace")
    parser.add_argument("--regressions", action="store_true", help="run the plans that once failed")
    parser.add_argument("--fault", choices=worker.faults(), help="a defect to put into the product first")
    parser.add_argument("--until-found", action="store_true", help="end at the first failure")
    return parser.parse_args(arguments)


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


def _run_regressions() -> int:
    worker.set_up()
    failed = 0
    for why, plan in regressions():
        outcome = worker.run(plan)
        say(f"{'FAILED' if outcome.failures else 'passed'}: {why}", *outcome.failures)
        failed += bool(outcome.failures)
    return 1 if failed else 0


def regressions() -> Iterator[tuple[str, Plan]]:
    """Each plan that once failed, and why it did. Raises PlanError."""
    why = ""
    for line in REGRESSIONS.read_text().splitlines():
        if line.startswith("#"):
            why = line.removeprefix("# ")
        elif line:
            yield why, Plan.from_json(line)


class Total:
    """What came of all seeds so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seeds = self.failed = self.twice = 0
        self.digest = 0  # of all runs, in whichever order they came
        self._started = self._last_line = time.monotonic()
        self._cpu = 0.0

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.failed += bool(result.failures)
        self.twice += result.ran_twice
        self._cpu += result.cpu
        self.counts.update(result.counts)
        self.digest = (self.digest + zlib.crc32(f"{result.seed} {result.digest}".encode())) % 2**32
        if time.monotonic() - self._last_line >= LINE_EVERY:
            self._last_line = time.monotonic()
            say(
                f"{self.seeds:,} seeds, {self.failed:,} failed, {self._rate():,.0f} a minute, "
                f"{self.counts['starts']:,} starts, {self.counts['power losses']:,} power losses"
            )

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
        if result.failures:
            say(f"FAILED seed {result.seed} ({total.seeds:,} tried): {result.failures[0][:400]}")
            yield result


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


def _show(result: Result) -> None:
    """Shrink a failure, and say how to see it again."""
    plan, runs = worker.shrunk(plan_of(result.seed))
    outcome = worker.run(plan, keep_trace=True)
    say("", f"FAILED seed {result.seed}: {result.failures[0]}")
    calls = outcome.counts["calls"]
    say(
        f"shrunk in {runs} runs to {plan.clients} clients, {len(plan.events)} troubles, {calls} calls:",
        f"  python -m tests.simulation --plan '{plan.to_json()}'",
        *_explain(outcome),
    )


def _explain(outcome: Outcome) -> Iterable[str]:
    yield from ("", "the trace: seconds, who, what, detail", *outcome.trace)
    if outcome.violation:
        yield from ("", "the shortest history that no store could have, in ms:", *outcome.violation)
    yield from ("", *(outcome.failures or ["nothing failed"]))


if __name__ == "__main__":
    # Sets and dicts of str are iterated in the order of their hashes: it has to be the same in every process.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
