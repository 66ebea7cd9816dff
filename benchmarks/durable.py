"""Sets in statestored and in Redis, with the same promise of what a failing machine may lose."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.persistence import ALWAYS, EVERY_SECOND, KINDS, Kind
from benchmarks.side_by_side import Case, Contender, Outcome, latencies, measure_case, rates

CASES = (Case("set", connections=1), Case("set"), Case("set", pipeline=16))
TITLES = {
    ALWAYS: "What is answered is on the disk (`--fsync always`; Redis: `appendfsync always`):",
    EVERY_SECOND: "A second may be lost (`--fsync everysec`; Redis: `appendfsync everysec`):",
}


def measure(directory: Path, rounds: int, seconds: float) -> dict[str, list[Outcome]]:
    """For each way to sync. What triggers a snapshot or a rewrite of the AOF is as the servers come."""
    return {fsync: _measure(fsync, directory, rounds, seconds) for fsync in TITLES}


def _measure(fsync: str, directory: Path, rounds: int, seconds: float) -> list[Outcome]:
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(TemporaryDirectory(dir=directory)))
        ours, theirs = (_contender(kind, fsync, temporary, stack) for kind in KINDS)
        return [measure_case(case, ours, theirs, rounds, seconds) for case in CASES]


def _contender(kind: Kind, fsync: str, directory: Path, stack: ExitStack) -> Contender:
    data = directory / kind.name
    data.mkdir()
    return Contender.prepared(stack.enter_context(kind.start(kind.journal(fsync), data)), kind.wire, directory)


def report(outcomes: dict[str, list[Outcome]]) -> str:
    return "\n\n".join(
        paragraph
        for fsync, title in TITLES.items()
        for paragraph in (title, rates(outcomes[fsync]), latencies(outcomes[fsync]))
    )
