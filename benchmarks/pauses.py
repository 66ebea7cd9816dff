"""The longest `get` on one connection, while others let the states grow, change, be saved and be forgotten.

Who asks one thing at a time sees each pause of the server, and little else: the others are few and pipeline little, so
that a turn of theirs is short. Where nothing else goes on, the longest `get` is the machine's own noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGKILL
from statistics import median
from tempfile import TemporaryDirectory

import statestore
from benchmarks import load, prebuilt
from benchmarks.filling import FILLED_STATES
from benchmarks.load import Load
from benchmarks.persistence import EVERY_SECOND, SNAPSHOT_SECONDS, STATESTORED
from benchmarks.prebuilt import KEYS, senders
from benchmarks.processes import Server
from benchmarks.tables import table

FILLING_SECONDS = 600.0  # at most
A_FILE = 500_000  # requests, which load.c has in memory
WRITERS, PIPELINE = 8, 16
NOTE = (
    f"With `--fsync everysec`. The others write on {WRITERS} connections, pipelined {PIPELINE}; in brackets, what they "
    "came to in a second. What the first row shows is the machine's and the generators' doing."
)


@dataclass(frozen=True)
class Outcome:
    """What one connection met while something went on, for each round; and what the others did meanwhile."""

    what: str
    gets: list[Load] = field(default_factory=list)
    others: list[Load] = field(default_factory=list)


def measure(directory: Path, size: int, rounds: int, seconds: float) -> list[Outcome]:
    with TemporaryDirectory(dir=directory) as temporary:
        requests = _Requests(Path(temporary), size)
        outcomes: dict[str, Outcome] = {}
        for _ in range(rounds):
            with _started(directory) as server:
                _round(server, requests, seconds, lambda what: outcomes.setdefault(what, Outcome(what)))
        return list(outcomes.values())


class _Requests:
    """The files of what is asked."""

    def __init__(self, directory: Path, size: int) -> None:
        wire, keys = STATESTORED.wire, senders(size)
        self.size = size
        self.gets = prebuilt.write(directory / "gets", prebuilt.gets(wire, keys[:KEYS]))
        self.sets = prebuilt.write(directory / "sets", prebuilt.sets(wire, keys[: 10 * KEYS]))
        self.fill: list[tuple[Path, int]] = []  # and how many are in it
        for start in range(0, size, A_FILE):
            part = prebuilt.sets(wire, keys[start : start + A_FILE], FILLED_STATES[:1])
            self.fill.append((prebuilt.write(directory / f"fill-{start}", part), len(part)))


@contextmanager
def _started(directory: Path) -> Iterator[Server]:
    flags = (*STATESTORED.journal(EVERY_SECOND), *STATESTORED.no_triggers, "--allow-clear")
    with TemporaryDirectory(dir=directory) as data, STATESTORED.start(flags, Path(data), SIGKILL) as server:
        yield server


def _round(server: Server, requests: _Requests, seconds: float, outcome: Callable[[str], Outcome]) -> None:
    def get_while(what: str, others: Callable[[], list[Load]]) -> None:
        found = outcome(what)
        gets = partial(load.run, server, STATESTORED.wire, requests.gets, connections=1, pipeline=1)
        found.gets.append(gets(seconds=FILLING_SECONDS, meanwhile=lambda: found.others.extend(others())))

    write = partial(load.run, server, STATESTORED.wire, connections=WRITERS, pipeline=PIPELINE)
    sets = partial(write, requests.sets)
    count = f"{requests.size:,} entries"
    get_while("nothing else", lambda: _wait(seconds))
    get_while(f"{count} come", lambda: [write(path, count=number) for path, number in requests.fill])
    get_while(f"sets, {count}", lambda: [sets(seconds=seconds)])
    get_while(
        f"sets, {count}, a snapshot is written",
        lambda: [sets(seconds=SNAPSHOT_SECONDS, meanwhile=lambda: STATESTORED.snapshot(server))],
    )
    get_while(f"{count} are cleared", lambda: _clear(server, seconds))


def _wait(seconds: float) -> list[Load]:
    time.sleep(seconds)
    return []


def _clear(server: Server, seconds: float) -> list[Load]:
    """And wait: the memory is freed little by little."""
    with statestore.RemoteStorage(server.address) as storage:
        storage.clear()
    return _wait(seconds)


def report(outcomes: list[Outcome]) -> str:
    head = ["get, 1 connection, latency in ms", "p50", "p99.9", "longest in each round", "longest"]
    return "\n\n".join([table(head, map(_row, outcomes)), NOTE])


def _row(outcome: Outcome) -> list[str]:
    rate = f" ({median(each.rate for each in outcome.others):,.0f})" if outcome.others else ""
    longest = [each.max_us / 1000 for each in outcome.gets]
    return [
        f"while {outcome.what}{rate}",
        f"{median(each.p50_us for each in outcome.gets) / 1000:.2f}",
        f"{median(each.p999_us for each in outcome.gets) / 1000:.2f}",
        " / ".join(f"{each:.2f}" for each in longest),
        f"{max(longest):.2f}",
    ]
