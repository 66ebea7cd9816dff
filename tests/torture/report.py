"""What was done and found, counted, and put on one screen."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field

from tests.daemon import Daemon
from tests.torture.model import Fault, History, Kind, Verdict

SHOWN = 20  # faults; where one key is lost, many others mostly are
WIDTH = 34


@dataclass
class Tally:
    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)  # by what the daemon was doing
    starts: int = 0
    slowest_start: float = 0.0
    snapshots_asked: int = 0
    snapshots: set[str] = field(default_factory=set)  # names of those that were found after kills
    acknowledged: Counter[str] = field(default_factory=Counter)  # calls, by method
    applied: int = 0  # of the calls without an answer
    not_applied: int = 0
    answers_read: int = 0  # of gets under load
    keys_read_back: int = 0

    def started(self, seconds: float) -> None:
        self.starts += 1
        self.slowest_start = max(self.slowest_start, seconds)

    def judged(self, history: History, verdict: Verdict, shown: Iterable[Sized], found: Sized) -> None:
        self.acknowledged.update(history.calls[place].method for place in history.answered)
        open_ = [place for place in range(len(history.calls)) if place not in history.answered]
        applied = sum(1 for place in open_ if place < verdict.applied)
        self.applied += applied
        self.not_applied += len(open_) - applied
        self.answers_read += sum(map(len, shown))
        self.keys_read_back += len(found)


def summary(tally: Tally, faults: Iterable[Fault], daemon: Daemon) -> Iterator[str]:
    """Lines."""
    yield _row("rounds", tally.rounds)
    for when, count in tally.kills.items():
        yield _row(f"kill -9 {when}", count)
    yield f"{'starts':{WIDTH}}{tally.starts:>12,}   the slowest took {tally.slowest_start:.2f} s"
    yield f"{'snapshots':{WIDTH}}{len(tally.snapshots):>12,}   {tally.snapshots_asked:,} were asked for"
    segments = [int(path.stem) for path in daemon.data_dir.glob("*.journal")]
    yield _row("segments of the journal", max(segments, default=0))
    yield _row("calls acknowledged", tally.acknowledged.total())
    for method, count in sorted(tally.acknowledged.items()):
        yield _row(f"  {method}", count)
    yield _row("unacknowledged, found applied", tally.applied)
    yield _row("unacknowledged, found not applied", tally.not_applied)
    yield _row("states shown by gets under load", tally.answers_read)
    yield _row("states read back after kills", tally.keys_read_back)
    kinds = Counter(fault.kind for fault in faults)
    for kind in Kind:
        yield _row(kind, kinds[kind])


def listing(faults: list[Fault]) -> Iterator[str]:
    yield from map(str, faults[:SHOWN])
    if len(faults) > SHOWN:
        yield f"... and {len(faults) - SHOWN} more"


def _row(name: str, count: int) -> str:
    return f"{name:{WIDTH}}{count:>12,}"
