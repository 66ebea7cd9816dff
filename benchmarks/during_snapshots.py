"""Latency and memory while a snapshot is written, of statestored and of Redis, which rewrites its AOF by a fork.

The load is closed: a connection asks again when it has its answer. Many connections would then measure how long a
request waits behind the others, snapshot or not: the gets come on 4, and on one, whose slowest get is the longest
pause of the server as seen from outside. The sets come on 50, for they wait for the disk and share its syncs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.asking import connected
from benchmarks.filling import copy_of_filled
from benchmarks.load import Load
from benchmarks.memory import Usage
from benchmarks.persistence import KINDS, SNAPSHOT_SECONDS, Kind
from benchmarks.prebuilt import senders
from benchmarks.side_by_side import Case, Contender, latency
from benchmarks.tables import table

SETS = Case("set", connections=50)
CASES = (SETS, Case("get", connections=4), Case("get", connections=1))  # the memory is that of a fresh process
KEYS = 100_000  # of the senders, spread over all of them
NOTE = (
    "What is answered is on the disk, in both. A connection asks again when it has its answer: on many connections, "
    "gets would wait mostly for each other. The longest get on 1 connection is the longest pause of the server. Memory "
    "is the proportional set size, of Redis with that of the child it forks."
)


@dataclass(frozen=True)
class Snapshot:
    load: Load
    seconds: float
    memory: Usage


@dataclass(frozen=True)
class Runs:
    """What one server did in one case, for each round."""

    alone: list[Load] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def during(self) -> list[Load]:
        return [each.load for each in self.snapshots]


@dataclass(frozen=True)
class Outcome:
    entries: int
    case: Case
    ours: Runs
    theirs: Runs


def measure(directory: Path, sizes: Iterable[int], rounds: int, seconds: float) -> list[Outcome]:
    return [outcome for size in sizes for outcome in _measure(size, directory, rounds, seconds)]


def _measure(size: int, directory: Path, rounds: int, seconds: float) -> list[Outcome]:
    with ExitStack() as stack:
        contenders = [_contender(kind, size, directory, stack) for kind in KINDS]
        return [_measure_case(size, case, contenders, rounds, seconds) for case in CASES]


def _contender(kind: Kind, size: int, directory: Path, stack: ExitStack) -> Contender:
    data = stack.enter_context(copy_of_filled(kind, size, directory))
    server = stack.enter_context(kind.start_on(data))
    requests = Path(stack.enter_context(TemporaryDirectory()))
    return Contender.of(server, kind.wire, senders(size)[:KEYS], requests)


def _measure_case(size: int, case: Case, contenders: Sequence[Contender], rounds: int, seconds: float) -> Outcome:
    outcome = Outcome(size, case, Runs(), Runs())
    for _ in range(rounds):
        for kind, contender, runs in zip(KINDS, contenders, (outcome.ours, outcome.theirs), strict=True):
            runs.alone.append(contender.run(case, seconds))
            runs.snapshots.append(_snapshot(kind, contender, case))
    return outcome


def _snapshot(kind: Kind, contender: Contender, case: Case) -> Snapshot:
    """The load begins just before the snapshot is asked for, and ends when it is written."""
    server = contender.server
    with connected(server, kind.wire) as connection:
        # Where nothing has changed since the last one, there is nothing to write.
        connection.set("changes.each.time@example.com", f"AT_{time.monotonic_ns()}")
    memory = Usage(server.pid)
    # Only where they set, for to look takes the server's time: sets are what makes a fork's pages private.
    watch = memory.look if case is SETS else None
    seconds: list[float] = []
    load = contender.run(case, SNAPSHOT_SECONDS, lambda: seconds.append(kind.snapshot(server, watch)))
    return Snapshot(load, seconds[0], memory)


def report(outcomes: list[Outcome]) -> str:
    return "\n\n".join([_latencies(outcomes), NOTE, _costs([each for each in outcomes if each.case is SETS])])


def _latencies(outcomes: Iterable[Outcome]) -> str:
    head = [
        "latency in ms: p50 / p99 / p99.9 / longest of all rounds",
        "statestored",
        "while it writes a snapshot",
        "Redis",
        "while it rewrites its AOF",
        "ratio of the longest while writing",
    ]
    return table(head, map(_latency_row, outcomes))


def _latency_row(outcome: Outcome) -> list[str]:
    columns = [loads for runs in (outcome.ours, outcome.theirs) for loads in (runs.alone, runs.during)]
    return [
        f"{outcome.entries:,} entries: {outcome.case}",
        *(f"{latency(loads)} / {_longest(loads) / 1000:.2f}" for loads in columns),
        f"{_longest(outcome.ours.during) / _longest(outcome.theirs.during):.2f}",
    ]


def _longest(loads: Iterable[Load]) -> int:
    return max(load.max_us for load in loads)


# What a row says of the snapshots that were written under SETS, in which form, and how it comes from the runs.
COSTS: tuple[tuple[str, str, Callable[[Runs], float]], ...] = (
    ("sets a second", ",.0f", lambda runs: median(load.rate for load in runs.alone)),
    ("sets a second while writing", ",.0f", lambda runs: median(load.rate for load in runs.during)),
    ("seconds to write it", ".2f", lambda runs: median(each.seconds for each in runs.snapshots)),
    ("memory before the first, MB", ",.0f", lambda runs: runs.snapshots[0].memory.first / 1e6),
    ("memory at most while writing, MB", ",.0f", lambda runs: max(each.memory.peak for each in runs.snapshots) / 1e6),
)


def _costs(outcomes: Iterable[Outcome]) -> str:
    head = [str(SETS), "statestored", "Redis", "ratio"]
    return table(head, (row for outcome in outcomes for row in _cost_rows(outcome)))


def _cost_rows(outcome: Outcome) -> Iterator[list[str]]:
    for name, form, cost in COSTS:
        ours, theirs = cost(outcome.ours), cost(outcome.theirs)
        yield [f"{outcome.entries:,} entries: {name}", f"{ours:{form}}", f"{theirs:{form}}", f"{ours / theirs:.2f}"]
