"""statestored and Redis, both without persistence."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import processes
from benchmarks.prebuilt import MESSAGEPACK, RESP
from benchmarks.side_by_side import Case, Contender, Outcome, latencies, measure_case, rates

CASES = (Case("get"), Case("set"), Case("get", pipeline=16), Case("set", pipeline=16))
WHOLE_CORE = 0.9


def measure(rounds: int, seconds: float) -> list[Outcome]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        ours = Contender.prepared(stack.enter_context(processes.statestored()), MESSAGEPACK, directory)
        theirs = Contender.prepared(stack.enter_context(processes.redis()), RESP, directory)
        return [measure_case(case, ours, theirs, rounds, seconds) for case in CASES]


def report(outcomes: list[Outcome]) -> str:
    return "\n\n".join([rates(outcomes), latencies(outcomes), *_doubts(outcomes)])


def _doubts(outcomes: list[Outcome]) -> list[str]:
    """Both servers have work all the time: one without a core of its own had to share it with something else."""
    doubtful = [str(each.case) for each in outcomes if each.least_cores < WHOLE_CORE]
    return (
        [f"No whole core for a server, for something else is running here: {'; '.join(doubtful)}."] if doubtful else []
    )
