"""`python -m tests.consistency`: exits 1 where a history is not linearizable, and shows why."""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.command import add_seed, add_store, say
from tests.consistency.clients import client_processes
from tests.consistency.history import lines
from tests.consistency.runs import Result, run

WIDTH = 34


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="statestored-consistency-"))
    started, results = time.monotonic(), list[Result]()
    with client_processes(options.clients) as clients:
        for number in range(1, options.runs + 1):
            seed = f"{options.seed}/{number}"
            of_run = directory / str(number)
            result = run(of_run, clients, seed=seed, operations=options.operations, fsync=options.fsync)
            results.append(result)
            if _is_bad(result):
                say(f"\nFAILED in run {number}, seed {seed}; its directory is kept: {of_run}", *_explain(result), "")
            else:
                shutil.rmtree(of_run, ignore_errors=True)
    say(*_summary(results))
    say(f"seed {options.seed}, fsync {options.fsync}, {time.monotonic() - started:.0f} seconds")
    if any(map(_is_bad, results)):
        return 1
    if options.directory is None:
        shutil.rmtree(directory)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.consistency", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--operations", type=int, default=2000, help="of each run (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="processes (default: %(default)s)")
    add_seed(parser)
    add_store(parser)
    options = parser.parse_args(arguments)
    if min(options.runs, options.clients) < 1 or options.operations < 2 * options.clients:
        parser.error("--runs and --clients must be at least 1, --operations twice the clients")
    return options


def _is_bad(result: Result) -> bool:
    return bool(result.wrong or result.faults or result.undecided)


def _explain(result: Result) -> Iterator[str]:
    yield from (f"the daemon: {fault}" for fault in result.faults)
    yield from (f"undecided: {each}" for each in result.undecided)
    if result.wrong:
        shortest = min(result.wrong, key=len)
        yield f"{len(result.wrong)} senders have a history that is not linearizable; the shortest, in ms:"
        yield from lines(shortest)


def _summary(results: list[Result]) -> Iterator[str]:
    calls = Counter(operation.method for result in results for operation in result.history if operation.answered)
    troubles = sum((result.troubles for result in results), Counter[str]())
    yield _row("runs", len(results))
    yield _row("calls", sum(len(result.history) + result.refused for result in results))
    for method, count in sorted(calls.items()):
        yield _row(f"  {method}, answered", count)
    yield _row("  without an answer", sum(not each.answered for result in results for each in result.history))
    yield _row("  refused", sum(result.refused for result in results))
    for name, count in sorted(troubles.items()):
        yield _row(f"trouble: {name.replace('_', ' ')}", count)
    yield _row("histories undecided", sum(len(result.undecided) for result in results))
    yield _row("faults of the daemon", sum(len(result.faults) for result in results))
    yield _row("histories not linearizable", sum(len(result.wrong) for result in results))


def _row(name: str, count: int) -> str:
    return f"{name:{WIDTH}}{count:>12,}"


if __name__ == "__main__":
    sys.exit(main())
