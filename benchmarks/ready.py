"""From the start of the process to the first answered get, with many entries to load, from the page cache."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import load, prebuilt
from benchmarks.asking import connected
from benchmarks.filling import copy_of_filled, entries
from benchmarks.persistence import KINDS, Kind
from benchmarks.prebuilt import STATES, Entry, senders
from benchmarks.tables import table

CHANGED_SHARE = 0.1


@dataclass(frozen=True)
class Outcome:
    """Seconds, a figure from each round: ours[i] and theirs[i] are from one directly after the other."""

    what: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return median(our / their for our, their in zip(self.ours, self.theirs, strict=True))


def measure(directory: Path, sizes: Iterable[int], rounds: int) -> list[Outcome]:
    return [outcome for size in sizes for outcome in _measure(size, directory, rounds)]


def _measure(size: int, directory: Path, rounds: int) -> list[Outcome]:
    changed = int(size * CHANGED_SHARE)
    with ExitStack() as stack:
        data = [stack.enter_context(copy_of_filled(kind, size, directory)) for kind in KINDS]
        snapshot = _start_all(f"{size:,} entries, in a snapshot", data, next(entries(size)), rounds)
        for kind, path in zip(KINDS, data, strict=True):
            _change(kind, path, size, changed)
        then = f"{size:,} entries, in a snapshot; then {changed:,} of them changed"
        return [snapshot, _start_all(then, data, (senders(size)[0], STATES[0]), rounds)]


def _start_all(what: str, data: Iterable[Path], entry: Entry, rounds: int) -> Outcome:
    outcome = Outcome(what)
    for _ in range(rounds):
        for kind, path, seconds in zip(KINDS, data, (outcome.ours, outcome.theirs), strict=True):
            seconds.append(_start(kind, path, entry))
    return outcome


def _start(kind: Kind, data: Path, entry: Entry) -> float:
    with kind.start_on(data) as server, connected(server, kind.wire) as connection:
        connection.check(*entry)
        return time.perf_counter() - server.started


def _change(kind: Kind, data: Path, size: int, count: int) -> None:
    """One by one, as applications do; each is on the disk when it is answered, and then the server is killed."""
    with kind.start_on(data) as server, TemporaryDirectory() as temporary:
        requests = prebuilt.sets(kind.wire, senders(size)[:count], STATES[:1])
        file = prebuilt.write(Path(temporary, "set"), requests)
        load.run(server, kind.wire, file, connections=50, pipeline=16, count=count)


def report(outcomes: Iterable[Outcome]) -> str:
    head = ["seconds to the first answer", "statestored", "Redis", "ratio"]
    return table(head, map(_row, outcomes))


def _row(outcome: Outcome) -> list[str]:
    return [
        outcome.what,
        f"{median(outcome.ours):.2f}",
        f"{median(outcome.theirs):.2f}",
        f"{outcome.ratio:.2f}",
    ]
